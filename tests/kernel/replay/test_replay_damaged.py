# SPDX-License-Identifier: Apache-2.0
"""Damaged recordings through the kernel's program: each packet that the reader finds is counted or missed, no more."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

from mutate_kit import bounded, damage_bytes, recordings

from vifprobe.errors import CaptureError
from vifprobe.kernel.features import missing_capabilities
from vifprobe.model.reading import Limit
from vifprobe.replay.player import Replay
from vifprobe.replay.recording import opened
from vifprobe.testing.packets import frames as f
from vifprobe.testing.packets.recording import pcap_bytes

SEED = int(os.environ.get("VIFPROBE_FUZZ_SEED", "11"))
#: Each loads programs of its own.
FILES = int(os.environ.get("VIFPROBE_FUZZ_REPLAYS", "12"))
GUEST = bytes.fromhex("fa163e010203")


def good_files() -> list[bytes]:
    """Recordings of both formats, and one whose frames have headers to be damaged."""
    frames = [f.eth(f.ipv4(f.tcp(flags)), f.EtherType.IPV4) for flags in f.TcpFlag]
    frames += [f.pad(frames[0]), f.eth(f.ipv4(f.tcp(f.TcpFlag.ACK, payload=bytes(997))), f.EtherType.IPV4)]
    return [*recordings(), pcap_bytes([(10**18 + number * 1009, frame) for number, frame in enumerate(frames * 5)])]


def test_every_packet_is_counted_or_missed(tmp_path: Path, require: Callable[[str, object, str], None]) -> None:
    missing = missing_capabilities()
    require("kernel", not missing, f"capabilities {', '.join(missing)}")
    rng, path, packets = random.Random(SEED), tmp_path / "x", 0
    good = good_files()
    for number in range(FILES):
        path.write_bytes(damage_bytes(good[number % len(good)], rng))
        macs = (GUEST,) if number % 2 else ()
        try:
            with (
                bounded(60, 1024),
                opened(str(path)) as file,
                Replay(file, guest_macs=macs, limit=Limit(declared_bps=8_000), bin_ns=10**7, samples=True) as replay,
            ):
                replay.run()
                reading = replay.reading()
        except CaptureError:
            continue  # no recording any more: it is said before anything is counted
        except Exception as error:
            raise AssertionError(f"seed {SEED}, file {number}: {error!r}") from error
        counted = int(reading.cells["packets"].sum())
        assert counted + (reading.missed or 0) == replay.notes.packets, (SEED, number)
        packets += counted
    assert packets > 10 * FILES // 2


def test_nothing_of_it_reaches_a_caller(tmp_path: Path) -> None:
    """A file that is damaged midway: what came before counts, and the problem is kept for the end."""
    frames = [f.eth(f.ipv4(f.tcp(f.TcpFlag.SYN)), f.EtherType.IPV4)] * 7
    content = bytearray(pcap_bytes([(10**18 + number, frame) for number, frame in enumerate(frames)]))
    at = 24 + 4 * (16 + len(frames[0])) + 8
    content[at : at + 4] = b"\xff\xff\xff\x7f"
    (tmp_path / "x").write_bytes(content)
    with opened(str(tmp_path / "x")) as file, Replay(file) as replay:
        replay.run()
        reading = replay.reading()
    assert int(reading.cells["packets"].sum()) == 4
    assert replay.problem is not None
    assert str(tmp_path / "x") in replay.problem.message
