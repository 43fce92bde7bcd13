# SPDX-License-Identifier: Apache-2.0
"""`vifprobe replay` of a long recording, on a machine that has nothing else to do."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vifprobe.model.reading import Counts, Limit, count
from vifprobe.replay.player import Replay
from vifprobe.replay.recording import opened
from vifprobe.testing.packets import frames as f
from vifprobe.testing.packets.recording import pcap_bytes

SYN = f.eth(f.ipv4(f.tcp(f.TcpFlag.SYN)), f.EtherType.IPV4)
START_NS = 1_613_692_801_000_000_007


@pytest.fixture
def million(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "million.pcap"
    with path.open("wb") as stream:
        stream.write(pcap_bytes([]))
        for part in range(100):
            packets = [(START_NS + 1000 * (10_000 * part + place), SYN) for place in range(10_000)]
            stream.write(pcap_bytes(packets)[24:])
    yield path
    path.unlink()


@pytest.mark.skipif(os.environ.get("VIFPROBE_TIMING") != "1", reason="times mean something on a quiet machine only")
def test_a_million_packets_take_less_than_30_seconds(million: Path) -> None:
    begun = time.monotonic()
    with opened(str(million)) as file, Replay(file, limit=Limit(declared_bps=10_000_000)) as replay:
        replay.run()
        reading = replay.reading()
    assert time.monotonic() - begun < 30
    assert count(reading.cells) == Counts(10**6, 54 * 10**6, 40 * 10**6, 84 * 10**6)
