# SPDX-License-Identifier: Apache-2.0
"""Priority sampling: of any number of weighted rows so many that every share can be estimated, in bounded memory.

Each row gets the priority weight / u with u uniform in (0, 1]; the rows with the highest priorities stay, and each then
stands for max(weight, highest priority that was left out). Sums over any subset are unbiased, and while nothing had to
be left out they are exact. Source: N. Duffield, C. Lund, M. Thorup, "Priority sampling for estimation of arbitrary
subset sums", Journal of the ACM 54 (2007).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from vifprobe.analysis.flood.estimates import Spread
from vifprobe.analysis.flood.headers import join, pick

Array = npt.NDArray[Any]


#: Gives so many independent numbers, uniform in (0, 1].
Uniform = Callable[[int], Array]


def uniform(length: int) -> Array:
    """From the kernel's generator: numpy.random takes 7 MiB."""
    bits = np.frombuffer(os.urandom(8 * length), np.uint64) >> np.uint64(11)
    return np.asarray((bits + np.uint64(1)) * 2.0**-53)


class Reservoir:
    """At most `size` rows (1.9 MiB for 16,384 sampled packets).

    rows: structured, of one dtype with a field `weight`. random: for tests, one that is seeded.
    """

    def __init__(self, size: int, dtype: np.dtype[Any], random: Uniform = uniform) -> None:
        self._size = size
        self._random = random
        self.rows: Array = np.zeros(0, dtype)
        self._priorities = np.zeros(0)
        self._threshold = 0.0
        self._sampled_squares = self._largest = 0.0
        self.seen = 0

    def add(self, rows: Array) -> None:
        """Rows of packets, each with the number of packets that it stands for in `weight`."""
        if not len(rows):
            return
        weights = rows["weight"].astype(np.float64)
        self.seen += len(rows)
        drawn = weights[weights > 1]
        self._sampled_squares += float((drawn**2).sum())
        self._largest = max(self._largest, float(drawn.max(initial=0.0)))
        priorities = weights / self._random(len(rows))
        if self._threshold:
            above = priorities > self._threshold
            self._leave_out(priorities[~above])
            rows, priorities = pick(rows, above), priorities[above]
        self.rows = join(self.rows, rows)
        self._priorities = np.concatenate([self._priorities, priorities])
        if len(self.rows) > self._size:
            kept = np.argpartition(self._priorities, -self._size)[-self._size :]
            out = np.ones(len(self.rows), np.bool_)
            out[kept] = False
            self._leave_out(self._priorities[out])
            self.rows, self._priorities = self.rows.take(kept), self._priorities[kept]

    def _leave_out(self, priorities: Array) -> None:
        if len(priorities):
            self._threshold = max(self._threshold, float(priorities.max()))

    def weights(self) -> Array:
        """Return the number of packets that each of `rows` stands for."""
        return np.asarray(np.maximum(self.rows["weight"], self._threshold))

    def spread(self) -> Spread:
        """Spread of both stages of sampling, for error bounds of shares."""
        weights = self.weights()
        chosen = weights[weights > self.rows["weight"]]
        largest = max(self._largest, float(chosen.max(initial=0.0)))
        return Spread(float(weights.sum()), self._sampled_squares + float((chosen**2).sum()), largest)
