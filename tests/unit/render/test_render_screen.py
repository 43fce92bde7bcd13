# SPDX-License-Identifier: Apache-2.0
"""What `watch` shows, at the widths and heights that terminals have."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import render_kit as kit
from rich.console import Console

from vifprobe.analysis.limit_state import answer_of
from vifprobe.model.layout import SIZE_UNKNOWN, Direction, Expected, PacketClass, Verdict
from vifprobe.model.limits import Doubt, LimitState, Traffic
from vifprobe.model.reading import Finding, Limit, Reading
from vifprobe.render.context import TapContext
from vifprobe.render.limit_words import figures, live_badge
from vifprobe.render.text.screen import Screen
from vifprobe.render.units import ASCII, BLOCKS, cell_width

ONE = Screen(kit.history(), {kit.TAP: kit.CONTEXT})
MANY = Screen(
    [
        replace(kit.at(second), tap=f"tap{number:08x}-{number:02x}", cells=kit.flood(1 / (number + 1)), findings=())
        for second in range(3)
        for number in range(13)
    ],
    {"tap00000000-00": kit.CONTEXT},
)
NOWHERE = Reading(kit.TAP, kit.START, 0, kit.SECOND_NS, kit.flood()[:0])


@pytest.fixture(autouse=True)
def _utc() -> Iterator[None]:
    """Clock times on screens are local ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def shown(screen: Screen, width: int = 80, height: int | None = None) -> str:
    return kit.text_of(screen.lines(width, height, BLOCKS))


@pytest.mark.parametrize(
    ("name", "screen", "width", "height"),
    [
        ("one-80x24", ONE, 80, 24),
        ("one-80x50", ONE, 80, 50),
        ("one-60x20", ONE, 60, 20),
        ("one-120x40", ONE, 120, 40),
        ("one-80-ended", replace(ONE, running=False), 80, None),
        ("many-80x24", MANY, 80, 24),
        ("many-60x20", MANY, 60, 20),
        ("many-120x40", MANY, 120, 40),
        ("nothing-known-80x24", Screen([NOWHERE]), 80, 24),
    ],
)
def test_golden(name: str, screen: Screen, width: int, height: int | None) -> None:
    kit.check_golden(name, shown(screen, width, height))


def test_golden_ascii() -> None:
    text = kit.text_of(ONE.lines(80, 24, ASCII))
    assert text.isascii()
    kit.check_golden("one-80x24-ascii", text)


@pytest.mark.parametrize("screen", [ONE, MANY, Screen([NOWHERE]), Screen([])])
@pytest.mark.parametrize("glyphs", [BLOCKS, ASCII])
def test_nothing_overflows_at_any_size(screen: Screen, glyphs: object) -> None:
    for width in (1, 3, 17, 40, 59, 60, 76, 80, 111, 112, 131, 200):
        for height in (1, 2, 7, 13, 20, 23, 24, 25, 31, 50, 97):
            lines = screen.lines(width, height, BLOCKS if glyphs is BLOCKS else ASCII)
            assert len(lines) <= height, (width, height)
            assert max(cell_width(line.plain) for line in lines) <= width, (width, height)


@pytest.mark.parametrize("height", range(18, 51))
def test_what_matters_is_there_at_every_height(height: int) -> None:
    text = shown(ONE, 80, height)
    for needed in ("LIMIT HOLDS", "policer", "offered", "passed", "policed", "dropped", "tcp_syn", "Ctrl-C ends"):
        assert needed in text, needed


def test_what_is_cut_off_is_counted() -> None:
    text = shown(ONE, 80, 24)
    rows = text.splitlines()
    classes = [row for row in rows if row.split(" ")[0] in {code.name.lower() for code in PacketClass}]
    cut = next(row for row in rows if row.endswith("more classes"))
    assert len(classes) + int(cut.split()[1]) == len(kit.BASE.classes(Direction.OUTBOUND))
    assert "more taps" in shown(MANY, 80, 24)


def test_unknown_is_a_question_mark_never_0() -> None:
    text = shown(Screen([kit.unfollowed()]))
    assert "inbound  offered 1.20 k/s, 942 kbit/s as frames · passed ? policed ? dropped ?" in text
    cells = kit.cell(101, 54, PacketClass.UDP, Verdict.UNKNOWN)
    rows = shown(Screen([kit.alone(cells)])).splitlines()
    for verdict in ("passed", "policed", "dropped"):
        row = next(row for row in rows if row.startswith(verdict))
        assert row.split() == [verdict, "?", "?", "?", "?", "?"]
    assert "OFFERED ONLY" in rows[1]


def test_the_other_direction_says_what_became_of_its_packets() -> None:
    assert "         passed 1.18 k policed 7 dropped 11 queued 5\n" in shown(ONE)
    passed = kit.cell(1201, 98, PacketClass.ICMP, Verdict.PASSED, Direction.INBOUND)
    text = shown(Screen([kit.alone(passed)]))
    assert "inbound  offered 1.20 k/s, 942 kbit/s as frames · all passed\n" in text


def test_missed_packets_are_shown_only_when_there_are_any() -> None:
    assert "MISSED" not in shown(ONE)
    text = shown(Screen([replace(kit.BASE, missed=1009)]), 60, 20)
    assert "MISSED 1,009 packets" in text
    assert "MISSED" in shown(Screen([*MANY.readings, *(replace(r, missed=7) for r in MANY.readings[-13:])]), 60, 20)


def test_where_dropped_packets_went_is_said_in_words() -> None:
    assert "dropped 601/s NO_TX_TARGET: the bridge has no port to send it to" in shown(ONE)
    assert "dropped 601/s reason 0x5b" in shown(Screen([kit.BASE]))


def test_each_reason_has_its_own_count_the_most_frequent_first() -> None:
    cells = [
        kit.cell(count, 54, PacketClass.UDP, Verdict.DROPPED, reason=code) for code, count in ((3, 7), (9, 11), (5, 2))
    ]
    rows = shown(Screen([kit.alone(*cells)], {kit.TAP: TapContext(reasons={3: "FULL_RING", 9: "XDP", 5: "X"})}))
    found = [row.split(":")[0] for row in rows.splitlines() if row.startswith("dropped ") and "bit/s" not in row]
    assert found == ["dropped 11/s XDP", "dropped 7/s FULL_RING", "dropped 2/s X"]


def test_crossings_of_the_ideal_bucket_are_shown() -> None:
    reading = kit.alone(
        kit.cell(101, 54, PacketClass.UDP, expected=Expected.EXCEED),
        kit.cell(103, 54, PacketClass.UDP, Verdict.POLICED, expected=Expected.CONFORM),
    )
    text = shown(Screen([reading]))
    assert "101/s passed although above the limit (bypass)" in text
    assert "103/s policed although within the limit (overpoliced)" in text


def test_inbound_alone_gets_the_tables() -> None:
    text = shown(Screen([replace(kit.BASE, directions=(Direction.INBOUND,))]))
    assert "INBOUND" in text
    assert "outbound  offered" not in text
    assert "icmp " in text


def test_the_busiest_tap_is_shown_unless_another_is_chosen() -> None:
    assert "> tap00000000-00" in shown(MANY, 80, 24)
    assert "> tap00000005-05" in shown(replace(MANY, chosen="tap00000005-05"), 80, 24)
    assert "> tap00000000-00" in shown(replace(MANY, chosen="gone"), 80, 24)


def test_a_tap_without_news_is_not_shown_as_if_it_had_some() -> None:
    late = [reading for reading in MANY.readings if reading.tap != "tap00000001-01" or reading.start_ns == 0]
    row = next(row for row in shown(replace(MANY, readings=late)).splitlines() if "tap00000001-01" in row)
    assert "NO NEWS" in row


HOSTILE = "\x1b[2J\x07[bold]x[/bold]\n\u202e:boom:"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_names_from_outside_are_neither_markup_nor_escapes(width: int) -> None:
    finding = Finding(HOSTILE, HOSTILE, HOSTILE, HOSTILE, advice=HOSTILE)
    reading = replace(kit.BASE, tap=HOSTILE, findings=(finding,), notes=(HOSTILE,), verdicts=HOSTILE)
    context = TapContext(HOSTILE, {91: HOSTILE, 70: HOSTILE})
    for readings in ([reading], [reading, replace(kit.BASE, tap="tap1")]):
        stream = io.StringIO()
        Console(file=stream, width=width, markup=True, emoji=True).print(Screen(readings, {HOSTILE: context}))
        text = stream.getvalue()
        assert "\x1b" not in text
        assert "\x07" not in text
        assert "\u202e" not in text
        assert "\\x1b[2J\\x07[bo" in text
        assert all(cell_width(row) <= width for row in text.splitlines())


def test_without_colour_the_same_words_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def written() -> str:
        stream = io.StringIO()
        Console(file=stream, width=80, force_terminal=True, color_system="standard").print(ONE)
        return stream.getvalue()

    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = written()
    assert "\x1b[1;7;32m LIMIT HOLDS" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    plain = written()
    assert "\x1b[1;7m LIMIT HOLDS" in plain
    assert not any(f"{code}m" in plain for code in range(30, 38))
    escapes = re.compile(r"\x1b\[[0-9;]*m")
    assert escapes.sub("", plain) == escapes.sub("", coloured)


def test_the_encoding_of_the_stream_decides_about_block_characters() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="latin-1")
    Console(file=stream, width=80).print(ONE)  # would raise where a character can't be written
    stream.flush()
    assert "#####" in raw.getvalue().decode("latin-1")


SYN_PASSED = kit.cell(90001, 54, PacketClass.TCP_SYN)
TOO_MUCH = kit.cell(900001, 54, PacketClass.TCP_SYN)
POLICED = kit.cell(30011, 54, PacketClass.TCP_SYN, Verdict.POLICED)
KNOWN = TapContext(declared_known=True, installed_known=True)
HOLDS, UNDER, IDLE, NOT_HELD = "LIMIT HOLDS", "UNDER THE LIMIT", "NO TRAFFIC", "LIMIT NOT HELD"
ABSENT, DIFFERS, POLICED_BY = "NO POLICER", "WRONG LIMIT", "POLICED, LIMIT UNKNOWN"
NONE, UNKNOWN, OFFERED_ONLY = "NO LIMIT ASKED FOR", "LIMIT UNKNOWN", "OFFERED ONLY"


def known(context: TapContext) -> tuple[bool, bool]:
    return context.declared_known, context.installed_known


@pytest.mark.parametrize(
    ("reading", "context", "headline"),
    [
        (kit.alone(SYN_PASSED, POLICED), KNOWN, HOLDS),
        (kit.alone(SYN_PASSED), KNOWN, UNDER),
        (kit.alone(), KNOWN, IDLE),
        (kit.alone(TOO_MUCH), KNOWN, NOT_HELD),
        (kit.alone(TOO_MUCH, POLICED), KNOWN, NOT_HELD),
        (kit.alone(TOO_MUCH, limit=Limit(declared_bps=100_000_000)), KNOWN, ABSENT),
        (kit.alone(SYN_PASSED, limit=Limit(declared_bps=100_000_000)), KNOWN, ABSENT),
        (kit.alone(TOO_MUCH, limit=Limit(declared_bps=100_000_000)), TapContext(), NOT_HELD),
        # Something polices, though no policer was recognised: it is there.
        (kit.alone(SYN_PASSED, POLICED, limit=Limit(declared_bps=100_000_000)), KNOWN, HOLDS),
        (kit.alone(SYN_PASSED, limit=Limit(100_000_000, 400_000_000)), KNOWN, DIFFERS),
        (kit.alone(SYN_PASSED, limit=Limit(100_000_000, 99_999_992)), KNOWN, UNDER),
        (kit.alone(SYN_PASSED, POLICED, limit=Limit()), KNOWN, POLICED_BY),
        (kit.alone(SYN_PASSED, limit=Limit()), KNOWN, NONE),
        (kit.alone(SYN_PASSED, limit=Limit()), TapContext(), UNKNOWN),
        (kit.alone(SYN_PASSED, limit=Limit(installed_pps=80_000)), KNOWN, NOT_HELD),
        (kit.alone(SYN_PASSED, limit=Limit(installed_pps=90_000)), KNOWN, UNDER),
        (kit.alone(kit.cell(3, 54, PacketClass.UDP, Verdict.UNKNOWN)), KNOWN, OFFERED_ONLY),
    ],
)
def test_is_the_limit_working(reading: Reading, context: TapContext, headline: str) -> None:
    """The traffic of a limit that is there, undeclared or unread decides the words."""
    assert live_badge(answer_of([reading], Direction.OUTBOUND, *known(context))).headline == headline


@pytest.mark.parametrize("rows", [(SYN_PASSED, POLICED), (SYN_PASSED,)])
def test_a_limit_is_not_said_to_hold_beside_packets_that_are_not_counted(rows: tuple[Any, ...]) -> None:
    reading = replace(kit.alone(*rows), missed=7, missed_in={Direction.OUTBOUND: 7, Direction.INBOUND: 0})
    found = answer_of([reading, kit.at(1, kit.alone(*rows))], Direction.OUTBOUND, True, True)
    assert (found.state, found.traffic, found.doubt) == (LimitState.UNKNOWN, Traffic.UNKNOWN, Doubt.MISSED)
    assert live_badge(found).headline == UNKNOWN
    shown_with = replace(kit.alone(*rows), limit_states={Direction.OUTBOUND: found})
    assert figures(shown_with, Direction.OUTBOUND)[0] == "7 packets are not counted"
    inbound_only = replace(reading, missed_in={Direction.OUTBOUND: 0, Direction.INBOUND: 7})
    assert live_badge(answer_of([inbound_only], Direction.OUTBOUND, True, True)).headline in (HOLDS, UNDER)


def test_a_limit_that_is_not_held_stays_so_beside_packets_that_are_not_counted() -> None:
    reading = replace(kit.alone(TOO_MUCH, POLICED), missed=7)
    assert answer_of([reading], Direction.OUTBOUND, True, True).state is LimitState.NOT_HELD


def test_packets_without_a_size_have_a_row() -> None:
    unsized = kit.alone(SYN_PASSED, POLICED)
    unsized.cells["size"][unsized.cells["verdict"] == Verdict.POLICED] = SIZE_UNKNOWN
    text = shown(Screen([unsized], {kit.TAP: KNOWN}))
    assert re.search(r"^ *unknown +30.0 k +25 %", text, re.MULTILINE)
    assert re.search(r"^ *48-55 B +90.0 k +75 %", text, re.MULTILINE)


def test_a_burst_may_pass_once_but_not_every_interval() -> None:
    burst = kit.alone(kit.cell(350_003, 54, PacketClass.TCP_SYN), POLICED)  # 112 Mbit/s charged; the burst is 25.6 Mbit
    assert burst.limit_state(Direction.OUTBOUND).traffic is Traffic.HOLDS
    assert figures(burst, Direction.OUTBOUND)[0] == "passes 112 of 100 Mbit/s charged (burst)"
    found = answer_of([kit.at(number, burst) for number in range(5)], Direction.OUTBOUND, True, True)
    assert (found.state, found.traffic) == (LimitState.NOT_HELD, Traffic.EXCEEDS)


def test_the_policer_line_says_none_only_where_it_was_looked_for() -> None:
    reading = kit.alone(SYN_PASSED, limit=Limit(declared_bps=100_000_000))
    unread = kit.judged(reading, TapContext())
    assert "declared 100 Mbit/s · installed unknown" in shown(Screen([unread]))
    read = shown(Screen([reading], {kit.TAP: KNOWN}))
    assert "declared 100 Mbit/s · installed NONE ·  THEY DIFFER" in read
    assert "NO POLICER" in read
    assert "declared unknown · installed unknown" in shown(Screen([NOWHERE]))


def test_a_deleted_tap_is_marked_and_comes_last() -> None:
    """No state of a limit, no figures of its last interval as if they were of now."""
    last = replace(kit.at(0), tap="tapgone", gone_ns=1_500_000_000)
    kept = [replace(kit.at(second), tap="tapkept", cells=kit.flood(0.01)) for second in range(3)]
    text = shown(Screen([last, *kept]))
    rows = [row for row in text.splitlines() if row.split()[:1] in (["tapgone"], [">"]) or " tapgone" in row]
    assert rows[-1].split() == ["tapgone", "?", "?", "?", "?", "?", "GONE"]
    assert text.index("tapkept") < text.index("tapgone")
    details = shown(Screen([last, *kept], chosen="tapgone"))
    assert " TAP IS GONE " in details
    assert "deleted 1.5 s after the start" in details
    assert "LIMIT" not in details
