# SPDX-License-Identifier: Apache-2.0
"""32-bit counters that start over while they are watched, and what of them can be held against a probe."""

from __future__ import annotations

import pytest

from vifprobe.host import counters
from vifprobe.host.counters import CounterMeaning, CounterSample, Unit, unwrapped
from vifprobe.host.limits import Installed
from vifprobe.host.nft.state import NftState
from vifprobe.host.tc.reader import TcState
from vifprobe.host.tc.records import Stats, TcFilter, TcQdisc
from vifprobe.model.layout import Direction
from vifprobe.model.limits import InstalledLimit

TURN = 2**32


def drops(value: int, bits: int = 32) -> CounterSample:
    return CounterSample("tc police drops: x", Direction.OUTBOUND, CounterMeaning.POLICED, Unit.PACKETS, value, bits)


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (0, 977, 977),
        (977, 977, 977),
        (TURN - 3, 10_007, TURN + 10_007),  # went around
        (TURN - 1, TURN - 1, TURN - 1),
        (3 * TURN - 3, 5, 3 * TURN + 5),  # went around for the third time
        (2 * TURN + 5, 17, 2 * TURN + 17),
        (1_000_003, 17, 17),  # a new object: it fell, but not from the upper half
        (2 * TURN + 1_000_003, 17, 17),
    ],
)
def test_a_32_bit_counter_goes_on_growing(before: int, now: int, expected: int) -> None:
    (sample,) = unwrapped([drops(now)], [drops(before)])
    assert sample.value == expected


def test_a_64_bit_counter_that_fell_is_left_alone() -> None:
    assert unwrapped([drops(17, 64)], [drops(2**40, 64)]) == (drops(17, 64),)


def test_a_counter_that_was_not_there_before_is_taken_as_it_is() -> None:
    assert unwrapped([drops(977)], []) == (drops(977),)


def policer(where: str, count: int, **more: object) -> InstalledLimit:
    return InstalledLimit(Direction.OUTBOUND, "tc", "police", where, packets=count, bytes=7, drops=count, **more)  # type: ignore[arg-type]


def installed(*limits: InstalledLimit) -> Installed:
    qdisc = TcQdisc(5, "ingress", "ingress", "ffff:", "ingress", stats=Stats(1, 2, 3, 0))
    filters = tuple(
        TcFilter(5, "ingress", "ffff:", "u32", 49 + number, "all", f"80{number}::800") for number in range(len(limits))
    )
    return Installed(limits, TcState(5, (qdisc,), (), filters), NftState())


def policed(found: Installed) -> dict[str, int]:
    samples = tuple(counters._installed(found))
    samples += tuple(counters._total(found, samples))
    return {one.counter: one.value for one in samples if one.counts is CounterMeaning.POLICED}


def test_the_drops_of_the_only_policer_are_all_that_is_policed() -> None:
    assert policed(installed(policer("ingress a", 17))) == {"tc ingress drops": 3, "tc police drops: ingress a": 17}


def test_of_several_policers_only_the_sum_is() -> None:
    found = installed(policer("ingress a", 17), policer("ingress b", 19))
    assert policed(found) == {"tc ingress drops": 3, "policer drops": 36}


def test_of_a_policer_that_others_share_nothing_is() -> None:
    assert policed(installed(policer("ingress a", 17, shared=True))) == {"tc ingress drops": 3}
    found = installed(policer("ingress a", 17, shared=True), policer("ingress b", 19))
    assert policed(found) == {"tc ingress drops": 3}


def test_clsact_counts_both_directions_and_so_neither() -> None:
    found = installed(policer("ingress a", 17))
    clsact = TcQdisc(5, "ingress", "clsact", "ffff:", "ingress", stats=Stats(1, 2, 3, 0))
    names = [one.counter for one in counters._installed(Installed(found.limits, TcState(5, (clsact,)), NftState()))]
    assert not [name for name in names if name.startswith("tc ingress")]
