# SPDX-License-Identifier: Apache-2.0
"""scripts/lab/bench_stats.py: intervals that hold what they say they hold."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

STATS = runpy.run_path(str(Path(__file__).parents[3] / "scripts" / "lab" / "bench_stats.py"))


def test_a_ratio_of_rounds_that_go_up_and_down_together_is_sure() -> None:
    """The same rounds are drawn for both."""
    floor = np.random.default_rng(3).normal(125, 20, 161)
    assert STATS["ratio_interval"](2 * floor, floor) == pytest.approx((2, 2, 2))


@pytest.mark.parametrize("others", [161, 40])
def test_an_interval_holds_the_ratio_19_times_in_20(others: int) -> None:
    random = np.random.default_rng(7)
    held = 0
    for _ in range(100):
        low, ratio, high = STATS["ratio_interval"](random.normal(240, 30, 161), random.normal(125, 20, others))
        assert low <= ratio <= high
        held += low <= 240 / 125 <= high
    assert 88 <= held <= 100


def test_a_median_lies_between_its_bounds() -> None:
    low, median, high = STATS["median_interval"]([float(number) for number in range(101)])
    assert (low, median, high) == (40, 50, 60)
