# SPDX-License-Identifier: Apache-2.0
"""Times between packets, as a histogram over powers of two: bounded, and its quantiles carry both edges."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from vifprobe.analysis.flood.estimates import Spread
from vifprobe.model.flood import Estimate, Measure

Array = npt.NDArray[Any]

_BINS = 64  # bin k > 0 holds 2^(k-1) <= ns < 2^k; bin 0: 0 ns
#: Packets that come after less than this part of the mean gap are part of a burst: 12 % of those of a Poisson process,
#: none of an even one.
_BURST_PART = 1 / 8


class GapHistogram:
    """Weighted counts of the gaps before sampled packets."""

    def __init__(self) -> None:
        self._weights = np.zeros(_BINS)
        self._squares = self._largest = 0.0

    def add(self, gap_ns: Array, weights: Array) -> None:
        """Gaps below 0 are not known, and left out."""
        known = gap_ns >= 0
        bins = np.frexp(gap_ns[known].astype(np.float64))[1]
        self._weights += np.bincount(np.minimum(bins, _BINS - 1), weights[known], _BINS)
        drawn = weights[known & (weights > 1)].astype(np.float64)
        self._squares += float((drawn**2).sum())
        self._largest = max(self._largest, float(drawn.max(initial=0.0)))

    def measures(self, mean_ns: float | None) -> Iterator[tuple[str, Measure]]:
        """Quantiles, burstiness and the histogram itself. mean_ns: of the gaps of all packets, from exact counts."""
        total = float(self._weights.sum())
        spread = Spread(total, self._squares, self._largest)
        for name, part in (("gap_median", 0.5), ("gap_p99", 0.99)):
            found = self._quantile(part, spread.error_of(part)) if total else None
            yield f"{name}", Measure(found and found.value, "ns", found.error if found else 0)
        if total and mean_ns:
            edge = int(np.frexp(mean_ns * _BURST_PART)[1]) - 1
            yield "burstiness", _share(float(self._weights[: max(edge, 0) + 1].sum()), spread)
        for number in np.flatnonzero(self._weights):
            low, high = (0, 0) if number == 0 else (1 << int(number) - 1, (1 << int(number)) - 1)
            yield f"gap_{low}_to_{high}_ns", _share(float(self._weights[number]), spread)

    def _quantile(self, part: float, error: float) -> Estimate:
        """The middle between the edges that it lies between; the share of what lies below is off by `error` at most."""
        shares = np.cumsum(self._weights) / self._weights.sum()
        low = int(np.searchsorted(shares, max(part - error, 0), side="right"))
        high = min(int(np.searchsorted(shares, min(part + error, 1.0), side="left")), _BINS - 1)
        last = int(np.flatnonzero(self._weights)[-1])
        low, high = min(low, last), max(min(high, last), min(low, last))
        lower, upper = (0 if low == 0 else 1 << low - 1), (0 if high == 0 else (1 << high) - 1)
        return Estimate((lower + upper) / 2, (upper - lower) / 2)


def _share(weight: float, spread: Spread) -> Measure:
    value = weight / spread.weight
    return Measure(round(value, 9), "of 1", round(spread.error_of(min(value, 1.0)), 9))
