# SPDX-License-Identifier: Apache-2.0
"""Counted cells and time bins <-> the rows of a capture's tables. Pure functions, no files.

Rows come in a total order (the columns from the left), so that two captures of the same thing differ only where their
numbers do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from vifprobe.capture.rows import DropRow, HistogramRow, HostRow, LostRow, TimelineRow
from vifprobe.model.host_cost import HostCost
from vifprobe.model.layout import (
    BIN,
    CELL,
    SIZE_UNKNOWN,
    Direction,
    Ethertype,
    Expected,
    PacketClass,
    Verdict,
    size_bucket,
    size_range_bytes,
)
from vifprobe.model.reading import Cells, merge, subtract
from vifprobe.model.reasons import reason_name

Bins = npt.NDArray[np.void]  # structured, dtype layout.BIN

#: The name of each tap number in a table; or one name, where all rows are that tap's.
TapNames = Mapping[int, str] | str

CELL_COUNTERS = ("packets", "frame_bytes", "charged_bytes", "wire_bytes")
BIN_COUNTERS = ("packets", "frame_bytes", "syn_packets")
_BIN_KEY = ["start_ns", *(name for name in BIN.names or () if name not in (*BIN_COUNTERS, "start_ns"))]


RowOfTap = TypeVar("RowOfTap", HistogramRow, LostRow, Any)


def no_bins() -> Bins:
    """An empty table of time bins."""
    return np.zeros(0, dtype=BIN)


def by_tap(rows: Iterable[RowOfTap]) -> dict[str, list[RowOfTap]]:
    """Rows by the name of their tap, each tap's in order."""
    found: dict[str, list[RowOfTap]] = defaultdict(list)
    for row in rows:
        found[row.tap].append(row)
    return found


def _name(taps: TapNames, number: int) -> str:
    return taps if isinstance(taps, str) else taps[number]


def without(cells: Cells, *fields: str) -> Cells:
    """The cells with these fields of their key (such as "location") at 0, and those that then are the same added up."""
    plain = cells.copy()
    for name in fields:
        plain[name] = 0
    return merge(plain)


def _kinds(cells: Cells, taps: TapNames, *without_fields: str) -> list[tuple[tuple[Any, ...], int, list[int]]]:
    """For each cell, in order: columns of a histogram row up to `expected`; reason; the four counters."""
    # With one name all cells are one tap's, whatever tap number they hold (in a Reading it means nothing).
    fields = (*without_fields, "tap") if isinstance(taps, str) else without_fields
    kinds = [
        (
            (
                _name(taps, tap),
                Direction(direction),
                Ethertype(ethertype),
                PacketClass(packet_class),
                *size_range_bytes(size),
                Verdict(verdict),
                Expected(expected),
            ),
            reason,
            counters,
        )
        for tap, direction, ethertype, packet_class, size, expected, verdict, reason, _, *counters in without(
            cells, *fields
        ).tolist()
    ]
    return sorted(kinds, key=_place)


def _place(kind: tuple[tuple[Any, ...], int, list[int]]) -> tuple[Any, ...]:
    """By the columns from the left. The upper edge follows from the lower one; what has no size comes last."""
    columns, *more = kind
    size_min_bytes = columns[4]
    return (*columns[:4], size_min_bytes is None, size_min_bytes or 0, *columns[6:], *more)


def histogram_rows(cells: Cells, taps: TapNames) -> list[HistogramRow]:
    """Rows of histogram.csv from cumulative cells (dtype layout.CELL). Raises KeyError for a tap without a name."""
    return [HistogramRow(*kind, *counters) for kind, _, counters in _kinds(cells, taps, "reason", "location")]


def lost_rows(cells: Cells, taps: TapNames, reasons: Mapping[int, str]) -> list[LostRow]:
    """Rows of lost.csv: the cells that have a drop reason. reasons: see drop_rows."""
    known = cells[cells["reason"] != 0]
    return [
        LostRow(*(*kind, reason, reason_name(reason, reasons), *counters))
        for kind, reason, counters in _kinds(known, taps, "location")
    ]


def has_known_bucket(row: HistogramRow | LostRow) -> bool:
    """Return True if the row's two edges are those of a size bucket of this version."""
    return size_range_bytes(_bucket(row)) == (row.size_min_bytes, row.size_max_bytes)


def _bucket(row: HistogramRow | LostRow) -> int:
    return SIZE_UNKNOWN if row.size_min_bytes is None else size_bucket(row.size_min_bytes)


def _cell(row: HistogramRow | LostRow, reason: int) -> tuple[int, ...]:
    size = _bucket(row)
    kind = (row.direction, row.ethertype, row.packet_class, size, row.expected, row.verdict)
    return (0, *kind, reason, 0, *row[-4:])


def cells_of(rows: Iterable[HistogramRow], lost: Iterable[LostRow] = ()) -> Cells:
    """The cells that rows of one tap came from, with the reasons that `lost` gives, without locations.

    Edges must be known (has_known_bucket). Raises ValueError where more is lost than the histogram has of that kind.
    """
    plain: Cells = merge(np.array([_cell(row, 0) for row in rows], dtype=CELL))
    named: Cells = merge(np.array([_cell(row, row.reason_code) for row in lost], dtype=CELL))
    cells = merge(subtract(plain, without(named, "reason")), named)
    if (cells["packets"] < 0).any():
        raise ValueError("more packets were lost than counted")
    return cells


def drop_rows(
    cells: Cells,
    taps: TapNames,
    reasons: Mapping[int, str],
    locate: Callable[[int], str | None] = lambda _: None,
) -> list[DropRow]:
    """Rows of drops.csv: what was policed or dropped, summed by reason and place.

    reasons: the running kernel's names of its drop reasons; a number that is not in it stays a number, 0 is unknown.
    locate: the name of the function around the low 32 bits of a kernel address, None where it is not known (the
    address is then written as ``0x…``). Addresses within one function add up to one row.
    """
    sums: dict[tuple[str, Direction, str, str], list[int]] = defaultdict(lambda: [0, 0])
    lost = np.isin(cells["verdict"], [Verdict.POLICED, Verdict.DROPPED])
    for cell in merge(cells[lost]):
        reason, location = int(cell["reason"]), int(cell["location"])
        place = (locate(location) or f"0x{location:08x}") if location else ""
        key = (
            _name(taps, int(cell["tap"])),
            Direction(cell["direction"]),
            reason_name(reason, reasons),
            place,
        )
        sums[key][0] += int(cell["packets"])
        sums[key][1] += int(cell["frame_bytes"])
    return sorted(DropRow(*key, *counts) for key, counts in sums.items())


def merge_bins(bins: Bins) -> Bins:
    """Each bin once, its counters summed, in time order."""
    keys, where = np.unique(bins[_BIN_KEY], return_inverse=True)
    merged = np.zeros(len(keys), dtype=BIN)
    for name in _BIN_KEY:
        merged[name] = keys[name]
    for name in BIN_COUNTERS:
        np.add.at(merged[name], where, bins[name])
    return merged


def timeline_rows(bins: Bins, taps: TapNames, run_start_ns: int, bin_ns: int) -> list[TimelineRow]:
    """Rows of timeline.csv from bins (dtype layout.BIN), in time order, each once; those of zero packets are left out.

    run_start_ns: monotonic clock at the capture's start. bin_ns: length of a bin.
    """
    return [
        TimelineRow(
            _name(taps, tap), Direction(direction), start_ns - run_start_ns, bin_ns, Verdict(verdict), packets, *sizes
        )
        for tap, direction, verdict, start_ns, packets, *sizes in merge_bins(bins).tolist()
        if packets
    ]


def bins_of(rows: Iterable[TimelineRow], tap_numbers: Mapping[str, int], run_start_ns: int) -> Bins:
    """The bins that rows came from, on the monotonic clock again; rows of the same bin added up, in time order."""
    table: Bins = np.array(
        [
            (
                tap_numbers[row.tap],
                row.direction,
                row.verdict,
                row.start_ns + run_start_ns,
                row.packets,
                row.frame_bytes,
                row.syn_packets,
            )
            for row in rows
        ],
        dtype=BIN,
    )
    return merge_bins(table)


def host_rows(cost: HostCost) -> list[HostRow]:
    """One interval of the host as rows of host.csv."""
    return [HostRow(cost.start_ns, cost.duration_ns, row.scope.value, row.name, row.pid, *row[3:]) for row in cost.rows]
