# SPDX-License-Identifier: Apache-2.0
"""Counts of a device and of its hook, read at different times: what is missing for certain, and never more."""

from __future__ import annotations

import random
from dataclasses import replace

from vifprobe.analysis.ahead import SLACK_PACKETS, Ahead, Unseen
from vifprobe.analysis.findings.raised import findings
from vifprobe.analysis.findings.situation import Situation
from vifprobe.analysis.policer import SetUp
from vifprobe.model.layout import Direction
from vifprobe.model.reading import Finding

MS, SECOND = 1_000_000, 1_000_000_000
OUT, IN = Direction.OUTBOUND, Direction.INBOUND
AHEAD = Ahead(OUT, "tcx", 7, "drop_all", since_ns=SECOND, end_ns=None, held_by=("agent (pid 812)",))
SITUATION = Situation(SetUp("tap0"), now_ns=3 * SECOND, ahead=(AHEAD,))


def run(check: Unseen, seed: int, missing_share: float, from_ms: int = 0, first: int = 0) -> int:
    """Ten seconds of traffic with looks and snapshots at random times; packets that went by in them."""
    rng = random.Random(seed)
    arrived = unseen = first
    look: tuple[int, int, int] | None = None
    for ms in range(from_ms, from_ms + 10_000):
        burst = rng.randrange(10)
        arrived += burst
        unseen += sum(rng.random() < missing_share for _ in range(burst))
        at_ns = ms * MS
        if rng.random() < 0.01:
            look = (at_ns - rng.randrange(3) * MS // 3, at_ns, arrived)
        if rng.random() < 0.02 and look and check.is_wanted(look[1], at_ns):
            check.see(look, at_ns, at_ns + 1, arrived - unseen)
    return unseen


def test_nothing_is_missing_where_all_was_seen() -> None:
    for seed in range(20):
        check = Unseen()
        run(check, seed, 0)
        assert check.packets == 0


def test_never_more_than_went_by_and_nearly_all_of_it() -> None:
    for seed in range(20):
        check = Unseen()
        unseen = run(check, seed, 0.3)
        assert 0.8 * unseen < check.packets <= unseen


def test_a_few_are_on_their_way() -> None:
    check = Unseen()
    for second in range(100):
        at_ns = second * 1000 * MS
        check.see((at_ns, at_ns, SLACK_PACKETS * (second > 1)), at_ns + MS, at_ns + 2 * MS, 0)
    assert check.packets == 0
    at_ns = 200_000 * MS
    for later in range(2):
        check.see((at_ns, at_ns, SLACK_PACKETS + 1), at_ns + MS, at_ns + 2 * MS, 0)
        assert check.packets == (SLACK_PACKETS + 1 if later else 0)
        at_ns += 1000 * MS


def test_what_went_by_while_the_hook_was_not_watched_is_not_compared() -> None:
    check = Unseen()
    unseen = run(check, 1, 0.3)
    before = check.packets
    check.restart()
    run(check, 2, 0, from_ms=20_000, first=unseen + 50_021)
    assert check.packets == before


def p17(situation: Situation) -> Finding:
    (found,) = [one for one in findings(situation) if one.pattern == "P17"]
    return found


def test_programs_that_decide_first_are_a_warning_and_with_a_proof_critical() -> None:
    found = p17(SITUATION)
    assert (found.id, found.severity) == ("P17-outbound-tcx", "warning")
    words = "the tcx program drop_all (id 7) of agent (pid 812)"
    assert found.title == f"outbound packets may be decided before vifprobe sees them, by {words}"
    assert found.evidence["programs"] == [
        {"id": 7, "name": "drop_all", "mode": "", "held_by": ["agent (pid 812)"], "seconds": 2.0, "is_there": True}
    ]
    proved = p17(replace(SITUATION, unseen={OUT: 1_009}))
    assert (proved.severity, proved.evidence["unseen_packets"]) == ("critical", 1_009)
    assert "are decided before" in proved.title
    assert p17(replace(SITUATION, unseen={IN: 1_009})).severity == "warning"
    assert not [one for one in findings(replace(SITUATION, ahead=())) if one.pattern == "P17"]


def test_what_a_device_drops_proves_xdp_alone() -> None:
    dropped = replace(SITUATION, device_dropped={OUT: 1_009})
    assert p17(dropped).severity == "warning"
    assert p17(replace(dropped, ahead=(replace(AHEAD, hook="xdp", mode="native"),))).severity == "critical"


def test_a_few_of_many_are_named() -> None:
    many = tuple(replace(AHEAD, id=number) for number in range(1, 10))
    assert p17(replace(SITUATION, ahead=many)).title.endswith(" and 6 more")
    assert len(p17(replace(SITUATION, ahead=many)).evidence["programs"]) == 9
