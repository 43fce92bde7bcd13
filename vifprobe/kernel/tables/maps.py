# SPDX-License-Identifier: Apache-2.0
"""The maps that `bpf/*.c` declare, created in the kernel: read as numpy arrays, written one value at a time."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vifprobe.errors import KernelError
from vifprobe.kernel import libbpf
from vifprobe.kernel.tables.mapped import MappedArray
from vifprobe.kernel.toolchain.compiled import MapShape


class Tables:
    """All maps of one compilation.

    Raises KernelError where the kernel refuses a map; the others are freed then. fds: in the order of `shapes`, which
    is the order of the numbers in the compiled code.
    """

    def __init__(self, shapes: Sequence[MapShape]) -> None:
        self.fds: list[int] = []
        self._shapes = shapes
        try:
            for shape in shapes:
                sizes = (shape.key_bytes, shape.value_bytes, shape.entries)
                self.fds.append(libbpf.create_map(shape.name, shape.kind, *sizes, shape.flags))
        except OSError as error:
            self.close()
            raise KernelError(f"BPF map {shape.name} can't be created: {error.strerror}.") from error

    def rows(self, name: str, writable: bool = False) -> npt.NDArray[np.void]:
        """Return the values of a table, or of an array in the only value of a table: kernel memory, no copy."""
        place, member = self._find(name)
        rows = MappedArray(self.fds[place], self._leaf(place), self._shapes[place].entries, writable).rows
        return rows[member][0] if member else rows

    def fd(self, name: str) -> int:
        """Return the fd of a table."""
        return self.fds[self._find(name)[0]]

    def blank(self, name: str) -> npt.NDArray[np.void]:
        """Return a row of zeros to fill in for `write`; shape (1,)."""
        place, member = self._find(name)
        leaf = self._leaf(place)
        return np.zeros(1, leaf[member].base if member else leaf)

    def write(self, name: str, number: int, value: npt.NDArray[np.void]) -> None:
        """Replace a whole row; raises OSError where the kernel refuses it."""
        place, member = self._find(name)
        if member:
            self.rows(name, writable=True)[number] = value[0]
            return
        libbpf.update_map(self.fds[place], number.to_bytes(4, sys.byteorder), value.tobytes())

    def close(self) -> None:
        """Close the fds; harmless when called again."""
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()

    def _find(self, name: str) -> tuple[int, str]:
        """Return (index of the table, ""), or (index of the table that contains an array of this name, the name)."""
        names = [shape.name for shape in self._shapes]
        if name in names:
            return names.index(name), ""
        return next(place for place in range(len(names)) if name in (self._leaf(place).names or ())), name

    def _leaf(self, place: int) -> np.dtype[np.void]:
        return np.lib.format.descr_to_dtype(self._shapes[place].leaf)
