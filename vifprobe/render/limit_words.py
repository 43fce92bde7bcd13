# SPDX-License-Identifier: Apache-2.0
"""Words and colours for the state of a limit: the same on every screen and page. What the state is, others decide."""

from __future__ import annotations

from typing import NamedTuple

from vifprobe.analysis.tolerance import ABOVE
from vifprobe.model.layout import Direction, Expected, Verdict
from vifprobe.model.limits import Doubt, LimitAnswer, LimitState, Traffic
from vifprobe.model.reading import Limit, Reading
from vifprobe.render.units import bit_rate, duration, packet_rate, per_second, percent, whole


class Badge(NamedTuple):
    """headline: in capitals, to stand out without colour. word: short, for a column. style: a key of line.STYLES."""

    headline: str
    word: str
    style: str


_STATES = {
    LimitState.THERE: Badge("LIMIT IS THERE", "there", "good"),
    LimitState.UNDECLARED: Badge("LIMIT, NOT DECLARED", "undeclared", "plain"),
    LimitState.NOT_HELD: Badge("LIMIT NOT HELD", "NOT HELD", "bad"),
    LimitState.ABSENT: Badge("NO POLICER", "NO POLICER", "bad"),
    LimitState.DIFFERS: Badge("WRONG LIMIT", "WRONG", "bad"),
    LimitState.HOLES: Badge("LIMIT HAS A HOLE", "HOLE", "bad"),
    LimitState.BYPASSED: Badge("LIMIT IS BYPASSED", "BYPASSED", "bad"),
    LimitState.ELSEWHERE: Badge("LIMIT IS ELSEWHERE", "elsewhere", "warn"),
    LimitState.POLICED: Badge("POLICED, LIMIT UNKNOWN", "policed", "warn"),
    LimitState.NONE: Badge("NO LIMIT ASKED FOR", "no limit", "plain"),
    LimitState.UNKNOWN: Badge("LIMIT UNKNOWN", "unknown", "warn"),
    LimitState.GONE: Badge("TAP IS GONE", "GONE", "bad"),
}
#: While packets are watched, what they show of a limit that is there is news, that it is there is not.
_TRAFFIC = {
    Traffic.HOLDS: Badge("LIMIT HOLDS", "holds", "good"),
    Traffic.UNDER: Badge("UNDER THE LIMIT", "under", "good"),
    Traffic.IDLE: Badge("NO TRAFFIC", "idle", "plain"),
}
_OFFERED_ONLY = Badge("OFFERED ONLY", "?", "warn")
_SET_RIGHT = (LimitState.THERE, LimitState.UNDECLARED)
_DOUBTS = {
    Doubt.DECIDED_EARLIER: "packets may be decided before they are seen",
    Doubt.UNWATCHED: "packets were not watched all the time",
    Doubt.CHANGED: "it was away, or another one, for a part of the time",
    Doubt.DROPPED: "others drop packets as a limit does",
    Doubt.VERDICTS: "what becomes of packets is not known",
}
_SHOWN = {
    Traffic.HOLDS: "it holds",
    Traffic.UNDER: "packets stay under it",
    Traffic.IDLE: "no packets",
    Traffic.EXCEEDS: "more passes",
}


def badge(answer: LimitAnswer) -> Badge:
    """For who asks whether the limit is there."""
    return _STATES[answer.state]


def live_badge(answer: LimitAnswer) -> Badge:
    """For who watches packets."""
    if answer.doubt is Doubt.VERDICTS and answer.state in (*_SET_RIGHT, LimitState.NONE, LimitState.UNKNOWN):
        return _OFFERED_ONLY
    if answer.state in _SET_RIGHT:
        return _TRAFFIC.get(answer.traffic, _STATES[answer.state])
    return _STATES[answer.state]


def state_words(answer: LimitAnswer) -> str:
    """`there holds`: state and traffic as in JSON, for a line."""
    return f"{answer.state.value} {answer.traffic.value}"


def traffic_words(answer: LimitAnswer) -> str:
    """Return the evidence of the packets in a few words; "" where there is nothing to say."""
    if answer.state not in (*_SET_RIGHT, LimitState.NOT_HELD, LimitState.UNKNOWN):
        return ""
    return _doubt_words(answer) or _SHOWN.get(answer.traffic, "")


def gone_words(reading: Reading) -> str:
    """When a tap was deleted; "" while it is there."""
    return "" if reading.gone_ns is None else f"deleted {duration(reading.gone_ns)} after the start"


def figures(reading: Reading, direction: Direction) -> tuple[str, ...]:
    """Return the figures that the state rests on, the most telling first."""
    answer, limit = reading.limit_state(direction), reading.limits.get(direction, Limit())
    if answer.state is LimitState.GONE:
        return (gone_words(reading),)
    passed = reading.counts(direction, Verdict.PASSED)
    policed = reading.counts(direction, Verdict.POLICED)
    if not reading.verdicts or passed is None or policed is None or direction not in reading.directions:
        return (_ideal_words(reading, direction, limit),)
    charged = _bps(passed.charged_bytes, reading)
    asked = limit.declared_bps if limit.declared_bps is not None else limit.installed_bps
    if asked is not None:
        above = charged is not None and charged > asked * (1 + ABOVE) and answer.traffic is Traffic.HOLDS
        first = f"passes {of_rate(charged, asked)} charged{' (burst)' if above else ''}"
    elif limit.installed_pps is not None:
        first = f"passes {packet_rate(per_second(passed.packets, reading))} of {packet_rate(limit.installed_pps)}"
    else:
        first = f"passes {bit_rate(charged)} charged"
    words = [first]
    if policed.packets:
        words.append(f"{percent(policed.packets, reading.offered(direction).packets)} policed")
    if passed.packets:
        words.append(f"{bit_rate(_bps(passed.wire_bytes, reading))} on the wire")
    doubt = _doubt_words(answer) if answer.state in (*_SET_RIGHT, LimitState.UNKNOWN) else ""
    return (doubt, *words) if doubt else tuple(words)


def of_rate(passed_bps: float | None, asked_bps: float) -> str:
    """``99.8 of 100 Mbit/s``: the unit once where it is the same."""
    passed, asked = bit_rate(passed_bps), bit_rate(asked_bps)
    unit = asked.partition(" ")[2]
    return f"{passed.removesuffix(f' {unit}')} of {asked}"


def _doubt_words(answer: LimitAnswer) -> str:
    if answer.doubt is Doubt.MISSED:
        return f"{whole(answer.missed_packets)} packets are not counted"
    return "" if answer.doubt is None else _DOUBTS.get(answer.doubt, "")


def _ideal_words(reading: Reading, direction: Direction, limit: Limit) -> str:
    """Where verdicts are unknown: what the declared limit, if it held, would have done."""
    exceed = reading.would(direction, Expected.EXCEED)
    if exceed is None or limit.declared_bps is None:
        return "what becomes of these packets is not known here"
    share = percent(exceed.packets, reading.offered(direction).packets)
    return f"an ideal limit of {bit_rate(limit.declared_bps)} would have stopped {share}"


def _bps(counted_bytes: int, reading: Reading) -> float | None:
    bytes_per_second = per_second(counted_bytes, reading)
    return None if bytes_per_second is None else 8 * bytes_per_second
