# SPDX-License-Identifier: Apache-2.0
"""When a foreign counter agrees with the probe, when it doesn't, and when that can't be told."""

from __future__ import annotations

import pytest

from vifprobe.analysis.reconcile import CounterSamples, ProbeCount, probe_count, reconcile
from vifprobe.model.layout import Direction


def samples(*values: int | None) -> CounterSamples:
    return CounterSamples("tap0", Direction.OUTBOUND, "device rx_packets", *values)


# Outer growth 113 - 7 = 106, inner growth 103 - 11 = 92.
BRACKET = samples(7, 11, 103, 113)


@pytest.mark.parametrize(
    ("count", "agrees"), [(91, False), (92, True), (93, True), (105, True), (106, True), (107, False), (0, False)]
)
def test_an_exact_count_agrees_within_the_bracket(count: int, agrees: bool) -> None:
    row = reconcile(BRACKET, probe_count(count))
    assert row.agrees is agrees
    assert (row.before, row.after, row.delta) == (7, 113, 106)
    assert row.vifprobe_low == row.vifprobe_high == count


@pytest.mark.parametrize(
    ("low", "high", "agrees"),
    [(92, 106, True), (91, 92, None), (106, 107, None), (1, 200, None), (1, 91, False), (107, 200, False)],
)
def test_an_inexact_count_agrees_only_if_all_of_it_does(low: int, high: int, agrees: bool | None) -> None:
    row = reconcile(BRACKET, ProbeCount(low, high))
    assert row.agrees is agrees
    assert (row.vifprobe_low, row.vifprobe_high) == (low, high)


def test_missed_and_undecided_packets_widen_the_count() -> None:
    assert probe_count(100, missed=3, undecided=2) == ProbeCount(100, 105)


def test_an_idle_counter_agrees_with_no_packets() -> None:
    assert reconcile(samples(7, 7, 7, 7), probe_count(0)).agrees is True
    assert reconcile(samples(7, 7, 7, 7), probe_count(1)).agrees is False


@pytest.mark.parametrize("values", [(7, 3, 5, 11), (7, 11, 5, 13), (7, 11, 17, 13), (7, None, 5, None)])
def test_a_counter_that_started_over_is_not_compared(values: tuple[int | None, ...]) -> None:
    row = reconcile(samples(*values), probe_count(5))
    assert (row.delta, row.agrees) == (None, None)
    assert row.before == 7


def test_a_counter_that_was_not_there_at_an_end_is_not_compared() -> None:
    for values in ((None, 3, 5, 7), (3, 5, 7, None), (None, None, None, None)):
        row = reconcile(samples(*values), probe_count(5))
        assert (row.delta, row.agrees) == (None, None)


def test_without_an_inner_sample_only_disagreement_can_be_told() -> None:
    assert reconcile(samples(7, None, 103, 113), probe_count(107)).agrees is False
    assert reconcile(samples(7, None, 103, 113), probe_count(106)).agrees is None


def test_without_a_count_of_the_probe_nothing_is_claimed() -> None:
    row = reconcile(BRACKET, None)
    assert (row.delta, row.vifprobe_low, row.vifprobe_high, row.agrees) == (106, None, None, None)


@pytest.mark.parametrize(("low", "high"), [(-1, 5), (7, 5)])
def test_an_impossible_count_is_refused(low: int, high: int) -> None:
    with pytest.raises(ValueError, match="a count between"):
        ProbeCount(low, high)
