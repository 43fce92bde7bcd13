# SPDX-License-Identifier: Apache-2.0
"""`vifprobe capture` onto a disk that fills up while it runs: told at once, and the totals are there and exact."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from probe_kit import FIRST_CPU, OUT, SYN, Require, capturing

from vifprobe import load
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.traffic.flood import writer


@pytest.fixture
def disk(tmp_path: Path, require: Require) -> Iterator[Path]:
    """A tmpfs of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    require("kernel", subprocess.run(mount, check=False, capture_output=True).returncode == 0, "tmpfs")
    yield place
    subprocess.run(["umount", place], check=True)


def test_the_disk_fills_up_during_a_capture(tap: Tap, disk: Path, tmp_path: Path) -> None:
    """Exit code 1, the file and the space are named; what was offered up to the end is in the totals."""
    slow = writer([tap.fd], [SYN], count=10**6, seconds=30, cpu=FIRST_CPU, packets_per_second=5003)
    with capturing(disk, "--bin", "1ms") as capture, slow as flooding:
        (disk / "ballast").write_bytes(bytes(max(0, os.statvfs(disk).f_bavail * 4096 - 3 * 4096)))
        flooding.start()
        capture.ended(1, seconds=25)
        assert "no space left on device" in capture.told()
        assert "timeline.csv" in capture.told()
    found = load(disk / "capture")
    assert not found.manifest.complete
    rows = {row.counter: row for row in found.reconcile}
    offered = found.reading().offered(OUT).packets
    packets = rows["device rx_packets"]
    assert packets.agrees, packets
    assert packets.vifprobe_low == packets.vifprobe_high == offered > 0
    assert 0 < int(found.bins["packets"].sum()) < offered
