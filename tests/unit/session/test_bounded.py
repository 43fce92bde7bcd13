# SPDX-License-Identifier: Apache-2.0
"""What a run keeps stays bounded, however long it lasts and whatever is done to the taps."""

from __future__ import annotations

import struct
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from vifprobe.analysis import gaps
from vifprobe.analysis.findings.raised import findings
from vifprobe.analysis.findings.situation import Situation
from vifprobe.analysis.flood.syn_tracker import SynTracker
from vifprobe.analysis.gaps import GapTracker, LimitEvent
from vifprobe.analysis.policer import SetUp
from vifprobe.analysis.recent import Recent
from vifprobe.host.limits import Installed
from vifprobe.host.net import senders
from vifprobe.host.net.changes import Watched
from vifprobe.host.net.links import RTM_DELLINK, RTM_NEWLINK, Link
from vifprobe.host.net.netlink import Message
from vifprobe.host.net.senders import Senders
from vifprobe.host.nft.state import NftState
from vifprobe.host.tc.objects import TCMSG
from vifprobe.host.tc.reader import RTM_DELQDISC, RTM_NEWQDISC, TcState
from vifprobe.model.layout import SAMPLE, Direction
from vifprobe.model.limits import InstalledLimit
from vifprobe.model.reading import no_cells
from vifprobe.session.coverage import KEPT as SPANS_KEPT
from vifprobe.session.coverage import Coverage, GapTeller, without_old
from vifprobe.session.drop_attribution import DropAttribution, DropSources
from vifprobe.session.tap import WatchedTap
from vifprobe.testing.net.netlink_bytes import attribute

OUT, IN = Direction.OUTBOUND, Direction.INBOUND
MS = 1_000_000
ROUNDS = 10_007
POLICE = InstalledLimit(OUT, "tc", "police", "ingress pref 49152 police 1", "tap0", 100_000_000, 3_200_000)
THERE: dict[Direction, InstalledLimit | None] = {OUT: POLICE, IN: None}
NOT_THERE: dict[Direction, InstalledLimit | None] = {OUT: None, IN: None}


def test_what_nobody_takes_is_the_newest_and_the_rest_is_counted() -> None:
    kept: Recent[int] = Recent(7)
    kept.extend(range(11))
    assert (len(kept), kept.left_out) == (7, 4)
    assert kept.take() == [4, 5, 6, 7, 8, 9, 10]
    assert (kept.take(), kept.left_out) == ([], 0)
    kept.add(1, 2)
    assert kept.take() == [1, 2]


def test_a_limit_that_comes_and_goes_all_day() -> None:
    """Each gap is told of once, findings are the newest ones with numbers of their own, and the rest is summed up."""
    tracker, teller, told = GapTracker(THERE), GapTeller(), 0
    for number in range(ROUNDS):
        at_ns = number * 10 * MS
        removal = LimitEvent(at_ns, "qdisc_del", OUT, "ovs-vswitchd", 97, "ingress qdisc", "ingress")
        tracker.follow([LimitEvent(at_ns - MS, "link"), removal], NOT_THERE, at_ns, {OUT: number, IN: 0})
        tracker.follow(
            [LimitEvent(at_ns + 3 * MS, "limit_new", OUT, "tc")], THERE, at_ns + 3 * MS, {OUT: number, IN: 0}
        )
        told += len(teller.news("tap0", 7, [], tracker.gaps, False))
    assert told == ROUNDS
    assert len(tracker.gaps) <= gaps.KEPT + 1
    assert [gap.number for gap in tracker.gaps] == list(range(ROUNDS - len(tracker.gaps) + 1, ROUNDS + 1))
    left_out = ROUNDS - len(tracker.gaps)
    assert (tracker.earlier[OUT].number, tracker.earlier[OUT].duration_ns) == (left_out, left_out * 3 * MS)
    known = Situation(SetUp("tap0"), gaps=tuple(tracker.gaps), now_ns=ROUNDS * 10 * MS)
    assert len([one for one in findings(known) if one.pattern == "P2"]) == len(tracker.gaps)


def test_limits_that_come_where_there_were_none() -> None:
    """Their findings keep their numbers."""
    tracker = GapTracker(NOT_THERE)
    for number in range(ROUNDS):
        tracker.follow([LimitEvent(number, "limit_new", OUT)], THERE, number, {})
        tracker._limits = dict(NOT_THERE)  # as if the gap before had not been heard of
    assert len(tracker.installs) <= gaps.KEPT + 1
    assert tracker.installs_before + len(tracker.installs) == ROUNDS
    assert tracker.installs[-1] == (OUT, ROUNDS - 1)


def test_spans_that_were_not_watched_are_put_together() -> None:
    """None is lost: the sum of what was not watched stays, and each is told of once."""
    spans: list[Coverage] = []
    teller, told = GapTeller(), 0
    for number in range(1009):
        start_ns = number * 10 * MS
        span = Coverage("tap0", OUT, start_ns, start_ns + 3 * MS, "deleted", hook="clsact")
        spans = [*without_old(spans, OUT), span]
        told += len(teller.news("tap0", 7, spans, [], False))
    assert told == 1009
    assert len(spans) <= SPANS_KEPT + 1
    assert sum(one.times for one in spans) == 1009
    assert sum(one.unwatched_ns or one.duration_ns or 0 for one in spans) == 1009 * 3 * MS
    assert spans[0].words.startswith(f"outbound packets not watched {spans[0].times:,} times within this one")
    assert without_old(spans[:3], IN) == spans[:3]


def test_samples_that_nobody_takes() -> None:
    """Neither many nor none of them add up."""
    taken = np.zeros(0, SAMPLE)
    counters: Any = SimpleNamespace(take_samples=lambda final: taken, lost_samples=0)
    syn_tracker = SynTracker(counters, (OUT,), 1, 0, None)
    for _ in range(ROUNDS):
        syn_tracker.look()
    assert len(syn_tracker._kept) == 0
    taken = np.zeros(1009, SAMPLE)

    for _ in range(100):
        syn_tracker.look()
    assert len(syn_tracker.take_samples()) <= SynTracker.KEPT + 1009


def test_processes_that_change_things_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    ports: dict[int, int] = {}
    monkeypatch.setattr(senders, "_ports", lambda: iter(ports.items()))
    monkeypatch.setattr(senders, "_holder", lambda *_: None)
    found = Senders()
    for port in range(1, 5_009):
        ports = {port: port + 1}
        found.find(port, None)
    assert len(found._known) <= 1000


def _link_message(kind: int, ifindex: int, name: str) -> Message:
    body = struct.pack("=BxHiII", 0, 1, ifindex, 1, 0) + attribute(3, name.encode() + b"\0")
    return Message(kind, 0, 0, 0, body)


def _qdisc_message(kind: int, block: int) -> Message:
    body = TCMSG.pack(0, 5, 0xFFFF0000, 0xFFFFFFF1, 0) + attribute(1, b"ingress\0")
    return Message(kind, 0, 0, 0, body + attribute(13, struct.pack("=I", block)))


def test_taps_that_come_back_and_blocks_that_change() -> None:
    first = Link("tap0", 5, "tap", "", 1500, True, 0, "", 1)
    seen = Watched([5], [first], ())
    for number in range(1009):
        seen.changes(_qdisc_message(RTM_NEWQDISC, number + 1))
    assert len(seen._blocks) == 1
    seen.changes(_qdisc_message(RTM_DELQDISC, 1009))
    assert not seen._blocks
    for number in range(1009):
        assert seen.changes(_link_message(RTM_DELLINK, 5 + number, "tap0"))[0].kind == "link_del"
        assert seen.changes(_link_message(RTM_NEWLINK, 6 + number, "tap0"))[0].kind == "link_new"
        seen.changes(_link_message(RTM_NEWLINK, 10_000, "tap7"))
        seen.resync([replace(first, ifindex=6 + number)])
    assert len(seen.ifindexes) == len(seen._links) == 1


def test_programs_that_come_and_go_beside_the_policer() -> None:
    nothing = Installed((), TcState(5), NftState())
    attribution = DropAttribution(nothing, DropSources())
    for number in range(1009):
        attribution.follow(DropSources(("police",), (f"the tcx program x (id {number})",)), is_guessing=False)
    assert attribution.guessed
    assert len(attribution._others) < 20


def test_droppers_that_come_and_go_where_no_policer_is() -> None:
    attribution = DropAttribution(Installed((), TcState(5), NftState()), DropSources())
    for number in range(1009):
        attribution.follow(DropSources((), (f"the tcx program x (id {number})",)), is_guessing=False)
        attribution.follow(DropSources(), is_guessing=False)
        attribution.see_late(no_cells(), no_cells(), {})
    assert len(attribution._late) == len(attribution._late_until) == 1


def test_notes_of_a_tap() -> None:
    tap = cast(WatchedTap, SimpleNamespace(notes=[]))
    for number in range(1009):
        WatchedTap.note(tap, f"limits could not be read again: {number}")
    assert len(tap.notes) < 40
    assert tap.notes[-1] == "more notes were left out"
