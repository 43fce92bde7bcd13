# SPDX-License-Identifier: Apache-2.0
"""Counted cells and time bins <-> the rows of a capture's tables. Pure functions, no files.

Rows come in a total order (the columns from the left), so that two captures of the same thing differ only where their
numbers do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import numpy.typing as npt

from vifprobe.analysis.reading import Cells, merge
from vifprobe.capture.rows import DropRow, HistogramRow, TimelineRow
from vifprobe.layout import (
    BIN,
    CELL,
    Direction,
    Ethertype,
    Expected,
    PacketClass,
    Verdict,
    size_bucket,
    size_range_bytes,
)

Bins = npt.NDArray[np.void]  # structured, dtype layout.BIN

#: The name of each tap number in a table; or one name, where all rows are that tap's.
TapNames = Mapping[int, str] | str

_BIN_COUNTERS = ("packets", "frame_bytes", "syn_packets")
_BIN_KEY = ["start_ns", *(name for name in BIN.names or () if name not in (*_BIN_COUNTERS, "start_ns"))]


def _name(taps: TapNames, number: int) -> str:
    return taps if isinstance(taps, str) else taps[number]


def without_reasons(cells: Cells, taps: TapNames | None = None) -> Cells:
    """The cells as histogram.csv can hold them: each kind of packet once, whatever dropped it and where.

    With one name in `taps`, all cells are one tap's, whatever tap number they hold (in a Reading it means nothing).
    """
    plain = cells.copy()
    if isinstance(taps, str):
        plain["tap"] = 0
    plain["reason"] = 0
    plain["location"] = 0
    return merge(plain)


def histogram_rows(cells: Cells, taps: TapNames) -> list[HistogramRow]:
    """Rows of histogram.csv from cumulative cells (dtype layout.CELL). Raises KeyError for a tap without a name."""
    rows = [
        HistogramRow(
            _name(taps, tap),
            Direction(direction),
            Ethertype(ethertype),
            PacketClass(packet_class),
            *size_range_bytes(size),
            Verdict(verdict),
            Expected(expected),
            *counters,
        )
        for tap, direction, ethertype, packet_class, size, expected, verdict, _, _, *counters in without_reasons(
            cells, taps
        ).tolist()
    ]
    # The upper edge follows from the lower one; as None it could not be compared.
    return sorted(rows, key=lambda row: (*row[:5], *row[6:]))


def has_known_bucket(row: HistogramRow) -> bool:
    """Whether the row's two edges are those of one of the size buckets of this version."""
    bucket = size_bucket(row.size_min_bytes)
    return size_range_bytes(bucket) == (row.size_min_bytes, row.size_max_bytes)


def cells_of(rows: Iterable[HistogramRow], tap_number: int = 0) -> Cells:
    """The cells that rows of one tap came from, without drop reasons. Edges must be known (has_known_bucket)."""
    table = [
        (
            tap_number,
            row.direction,
            row.ethertype,
            row.packet_class,
            size_bucket(row.size_min_bytes),
            row.expected,
            row.verdict,
            0,
            0,
            *row[-4:],
        )
        for row in rows
    ]
    return merge(np.array(table, dtype=CELL))


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
            reasons.get(reason, f"0x{reason:x}" if reason else ""),
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
    for name in _BIN_COUNTERS:
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
