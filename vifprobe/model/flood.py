# SPDX-License-Identifier: Apache-2.0
"""Measures of the SYNs of one tap and direction: the model that screens, JSON, flood.csv and top.csv share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Estimate(NamedTuple):
    """A value and how far off it can be at most (with analysis.flood.estimates.CONFIDENCE); error 0: exact."""

    value: float
    error: float = 0.0

    @property
    def low(self) -> float:
        """At least so much."""
        return self.value - self.error

    @property
    def high(self) -> float:
        """At most so much."""
        return self.value + self.error


class Measure(NamedTuple):
    """One number. value: None where it is not known. error: how far off it can be (estimates.CONFIDENCE); 0: exact."""

    value: int | float | None
    unit: str
    error: int | float = 0


class Top(NamedTuple):
    """One of the most frequent keys of a kind. `packets` and `frame_bytes` are estimates where error_max is not 0.

    error_max: by how many packets `packets` can be off; so many of them may belong to other keys.
    """

    kind: str
    key: str
    packets: int
    frame_bytes: int
    error_max: int


@dataclass(frozen=True)
class Flood:
    """measures: by name, see docs/flood.md for each. top: by kind, the most frequent first."""

    measures: Mapping[str, Measure] = field(default_factory=dict)
    top: tuple[Top, ...] = ()

    def known(self, name: str) -> Estimate | None:
        """A measure with its bounds; None where it is not there or not known."""
        found = self.measures.get(name)
        return None if found is None or found.value is None else Estimate(found.value, found.error)

    def value(self, name: str) -> float | None:
        """A measure's value alone."""
        found = self.known(name)
        return None if found is None else found.value

    def low(self, name: str) -> float:
        """It is at least this; 0 where it is not known: what proofs are made of."""
        found = self.known(name)
        return 0.0 if found is None else found.low

    def high(self, name: str, unknown: float = float("inf")) -> float:
        """It is at most this; `unknown` where it is not known."""
        found = self.known(name)
        return unknown if found is None else found.high

    def leading(self, kind: str) -> Top | None:
        """The most frequent key of a kind."""
        return next((one for one in self.top if one.kind == kind), None)
