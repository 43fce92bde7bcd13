# SPDX-License-Identifier: Apache-2.0
"""The maps that `bpf/*.c` declare, made in the kernel: read as numpy arrays, written a value at a time."""

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
    """All of one compilation's. fds: in the order in which the code knows them.

    KernelError where the kernel refuses one; nothing is left of the others then.
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
            raise KernelError(f"the kernel refuses the table {shape.name}: {error.strerror}.") from error

    def rows(self, name: str, writable: bool = False) -> npt.NDArray[np.void]:
        """A table's values, or an array in the only value of one: the kernel's own memory, no copy."""
        place, member = self._find(name)
        rows = MappedArray(self.fds[place], self._leaf(place), self._shapes[place].entries, writable).rows
        return rows[member][0] if member else rows

    def fd(self, name: str) -> int:
        """A table's."""
        return self.fds[self._find(name)[0]]

    def blank(self, name: str) -> npt.NDArray[np.void]:
        """A row to be filled in, for `write`; shape (1,)."""
        place, member = self._find(name)
        leaf = self._leaf(place)
        return np.zeros(1, leaf[member].base if member else leaf)

    def write(self, name: str, number: int, value: npt.NDArray[np.void]) -> None:
        """Replace a row as a whole; OSError where the kernel refuses it."""
        place, member = self._find(name)
        if member:
            self.rows(name, writable=True)[number] = value[0]
            return
        libbpf.update_map(self.fds[place], number.to_bytes(4, sys.byteorder), value.tobytes())

    def close(self) -> None:
        """Give the fds back; harmless when called again."""
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()

    def _find(self, name: str) -> tuple[int, str]:
        """A table's place; or the place of the one that has an array of this name in it, and that name."""
        names = [shape.name for shape in self._shapes]
        if name in names:
            return names.index(name), ""
        return next(place for place in range(len(names)) if name in (self._leaf(place).names or ())), name

    def _leaf(self, place: int) -> np.dtype[np.void]:
        return np.lib.format.descr_to_dtype(self._shapes[place].leaf)
