# SPDX-License-Identifier: Apache-2.0
"""flood.csv and top.csv: a tap's SYN measures as rows, and back.

An estimate has a second row, its name with ``_error`` behind it and in the same unit: by how much the value can be off
(with analysis.flood.estimates.CONFIDENCE). What has none is exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from vifprobe.capture.rows import FloodRow, TopRow
from vifprobe.model.flood import Flood, Measure, Top
from vifprobe.model.layout import Direction

_ERROR = "_error"


def flood_rows(tap: str, floods: Mapping[Direction, Flood]) -> Iterator[FloodRow]:
    """Rows of flood.csv."""
    for direction, flood in floods.items():
        for name, found in flood.measures.items():
            yield FloodRow(tap, direction, name, found.value, found.unit)
            if found.error:
                yield FloodRow(tap, direction, name + _ERROR, found.error, found.unit)


def top_rows(tap: str, floods: Mapping[Direction, Flood]) -> Iterator[TopRow]:
    """Rows of top.csv."""
    for direction, flood in floods.items():
        for one in flood.top:
            yield TopRow(tap, direction, *one)


def floods_of(tap: str, rows: Iterable[FloodRow], top: Iterable[TopRow]) -> dict[Direction, Flood]:
    """Return the measures that the rows of one tap were made from. Rows of other taps are ignored."""
    measures: dict[Direction, dict[str, Measure]] = {}
    for row in rows:
        if row.tap != tap:
            continue
        own, of = measures.setdefault(row.direction, {}), row.measure.removesuffix(_ERROR)
        if of != row.measure and of in own:
            own[of] = own[of]._replace(error=row.value or 0)
        else:
            own[row.measure] = Measure(row.value, row.unit)
    tops: dict[Direction, list[Top]] = {}
    for line in top:
        if line.tap == tap:
            tops.setdefault(line.direction, []).append(Top(*line[2:6], line.error_max or 0))
    return {
        direction: Flood(measures.get(direction, {}), tuple(tops.get(direction, ())))
        for direction in Direction
        if direction in measures or direction in tops
    }
