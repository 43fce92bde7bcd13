# SPDX-License-Identifier: Apache-2.0
"""`watch --csv FILE`: one row per interval, tap, direction, class and verdict. Cells are written as a capture's are."""

from __future__ import annotations

from datetime import timezone
from typing import NamedTuple

import numpy as np

from vifprobe.capture.csvio import Table
from vifprobe.model.layout import Direction, PacketClass, Verdict
from vifprobe.model.quantities import Change, Moment
from vifprobe.model.reading import Counts, Reading, count


class WatchRow(NamedTuple):
    """Packets of one class and fate in one interval; a verdict that is not known is an empty cell.

    `queued` is a gauge: what was in the queue at the interval's end. gone: the tap was deleted in this interval; where
    nothing was counted in it, a row of 0 packets without class and verdict says so.
    """

    at: str
    tap: str
    direction: Direction
    start_ns: Moment
    duration_ns: int
    packet_class: PacketClass | None
    verdict: Verdict
    packets: Change
    frame_bytes: Change
    charged_bytes: Change
    wire_bytes: Change
    gone: bool = False


WATCH = Table("watch.csv", WatchRow)


def csv_header() -> str:
    """The header line, with its line end; written once."""
    return WATCH.header().decode()


def csv_rows(reading: Reading) -> str:
    """The lines of one interval, with line ends; combinations that were not seen are left out.

    None for the totals of a run (`final`): they are the sum of what was written already.
    """
    return "" if reading.final else WATCH.encode(watch_rows(reading)).decode()


def watch_rows(reading: Reading) -> list[WatchRow]:
    """Return the rows that :func:`csv_rows` writes, in the order of direction, class and verdict."""
    at = reading.at.astimezone(timezone.utc).isoformat(timespec="microseconds")
    key = ["direction", "packet_class", "verdict"]
    rows = []
    seen = np.concatenate([reading.cells[reading.cells["verdict"] != Verdict.QUEUED], reading.queued])
    for direction, packet_class, verdict in np.unique(seen[key]).tolist():
        cells = seen[seen[key] == np.array((direction, packet_class, verdict), seen[key].dtype)]
        rows.append(
            WatchRow(
                at,
                reading.tap,
                Direction(direction),
                reading.start_ns,
                reading.duration_ns,
                PacketClass(packet_class),
                Verdict(verdict),
                *count(cells),
                reading.gone,
            )
        )
    if reading.gone and not rows:
        for one in reading.directions:
            key_and_time = (at, reading.tap, one, reading.start_ns, reading.duration_ns)
            rows.append(WatchRow(*key_and_time, None, Verdict.UNKNOWN, *Counts(), gone=True))
    return rows
