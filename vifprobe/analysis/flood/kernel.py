# SPDX-License-Identifier: Apache-2.0
"""Measures from the kernel's SYN tables: HyperLogLog registers, ports seen, followed handshakes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from vifprobe.analysis.flood.estimates import LOG_TERM
from vifprobe.model.flood import Estimate, Measure
from vifprobe.model.layout import Direction
from vifprobe.model.records import Distinct, SynMeasures

Array = npt.NDArray[Any]
Named = Iterator[tuple[str, Measure]]

#: A handshake that began so short a time ago may still be completed: no round trip takes longer on a network that is
#: not broken. A bucket's edge (2^19 µs), so that it is exact.
YOUNG_NS = 1000 << 19
_YOUNG_BUCKETS = (YOUNG_NS // 1000).bit_length()

_DEVIATIONS = 1.96  # of a normal distribution, for estimates.CONFIDENCE


def distinct(registers: Array) -> Estimate:
    """Different keys that HyperLogLog registers have seen; the bound is 1.96 standard errors of 1.04 / sqrt(m).

    The estimator without bias correction tables of O. Ertl, "New cardinality estimation algorithms for HyperLogLog
    sketches" (2017), algorithm 6, for registers that never reach their end.
    """
    size = len(registers)
    ranks = np.bincount(registers)
    empty = int(ranks[0])
    if empty == size:
        return Estimate(0.0)
    sums = float((ranks[1:] * 0.5 ** np.arange(1, len(ranks))).sum()) + size * _sigma(empty / size)
    value = size * size / (2 * math.log(2) * sums)
    return Estimate(value, _DEVIATIONS * 1.04 / math.sqrt(size) * value)


def _sigma(x: float) -> float:
    """x + sum over k of x^(2^k) * 2^(k-1): what the empty registers stand for."""
    power, total, weight = x, x, 1.0
    while True:
        power *= power
        before, total = total, total + power * weight
        weight *= 2
        if total == before:
            return total


def distinct_measures(found: Distinct, tap: int, direction: Direction) -> Named:
    """Sources and destinations estimated, ports exact."""
    sets = found.sides.get((tap, direction))
    for name in ("sources", "destinations"):
        value = distinct(sets[name]) if sets is not None else Estimate(0.0)
        yield name, Measure(round(value.value), "different", round(value.error, 3))
    for name in ("source_ports", "destination_ports"):
        seen = int(np.unpackbits(sets[name]).sum(dtype=np.int64)) if sets is not None else 0
        yield name, Measure(seen, "different")


def handshake_measures(now: Array, before: Array | None, ages: Array, took: Array) -> Named:
    """now, before: rows of records.HANDSHAKES at the end and the beginning of a span. ages: buckets of those open then;
    took: of those completed in the span.
    """
    weight = 1 if now["followed"] == now["started"] else max(2, int(now["every"]))
    for name in ("started", "answered", "completed", "reset", "expired", "evicted"):
        counted = int(now[name]) - (int(before[name]) if before is not None else 0)
        yield f"handshakes_{name}", _estimated(max(0, counted), weight)
    yield "half_open", _estimated(int(now["open"]), weight)
    yield "half_open_young", _estimated(int(ages[:_YOUNG_BUCKETS].sum()), weight)
    yield from _quantiles("half_open_age", ages)
    yield from _quantiles("handshake_time", took)


def _quantiles(name: str, buckets: Array) -> Named:
    """Median and 99th percentile: the middle of the bucket that it is in, off by half of its width at most."""
    total = int(buckets.sum())
    for suffix, part in (("median", 0.5), ("p99", 0.99)):
        if not total:
            yield f"{name}_{suffix}", Measure(None, "ns")
            continue
        bucket = int(np.searchsorted(np.cumsum(buckets), part * total))
        lower, upper = (0 if bucket == 0 else 1000 << bucket - 1), 1000 << bucket
        yield f"{name}_{suffix}", Measure((lower + upper) / 2, "ns", (upper - lower) / 2)


def _estimated(counted: int, weight: int) -> Measure:
    """A sum in which each followed flow stands for up to `weight`: Bernstein's inequality, its variance estimated."""
    if weight == 1:
        return Measure(counted, "handshakes")
    return Measure(counted, "handshakes", math.ceil(math.sqrt(2 * weight * counted * LOG_TERM) + weight * LOG_TERM))


class KernelSide:
    """Of one tap: takes the kernel's measures as they come, and says what they are for an interval and for the run."""

    def __init__(self, tap: int) -> None:
        self._tap = tap
        self._before: Array | None = None
        self._took_before: Array | None = None

    def interval(self, found: SynMeasures) -> dict[Direction, dict[str, Measure]]:
        """Since the call before."""
        before, self._before = self._before, found.handshakes[self._tap].copy()
        took_before, self._took_before = self._took_before, found.completed_age[self._tap].copy()
        return {one: self._of(found.interval, found, one, before, took_before) for one in Direction}

    def is_silent(self, found: SynMeasures) -> bool:
        """Return True if the next interval would be the same: no SYN came, no handshake began, ended or is open."""
        now = found.handshakes[self._tap]
        if any((self._tap, direction) in found.interval.sides for direction in Direction) or now["open"].any():
            return False
        return self._before is not None and bool((now == self._before).all())

    def total(self, found: SynMeasures) -> dict[Direction, dict[str, Measure]]:
        """Since the start."""
        return {one: self._of(found.total, found, one, None, None) for one in Direction}

    def _of(
        self,
        distinct_of: Distinct,
        found: SynMeasures,
        direction: Direction,
        before: Array | None,
        took_before: Array | None,
    ) -> dict[str, Measure]:
        now, ages = found.handshakes[self._tap, direction], found.open_age[self._tap, direction]
        took = found.completed_age[self._tap, direction]
        if took_before is not None:
            took = np.maximum(took - took_before[direction], 0)
        return {
            **dict(distinct_measures(distinct_of, self._tap, direction)),
            **dict(handshake_measures(now, None if before is None else before[direction], ages, took)),
        }
