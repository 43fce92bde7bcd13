# SPDX-License-Identifier: Apache-2.0
"""Packets counted by key (bpf/lib/count.c), as rows of layout.CELL: cells of all CPUs, overflow, single packets."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vifprobe.kernel.load import Programs
from vifprobe.model.layout import CELL, OVERFLOW_KEY_FIELDS, OVERFLOW_SHAPE, SIZE_UNKNOWN, cell_key, take_apart

#: Counters of a cell.
COUNTERS = ("packets", "frame_bytes", "charged_bytes", "wire_bytes")
#: Counters under a key as the kernel keeps it, see layout.CELL_KEY_FIELDS.
_KEYED = np.dtype([(name, np.uint64) for name in ("key", "drop_key", *COUNTERS)])

Array = npt.NDArray[Any]


class CellTable:
    """Cells of each tap and CPU, the lists of used cells, and the overflow counts of packets without a cell."""

    def __init__(self, programs: Programs) -> None:
        settings = programs.settings
        self._slots = settings.cells + settings.unsized_cells
        self._taps = settings.taps
        self._cells = programs.table("cells")
        self._used = programs.table("used_cells")
        self._overflow = programs.table("overflow").reshape(settings.overflow_parts, settings.taps, *OVERFLOW_SHAPE)
        self._counts = np.zeros(len(self._used), np.uint64)
        self._places = np.zeros(0, np.int64)

    def close(self) -> None:
        """Unmap the tables."""
        for table in ("_cells", "_used", "_overflow"):
            self.__dict__.pop(table, None)

    def read(self) -> Array:
        """Return the current counts in the kernel's form: a key can occur once for each CPU."""
        counts = self._used["count"].copy()
        if not np.array_equal(counts, self._counts):
            self._places, self._counts = self._places_of(counts.astype(np.int64)), counts
        cells = self._cells[self._places]  # whole cells: their counters belong together
        found = np.zeros(len(cells), _KEYED)
        for name in _KEYED.names or ():
            found[name] = cells[name]
        return np.concatenate([found, self._overflown()])

    def _places_of(self, used: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the positions of the used cells. used: number of used cells, by CPU and tap."""
        owners = np.repeat(np.arange(len(used)), used)
        number = np.arange(len(owners)) - np.repeat(np.cumsum(used) - used, used)
        places: npt.NDArray[np.int64] = owners * self._slots + self._used["places"][owners, number]
        return places

    def _overflown(self) -> Array:
        """Return the counts of packets that found no cell; size and drop reason are not kept."""
        parts = []
        for tap in np.flatnonzero(self._used["overflown"].reshape(-1, self._taps).any(axis=0)):
            own = self._overflow[:, tap]
            keys = np.argwhere(own["packets"].any(axis=0))
            rows = np.zeros(len(keys), _KEYED)
            fields = dict(zip(OVERFLOW_KEY_FIELDS, keys.T, strict=True))
            rows["key"] = cell_key(tap=np.full(len(keys), tap), size=np.full(len(keys), SIZE_UNKNOWN), **fields)
            for name in COUNTERS:
                rows[name] = own[name][(slice(None), *keys.T)].sum(axis=0)
            parts.append(rows)
        return np.concatenate(parts) if parts else np.zeros(0, _KEYED)


def single(packets: Array) -> Array:
    """Return single packets in the shape that `CellTable.read` returns."""
    rows = np.zeros(len(packets), _KEYED)
    rows["packets"] = 1
    for name in ("key", "drop_key", *COUNTERS[1:]):
        rows[name] = packets[name]
    return rows


def decoded(*parts: Array) -> Array:
    """Merge results of `CellTable.read` and `single` into rows of layout.CELL: every key once, ordered by tap."""
    raw = np.concatenate(parts)
    raw = raw[np.lexsort((raw["drop_key"], raw["key"]))]
    first = np.flatnonzero(np.append(True, (np.diff(raw["key"]) != 0) | (np.diff(raw["drop_key"]) != 0))[: len(raw)])
    rows = np.zeros(len(first), CELL)
    for name, values in take_apart(raw["key"][first]).items():
        rows[name] = values
    rows["reason"] = raw["drop_key"][first] >> np.uint64(32)
    rows["location"] = raw["drop_key"][first] & np.uint64(0xFFFFFFFF)
    if len(first):
        for name in COUNTERS:
            rows[name] = np.add.reduceat(raw[name], first)
    return rows
