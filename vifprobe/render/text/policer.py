# SPDX-License-Identifier: Apache-2.0
"""`vifprobe policer`: is the limit really there? First the answer, then who asks for what and who does it, then why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vifprobe.analysis.findings.back_ends import SOURCES
from vifprobe.analysis.policer import PolicerRow, SetUp, enforced_past
from vifprobe.model.layout import Direction
from vifprobe.model.limits import LimitAnswer, LimitState
from vifprobe.model.ports import is_guest_port, outbound_hook, word
from vifprobe.model.reading import Finding
from vifprobe.render.limit_words import badge, traffic_words
from vifprobe.render.text.line import Line, Span, cells, head, line, natural, wrapped
from vifprobe.render.text.tap_view import by_severity, finding_lines
from vifprobe.render.units import BLOCKS, UNKNOWN, Glyphs, bit_rate, clean, si, tc_size

_INDENT = 9
_NONE = "-"


@dataclass(frozen=True)
class AuditView:
    """The audit of one tap. rows: of the given directions only. gone: the tap was deleted meanwhile."""

    set_up: SetUp
    rows: Sequence[PolicerRow]
    findings: Sequence[Finding]
    states: Mapping[Direction, LimitAnswer]
    directions: Sequence[Direction] = tuple(Direction)
    domain: str = ""
    notes: Sequence[str] = ()
    gone: bool = False


def policer_lines(view: AuditView, width: int = 80, glyphs: Glyphs = BLOCKS) -> list[Line]:
    """The answer, the places that declare or enforce a limit, the findings, and what was not read."""
    set_up = view.set_up
    words = f" {set_up.tap}: deleted during the audit; this is what was set before"
    lines = wrapped(Span(" TAP IS GONE ", "bad"), clean(words, glyphs), width, _INDENT) if view.gone else []
    for direction in view.directions:
        lines += _answer(set_up, direction, view.states.get(direction, LimitAnswer()), width, glyphs)
    if view.domain:
        lines.append(line(Span("guest    ", "name"), clean(view.domain, glyphs)))
    lines += [Line(), *_table(view.rows, set_up.kind, width, glyphs)] if view.rows else []
    lines.append(Line())
    for finding in by_severity(view.findings):
        lines += finding_lines([finding], glyphs, width)
        lines += wrapped(Span(" " * _INDENT), clean(finding.advice, glyphs), width) if finding.advice else []
        lines += wrapped(Span("   proof ", "faint"), clean(proof(finding.evidence), glyphs), width)
    if not view.findings:
        lines.append(line(Span("findings ", "name"), "none"))
    for words in set_up.earlier:
        lines += wrapped(Span("ahead    ", "name"), clean(f"{words} runs before the policer", glyphs), width)
    for words in set_up.not_read:
        lines += wrapped(Span("not read ", "warn"), clean(words, glyphs), width)
    for words in view.notes:
        lines += wrapped(Span("note     ", "name"), clean(words, glyphs), width)
    lines += wrapped(Span("         ", "faint"), _meaning(set_up.kind), width)
    return lines


def _meaning(kind: str) -> str:
    if not is_guest_port(kind):
        return "not a guest's port: received = what came in by it (ingress), sent = what left by it"
    return f"outbound = from the guest ({kind} {outbound_hook(kind)}), inbound = to it"


def _answer(set_up: SetUp, direction: Direction, answer: LimitAnswer, width: int, glyphs: Glyphs) -> list[Line]:
    shown = badge(answer)
    words = f" {set_up.tap} {set_up.word(direction)}{_words(set_up, direction, answer.state)}"
    if packets := traffic_words(answer):
        words += f"; {packets}"
    return wrapped(Span(f" {shown.headline} ", shown.style), clean(words, glyphs), width, _INDENT)


def _words(set_up: SetUp, direction: Direction, state: LimitState) -> str:
    asked, held = set_up.main_declared(direction), set_up.main_enforced(direction)
    if asked is None:
        asked = next(iter(set_up.declared_in(direction)), None)
    told = "" if asked is None else f"{_rate(asked.rate_bps, asked.rate_pps)} declared by "
    told += "" if asked is None else SOURCES.get(asked.source, asked.source)
    found = "" if held is None else f"{_rate(held.rate_bps, held.rate_pps)} installed by {held.source} {held.kind}"
    if state is LimitState.ABSENT:
        found = "none installed"
    elif state is LimitState.ELSEWHERE:
        past = enforced_past(set_up, direction)[0]
        where = "by a meter of" if past.kind == "meter" else "in" if past.source == "nft" else "on"
        found = f"{_rate(past.rate_bps, past.rate_pps)} installed {where} {past.place}"
    parts = [part for part in (told, found) if part]
    return f": {', '.join(parts)}" if parts else ""


def _rate(rate_bps: int | None, rate_pps: int | None) -> str:
    parts = [bit_rate(rate_bps)] if rate_bps is not None else []
    parts += [f"{si(rate_pps)} packets/s".replace("  ", " ")] if rate_pps is not None else []
    return " + ".join(parts) or "no rate"


def _table(rows: Sequence[PolicerRow], kind: str, width: int, glyphs: Glyphs) -> list[Line]:
    titles = ["", "source", "kind", "rate", "burst", "protocol", "as declared", "packets", "drops"]
    values = [_cells(row, kind, glyphs) for row in rows]
    right = [False, False, False, True, True, False, False, True, True]
    columns = natural(titles, values, right)
    return [head(columns, glyphs).fitted(width, glyphs)] + [
        cells(columns, row, glyphs).fitted(width, glyphs) for row in values
    ]


def _cells(row: PolicerRow, kind: str, glyphs: Glyphs) -> list[str | Span]:
    agrees = {
        True: Span("yes", "ok"),
        False: Span("NO", "bad"),
        None: Span(_NONE, "faint"),
    }[row.matches_declared]
    return [
        word(kind, row.direction),
        Span(clean(row.source, glyphs), "name"),
        clean(row.kind, glyphs),
        _rate(row.rate_bps, row.rate_pps).replace(" packets/s", "/s"),
        tc_size(row.burst_bytes) if row.burst_bytes is not None else _NONE,
        clean(row.protocol, glyphs) or _NONE,
        agrees,
        si(row.packets) if row.packets is not None else _NONE,
        si(row.drops) if row.drops is not None else _NONE,
    ]


def proof(evidence: Mapping[str, Any]) -> str:
    """The facts that a finding rests on, as far as one line can tell them; `--json` has all."""
    told = {name: _told(value) for name, value in evidence.items()}
    return ", ".join(f"{name.replace('_', ' ')} {words}" for name, words in told.items() if words) or UNKNOWN


def _told(value: Any) -> str:
    """A value of a finding's evidence in words; "" where it says nothing."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return _limit_words(value) if "rate_bps" in value else ", ".join(_pairs(value))
    if isinstance(value, (list, tuple)):
        return "; ".join(filter(None, map(_told, value)))
    return "" if value is None else str(value)


def _pairs(value: Mapping[str, Any]) -> list[str]:
    return [f"{name.replace('_', ' ')} {words}" for name, one in value.items() if (words := _told(one))]


def _limit_words(value: Mapping[str, Any]) -> str:
    """A declared or installed limit: `tc police 100 Mbit/s (burst 3.2Mb, protocol ip) at ingress pref 1 ...`."""
    named = [str(value[name]) for name in ("source", "kind") if value.get(name)]
    words = " ".join([*named, _rate(value.get("rate_bps"), value.get("rate_pps"))])
    more = [f"burst {tc_size(value['burst_bytes'])}"] if value.get("burst_bytes") is not None else []
    more += [f"protocol {value['protocol']}"] if value.get("protocol") else []
    words += f" ({', '.join(more)})" if more else ""
    if value.get("where"):
        return f"{words} at {value['where']}"
    return f"{words} on {value['device']}" if value.get("device") else words
