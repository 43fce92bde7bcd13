# SPDX-License-Identifier: Apache-2.0
"""A ring is read while it is written to: each record whole and once, and what was written over is counted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vifprobe.kernel.tables.ring import unread

SIZE = 8


def ring_of(written: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Record number n holds n."""
    ring = np.full(SIZE, -1)
    for number in range(written):
        ring[number % SIZE] = number
    return ring


def told(*heads: int) -> Callable[[], int]:
    """What the kernel side has written: before the copy, and after it."""
    left = list(heads)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


@pytest.mark.parametrize(
    ("taken", "written", "records", "lost"),
    [
        (0, 0, [], 0),
        (0, 3, [0, 1, 2], 0),
        (3, 3, [], 0),
        # One place is never believed: the kernel side may be writing the next record into it.
        (0, SIZE - 1, list(range(SIZE - 1)), 0),
        (0, SIZE, list(range(1, SIZE)), 1),
        (5, SIZE + 5, list(range(6, SIZE + 5)), 1),
        (2, SIZE * 3, list(range(SIZE * 2 + 1, SIZE * 3)), SIZE * 2 - 1),
    ],
)
def test_what_came_since(taken: int, written: int, records: list[int], lost: int) -> None:
    rows, over, head = unread(ring_of(written), taken, told(written))
    assert (rows.tolist(), over, head) == (records, lost, written)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_what_is_written_over_while_it_is_copied_is_lost(taken: int, came: int, meanwhile: int) -> None:
    """The ring as it is when the copy has ended at the latest: no torn record is handed on, none is left uncounted."""
    head = taken + came
    rows, lost, up_to = unread(ring_of(head + meanwhile), taken, told(head, head + meanwhile))
    assert up_to == head
    assert lost + len(rows) == came
    assert rows.tolist() == list(range(head - len(rows), head))
