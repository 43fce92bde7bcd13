# SPDX-License-Identifier: Apache-2.0
"""Each state of a limit, in both directions, as every view shows it: they all give the same answer.

A case is decided once, as a run decides it, and then asked for: the live screen and its table of taps, lines, JSON,
the summary, `policer` as text and as JSON, a capture read back, and the page of that capture.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import capture_kit
import pytest
import render_kit as kit

from vifprobe.analysis.findings.raised import findings
from vifprobe.analysis.findings.situation import Situation
from vifprobe.analysis.limit_state import limit_answer, seen
from vifprobe.analysis.policer import SetUp, policer_rows
from vifprobe.capture.reader import load
from vifprobe.capture.writer import CaptureWriter, Totals
from vifprobe.commands import policer
from vifprobe.model.layout import Direction, PacketClass, Verdict
from vifprobe.model.limits import DeclaredLimit, Doubt, InstalledLimit, LimitAnswer, LimitState, Traffic
from vifprobe.model.reading import Cells, Finding, Limit, Reading, merge, no_cells
from vifprobe.render.export import page, plots
from vifprobe.render.export.jsonlines import reading_object
from vifprobe.render.text.lines import interval_line
from vifprobe.render.text.policer import AuditView, policer_lines
from vifprobe.render.text.screen import Screen
from vifprobe.render.text.summary import summary_lines
from vifprobe.render.units import BLOCKS
from vifprobe.session.audit.limit_states import LimitStates
from vifprobe.session.audit.snapshot import PolicerReport

OUT, IN = Direction.OUTBOUND, Direction.INBOUND
RATE, BURST = 100_000_000, 3_200_000
TAP = "tap0"
UNREAD = ("tc: no answer",)


def passed(packets: int = 10_007) -> Cells:
    return kit.cell(packets, 1514, PacketClass.UDP)


POLICED = kit.cell(1009, 1514, PacketClass.UDP, Verdict.POLICED)
UNDECIDED = kit.cell(101, 1514, PacketClass.UDP, Verdict.UNKNOWN)
BY_NETFILTER = kit.cell(307, 1514, PacketClass.UDP, Verdict.DROPPED)
BY_NETFILTER["reason"] = 70
REASONS = {70: "NETFILTER_DROP"}
#: Of 12,000 bits each 10,676 are rate, burst and tolerance of a second: (100 + 25.6) Mbit x 1.02.
TOO_MUCH = passed(10_677)


@dataclass(frozen=True)
class Case:
    """What is set, what came, what was found; and what all views must say.

    rate_bps: that is installed, None for no limit. missed: packets that no figure holds. pattern: of a finding.
    screen, column: words of those who watch packets. audit: words of `policer`.
    """

    state: LimitState
    traffic: Traffic
    screen: str
    column: str
    audit: str
    cells: tuple[Cells, ...] = (passed(), POLICED)
    declares: bool = True
    rate_bps: int | None = RATE
    limit: dict[str, Any] | None = None
    set_up: dict[str, Any] | None = None
    doubt: Doubt | None = None
    missed: int = 0
    pattern: str = ""
    elsewhere: bool = False
    is_unwatched: bool = False
    is_changed: bool = False
    is_gone: bool = False


S, T, D = LimitState, Traffic, Doubt
THERE, NOT_DECLARED, UNKNOWN = "LIMIT IS THERE", "LIMIT, NOT DECLARED", "LIMIT UNKNOWN"
CASES = {
    "holds": Case(S.THERE, T.HOLDS, "LIMIT HOLDS", "holds", THERE),
    "under": Case(S.THERE, T.UNDER, "UNDER THE LIMIT", "under", THERE, (passed(),)),
    "idle": Case(S.THERE, T.IDLE, "NO TRAFFIC", "idle", THERE, ()),
    "verdicts unknown": Case(S.THERE, T.UNKNOWN, "OFFERED ONLY", "?", THERE, (UNDECIDED,), doubt=D.VERDICTS),
    "changed": Case(S.THERE, T.UNKNOWN, THERE, "there", THERE, doubt=D.CHANGED, is_changed=True),
    "undeclared": Case(S.UNDECLARED, T.HOLDS, "LIMIT HOLDS", "holds", NOT_DECLARED, declares=False),
    "undeclared and changed": Case(
        S.UNDECLARED, T.UNKNOWN, NOT_DECLARED, "undeclared", NOT_DECLARED,
        declares=False, doubt=D.CHANGED, is_changed=True,
    ),
    "not held": Case(S.NOT_HELD, T.EXCEEDS, "LIMIT NOT HELD", "NOT HELD", "LIMIT NOT HELD", (TOO_MUCH, POLICED)),
    "undeclared and not held": Case(
        S.NOT_HELD, T.EXCEEDS, "LIMIT NOT HELD", "NOT HELD", "LIMIT NOT HELD", (TOO_MUCH,), declares=False
    ),
    "not held beside missed packets": Case(
        S.NOT_HELD, T.EXCEEDS, "LIMIT NOT HELD", "NOT HELD", "LIMIT NOT HELD", (TOO_MUCH,), missed=7
    ),
    "absent": Case(S.ABSENT, T.UNDER, "NO POLICER", "NO POLICER", "NO POLICER", (passed(),), rate_bps=None),
    "absent, as a finding proves": Case(
        S.ABSENT, T.HOLDS, "NO POLICER", "NO POLICER", "NO POLICER", rate_bps=None, pattern="P1"
    ),
    "differs": Case(S.DIFFERS, T.HOLDS, "WRONG LIMIT", "WRONG", "WRONG LIMIT", rate_bps=8 * RATE),
    "differs by its burst": Case(
        S.DIFFERS, T.HOLDS, "WRONG LIMIT", "WRONG", "WRONG LIMIT", limit={"burst_bytes": BURST // 8}
    ),
    "differs, and more passes": Case(
        S.DIFFERS, T.EXCEEDS, "WRONG LIMIT", "WRONG", "WRONG LIMIT", (TOO_MUCH,), rate_bps=8 * RATE
    ),
    "holes": Case(S.HOLES, T.HOLDS, "LIMIT HAS A HOLE", "HOLE", "LIMIT HAS A HOLE", limit={"protocol": "ip"}),
    "bypassed": Case(S.BYPASSED, T.UNDER, "LIMIT IS BYPASSED", "BYPASSED", "LIMIT IS BYPASSED", (passed(),),
                     pattern="P5"),
    "elsewhere": Case(S.ELSEWHERE, T.UNDER, "LIMIT IS ELSEWHERE", "elsewhere", "LIMIT IS ELSEWHERE", (passed(),),
                      rate_bps=None, elsewhere=True),
    "policed": Case(S.POLICED, T.UNKNOWN, "POLICED, LIMIT UNKNOWN", "policed", "POLICED, LIMIT UNKNOWN",
                    declares=False, rate_bps=None),
    "none": Case(S.NONE, T.UNKNOWN, "NO LIMIT ASKED FOR", "no limit", "NO LIMIT ASKED FOR", (passed(),),
                 declares=False, rate_bps=None),
    "not read": Case(S.UNKNOWN, T.UNDER, UNKNOWN, "unknown", UNKNOWN, (passed(),), rate_bps=None,
                     set_up={"enforced_unknown": UNREAD}, doubt=D.NOT_READ),
    "not read, and more passes": Case(S.NOT_HELD, T.EXCEEDS, "LIMIT NOT HELD", "NOT HELD", "LIMIT NOT HELD",
                                      (TOO_MUCH,), rate_bps=None, set_up={"enforced_unknown": UNREAD}),
    "absent, but others drop": Case(S.UNKNOWN, T.UNDER, UNKNOWN, "unknown", UNKNOWN, (passed(), BY_NETFILTER),
                                    rate_bps=None, doubt=D.DROPPED),
    "absent, and others drop, and more passes": Case(
        S.ABSENT, T.EXCEEDS, "NO POLICER", "NO POLICER", "NO POLICER", (TOO_MUCH, BY_NETFILTER), rate_bps=None
    ),
    "missed": Case(S.UNKNOWN, T.UNKNOWN, UNKNOWN, "unknown", UNKNOWN, missed=7, doubt=D.MISSED, pattern="P16"),
    "decided earlier": Case(S.UNKNOWN, T.UNKNOWN, UNKNOWN, "unknown", UNKNOWN, doubt=D.DECIDED_EARLIER, pattern="P17"),
    "idle, decided earlier": Case(S.UNKNOWN, T.UNKNOWN, UNKNOWN, "unknown", UNKNOWN, (), doubt=D.DECIDED_EARLIER,
                                  pattern="P17"),
    "unwatched": Case(S.UNKNOWN, T.UNKNOWN, UNKNOWN, "unknown", UNKNOWN, doubt=D.UNWATCHED, is_unwatched=True),
    "gone": Case(S.GONE, T.UNKNOWN, "TAP IS GONE", "GONE", "", is_gone=True),
}  # fmt: skip
BOTH = pytest.mark.parametrize("direction", [OUT, IN])


def set_up_of(case: Case, direction: Direction) -> SetUp:
    where = "ingress" if direction is OUT else "root"
    police = InstalledLimit(direction, "tc", "police", where, TAP, case.rate_bps, BURST)
    police = replace(police, **(case.limit or {}))
    declared = DeclaredLimit(direction, "libvirt", "bandwidth", TAP, RATE, BURST)
    return SetUp(
        TAP,
        (declared,) if case.declares else (),
        (police,) if case.rate_bps is not None else (),
        (replace(police, device="qvo0", rate_bps=RATE),) if case.elsewhere else (),
        **(case.set_up or {}),
    )


def decided(case: Case, direction: Direction, final: bool = False) -> Reading:
    """A second of the case's packets, and the state that a run decides on."""
    cells = merge(no_cells(), *case.cells)
    cells["direction"] = direction
    set_up = set_up_of(case, direction)
    found = Finding(f"{case.pattern}-{direction.name.lower()}", case.pattern, "warning", "title", {"a": 1}, "advice")
    reading = Reading(
        TAP,
        kit.START,
        0,
        kit.SECOND_NS,
        cells,
        missed=case.missed,
        missed_in={direction: case.missed},
        limits={direction: Limit(RATE if case.declares else None, case.rate_bps, burst_bytes=BURST)},
        findings=(found,) if case.pattern else (),
        directions=(direction,),
        gone_ns=1 if case.is_gone else None,
        final=final,
    )
    states = LimitStates()
    if case.is_changed:
        states.follow({}, {direction: set_up.main_enforced(direction)}, ())
    unwatched = {direction} if case.is_unwatched else ()
    return replace(reading, limit_states=states.of(reading, set_up, unwatched, REASONS))


def plain(lines: Any) -> str:
    return "".join(row.plain + "\n" for row in lines)


@BOTH
@pytest.mark.parametrize("name", CASES)
def test_live_views_say_the_same(name: str, direction: Direction) -> None:
    """Python, screen, table of taps, line, JSON."""
    case, reading = CASES[name], decided(CASES[name], direction)
    found = reading.limit_state(direction)
    assert (found.state, found.traffic, found.doubt) == (case.state, case.traffic, case.doubt)
    assert f"\n {case.screen}  " in plain(Screen([reading]).lines(80, None, BLOCKS))
    table = plain(Screen([reading, replace(reading, tap="tap1")]).lines(80, None, BLOCKS))
    # The table calls missed packets loudly by their number, whatever the state.
    column = f"MISSED {case.missed}" if case.missed else case.column
    assert re.search(rf"^[> ]+tap0 .* {re.escape(column)}\s*$", table, re.MULTILINE)
    words = "? ?" if case.is_gone else f"{case.state.value} {case.traffic.value}"
    unseen = {OUT: f"limit out {words} in ? ?", IN: f"limit out ? ? in {words}"}
    assert f" {unseen[direction]} top " in interval_line(reading)
    assert interval_line(reading).count(" gone ") == case.is_gone
    objects = reading_object(reading)
    limit = objects[direction.name.lower()]["limit"]
    assert (limit["state"], limit["traffic"]) == (case.state.value, case.traffic.value)
    assert limit["doubt"] == (case.doubt.value if case.doubt else None)
    other = objects[(IN if direction is OUT else OUT).name.lower()]["limit"]
    assert (other["state"], other["traffic"], other["doubt"]) == (None, None, None)


ENDED = [name for name, case in CASES.items() if not case.is_gone]


@BOTH
@pytest.mark.parametrize("name", ENDED)
def test_the_totals_and_the_audit_say_the_same(name: str, direction: Direction, capsys: Any) -> None:
    """Summary; `policer` as text and as JSON."""
    case, total = CASES[name], decided(CASES[name], direction, final=True)
    found, set_up = total.limit_state(direction), set_up_of(case, direction)
    assert (found.state, found.traffic, found.doubt) == (case.state, case.traffic, case.doubt)
    assert plain(summary_lines(total)).splitlines()[1].startswith(f" {case.screen}  ")
    states = {direction: found}
    view = AuditView(set_up, policer_rows(set_up), total.findings, states, (direction,))
    assert plain(policer_lines(view)).startswith(f" {case.audit}  {TAP} {direction.name.lower()}")
    report = PolicerReport(TAP, kit.START, 1, set_up, (direction,), total.findings, limit_states=states)
    policer._json(report)
    shown = json.loads(capsys.readouterr().out)[direction.name.lower()]
    assert (shown["state"], shown["traffic"]) == (case.state.value, case.traffic.value)
    assert shown["doubt"] == (case.doubt.value if case.doubt else None)


@BOTH
def test_a_capture_and_its_page_say_the_same(
    direction: Direction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one tap for each state."""
    for name in ("classes", "sizes"):
        monkeypatch.setattr(plots, name, lambda *_: "")
    names = {f"tap{number}": name for number, name in enumerate(ENDED)}
    totals = [replace(decided(CASES[name], direction, final=True), tap=tap) for tap, name in names.items()]
    with CaptureWriter(tmp_path / "capture", capture_kit.manifest(*names)) as writer:
        writer.finish(Totals(totals, capture_kit.REASONS))
    capture = load(tmp_path / "capture")
    sections = dict(_sections(page.page(capture)))
    manifest = json.loads((tmp_path / "capture" / "manifest.json").read_text())
    for reading, entry in zip(capture.readings(), manifest["taps"], strict=True):
        case = CASES[names[reading.tap]]
        found = reading.limit_state(direction)
        assert found == LimitAnswer(case.state, case.traffic, case.doubt, 7 if case.doubt is D.MISSED else 0)
        assert entry["limit_states"][direction.name.lower()]["state"] == case.state.value
        assert f"<p>{case.screen}, " in sections[reading.tap]


def _sections(text: str) -> Iterator[tuple[str, str]]:
    for section in text.split("<h2>")[1:]:
        yield section.partition("</h2>")[0], section


def test_each_word_has_its_case() -> None:
    """All but one: an audit without packets has no reading."""
    assert {case.state for case in CASES.values()} == {*LimitState}
    assert {case.traffic for case in CASES.values()} == {*Traffic}
    assert {case.doubt for case in CASES.values()} == {None, *Doubt} - {Doubt.NOT_SEEN}


@BOTH
@pytest.mark.parametrize(
    "name", [name for name in ENDED if CASES[name].state not in (S.NOT_HELD, S.POLICED, S.UNKNOWN)]
)
def test_without_packets_the_audit_says_what_is_set(name: str, direction: Direction) -> None:
    """A state that packets did not decide is the same."""
    case = CASES[name]
    proved = {f"{case.pattern}-{direction.name.lower()}"} if case.pattern else ()
    found = limit_answer(set_up_of(case, direction), direction, (), proved)
    assert (found.state, found.traffic, found.doubt) == (case.state, Traffic.UNKNOWN, Doubt.NOT_SEEN)


def test_drops_of_others_are_no_absent_limit() -> None:
    """65,980 packets that a netfilter rule dropped are evidence: neither P1 nor "no policer" stands beside them."""
    cells = merge(kit.cell(20_011, 60, PacketClass.TCP_SYN), kit.cell(65_980, 60, PacketClass.TCP_SYN, Verdict.DROPPED))
    cells["direction"] = OUT
    cells["reason"][cells["verdict"] == Verdict.DROPPED] = 70
    set_up = set_up_of(CASES["absent"], OUT)
    reading = Reading(TAP, kit.START, 0, kit.SECOND_NS, cells, directions=(OUT,))
    for reasons, is_evidence in (({70: "NETFILTER_DROP"}, True), ({}, True), ({70: "NO_TX_TARGET"}, False)):
        found = findings(Situation(set_up, reading=reading, reasons=reasons, directions=(OUT,)))
        assert [one.pattern for one in found if one.pattern == "P1"] == ["P1"] * (not is_evidence)
        looked = seen(reading, OUT, reasons=reasons)
        assert looked is not None
        answer = limit_answer(set_up, OUT, (looked,), {one.id for one in found})
        assert (answer.state is LimitState.ABSENT) is not is_evidence
        assert answer.doubt is (Doubt.DROPPED if is_evidence else None)
