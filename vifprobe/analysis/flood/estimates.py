# SPDX-License-Identifier: Apache-2.0
"""Estimates from weighted samples, each with a bound that holds with CONFIDENCE.

Shares: the better one of two bounds that hold with half of the remaining probability d each. Hoeffding's inequality for
a sum of independent terms in [0, w_i] (W. Hoeffding, "Probability inequalities for sums of bounded random variables",
1963): off by more than sqrt(ln(4/d) / 2 * sum w_i^2) / sum w_i with probability d/2 at most. The empirical Bernstein
bound (J.-Y. Audibert, R. Munos, C. Szepesvari, "Exploration-exploitation tradeoff using variance estimates", 2009) is
close for shares near 0 and 1. A sample that stands for itself alone was not drawn, and adds nothing.

Entropies: McDiarmid's inequality: one of n draws changes the plug-in entropy of a sample by 2 log2(n) / n at most
(A. Antos, I. Kontoyiannis, "Convergence properties of functional estimates for discrete distributions", 2001).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vifprobe.model.flood import Estimate

Array = npt.NDArray[Any]

CONFIDENCE = 0.95
_DOUBT = 1 - CONFIDENCE
LOG_TERM = math.log(2 / _DOUBT)


class Spread(NamedTuple):
    """weight: sum of all weights. squares: sum of the squared weights of what was drawn; 0: nothing was left out.

    largest: weight of those. missing: share of the packets of which no sample came through.
    """

    weight: float
    squares: float
    largest: float = 0.0
    missing: float = 0.0

    def error_of(self, value: float) -> float:
        """Bound of the error of a share that was estimated as `value`, at most 1."""
        if not self.weight:
            return 1.0
        hoeffding = math.sqrt(math.log(4 / _DOUBT) / 2 * self.squares)
        term = math.log(6 / _DOUBT)
        bernstein = math.sqrt(2 * self.squares * value * (1 - value) * term) + 3 * self.largest * term
        return min(1.0, min(hoeffding, bernstein) / self.weight + self.missing)

    @property
    def is_exact(self) -> bool:
        """Return True if every packet is in the sample."""
        return self.weight > 0 and not self.squares and not self.missing


def share(hits: Array, weights: Array, spread: Spread) -> Estimate:
    """Share of the weight for which `hits` holds."""
    total = float(weights.sum())
    # What holds for all or for none is said as that, and not as what floating point makes of the sum.
    value = float(hits[0]) if len(hits) and (hits == hits[0]).all() else float(weights[hits].sum()) / max(total, 1.0)
    return Estimate(value, spread.error_of(value))


class Groups(NamedTuple):
    """Equal rows taken together: the first row of each group, the group of each row, and each group's weight."""

    first: Array
    of_row: Array
    weights: Array


def group(columns: tuple[Array, ...], weights: Array) -> Groups:
    """Rows that are equal in all columns. Several times faster than np.unique over a structured array."""
    if not len(weights):
        return Groups(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    order = np.lexsort(columns)
    changed = np.zeros(len(order), np.bool_)
    changed[0] = True
    for column in columns:
        changed[1:] |= np.diff(column[order]) != 0
    number = np.cumsum(changed) - 1
    of_row = np.empty(len(order), np.int64)
    of_row[order] = number
    return Groups(order[changed], of_row, np.bincount(of_row, weights))


def evenness(groups: Groups, weights: Array, spread: Spread) -> Estimate:
    """Normalised entropy of a sample: 0 where all its packets have one key, 1 where no two have the same.

    It says "of this sample": a distribution over more keys than the sample has packets looks all different, and is
    told from one over as many keys by the number of distinct keys alone.
    """
    total = float(weights.sum())
    if len(weights) < 2:
        return Estimate(0.0, 0.0 if spread.is_exact else 1.0)
    one = len(groups.weights) == 1
    value = 0.0 if one else min(1.0, _entropy(groups.weights / total) / _entropy(weights / total))
    if spread.is_exact:
        return Estimate(value)
    draws = spread.weight**2 / spread.squares if spread.squares else float(len(weights))
    return Estimate(value, min(1.0, math.sqrt(2 * LOG_TERM / draws) + spread.missing))


def _entropy(shares: Array) -> float:
    return float(-(shares * np.log2(shares)).sum())


def collisions(groups: Groups) -> Estimate:
    """Chance that two packets drawn at random have the same key: 1 / (effective number of keys).

    The unbiased estimate of the sum of squared shares (E. H. Simpson, 1949) from the number of rows in each group. Its
    bound is Chebyshev's with the estimate's own variance, 2 p / n^2 + 4 (sum p_i^3 - p^2) / n; where no key came twice,
    that of three expected pairs.
    """
    counts = np.bincount(groups.of_row).astype(np.float64)
    rows = float(counts.sum())
    if rows < 3:
        return Estimate(0.0, 1.0)
    pairs = max(float((counts * (counts - 1)).sum()), 0.0)
    value = pairs / (rows * (rows - 1))
    triples = float((counts * (counts - 1) * (counts - 2)).sum()) / (rows * (rows - 1) * (rows - 2))
    least = max(value, 6 / rows**2)
    variance = 2 * least / rows**2 + 4 * max(0.0, triples - value**2) / rows
    return Estimate(value, min(1.0, math.sqrt(variance / _DOUBT)))
