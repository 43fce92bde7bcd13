# SPDX-License-Identifier: Apache-2.0
"""The packet table: every row and corner of the class rules, once, for every way of showing frames to a probe."""

from __future__ import annotations

from collections import Counter
from itertools import chain

from vifprobe.testing.packets.case import Case, Gso, Run
from vifprobe.testing.packets.cases import gso, ipv4, ipv6, l2, sizes, tcp

__all__ = ["CASES", "Case", "Gso", "Run", "cases_for"]

CASES: tuple[Case, ...] = tuple(chain(l2.cases(), tcp.cases(), ipv4.cases(), ipv6.cases(), sizes.cases(), gso.cases()))

_twice = [name for name, times in Counter(case.name for case in CASES).items() if times > 1]
if _twice:
    raise ValueError(f"cases of the same name: {_twice}")


def cases_for(run: Run, *, gso: bool = True) -> tuple[Case, ...]:
    """The cases that get to a tc program that way; gso=False leaves out those that need a virtio-net header."""
    return tuple(case for case in CASES if case.runs(run) and (gso or case.gso is None))
