# SPDX-License-Identifier: Apache-2.0
"""P21: the conntrack table is nearly full, or full."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone

import numpy as np
import pytest

from vifprobe.analysis.findings.raised import findings
from vifprobe.analysis.findings.situation import ConntrackLoad, Situation
from vifprobe.analysis.policer import SetUp
from vifprobe.model.layout import CELL, Direction, Verdict
from vifprobe.model.reading import Finding, Reading

TABLE = ConntrackLoad(9_000, 10_000, 0)
SITUATION = Situation(SetUp("tap0"), conntrack=TABLE)


def p21(situation: Situation) -> list[Finding]:
    return [one for one in findings(situation) if one.pattern == "P21"]


def with_drops(situation: Situation, reason: str) -> Situation:
    cells = np.zeros(1, dtype=CELL)
    cells["verdict"], cells["packets"], cells["reason"] = Verdict.DROPPED, 101, 7
    at = datetime(2026, 12, 1, tzinfo=timezone.utc)
    return replace(situation, reading=Reading("tap0", at, 0, 10**9, cells), reasons={7: reason})


def test_from_nine_tenths_on() -> None:
    (found,) = p21(SITUATION)
    assert (found.severity, found.id) == ("warning", "P21-outbound")
    assert found.title == "the conntrack table is 90 % full: 9,000 of 10,000 connections"
    assert p21(replace(SITUATION, conntrack=replace(TABLE, entries=8_999))) == []
    assert p21(replace(SITUATION, conntrack=None)) == []


def test_once_for_a_tap() -> None:
    (found,) = p21(replace(SITUATION, directions=(Direction.INBOUND,)))
    assert found.id == "P21-inbound"


def test_full_where_the_kernel_drops_for_want_of_room() -> None:
    (found,) = p21(replace(SITUATION, conntrack=replace(TABLE, dropped_packets=13)))
    assert found.severity == "critical"
    assert found.evidence["dropped_packets"] == 13
    (found,) = p21(replace(SITUATION, conntrack=ConntrackLoad(7, 10_000, 13)))  # it was full a moment ago
    assert found.severity == "critical"


@pytest.mark.parametrize(
    ("table", "reason", "severity"),
    [
        (ConntrackLoad(10_000, 10_000, None), "NETFILTER_DROP", "critical"),
        (ConntrackLoad(9_999, 10_000, None), "NETFILTER_DROP", "warning"),
        (ConntrackLoad(10_000, 10_000, None), "FULL_RING", "warning"),
        (ConntrackLoad(10_000, 10_000, 0), "NETFILTER_DROP", "warning"),  # by a rule
    ],
)
def test_drops_of_netfilter_prove_it_only_if_the_kernel_does_not_count(
    table: ConntrackLoad, reason: str, severity: str
) -> None:
    (found,) = p21(with_drops(replace(SITUATION, conntrack=table), reason))
    assert found.severity == severity


def test_who_sends_the_most_syns_is_named() -> None:
    (found,) = p21(replace(SITUATION, conntrack=replace(TABLE, most_syns_by="tap7", most_syns_pps=1009.4)))
    assert (found.evidence["most_syns_by"], found.evidence["most_syns_pps"]) == ("tap7", 1009)
    assert "tap7 sends the most SYNs" in found.advice
    (found,) = p21(SITUATION)
    assert (found.evidence["most_syns_by"], found.evidence["most_syns_pps"]) == (None, None)
