# SPDX-License-Identifier: Apache-2.0
"""Packets counted by key (bpf/count.c): all CPUs' cells, and single packets beside them, as rows of layout.CELL."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vifprobe.kernel.build import Programs
from vifprobe.layout import CELL, take_apart

#: What a cell counts.
COUNTERS = ("packets", "frame_bytes", "charged_bytes", "wire_bytes")

Array = npt.NDArray[Any]


class CellTable:
    """Each CPU's cells, and the list of those that it has taken."""

    def __init__(self, programs: Programs) -> None:
        self._per_cpu: int = programs.settings.cells_per_cpu
        self._cells = programs.table("cells")
        self._roster = programs.table("roster")

    def close(self) -> None:
        """Give the tables' memory back."""
        for table in ("_cells", "_roster"):
            self.__dict__.pop(table, None)

    def used(self, lanes: Array) -> Array:
        """The cells in use, all CPUs, as the kernel keeps them: a key comes once a CPU. lanes: one a CPU."""
        used = lanes["cells"]
        listed = [self._roster[cpu * self._per_cpu :][: used[cpu]] for cpu in range(len(used))]
        rows: Array = self._cells[np.concatenate(listed)]
        return rows


def as_cells(packets: Array, dtype: Any) -> Array:
    """Single packets in the shape of the kernel's cells."""
    cells = np.zeros(len(packets), dtype)
    cells["packets"] = 1
    for name in ("what", "why", *COUNTERS[1:]):
        cells[name] = packets[name]
    return cells


def decoded(raw: Array) -> Array:
    """Kernel cells of all CPUs -> rows of layout.CELL, every key once."""
    order = np.lexsort((raw["why"], raw["what"]))
    raw = raw[order]
    first = np.flatnonzero(np.append(True, (np.diff(raw["what"]) != 0) | (np.diff(raw["why"]) != 0))[: len(raw)])
    rows = np.zeros(len(first), CELL)
    for name, values in take_apart(raw["what"][first]).items():
        rows[name] = values
    rows["reason"] = raw["why"][first] >> np.uint64(32)
    rows["location"] = raw["why"][first] & np.uint64(0xFFFFFFFF)
    if len(first):
        for name in COUNTERS:
            rows[name] = np.add.reduceat(raw[name], first)
    return rows
