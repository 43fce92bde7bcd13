# SPDX-License-Identifier: Apache-2.0
"""One way of watching, as scripts/lab/bench.py measures it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

EXIT = bytes.fromhex("b700000000000000 9500000000000000")  # r0 = 0; exit


@dataclass
class Variant:
    """One way of watching, and the nanoseconds a packet that it added in each round."""

    name: str
    attached: Callable[[], AbstractContextManager[object]]
    own_programs: Callable[[], Iterable[int]] = tuple
    every: int = 1  # rounds
    added_ns: list[float] = field(default_factory=list)
    own_ns: float = math.nan
