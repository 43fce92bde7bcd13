# SPDX-License-Identifier: Apache-2.0
"""Gaps become events: once, when they are over or the run is, with who made them."""

from dataclasses import replace

from vifprobe.analysis.gaps import LimitEvent, LimitGap
from vifprobe.host.net.changes import NO_CHANGE
from vifprobe.host.net.events import Event
from vifprobe.model.layout import Direction
from vifprobe.model.limits import InstalledLimit
from vifprobe.session.coverage import Coverage, GapTeller, LinkTeller

OUT = Direction.OUTBOUND
LASTING = Coverage("tap0", OUT, 1_000, None, "ingress qdisc ffff: at ingress deleted", 4711, "tc")
OVER = replace(LASTING, end_ns=5_001_000, hook="tracepoint")
LIMIT = InstalledLimit(OUT, "tc", "police", "ingress", "", rate_bps=10_000_000)


def test_a_gap_is_told_when_it_is_over_and_once() -> None:
    teller = GapTeller()
    assert teller.news("tap0", 7, [LASTING], [], False) == []
    [(tap, event)] = teller.news("tap0", 7, [OVER], [], False)
    assert (tap, event.ifindex, event.kind, event.at_ns) == ("tap0", 7, "gap", 1_000)
    assert (event.by_pid, event.by_comm) == (4711, "tc")
    told = "outbound packets not watched for 5.0 ms: ingress qdisc ffff: at ingress deleted; by tracepoint since"
    assert event.detail == told == OVER.words
    assert OVER.duration_ns == 5_000_000
    assert teller.news("tap0", 7, [OVER], [], True) == []


def test_what_lasts_is_told_at_the_end() -> None:
    [(_, event)] = GapTeller().news("tap0", 7, [LASTING], [], True)
    assert event.detail.startswith("outbound packets not watched until the end: ")
    assert LASTING.duration_ns is None


def test_a_time_without_a_limit_names_both_sides() -> None:
    removal = LimitEvent(2_000, "qdisc_del", OUT, "tc (started by libvirtd)", 97)
    gap = LimitGap(1, OUT, 2_000, LIMIT, removal, end_ns=1_300_002_000, restored_by="tc", passed_bytes=1009)
    [(_, event)] = GapTeller().news("tap0", 7, [], [gap], False)
    assert (event.kind, event.by_pid, event.by_comm) == ("limit_gap", 97, "tc")
    told = (
        "outbound packets not limited for 1.3 s, 10 Mbit/s before; removed by tc (started by libvirtd); 1.01 kB passed;"
        " limited again by tc"
    )
    assert event.detail == told


def test_link_messages_that_tell_of_no_change_are_two_events_however_many_they_are() -> None:
    teller = LinkTeller()
    told = []
    for number in range(10_007):
        at_ns = 1_000 + number * 10_000_000
        told += teller.news(Event(at_ns, 7, "link_change", NO_CHANGE, times=3))
        told += teller.over(at_ns)
    last_ns = 1_000 + 10_006 * 10_000_000
    assert teller.over(last_ns + 999_999_999) == []
    told += teller.over(last_ns + 1_000_000_000)
    assert [(event.at_ns, event.detail, event.times) for event in told] == [
        (1_000, NO_CHANGE, 3),
        (1_000, "30,020 more link messages in 100 s without a change", 30_020),
    ]
    assert teller.over(last_ns, final=True) == []


def test_a_link_message_alone_is_told_as_it_is() -> None:
    teller = LinkTeller()
    first, second = (Event(at_ns, 7, "link_change", NO_CHANGE) for at_ns in (1_000, 2_000_001_000))
    assert teller.news(first) == [first]
    assert teller.news(second) == [second]
    assert teller.over(2_000_002_000, final=True) == []
