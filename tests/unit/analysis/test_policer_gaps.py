# SPDX-License-Identifier: Apache-2.0
"""Who took a limit away, when, after what, and what passed meanwhile: from events in their order."""

from __future__ import annotations

from typing import Any

from vifprobe.analysis.gaps import GapTracker, LimitEvent, LimitGap
from vifprobe.model.layout import Direction
from vifprobe.model.limits import InstalledLimit

OUT, IN = Direction.OUTBOUND, Direction.INBOUND
POLICE = InstalledLimit(OUT, "tc", "police", "ingress pref 49152 police 1", "tap0", 100_000_000, 3_200_000)
THERE: dict[Direction, InstalledLimit | None] = {OUT: POLICE, IN: None}
NOT_THERE: dict[Direction, InstalledLimit | None] = {OUT: None, IN: None}
MS = 1_000_000


def link(at_ms: float, detail: str = "mtu 1500 -> 1400") -> LimitEvent:
    return LimitEvent(round(at_ms * MS), "link", detail=detail)


def qdisc_del(at_ms: float, by: str = "ovs-vswitchd") -> LimitEvent:
    return LimitEvent(round(at_ms * MS), "qdisc_del", OUT, by, 4711, "ingress qdisc", "ingress")


def limit_new(at_ms: float, by: str = "libvirtd") -> LimitEvent:
    return LimitEvent(round(at_ms * MS), "limit_new", OUT, by)


def limit_del(at_ms: float) -> LimitEvent:
    return LimitEvent(round(at_ms * MS), "limit_del", OUT, "tc")


def follow(tracker: GapTracker, events: list[LimitEvent], limits: Any, now_ms: float, passed: int) -> bool:
    return tracker.follow(events, limits, round(now_ms * MS), {OUT: passed, IN: 0})


def one(tracker: GapTracker) -> LimitGap:
    (gap,) = tracker.gaps
    return gap


def test_a_removal_after_a_link_change() -> None:
    tracker = GapTracker(THERE)
    assert follow(tracker, [link(5), qdisc_del(5.8)], NOT_THERE, 6, 1009)
    tracker.progress({OUT: 8128, IN: 0})
    gap = one(tracker)
    assert gap.removal is not None
    assert gap.link_change is not None
    assert (gap.removal.by, gap.start_ns - gap.link_change.at_ns) == ("ovs-vswitchd", 800_000)
    assert (gap.passed_bytes, gap.end_ns, gap.limit) == (8128 - 1009, None, POLICE)


def test_the_link_change_may_come_in_an_earlier_batch_but_not_long_before() -> None:
    for before_ms, named in ((400, True), (1_400, False)):
        tracker = GapTracker(THERE)
        assert not follow(tracker, [link(2_000 - before_ms)], THERE, 1_000, 0)
        assert follow(tracker, [qdisc_del(2_000)], NOT_THERE, 2_001, 0)
        assert (one(tracker).link_change is not None) is named


def test_a_gap_ends_with_the_next_policer() -> None:
    tracker = GapTracker(THERE)
    follow(tracker, [qdisc_del(5)], NOT_THERE, 6, 1009)
    assert follow(tracker, [limit_new(705)], THERE, 706, 35_000)
    gap = one(tracker)
    assert (gap.duration_ns(10**12), gap.restored_by, gap.passed_bytes) == (700 * MS, "libvirtd", 33_991)
    tracker.progress({OUT: 99_999, IN: 0})
    assert one(tracker).passed_bytes == 33_991
    assert tracker.installs == []


def test_deleted_and_added_in_one_batch() -> None:
    tracker = GapTracker(THERE)
    assert follow(tracker, [qdisc_del(5, "neutron"), limit_new(8, "neutron")], THERE, 9, 1009)
    assert one(tracker).duration_ns(0) == 3 * MS


def test_what_is_there_again_before_it_is_told_of_is_a_gap_all_the_same() -> None:
    """A slow reader hears of the removal, looks, and sees what was added meanwhile."""
    tracker = GapTracker(THERE)
    assert follow(tracker, [qdisc_del(5, "neutron")], THERE, 1_205, 1009)
    assert one(tracker).end_ns is None
    assert follow(tracker, [limit_new(1_105, "neutron")], THERE, 1_210, 9_109)
    assert (one(tracker).duration_ns(0), one(tracker).restored_by) == (1_100 * MS, "neutron")
    assert tracker.installs == []
    assert not follow(tracker, [], THERE, 1_310, 9_109)
    # Nobody tells of it: then it ends when it is seen again.
    assert follow(tracker, [qdisc_del(2_000)], THERE, 2_100, 9_109)
    follow(tracker, [], THERE, 2_200, 9_109)
    assert tracker.gaps[1].duration_ns(0) == 200 * MS


def test_a_removal_that_is_told_of_after_it_was_seen() -> None:
    """The next look comes between the deletion and its message."""
    tracker = GapTracker(THERE)
    assert follow(tracker, [link(5)], NOT_THERE, 6, 1009)
    assert one(tracker).removal is None
    assert follow(tracker, [qdisc_del(6.7)], NOT_THERE, 7, 2_003)
    gap = one(tracker)
    assert gap.removal is not None
    assert gap.link_change is not None
    assert (gap.removal.by, gap.start_ns, gap.end_ns) == ("ovs-vswitchd", 6 * MS, None)
    # Long after it is another one's.
    silent = GapTracker(THERE)
    follow(silent, [], NOT_THERE, 6, 0)
    follow(silent, [qdisc_del(13_000)], NOT_THERE, 13_001, 0)
    assert one(silent).removal is None


def test_a_removal_whose_message_came_while_it_was_looked() -> None:
    """Its message had come before the look ended, and is read after it: Open vSwitch answers a link change at once."""
    tracker = GapTracker(THERE)
    assert follow(tracker, [link(5)], NOT_THERE, 9, 1009)
    assert follow(tracker, [qdisc_del(6.7)], NOT_THERE, 10, 2_003)
    gap = one(tracker)
    assert gap.removal is not None
    assert gap.link_change is not None
    assert (gap.removal.by, gap.start_ns, gap.end_ns) == ("ovs-vswitchd", 6_700_000, None)
    assert not follow(tracker, [], NOT_THERE, 11, 2_003)


def test_an_nft_limit_is_left_when_a_qdisc_goes() -> None:
    nft = InstalledLimit(OUT, "nft", "limit", "nft netdev t c handle 3", "tap0", 200_000_000)
    tracker = GapTracker(THERE)
    assert follow(tracker, [qdisc_del(5)], {OUT: nft, IN: None}, 6, 1009)
    assert tracker.gaps == []


def test_one_filter_of_several_is_no_gap() -> None:
    tracker = GapTracker(THERE)
    assert not follow(tracker, [limit_del(5)], THERE, 6, 0)
    assert tracker.gaps == []


def test_the_last_filter_is() -> None:
    tracker = GapTracker(THERE)
    assert follow(tracker, [limit_del(5)], NOT_THERE, 6, 0)
    assert one(tracker).start_ns == 5 * MS


def test_an_nft_limit_goes_without_an_event() -> None:
    tracker = GapTracker(THERE)
    assert follow(tracker, [], NOT_THERE, 6, 0)
    gap = one(tracker)
    assert (gap.removal, gap.start_ns) == (None, 6 * MS)
    assert follow(tracker, [], THERE, 9, 0)
    assert one(tracker).end_ns == 9 * MS


def test_a_limit_where_there_was_none_is_no_gap() -> None:
    tracker = GapTracker(NOT_THERE)
    assert follow(tracker, [limit_new(5)], THERE, 6, 0)
    assert (tracker.gaps, tracker.installs) == ([], [(OUT, 5 * MS)])


def test_a_second_removal_has_a_number_of_its_own() -> None:
    tracker = GapTracker(THERE)
    follow(tracker, [qdisc_del(5)], NOT_THERE, 6, 0)
    follow(tracker, [limit_new(7)], THERE, 8, 0)
    follow(tracker, [qdisc_del(9)], NOT_THERE, 10, 0)
    assert [gap.number for gap in tracker.gaps] == [1, 2]


def test_a_changed_rate_is_a_change_and_counters_are_none() -> None:
    tracker = GapTracker(THERE)
    counted = InstalledLimit(**{**vars(POLICE), "bytes": 104_729})
    assert not follow(tracker, [], {OUT: counted, IN: None}, 6, 0)
    faster = InstalledLimit(**{**vars(POLICE), "rate_bps": 200_000_000})
    assert follow(tracker, [limit_new(7)], {OUT: faster, IN: None}, 8, 0)
    assert tracker.gaps == []


def test_without_counts_nothing_is_made_up() -> None:
    tracker = GapTracker(THERE)
    tracker.follow([qdisc_del(5)], NOT_THERE, 6 * MS, {})
    assert one(tracker).passed_bytes is None
    assert not one(tracker).exceeded(10**12)


def test_a_filter_that_is_announced_without_its_settings_counts_if_a_limit_is_found() -> None:
    """Open vSwitch deletes and adds its matchall within milliseconds: all of it is told at once."""
    told = [qdisc_del(10), LimitEvent(14 * MS, "limit_maybe", OUT, "ovs-vswitchd")]
    tracker = GapTracker(THERE)
    assert follow(tracker, told, THERE, 20, 2003)
    assert (one(tracker).end_ns, one(tracker).restored_by) == (14 * MS, "ovs-vswitchd")
    tracker = GapTracker(THERE)
    assert follow(tracker, told, NOT_THERE, 20, 2003)
    assert one(tracker).end_ns is None


NFT = InstalledLimit(OUT, "nft", "limit", "ingress netdev t c rule 3", "tap0", 100_000_000, 3_200_000)
AFTER = InstalledLimit(OUT, "nft", "limit", "ingress netdev t c rule 4", "tap0", 100_000_000, 3_200_000)


def rules(at_ms: float, *deleted: str, adds: bool = False) -> LimitEvent:
    return LimitEvent(round(at_ms * MS), "rules", by="nft", by_pid=4711, deleted=frozenset(deleted), adds_limit=adds)


def test_a_limit_of_nft_that_is_gone_has_who_removed_it() -> None:
    tracker = GapTracker({OUT: NFT, IN: None})
    assert follow(tracker, [rules(3, "netdev t c rule 3")], NOT_THERE, 4, 1009)
    gap = one(tracker)
    assert gap.removal is not None
    assert (gap.removal.by, gap.removal.by_pid, gap.start_ns, gap.limit) == ("nft", 4711, 3 * MS, NFT)
    assert follow(tracker, [rules(9, adds=True)], {OUT: AFTER, IN: None}, 10, 2027)
    gap = one(tracker)
    assert (gap.end_ns, gap.restored_by, gap.passed_bytes) == (9 * MS, "nft", 1018)


def test_a_limit_of_nft_replaced_in_one_transaction_leaves_no_gap() -> None:
    tracker = GapTracker({OUT: NFT, IN: None})
    assert follow(tracker, [rules(3, "netdev t c rule 3", adds=True)], {OUT: AFTER, IN: None}, 4, 0)
    assert (tracker.gaps, tracker.installs) == ([], [])


def test_a_limit_of_nft_that_is_back_when_its_removal_is_heard_of_was_away_all_the_same() -> None:
    tracker = GapTracker({OUT: NFT, IN: None})
    events = [rules(3, "netdev t c rule 3"), rules(7, adds=True)]
    assert follow(tracker, events, {OUT: NFT, IN: None}, 8, 0)
    gap = one(tracker)
    assert (gap.start_ns, gap.end_ns) == (3 * MS, 7 * MS)


def test_other_rules_of_nft_mean_nothing() -> None:
    tracker = GapTracker({OUT: NFT, IN: None})
    assert not follow(tracker, [rules(3, "netdev t c rule 9"), rules(4, adds=True)], {OUT: NFT, IN: None}, 5, 0)
    assert (tracker.gaps, tracker.installs) == ([], [])


def test_a_limit_that_is_back_before_anybody_looked_was_away_all_the_same() -> None:
    """The events that tell of its return come after the look that found it."""
    tracker = GapTracker(THERE)
    assert follow(tracker, [qdisc_del(3, "tc")], THERE, 4, 1009)
    assert one(tracker).end_ns is None
    follow(tracker, [limit_new(3.5)], THERE, 5, 2027)
    gap = one(tracker)
    assert (gap.start_ns, gap.end_ns, gap.restored_by) == (3 * MS, 3_500_000, "libvirtd")


def test_a_limit_that_is_back_unheard_of_ends_the_gap_at_the_next_look() -> None:
    tracker = GapTracker(THERE)
    follow(tracker, [qdisc_del(3, "tc")], THERE, 4, 0)
    follow(tracker, [], THERE, 5, 0)
    assert one(tracker).end_ns == 5 * MS


def test_the_end_of_another_qdisc_leaves_no_gap() -> None:
    """An ingress qdisc beside a limit of nft's; a leaf under HTB."""
    shaper = InstalledLimit(IN, "tc", "htb", "root htb 1:1", "tap0", 100_000_000, 3_200_000)
    both: dict[Direction, InstalledLimit | None] = {OUT: NFT, IN: shaper}
    tracker = GapTracker(both)
    leaf = LimitEvent(4 * MS, "qdisc_del", IN, "tc", 4711, "sfq qdisc 2: at 1:1", "sfq")
    follow(tracker, [qdisc_del(3, "tc"), leaf], both, 5, 0)
    assert tracker.gaps == []


def test_nft_removed_it_and_somebody_looked_before_that_was_told() -> None:
    """The look may have ended after the removal was told of, too: its time counts then."""
    for told_ms in (1_003, 997):
        tracker = GapTracker({OUT: NFT, IN: None})
        assert follow(tracker, [], NOT_THERE, 1_000, 0)
        assert one(tracker).removal is None
        assert not follow(tracker, [rules(told_ms, "netdev t c rule 11")], NOT_THERE, 1_004, 0)
        assert one(tracker).removal is None
        assert follow(tracker, [rules(told_ms, "netdev t c rule 3")], NOT_THERE, 1_005, 0)
        gap = one(tracker)
        assert gap.removal is not None
        assert (gap.removal.by, gap.start_ns) == ("nft", min(told_ms, 1_000) * MS)


def test_a_qdisc_that_was_deleted_while_somebody_looked() -> None:
    tracker = GapTracker(THERE)
    assert follow(tracker, [], NOT_THERE, 1_000, 0)
    assert follow(tracker, [qdisc_del(991)], NOT_THERE, 1_005, 0)
    gap = one(tracker)
    assert gap.removal is not None
    assert (gap.removal.by, gap.start_ns) == ("ovs-vswitchd", 991 * MS)
