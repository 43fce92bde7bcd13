# SPDX-License-Identifier: Apache-2.0
"""How much of a folder is read at most: checked before anything is read or allocated; and the writer keeps to it."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from capture_kit import BIN_NS, FLOOD, OUT, TAPS, bins_like, manifest, reading
from mutate_kit import bounded, write_folder

from vifprobe.capture import bounds, codecs, source, writer
from vifprobe.capture.csvio import DROPS, HOST, TIMELINE, decode
from vifprobe.capture.manifest import FILES
from vifprobe.capture.reader import load
from vifprobe.capture.rows import EventRow, HostRow
from vifprobe.capture.writer import CaptureWriter, Totals
from vifprobe.errors import CaptureError
from vifprobe.model.layout import BIN, Verdict
from vifprobe.render.export import plots


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "c")


def list_samples(folder: Path, name: str) -> None:
    """Have the manifest list samples.pcapng, which is looked at only then."""
    if name == "samples.pcapng":
        content = json.loads((folder / "manifest.json").read_text())
        content["sha256"][name] = "0" * 64
        (folder / "manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize("size", [40 << 30, 4 << 40])
@pytest.mark.parametrize("name", FILES)
def test_a_sparse_file_is_refused_by_its_size(folder: Path, name: str, size: int) -> None:
    """40 GiB would be read whole, 4 TiB hashed for hours."""
    list_samples(folder, name)
    (folder / name).touch()
    os.truncate(folder / name, size)
    with bounded(10, 64), pytest.raises(CaptureError, match=rf"/c/{name}: {size} bytes long, and at most \d+ are read"):
        load(folder)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.mknod(path, 0o600 | stat.S_IFSOCK)])
@pytest.mark.parametrize("name", ["manifest.json", "timeline.csv", "samples.pcapng", "findings.json"])
def test_what_is_no_plain_file_is_not_opened(folder: Path, name: str, make: Callable[[Path], None]) -> None:
    list_samples(folder, name)
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    with bounded(10, 64), pytest.raises(CaptureError, match=rf"/c/{name}: not a regular file"):
        load(folder)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.write_bytes(b"")])
def test_a_folder_that_is_none_is_not_waited_for(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "c")
    with bounded(10, 64), pytest.raises(CaptureError, match="not a directory"):
        load(tmp_path / "c")


def test_a_file_that_grows_is_not_followed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "JSON_BYTES_MAX", 100)
    with pytest.raises(CaptureError, match=r"manifest\.json: \d+ bytes long, and at most 100 are read"):
        load(folder)


def test_rows_beyond_the_bound_are_refused_before_they_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "ROWS_MAX", 6)
    with pytest.raises(CaptureError, match=r"\.csv: \d+ lines\.\n.*At most 6 rows"):
        load(folder)


def test_a_line_without_end_and_columns_without_number() -> None:
    line = b"tap0,outbound,R,f,5,7\n"
    with pytest.raises(CaptureError, match=r"drops\.csv: line 3 is longer than 1048576 bytes"):
        decode(DROPS, DROPS.header() + line + b"," * (bounds.LINE_BYTES_MAX + 1) + b"\n")
    with bounded(10, 256), pytest.raises(CaptureError, match=r"drops\.csv: line 1 has 500001 columns"):
        decode(DROPS, b"," * 500_000 + b"\n")
    with pytest.raises(CaptureError, match=r"drops\.csv: line 2: field larger than field limit"):
        decode(DROPS, DROPS.header() + b'"' + b"x" * 200_000 + b'",outbound,R,f,5,7\n')


def test_a_line_of_many_is_named_wherever_it_is() -> None:
    """Lines are decoded some at a time."""
    line = b"tap0,outbound,R,f,5,7\n"
    many = bounds.LINE_BYTES_MAX // len(line) * 3
    assert len(decode(DROPS, DROPS.header() + line * many).rows) == many
    for bad, words in ((b"\xff", "is not UTF-8"), (b"x", "has 1 cells")):
        with pytest.raises(CaptureError, match=rf"drops\.csv: line {many + 2} {words}"):
            decode(DROPS, DROPS.header() + line * many + bad + b"\n" + line)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bin_ns": 0}, "bin_ns is 0"),
        ({"bin_ns": -1}, "bin_ns is -1"),
        ({"bin_ns": 2**64}, f"bin_ns is {2**64}"),
        ({"start_monotonic_ns": 2**63}, "start_monotonic_ns is"),
        ({"start": "0001-01-01T00:00:00+23:00"}, "Expected a year from 2 to 9998"),
        ({"end": "9999-12-31T23:59:59-23:00"}, "Expected a year from 2 to 9998"),
        ({"options": {"x": [[[[[]]]]]}}, ""),
        ({"options": {"x": json.loads("[" * 40 + "]" * 40)}}, "more than 32 levels of lists and objects"),
        ({"options": {"x": float("nan")}}, "not JSON: NaN"),
        ({"options": {"x": json.loads("[" * 900 + "]" * 900)}}, "more than 32 levels of lists and objects"),
        ({"taps": [{}] * 5000}, "5000 taps"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_numbers_of_the_manifest_have_bounds(folder: Path, change: dict[str, Any], words: str) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**content, **change}))
    if not words:
        load(folder)
        return
    with pytest.raises(CaptureError, match=words):
        load(folder)


def test_a_number_of_5000_digits_is_no_number(folder: Path) -> None:
    content = (folder / "manifest.json").read_text().replace('"bin_ns": ', '"bin_ns": ' + "9" * 5000)
    (folder / "manifest.json").write_text(content)
    with pytest.raises(CaptureError, match="not JSON: Exceeds the limit"):
        load(folder)


def test_sums_that_would_start_over_are_refused(tmp_path: Path) -> None:
    line = f"tap0,outbound,ipv4,tcp_syn,32,39,passed,,{2**62},7,7,7\n"
    with CaptureWriter(tmp_path / "c", manifest()) as made:
        made.checkpoint(Totals([reading()]))
    (tmp_path / "c/histogram.csv").write_text((tmp_path / "c/histogram.csv").read_text() + line * 3)
    with pytest.raises(CaptureError, match=r"histogram\.csv: all packets together are more than 2\^62"):
        load(tmp_path / "c")


def test_the_writer_keeps_to_what_a_reader_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beyond it is counted and said, and the totals are whole."""
    for module in (writer, source):
        monkeypatch.setattr(module, "ROWS_MAX", 5)
    monkeypatch.setattr(writer, "TIMELINE_ROWS_MAX", 20)
    event = EventRow(5, "tap0", "link", "down", None, "")
    with CaptureWriter(tmp_path / "c", manifest()) as made:
        made.add_events([event] * 3)
        made.add_events([event] * 3)
        made.add_events([event])
        for _ in range(3):
            made.add_bins(bins_like(FLOOD[:2], 0, made.manifest.start_monotonic_ns))
        made.finish(Totals([reading(), reading(TAPS[1], FLOOD[:0])]))
    monkeypatch.setattr(source, "ROWS_MAX", 2_000_000)
    capture = load(tmp_path / "c")
    assert capture.manifest.complete
    assert capture.manifest.left_out == {"events.csv": 4, "timeline.csv": 7}
    assert capture.events == (event,) * 3
    assert "events.csv: 4 rows left out: more than a reader takes; totals have them." in capture.warnings
    assert capture.reading("tap0").offered(OUT).packets > 0


def test_a_timeline_of_two_bins_far_apart_is_drawn_in_little_memory() -> None:
    import numpy as np

    ends = (0, bounds.SPAN_NS_MAX)
    bins = np.array([(0, OUT, Verdict.PASSED, at, 5, 300, 5) for at in ends], dtype=BIN)
    plots.timeline(bins, 0, 1)  # imports what it draws with
    with bounded(30, 256):
        assert plots.timeline(bins, 0, 1).startswith("<svg")
        assert plots.timeline(bins, 0, BIN_NS).startswith("<svg")


def test_host_rows_of_ever_new_times_and_scopes_are_drawn_in_little_memory() -> None:
    """One moment and one scope a row: a table of both would have asked for gigabytes."""
    rows = [HostRow(number, 10**9, f"scope{number}", "", None, None, None, 10**8) for number in range(20_000)]
    plots.host(rows[:3])
    with bounded(60, 256):
        svg = plots.host(rows)
    assert "the rest" in svg
    assert len(HOST.encode(rows)) < 1_000_000


def test_intervals_of_the_host_are_drawn_as_they_are() -> None:
    """Two scopes in intervals of one and two seconds: cores are CPU time by time."""
    rows = [HostRow(0, 10**9, "a", "", None, 0, 0, 5 * 10**8), HostRow(10**9, 2 * 10**9, "b", "", None, 0, 0, 10**9)]
    edges, cores = plots.cores(rows)
    assert edges == [0.0, 1.0, 3.0]
    assert {scope: used.tolist() for scope, used in cores.items()} == {"a": [0.5, 0.0], "b": [0.0, 0.5]}


def test_bounds_fit_together() -> None:
    """A time in a bin is a start and a moment: sums and differences of two such fit into 64 bits."""
    assert 2 * (2 * bounds.SPAN_NS_MAX) < 2**63
    assert 10 * codecs.TEXT_CHARACTERS_MAX < 131_072
    assert TIMELINE.columns[2] == "start_ns"
