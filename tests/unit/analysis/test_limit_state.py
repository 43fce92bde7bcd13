# SPDX-License-Identifier: Apache-2.0
"""The tolerance of a limit at its edges, and the states from reading to reading."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vifprobe.analysis import tolerance
from vifprobe.analysis.limit_state import WINDOW, Seen, limit_answer
from vifprobe.analysis.policer import SetUp
from vifprobe.model.layout import Direction
from vifprobe.model.limits import DeclaredLimit, Doubt, InstalledLimit, LimitState, Traffic

SECOND = 1_000_000_000
RATE, BURST = 100_000_000, 3_200_000
BOTH = pytest.mark.parametrize("direction", list(Direction))


def set_up(direction: Direction, **changes: object) -> SetUp:
    """A limit that is installed as it was declared, but for `changes` of the installed one."""
    installed = InstalledLimit(direction, "tc", "police", "there", "tap0", RATE, BURST)
    declared = DeclaredLimit(direction, "libvirt", "bandwidth", "tap0", RATE, BURST)
    return SetUp("tap0", (declared,), (replace(installed, **changes),))  # type: ignore[arg-type]


def seen(bits: int, packets: int = 1009, seconds: float = 1.0, policed: int = 13) -> Seen:
    return Seen(round(seconds * SECOND), packets + policed, policed, packets, bits)


MOST = round((RATE + 8 * BURST) * 1.02)


@BOTH
@pytest.mark.parametrize(("bits", "traffic"), [(MOST, Traffic.HOLDS), (MOST + 8, Traffic.EXCEEDS)])
def test_what_passes_at_the_edge_of_the_tolerance(direction: Direction, bits: int, traffic: Traffic) -> None:
    assert limit_answer(set_up(direction), direction, [seen(bits)]).traffic is traffic


@BOTH
@pytest.mark.parametrize(
    ("rate_bps", "state"),
    [
        (RATE, LimitState.THERE),
        (RATE + RATE // 100, LimitState.THERE),
        (RATE - RATE // 100, LimitState.THERE),
        (RATE + RATE // 100 + 8, LimitState.DIFFERS),
        (RATE - RATE // 100 - 8, LimitState.DIFFERS),
    ],
)
def test_a_rate_at_the_edge_of_the_tolerance(direction: Direction, rate_bps: int, state: LimitState) -> None:
    """A limit that is the same is not said to be broken when its own rate passes all the time."""
    as_set = set_up(direction, rate_bps=rate_bps)
    passes = [seen(rate_bps)] * WINDOW
    assert limit_answer(as_set, direction, passes).state is state
    assert limit_answer(as_set, direction, passes).traffic is Traffic.HOLDS


@BOTH
def test_a_burst_at_the_edge_of_the_tolerance(direction: Direction) -> None:
    most = BURST + round(BURST * 0.03) + 200
    assert limit_answer(set_up(direction, burst_bytes=most), direction).state is LimitState.THERE
    assert limit_answer(set_up(direction, burst_bytes=most + 1), direction).state is LimitState.DIFFERS


@BOTH
def test_packets_are_held_against_a_packet_limit(direction: Direction) -> None:
    """With its burst, where it has one; a limit in bits beside it is held against bits."""
    as_set = set_up(direction, rate_bps=None, rate_pps=1_000, burst_packets=500)
    as_set = replace(as_set, declared=(DeclaredLimit(direction, "ovs", "packet policing", "tap0", rate_pps=1_000),))
    assert limit_answer(as_set, direction, [seen(10**9, packets=1_531)]).traffic is Traffic.HOLDS
    assert limit_answer(as_set, direction, [seen(8, packets=1_532)]).state is LimitState.NOT_HELD
    no_burst = replace(as_set, enforced=(replace(as_set.enforced[0], burst_packets=None),))
    assert limit_answer(no_burst, direction, [seen(8, packets=1_021)]).state is LimitState.THERE
    assert limit_answer(no_burst, direction, [seen(8, packets=1_022)]).state is LimitState.NOT_HELD


@BOTH
def test_a_packet_limit_that_was_declared_is_compared_as_one(direction: Direction) -> None:
    """It has no rate in bits, and is declared all the same."""
    declared = DeclaredLimit(direction, "ovs", "packet policing", "tap0", rate_pps=7_000)
    as_set = replace(set_up(direction, rate_bps=None, rate_pps=7_000), declared=(declared,))
    assert limit_answer(as_set, direction).state is LimitState.THERE
    other = replace(as_set, enforced=(replace(as_set.enforced[0], rate_pps=6_000),))
    assert limit_answer(other, direction).state is LimitState.DIFFERS


@BOTH
def test_a_stricter_limit_of_some_packets_is_not_held_against_all(direction: Direction) -> None:
    as_set = set_up(direction)
    of_arp = replace(as_set.enforced[0], where="arp", protocol="arp", rate_bps=RATE // 100)
    both = SetUp("tap0", (), (*as_set.enforced, of_arp))
    assert limit_answer(both, direction, [seen(RATE)]).state is LimitState.UNDECLARED
    assert limit_answer(both, direction, [seen(MOST + 8)]).state is LimitState.NOT_HELD


@BOTH
def test_the_larger_of_two_bursts_that_are_the_same_counts(direction: Direction) -> None:
    """nft's burst is named without the unit of its rate that passes at once as well."""
    nft = set_up(direction, source="nft", kind="limit", burst_bytes=BURST, bucket_bytes=BURST + RATE // 8)
    allowed = round((2 * RATE + 8 * BURST) * 1.02)
    assert limit_answer(nft, direction, [seen(allowed)]).traffic is Traffic.HOLDS
    assert limit_answer(nft, direction, [seen(allowed + 8)]).traffic is Traffic.EXCEEDS


@BOTH
@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        ({"missed_packets": 1}, Doubt.MISSED),
        ({"decided_earlier": True}, Doubt.DECIDED_EARLIER),
        ({"unwatched": True}, Doubt.UNWATCHED),
    ],
)
@pytest.mark.parametrize("policed", [0, 13])
def test_no_limit_holds_beside_what_was_not_counted(
    direction: Direction, changes: dict[str, object], doubt: Doubt, policed: int
) -> None:
    doubtful = replace(seen(RATE, policed=policed), **changes)  # type: ignore[arg-type]
    found = limit_answer(set_up(direction), direction, [seen(RATE), doubtful])
    assert (found.state, found.traffic, found.doubt) == (LimitState.UNKNOWN, Traffic.UNKNOWN, doubt)
    # What is wrong stays so.
    wrong = set_up(direction, rate_bps=8 * RATE)
    assert limit_answer(wrong, direction, [seen(RATE), doubtful]).state is LimitState.DIFFERS
    too_much = replace(doubtful, passed_bits=MOST + 8)
    assert limit_answer(set_up(direction), direction, [too_much]).state is LimitState.NOT_HELD


def test_missed_packets_count_for_as_long_as_their_reading_is_looked_at() -> None:
    direction = Direction.INBOUND
    looked = [replace(seen(8), missed_packets=7), *[seen(8)] * (WINDOW - 1)]
    found = limit_answer(set_up(direction), direction, looked)
    assert (found.state, found.missed_packets) == (LimitState.UNKNOWN, 7)
    assert limit_answer(set_up(direction), direction, looked[1:]).state is LimitState.THERE


def test_one_tolerance() -> None:
    """What may pass above a limit is at least what two limits that are the same may differ by."""
    assert tolerance.ABOVE > tolerance.SAME_RATE
    assert tolerance.same_rate(RATE, RATE * (1 + tolerance.SAME_RATE))
    assert not tolerance.same_rate(1000, 1024)
    assert tolerance.same_burst(1000 * 1024, 1000 * 1000)
    assert tolerance.same_burst(None, 1) is None
