# SPDX-License-Identifier: Apache-2.0
"""Habits of a sender in header fields that a TCP stack chooses anew for each connection and a tool often does not.

A real stack: initial sequence numbers look random (RFC 9293, 3.4.1), a SYN offers an MSS (RFC 9293, 3.7.1: SHOULD, and
every stack in use does), source ports change (RFC 6056). Tools that write packets themselves leave options out, keep a
number, count it up, or take it from what they have at hand: Mirai's scanner uses the destination address as sequence
number, to know its answers again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vifprobe.analysis.flood.estimates import Spread, group, share
from vifprobe.analysis.flood.headers import option_letters
from vifprobe.model.flood import Estimate

Array = npt.NDArray[Any]

#: Share of SYNs that keep to a habit, by which it is called one.
_MOST = 0.9
#: Steps of a counter between two samples: so many for each packet that a sample stands for, and some for other traffic.
_STEPS_A_PACKET, _STEPS_BESIDE = 8, 64
#: Such steps prove nothing where they are more than this part of all values.
_TELLING_PART = 1 / 8
_ROWS_LEAST = 16
#: Different values for each sample, from which they are called random.
_MANY = 0.5


class Habit(NamedTuple):
    """word: `zero`, `constant`, `incrementing`, `destination`, `random`, or "" (none of them, or not known).

    share: of the SYNs that keep to it; for `random`, of those that don't have the most frequent value.
    """

    word: str
    share: Estimate


def sequence_habit(rows: Array, weights: Array, spread: Spread) -> Habit:
    """Of initial sequence numbers; `destination`: the (IPv4) destination address."""
    equal = (rows["version"] == 4) & (rows["sequence"] == rows["destination_low"].astype(np.uint32))
    found = share(equal, weights, spread)
    if found.value >= _MOST:
        return Habit("destination", found)
    return number_habit(rows["sequence"], 2**32, rows["at_ns"], weights, spread)


def number_habit(values: Array, modulus: int, at_ns: Array, weights: Array, spread: Spread) -> Habit:
    """Of one field of packets that came at these times."""
    if not len(values):
        return Habit("", Estimate(0.0, 1.0))
    groups = group((values,), weights)
    best = int(groups.weights.argmax())
    common = share(groups.of_row == best, weights, spread)
    if common.value >= _MOST:
        return Habit("constant" if values[groups.first[best]] else "zero", common)
    if len(values) < _ROWS_LEAST:
        return Habit("", Estimate(0.0, 1.0))
    counting = _incrementing(values, modulus, at_ns, weights)
    if counting is None:
        return Habit("", Estimate(0.0, 1.0))
    if counting >= _MOST:
        return Habit("incrementing", Estimate(counting, spread.error_of(counting)))
    different = len(groups.weights) / len(values)
    return Habit("random" if different > _MANY else "", Estimate(1.0 - common.value, common.error))


def _incrementing(values: Array, modulus: int, at_ns: Array, weights: Array) -> float | None:
    """Share of the samples that follow the one before by a small step up; None where steps prove nothing."""
    order = np.argsort(at_ns, kind="stable")
    steps = np.mod(np.diff(values[order].astype(np.int64)), modulus)
    bounds = _STEPS_A_PACKET * np.maximum(weights[order][1:], 1.0) + _STEPS_BESIDE
    telling = bounds <= modulus * _TELLING_PART
    if telling.sum() < _ROWS_LEAST - 1:
        return None
    return float(((steps > 0) & (steps <= bounds))[telling].mean())


def fingerprint_words(row: Any) -> str:
    """`IPv4 ttl 64 window 64240 mss 1460 options MSTNW`."""
    letters = option_letters(int(row["options"]))
    mss = f" mss {int(row['mss'])}" if row["mss"] >= 0 else ""
    options = f"options {letters}" if letters else "no options"
    return f"IPv{int(row['version'])} ttl {int(row['ttl'])} window {int(row['window'])}{mss} {options}"
