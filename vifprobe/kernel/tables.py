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
from vifprobe.kernel.compile import MapShape
from vifprobe.kernel.mapped import MappedArray


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
        """A table's values: the kernel's own memory, no copy."""
        place = self._place(name)
        return MappedArray(self.fds[place], self._leaf(place), self._shapes[place].entries, writable).rows

    def blank(self, name: str) -> npt.NDArray[np.void]:
        """A value to be filled in, for `write`; shape (1,)."""
        return np.zeros(1, self._leaf(self._place(name)))

    def write(self, name: str, number: int, value: npt.NDArray[np.void]) -> None:
        """Replace a value as a whole; OSError where the kernel refuses it."""
        libbpf.update_map(self.fds[self._place(name)], number.to_bytes(4, sys.byteorder), value.tobytes())

    def close(self) -> None:
        """Give the fds back; harmless when called again."""
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()

    def _place(self, name: str) -> int:
        return next(place for place, shape in enumerate(self._shapes) if shape.name == name)

    def _leaf(self, place: int) -> np.dtype[np.void]:
        return np.lib.format.descr_to_dtype(self._shapes[place].leaf)
