# SPDX-License-Identifier: Apache-2.0
"""One CPU's part of a mapped ring: read without a lock while the kernel side writes to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def unread(ring: Array, taken: int, written: Callable[[], int]) -> tuple[Array, int, int]:
    """Return (copies of the unread records, number of overwritten ones, number of records ever written).

    - ring: one CPU's records.
    - taken: number of records that earlier calls have read or lost.
    - written: callback that returns the number of records written; the kernel side counts a record once it is whole.
    """
    head, size = written(), len(ring)
    oldest = max(taken, head - size)
    rows: Array = ring[np.arange(oldest, head) % size]
    # Records that the kernel side has overwritten since, or can be overwriting now, were not read whole.
    whole = min(max(taken, written() + 1 - size), head)
    return rows[max(0, whole - oldest) :], whole - taken, head
