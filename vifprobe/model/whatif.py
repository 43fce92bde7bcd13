# SPDX-License-Identifier: Apache-2.0
"""What if: what other limits would have passed and stopped of the packets that were seen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vifprobe.model.layout import Bucket, Direction, PacketClass

WhatIfCounts = npt.NDArray[np.void]  # packets, frame_bytes: each (passed, stopped), by direction, limit and class


@dataclass(frozen=True)
class WhatIf:
    """A limit that is tried out. text: as the user wrote it, its name from then on."""

    text: str
    bucket: Bucket


class WhatIfRow(NamedTuple):
    """Packets of one class of a tap that one limit would have passed and stopped."""

    tap: str
    direction: Direction
    limit: str
    packet_class: PacketClass
    passed_packets: int
    passed_frame_bytes: int
    stopped_packets: int
    stopped_frame_bytes: int


class Share(NamedTuple):
    """Sums over some rows."""

    passed_packets: int = 0
    passed_frame_bytes: int = 0
    stopped_packets: int = 0
    stopped_frame_bytes: int = 0

    @property
    def packets(self) -> int:
        """All."""
        return self.passed_packets + self.stopped_packets

    @property
    def frame_bytes(self) -> int:
        """All."""
        return self.passed_frame_bytes + self.stopped_frame_bytes


def rows_of(counts: WhatIfCounts, before: WhatIfCounts | None, tap: str, limits: Sequence[WhatIf]) -> list[WhatIfRow]:
    """Rows of one tap from its cumulative counts (shape: direction, limit, class), less those of `before`.

    Classes that did not come are left out.
    """
    rows = []
    for direction, number, code in zip(*np.nonzero(counts["packets"].sum(axis=-1)), strict=True):
        cell = counts[direction, number, code]
        earlier = np.zeros((), counts.dtype) if before is None else before[direction, number, code]
        passed, stopped = (cell["packets"] - earlier["packets"]).tolist()
        passed_bytes, stopped_bytes = (cell["frame_bytes"] - earlier["frame_bytes"]).tolist()
        if passed + stopped:
            kind = (tap, Direction(int(direction)), limits[number].text, PacketClass(int(code)))
            rows.append(WhatIfRow(*kind, passed, passed_bytes, stopped, stopped_bytes))
    return rows


def total(rows: Iterable[WhatIfRow]) -> Share:
    """Sum of some rows."""
    parts = [row[4:] for row in rows]
    return Share(*map(sum, zip(*parts, strict=True))) if parts else Share()


def by_limit(rows: Iterable[WhatIfRow], direction: Direction) -> dict[str, list[WhatIfRow]]:
    """The rows of one direction, by limit, in the order in which the limits come."""
    found: dict[str, list[WhatIfRow]] = {}
    for row in rows:
        if row.direction is direction:
            found.setdefault(row.limit, []).append(row)
    return found
