# SPDX-License-Identifier: Apache-2.0
"""A CPU's part of a mapped ring: read without a lock while the kernel side writes to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def unread(ring: Array, taken: int, written: Callable[[], int]) -> tuple[Array, int, int]:
    """(The records that came after the first `taken`, copied; how many were written over before that; how many there
    were, ever). written: how many the kernel side has written by now; it counts one once it is whole.
    """
    head, size = written(), len(ring)
    oldest = max(taken, head - size)
    rows: Array = ring[np.arange(oldest, head) % size]
    # What the kernel side has written over since, or may be writing over now, was not read whole.
    whole = min(max(taken, written() + 1 - size), head)
    return rows[max(0, whole - oldest) :], whole - taken, head
