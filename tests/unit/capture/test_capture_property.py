# SPDX-License-Identifier: Apache-2.0
"""Whatever is written to a capture folder is read back: every file, with all signs, empties and extremes."""

from __future__ import annotations

import math
import tempfile
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from enum import IntEnum
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from capture_kit import OUT, TAPS, manifest, reading
from hypothesis import given, settings
from hypothesis import strategies as st

from vifprobe.analysis.reconcile import CounterSamples, probe_count, reconcile
from vifprobe.capture.bounds import SPAN_NS_MAX
from vifprobe.capture.codecs import TEXT_CHARACTERS_MAX
from vifprobe.capture.csvio import DROPS, RECONCILE, TABLES, Table, decode
from vifprobe.capture.findings import findings_from_json, findings_json
from vifprobe.capture.manifest import CoverageGap, Manifest, SampleCounts, TapEntry, from_json, to_json
from vifprobe.capture.reader import load
from vifprobe.capture.rows import DropRow
from vifprobe.capture.writer import CaptureWriter, Totals
from vifprobe.model.layout import SAMPLE, Direction, Verdict
from vifprobe.model.quantities import Change, Code, Foreign, Moment
from vifprobe.model.reading import Finding, Limit
from vifprobe.replay.recording import opened

SEED = settings(derandomize=True, max_examples=60)
#: What is known to break readers: signs, edges of 32, 53, 63 and 64 bits, and beyond.
EDGES = (0, 1, -1, -3, 2**31, 2**32 - 1, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 2**64 - 1, 8 * (2**64 - 1), 2**90)
TEXTS = ("", " ", "'", "''", ",", '"', '"a","b"', "a\nb", "\r\n", "=1+1", "-1", "@x", ";=1", "\\", "\\x41", "\x00")
HOSTILE = (*TEXTS, "\x1b]0;x\x07", "\u202e", "\u2028", "\ufeff", "\ud800", "\udcff\udcfe", "\U0001f600", "ä" * 300)

integers = st.one_of(st.sampled_from(EDGES), st.integers(-(2**64), 2**64))
texts = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=20))
floats = st.one_of(st.floats(), st.sampled_from((-0.0, 5.0, 1e22, 1.7976931348623157e308, 5e-324, math.nan, math.inf)))
plain = {
    str: texts,
    int: integers,
    Moment: integers,
    Foreign: integers,
    Change: integers,
    Code: integers,
    float: floats,
}


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a column's type, also such as its type does not allow."""
    if get_origin(hint) in (Union, types.UnionType):
        return st.one_of(*map(values, get_args(hint)))
    if hint is type(None):
        return st.none()
    if hint is bool:
        return st.booleans()
    if isinstance(hint, type) and issubclass(hint, IntEnum):
        return st.sampled_from(hint)
    return plain[hint]


def rows(table: Table[Any], count: int = 4) -> st.SearchStrategy[list[tuple[Any, ...]]]:
    """Some rows of a table."""
    hints = get_type_hints(table.row, include_extras=True)
    return st.lists(st.builds(table.row, *map(values, hints.values())), max_size=count)


def readable(table: Table[Any], row: tuple[Any, ...]) -> bool:
    """Whether the table takes the row at all."""
    try:
        return bool(table.encode([row]))
    except ValueError:
        return False


def finite(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """The row as it comes back: what is no number is unknown."""
    return tuple(None if isinstance(value, float) and not math.isfinite(value) else value for value in row)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.file)
def test_a_row_that_is_written_is_read_and_no_other_is_written(table: Table[Any]) -> None:
    @given(rows(table))
    @SEED
    def check(found: list[tuple[Any, ...]]) -> None:
        taken = [row for row in found if readable(table, row)]
        data = table.header() + table.encode(taken)
        assert [tuple(row) for row in decode(table, data).rows] == [finite(row) for row in taken]
        assert data.count(b"\n") == len(taken) + 1

    check()


@given(st.lists(st.one_of(st.none(), st.integers(0, 2**64 - 1)), min_size=4, max_size=4), st.booleans())
@SEED
def test_any_four_samples_of_a_counter_come_back(samples: list[int | None], gauge: bool) -> None:
    """A gauge's change can be negative, as a backlog that shrinks: 17, then 14."""
    one = reconcile(CounterSamples(TAPS[0], OUT, "backlog", *samples, gauge=gauge), probe_count(2**63 - 1, 2**64 - 1))
    two = reconcile(CounterSamples(TAPS[0], OUT, "backlog", 17, 17, 14, 14, gauge=True), probe_count(0))
    assert two.delta == -3
    assert decode(RECONCILE, RECONCILE.header() + RECONCILE.encode([one, two])).rows == (one, two)


@contextmanager
def folder() -> Iterator[Path]:
    """Where a capture can be written."""
    with tempfile.TemporaryDirectory() as parent:
        yield Path(parent) / "c"


#: Rows of all tables that come as rows, of names that the manifest has.
given_rows = st.fixed_dictionaries(
    {table.file: rows(table, 2) for table in TABLES if table.file in ("policer.csv", "reconcile.csv", "flood.csv")}
    | {table.file: rows(table, 2) for table in TABLES if table.file in ("top.csv", "host.csv", "events.csv")}
)


@given(given_rows)
@settings(derandomize=True, max_examples=25)
def test_a_folder_is_read_whatever_its_rows_hold(found: dict[str, list[Any]]) -> None:
    """Rows that no reader would take are left out; the folder says so, and keeps the rest."""
    tables = {table.file: table for table in TABLES}
    with folder() as path:
        with CaptureWriter(path, manifest()) as writer:
            writer.add_events(found["events.csv"])
            writer.add_host(found["host.csv"])
            written = writer.finish(
                Totals(
                    [reading()],
                    policer=found["policer.csv"],
                    reconcile=found["reconcile.csv"],
                    flood=found["flood.csv"],
                    top=found["top.csv"],
                )
            )
        capture = load(path)
    for file, given_ones in found.items():
        taken = [finite(row) for row in given_ones if readable(tables[file], row)]
        back = getattr(capture, file.removesuffix(".csv"))
        assert sorted(map(repr, map(tuple, back))) == sorted(map(repr, taken)), file
    whole = all(readable(tables[file], row) for file, given_ones in found.items() for row in given_ones)
    assert capture.manifest == written
    assert capture.manifest.complete is whole
    assert ("rows left out" in (capture.manifest.error or "")) is not whole


def test_a_row_that_can_not_be_read_is_left_out_and_said(tmp_path: Path) -> None:
    bad = DropRow(TAPS[0], OUT, "R", "f", -3, 7)
    with pytest.raises(ValueError, match="packets: -3 is not a whole number from 0"):
        DROPS.encode([bad])
    with CaptureWriter(tmp_path / "c", manifest()) as writer:
        negative = replace(reading(), cells=reading().cells.copy())
        negative.cells["packets"][0] *= -1
        writer.finish(Totals([negative]))
    assert "histogram.csv: rows left out, the first for its packets: -" in (load(tmp_path / "c").manifest.error or "")


moments = st.one_of(
    st.none(),
    st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31), timezones=st.just(timezone.utc)),
)


def whole(low: int, high: int) -> st.SearchStrategy[int]:
    """Whole numbers, the ends of their range and what is known to break readers first."""
    return st.one_of(
        st.sampled_from([edge for edge in (*EDGES, low, high) if low <= edge <= high]), st.integers(low, high)
    )


count = whole(0, 2**72 - 1)
instant, span = whole(-SPAN_NS_MAX, SPAN_NS_MAX), whole(0, SPAN_NS_MAX)
maybe, maybe_span = st.one_of(st.none(), count), st.one_of(st.none(), span)
json_values = st.recursive(st.one_of(st.none(), st.booleans(), integers, texts), st.lists, max_leaves=5)
directions = st.lists(st.sampled_from(Direction), unique=True).map(tuple)
taps = st.builds(
    TapEntry,
    name=texts,
    ifindex=whole(0, 2**32 - 1),
    domain=st.one_of(st.none(), texts),
    port=st.one_of(st.none(), texts),
    hooks=st.dictionaries(st.sampled_from(Direction), texts),
    verdicts=texts,
    missed=count,
    missed_in=st.dictionaries(st.sampled_from(Direction), count),
    missed_bytes=count,
    late_verdicts=count,
    recursion_misses=count,
    gone_ns=st.one_of(st.none(), instant),
    start_ns=instant,
    duration_ns=maybe_span,
    at=moments,
    limits=st.dictionaries(st.sampled_from(Direction), st.builds(Limit, maybe, maybe, maybe, maybe)),
    notes=st.lists(texts, max_size=3).map(tuple),
    directions=directions,
)
manifests = st.builds(
    Manifest,
    taps=st.lists(taps, max_size=3).map(tuple),
    start=moments.filter(bool),
    start_monotonic_ns=span,
    bin_ns=whole(1, SPAN_NS_MAX),
    host=texts,
    kernel_version=texts,
    options=st.dictionaries(texts, json_values, max_size=3),
    end=moments,
    end_monotonic_ns=maybe_span,
    gaps=st.lists(st.builds(CoverageGap, texts, instant, maybe_span, texts), max_size=2).map(tuple),
    samples=st.one_of(st.none(), st.builds(SampleCounts, count, count, count, count)),
    left_out=st.dictionaries(st.sampled_from(("host.csv", "timeline.csv")), whole(1, 2**72 - 1)),
    sha256=st.dictionaries(texts, texts, max_size=3),
    complete=st.booleans(),
    error=st.one_of(st.none(), texts),
)


@given(manifests)
@SEED
def test_any_manifest_comes_back(one: Manifest) -> None:
    data = to_json(one)
    assert from_json(data) == one
    assert data.isascii()


severities = st.sampled_from(("info", "warning", "critical"))
findings = st.builds(Finding, texts, texts, severities, texts, st.dictionaries(texts, json_values, max_size=3), texts)


@given(st.lists(st.tuples(texts, findings), max_size=3))
@SEED
def test_any_findings_come_back(found: list[tuple[str, Finding]]) -> None:
    assert findings_from_json(findings_json(found)) == found


@pytest.mark.parametrize("name", [*HOSTILE, "x" * 70_000], ids=lambda name: ascii(name[:20]))
def test_samples_of_any_name_are_read(name: str, tmp_path: Path) -> None:
    """A recording can be called by any bytes, and its name is that of the tap in its folder."""
    rows = np.zeros(3, SAMPLE)
    rows["header_bytes"], rows["frame_bytes"], rows["weight"], rows["verdict"] = 54, 60, 1, Verdict.DROPPED
    rows["reason"] = 7
    with CaptureWriter(tmp_path / "c", manifest(name)) as writer:
        writer.begin_samples(10, 10**9, {7: name})
        writer.add_samples(rows)
        writer.finish(Totals([]))
    assert load(tmp_path / "c").manifest.samples == SampleCounts(3, 3, 0, 0)
    with opened(str(tmp_path / "c/samples.pcapng")) as file:
        assert [length for _, _, _, length in file.packets()] == [60, 60, 60]


def test_a_long_text_is_cut_and_read() -> None:
    row = DropRow("t", OUT, "\x1b," * 100_000, "x" * TEXT_CHARACTERS_MAX, 5, 7)
    (back,) = decode(DROPS, DROPS.header() + DROPS.encode([row])).rows
    assert back.location == row.location
    assert back.reason == row.reason[: TEXT_CHARACTERS_MAX - 1] + "…"
