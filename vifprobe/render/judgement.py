# SPDX-License-Identifier: Apache-2.0
"""The one thing a person wants to know first: is the limit that was asked for really in force?

It looks at a few readings of one tap, newest last, because a bucket's burst may pass once but not again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from vifprobe.analysis.findings import ahead
from vifprobe.analysis.findings.situation import finding_id
from vifprobe.model.layout import Direction, Expected, Verdict
from vifprobe.model.reading import Counts, Limit, Reading
from vifprobe.render.context import TapContext
from vifprobe.render.units import bit_rate, duration, packet_rate, percent, whole

#: Passed may be this much above rate x time + burst: clocks of policer and interval are not the same.
SLACK = 0.01
#: ... and this much above rate x time where the burst is not known.
SLACK_NO_BURST = 0.05
#: A policer keeps whole bytes per second (act_police: tcf_police_params.rate): equal means within this share.
SAME = 0.01
#: Readings that are looked at together.
WINDOW = 10


class State(Enum):
    """What was found: (words for the headline, word for a table, style)."""

    HOLDS = ("LIMIT HOLDS", "holds", "good")
    UNDER = ("UNDER THE LIMIT", "under", "good")
    BROKEN = ("LIMIT NOT HELD", "NOT HELD", "bad")
    ABSENT = ("NO POLICER", "NO POLICER", "bad")
    DIFFERS = ("WRONG LIMIT", "WRONG", "bad")
    POLICING = ("POLICED, LIMIT UNKNOWN", "policed", "warn")
    NO_LIMIT = ("NO LIMIT ASKED FOR", "no limit", "plain")
    UNKNOWN = ("LIMIT UNKNOWN", "unknown", "warn")
    NO_VERDICT = ("OFFERED ONLY", "?", "warn")
    IDLE = ("NO TRAFFIC", "idle", "plain")
    GONE = ("TAP IS GONE", "GONE", "bad")

    @property
    def headline(self) -> str:
        """In capitals: it must stand out without colour."""
        return self.value[0]

    @property
    def word(self) -> str:
        """Short, for a column."""
        return self.value[1]

    @property
    def style(self) -> str:
        """A key of line.STYLES."""
        return self.value[2]


@dataclass(frozen=True)
class Judgement:
    """The state and the figures that it rests on, in words, the most telling first."""

    state: State
    words: tuple[str, ...]


def same_rate(declared: float, installed: float) -> bool:
    """Whether two limits are the same but for rounding."""
    return abs(declared - installed) <= SAME * declared


def per_second(value: float | None, reading: Reading) -> float | None:
    """A count of this reading as a rate; None for no count or no time."""
    return None if value is None or reading.duration_ns <= 0 else value * 1e9 / reading.duration_ns


def judge(readings: Sequence[Reading], direction: Direction, context: TapContext) -> Judgement:
    """Whether the limit of one direction is in force, by the newest of `readings` and those just before it.

    Of a tap that is gone the totals of the run are judged, but no interval.
    """
    reading = readings[-1]
    if reading.gone and not reading.final:
        return Judgement(State.GONE, (gone_words(reading),))
    limit = reading.limits.get(direction, Limit())
    passed = reading.counts(direction, Verdict.PASSED)
    policed = reading.counts(direction, Verdict.POLICED)
    if not reading.verdicts or passed is None or policed is None or direction not in reading.directions:
        return Judgement(State.NO_VERDICT, (_ideal_words(reading, direction, limit),))
    state = _state(readings, direction, limit, context, passed, policed)
    words = _words(state, reading, direction, limit, passed, policed)
    missed = sum(one.missed_of(direction) for one in _window(readings))
    if state in (State.HOLDS, State.UNDER, State.IDLE):
        if missed:
            return Judgement(State.UNKNOWN, (f"{whole(missed)} packets are not counted", *words))
        if is_decided_earlier(reading, direction):
            return Judgement(State.UNKNOWN, ("packets may be decided before they are seen", *words))
    return Judgement(state, words)


def is_decided_earlier(reading: Reading, direction: Direction) -> bool:
    """Whether programs run before vifprobe's on this direction's packets (finding P17)."""
    begin = finding_id(ahead.PATTERN, direction)
    return any(one.id.startswith(begin) for one in reading.findings)


def gone_words(reading: Reading) -> str:
    """When a tap was deleted; "" while it is there."""
    return "" if reading.gone_ns is None else f"deleted {duration(reading.gone_ns)} after the start"


def _ideal_words(reading: Reading, direction: Direction, limit: Limit) -> str:
    """Where verdicts are unknown: what the declared limit, if it held, would have done."""
    exceed = reading.would(direction, Expected.EXCEED)
    if exceed is None or limit.declared_bps is None:
        return "what becomes of these packets is not known here"
    share = percent(exceed.packets, reading.offered(direction).packets)
    return f"an ideal limit of {bit_rate(limit.declared_bps)} would have stopped {share}"


def _state(
    readings: Sequence[Reading],
    direction: Direction,
    limit: Limit,
    context: TapContext,
    passed: Counts,
    policed: Counts,
) -> State:
    """First what is wrong, then what is fine, then what can't be told."""
    installed = limit.installed_bps is not None or limit.installed_pps is not None
    if limit.declared_bps is not None and context.installed_known and not installed and not policed.packets:
        return State.ABSENT
    if limit.declared_bps is None and not installed:
        if policed.packets:
            return State.POLICING
        return State.NO_LIMIT if context.declared_known and context.installed_known else State.UNKNOWN
    if _exceeds(readings, direction, limit):
        return State.BROKEN
    if limit.declared_bps and limit.installed_bps and not same_rate(limit.declared_bps, limit.installed_bps):
        return State.DIFFERS
    if not reading_has_traffic(readings[-1], direction):
        return State.IDLE
    return State.HOLDS if policed.packets else State.UNDER


def reading_has_traffic(reading: Reading, direction: Direction) -> bool:
    """Whether anything was offered."""
    return reading.offered(direction).packets > 0


def _exceeds(readings: Sequence[Reading], direction: Direction, limit: Limit) -> bool:
    """Whether more passed than a bucket of this limit lets through in this interval, or in the whole window.

    A limit is held against the bytes that the policer charges, not against what the wire carries.
    """
    window = _window(readings)
    return _over(window[-1:], direction, limit) or _over(window, direction, limit)


def _window(readings: Sequence[Reading]) -> list[Reading]:
    """The newest reading and those just before it; totals of a run stand for themselves."""
    return [reading for reading in readings[-WINDOW:] if reading.final == readings[-1].final]


def _over(readings: Sequence[Reading], direction: Direction, limit: Limit) -> bool:
    seconds = sum(reading.duration_ns for reading in readings) / 1e9
    passed = [reading.counts(direction, Verdict.PASSED) for reading in readings]
    if limit.installed_pps is not None:
        packets = sum(counts.packets for counts in passed if counts is not None)
        if packets > limit.installed_pps * seconds * (1 + SLACK_NO_BURST) + 1:
            return True
    asked = limit.declared_bps if limit.declared_bps is not None else limit.installed_bps
    if asked is None:
        return False
    bits = 8 * sum(counts.charged_bytes for counts in passed if counts is not None)
    if limit.burst_bytes is None:
        return bits > asked * seconds * (1 + SLACK_NO_BURST)
    return bits > (asked * seconds + 8 * limit.burst_bytes) * (1 + SLACK)


def _words(
    state: State, reading: Reading, direction: Direction, limit: Limit, passed: Counts, policed: Counts
) -> tuple[str, ...]:
    charged = _bps(passed.charged_bytes, reading)
    asked = limit.declared_bps if limit.declared_bps is not None else limit.installed_bps
    offered = reading.offered(direction)
    if asked is not None:
        above = charged is not None and charged > asked * (1 + SLACK) and state is State.HOLDS
        first = f"passes {of_rate(charged, asked)} charged{' (burst)' if above else ''}"
    elif limit.installed_pps is not None:
        first = f"passes {packet_rate(per_second(passed.packets, reading))} of {packet_rate(limit.installed_pps)}"
    else:
        first = f"passes {bit_rate(charged)} charged"
    words = [first]
    if policed.packets:
        words.append(f"{percent(policed.packets, offered.packets)} policed")
    if passed.packets:
        words.append(f"{bit_rate(_bps(passed.wire_bytes, reading))} on the wire")
    return tuple(words)


def of_rate(passed_bps: float | None, asked_bps: float) -> str:
    """``99.8 of 100 Mbit/s``: the unit once where it is the same."""
    passed, asked = bit_rate(passed_bps), bit_rate(asked_bps)
    unit = asked.partition(" ")[2]
    return f"{passed.removesuffix(f' {unit}')} of {asked}"


def _bps(counted_bytes: int, reading: Reading) -> float | None:
    bytes_per_second = per_second(counted_bytes, reading)
    return None if bytes_per_second is None else 8 * bytes_per_second
