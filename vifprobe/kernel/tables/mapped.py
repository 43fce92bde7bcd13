# SPDX-License-Identifier: Apache-2.0
"""A mapped array map as a numpy array."""

from __future__ import annotations

import mmap

import numpy as np
import numpy.typing as npt


class MappedArray:
    """The values of an array map made with BPF_F_MMAPABLE, in the kernel's own memory.

    - map_fd: of the map; not needed after the mapping is made.
    - leaf: dtype of a value.
    - entries: number of values.
    - writable: True where values are written, too.
    - rows: shape (entries,), dtype `leaf`. The mapping lives as long as `rows` or a view of it does.
    """

    def __init__(self, map_fd: int, leaf: np.dtype[np.void], entries: int, writable: bool = False) -> None:
        # Array maps round values up to 8 bytes: kernel/bpf/arraymap.c, array_map_alloc().
        stride = -(-leaf.itemsize // 8) * 8
        size = -(-stride * entries // mmap.PAGESIZE) * mmap.PAGESIZE
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        memory = mmap.mmap(map_fd, size, mmap.MAP_SHARED, access)
        self.rows: npt.NDArray[np.void] = np.ndarray((entries,), leaf, memory, strides=(stride,))
