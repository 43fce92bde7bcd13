# SPDX-License-Identifier: Apache-2.0
"""A capture onto a disk that fills up: a real file system of 1 MiB, not a pretended error."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest

from vifprobe.capture.manifest import TapEntry, begin
from vifprobe.capture.reader import load
from vifprobe.capture.tables import Bins
from vifprobe.capture.writer import CaptureWriter, Totals
from vifprobe.errors import CaptureError
from vifprobe.model.layout import BIN, CELL, SIZE_EDGES_BYTES, Verdict
from vifprobe.model.reading import Cells, Reading

Require = Callable[[str, object, str], None]
PACKETS = 7  # a bin
BIN_NS = 10_000_000


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest, require: Require) -> Iterator[Path]:
    """An empty tmpfs of 1 MiB, or of the size given by parameter."""
    require("kernel", os.geteuid() == 0, "mounting a tmpfs needs root")
    size = getattr(request, "param", "1m")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", tmp_path], capture_output=True, text=True, check=False
    )
    require("kernel", mounted.returncode == 0, f"tmpfs: {mounted.stderr}")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def bins(number: int, start_ns: int) -> Bins:
    table = np.zeros(101, dtype=BIN)
    table["start_ns"] = start_ns // BIN_NS * BIN_NS + (np.arange(101) + 101 * number) * BIN_NS
    table["verdict"] = Verdict.PASSED
    table["packets"] = PACKETS
    return table


def cells(rows: int) -> Cells:
    """As many different cells, 5 packets each."""
    table = np.zeros(rows, dtype=CELL)
    table["size"] = np.arange(rows) % len(SIZE_EDGES_BYTES)
    table["packet_class"] = np.arange(rows) // len(SIZE_EDGES_BYTES) % 15
    table["ethertype"] = np.arange(rows) // len(SIZE_EDGES_BYTES) // 15 % 5
    table["packets"] = 5
    return table


def totals(rows: int) -> Totals:
    return Totals([Reading("tap0", datetime.now(timezone.utc), 0, 10**9, cells(rows), final=True)])


def start(folder: Path) -> CaptureWriter:
    return CaptureWriter(folder, begin([TapEntry("tap0", 7)], BIN_NS))


def fill(writer: CaptureWriter) -> int:
    """Add bins until that fails; the number of them that were taken whole."""
    for number in range(1_000):
        writer.add_bins(bins(number, writer.manifest.start_monotonic_ns))
    raise AssertionError("the disk never filled")


def run_until_full(writer: CaptureWriter) -> CaptureError:
    with pytest.raises(CaptureError) as caught:
        fill(writer)
    return caught.value


def test_a_full_disk_is_told_with_path_space_and_what_was_kept(disk: Path) -> None:
    with start(disk / "c") as writer:
        error = run_until_full(writer)
    rows = (disk / "c/timeline.csv").read_bytes().count(b"\n") - 1
    assert rows > 1_000
    assert error.message == f"{disk}/c/timeline.csv: no space left on device."
    assert error.hints[0].startswith("Free there: 0 bytes")
    assert (
        error.hints[1]
        == f"Kept: {rows} rows of timeline.csv, 0 rows of events.csv; manifest.json says complete: false."
    )


def test_what_was_written_before_the_disk_was_full_is_readable(disk: Path) -> None:
    with start(disk / "c") as writer:
        run_until_full(writer)
    rows = (disk / "c/timeline.csv").read_bytes().count(b"\n") - 1
    capture = load(disk / "c")
    assert not capture.manifest.complete
    assert capture.manifest.error == f"{disk}/c/timeline.csv: no space left on device."
    assert int(capture.bins["packets"].sum()) == PACKETS * rows
    assert len(capture.bins) == rows


def test_totals_still_fit_after_the_timeline_has_filled_the_disk(disk: Path) -> None:
    with start(disk / "c") as writer:
        run_until_full(writer)
        manifest = writer.finish(totals(613))
    assert not manifest.complete
    capture = load(disk / "c")
    assert capture.manifest == manifest
    assert int(capture.reading("tap0").cells["packets"].sum()) == 5 * 613
    assert "no space left" in capture.warnings[0]


def test_after_a_failed_write_nothing_more_is_taken(disk: Path) -> None:
    """Or it would eat the space that was set aside for the totals."""
    with start(disk / "c") as writer:
        first = run_until_full(writer)
        with pytest.raises(CaptureError) as caught:
            writer.add_events([])
    assert caught.value.message == first.message


def test_a_disk_filled_by_someone_else_leaves_room_for_the_totals(disk: Path) -> None:
    with start(disk / "c") as writer:
        writer.add_bins(bins(0, writer.manifest.start_monotonic_ns))
        with pytest.raises(OSError, match="No space left"):
            (disk / "other").write_bytes(bytes(2 << 20))
        assert os.statvfs(disk).f_bavail == 0
        assert writer.finish(totals(613)).complete
    assert int(load(disk / "c").bins["packets"].sum()) == PACKETS * 101


def test_totals_beyond_the_reserve_fail_cleanly(disk: Path) -> None:
    with start(disk / "c") as writer:
        run_until_full(writer)
        writer.checkpoint(totals(11))
        (disk / "other").write_bytes(bytes(os.statvfs(disk).f_bavail * 4096 - 8192))
        with pytest.raises(CaptureError, match=r"histogram\.csv: no space left on device"):
            writer.finish(totals(3_001))
    capture = load(disk / "c")
    assert not capture.manifest.complete
    assert int(capture.reading("tap0").cells["packets"].sum()) == 5 * 11
    assert not [path for path in (disk / "c").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("disk", ["64k"], indirect=True)
def test_a_disk_too_small_to_begin_on_is_left_as_it_was(disk: Path) -> None:
    with pytest.raises(CaptureError, match="no space left on device"):
        start(disk / "c")
    assert list(disk.iterdir()) == []
    assert os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize == 64 * 1024
