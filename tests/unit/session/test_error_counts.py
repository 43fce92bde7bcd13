# SPDX-License-Identifier: Apache-2.0
"""What the programs know to have escaped them is told, and only then."""

from __future__ import annotations

from vifprobe.session.error_counts import ErrorCounts


def test_an_interval_is_what_was_added() -> None:
    assert ErrorCounts(101, 13, 7).since(ErrorCounts(60, 2, 7)) == ErrorCounts(41, 11, 0)


def test_nothing_is_said_where_nothing_escaped() -> None:
    assert ErrorCounts().notes() == []
    assert ErrorCounts(missed_bytes=60).notes() == []  # said with the missed packets


def test_each_is_said_with_what_it_means() -> None:
    late, kept = ErrorCounts(0, 1_009, 13).notes()
    assert late == "1,009 packets were dropped after they had been counted as passed"
    assert kept.startswith("the kernel did not run vifprobe's programs for 13 events (recursion_misses)")
