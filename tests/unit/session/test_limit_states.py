# SPDX-License-Identifier: Apache-2.0
"""The states of a tap's limits while it is watched: after a change, in silence, over several readings."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone

import numpy as np
import pytest

from vifprobe.analysis.limit_state import WINDOW
from vifprobe.analysis.policer import SetUp
from vifprobe.model.layout import CELL, Direction, Verdict
from vifprobe.model.limits import DeclaredLimit, Doubt, InstalledLimit, LimitState, Traffic
from vifprobe.model.reading import Reading
from vifprobe.session.audit.limit_states import LimitStates

OUT, IN = Direction.OUTBOUND, Direction.INBOUND
RATE, BURST = 8_000_000, 100_000
AT = datetime(2026, 11, 22, tzinfo=timezone.utc)


def limit(direction: Direction, rate_bps: int = RATE, where: str = "there") -> InstalledLimit:
    return InstalledLimit(direction, "tc", "police", where, "tap0", rate_bps, BURST)


def set_up(direction: Direction, *enforced: InstalledLimit) -> SetUp:
    return SetUp("tap0", (DeclaredLimit(direction, "user", "option", "tap0", RATE, BURST),), enforced)


def reading(direction: Direction, passed_bytes: int = 1_000_000, policed: int = 13, final: bool = False) -> Reading:
    cells = np.zeros(2, CELL)
    cells["direction"] = direction
    cells["verdict"] = Verdict.PASSED, Verdict.POLICED
    cells["packets"], cells["charged_bytes"] = (1009, policed), (passed_bytes, 100 * policed)
    return Reading("tap0", AT, 0, 1_000_000_000, cells, final=final, directions=(direction,))


@pytest.fixture(params=[OUT, IN])
def direction(request: pytest.FixtureRequest) -> Direction:
    found: Direction = request.param
    return found


def test_a_burst_may_pass_once_but_not_again_and_again(direction: Direction) -> None:
    states, as_set = LimitStates(), set_up(direction, limit(direction))
    found = [states.of(reading(direction, 1_090_000), as_set)[direction].traffic for _ in range(WINDOW)]
    assert found == [Traffic.HOLDS] + [Traffic.EXCEEDS] * (WINDOW - 1)


def test_packets_from_before_a_change_are_not_held_against_the_new_limit(direction: Direction) -> None:
    """Neither in the reading in which it came, nor in those after it, nor in the totals."""
    states, before, after = LimitStates(), limit(direction), limit(direction, RATE // 10)
    told = SetUp("tap0", (DeclaredLimit(direction, "user", "option", "tap0", RATE // 10, BURST),), (after,))
    for _ in range(WINDOW):
        assert states.of(reading(direction), set_up(direction, before))[direction].traffic is Traffic.HOLDS
    states.follow({direction: before}, {direction: after}, ())
    changed = states.of(reading(direction), told)[direction]
    assert (changed.state, changed.traffic, changed.doubt) == (LimitState.THERE, Traffic.UNKNOWN, Doubt.CHANGED)
    assert states.of(reading(direction, 100_000), told)[direction].traffic is Traffic.HOLDS
    total = states.of(reading(direction, 11_100_000, final=True), told)[direction]
    assert (total.state, total.traffic, total.doubt) == (LimitState.THERE, Traffic.UNKNOWN, Doubt.CHANGED)
    # And if it does not hold after the change, that is said.
    assert states.of(reading(direction), told)[direction].state is LimitState.NOT_HELD


def test_a_change_is_of_its_direction(direction: Direction) -> None:
    other = IN if direction is OUT else OUT
    states, as_set = LimitStates(), set_up(direction, limit(direction))
    states.follow({direction: limit(direction)}, {direction: limit(direction), other: limit(other)}, ())
    assert states.of(reading(direction), as_set)[direction].traffic is Traffic.HOLDS
    assert states.of(reading(direction, final=True), as_set)[direction].traffic is Traffic.HOLDS


def test_a_limit_that_was_away_is_not_said_to_have_held(direction: Direction) -> None:
    """Of the whole run, although the same one is back."""
    states, one = LimitStates(), limit(direction)
    states.follow({direction: one}, {direction: one}, [direction])
    assert states.of(reading(direction, final=True), set_up(direction, one))[direction].doubt is Doubt.CHANGED


def test_the_same_limit_made_anew_has_a_full_bucket(direction: Direction) -> None:
    """Its reading is not held against it, the totals are."""
    states, one = LimitStates(), limit(direction)
    again = replace(one, where="elsewhere on the tap")
    states.follow({direction: one}, {direction: again}, ())
    assert states.of(reading(direction), set_up(direction, again))[direction].doubt is Doubt.CHANGED
    assert states.of(reading(direction), set_up(direction, again))[direction].traffic is Traffic.HOLDS
    assert states.of(reading(direction, final=True), set_up(direction, again))[direction].traffic is Traffic.HOLDS


def test_a_silent_tap_is_settled_once_no_packet_is_looked_at_any_more(direction: Direction) -> None:
    """Until then the state of the next reading may be another one."""
    states, as_set = LimitStates(), set_up(direction, limit(direction))
    silent = replace(reading(direction), cells=np.zeros(0, CELL))
    assert states.is_settled
    states.of(reading(direction), as_set)
    for _ in range(WINDOW):
        assert not states.is_settled
        assert states.of(silent, as_set)[direction].traffic is Traffic.IDLE
    assert states.is_settled
    states.of(replace(silent, missed=3), as_set)
    assert not states.is_settled
    states = LimitStates()
    states.follow({}, {direction: limit(direction)}, ())
    assert not states.is_settled
