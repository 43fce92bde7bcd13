# SPDX-License-Identifier: Apache-2.0
"""`vifprobe policer` of many taps: how many are in which state; a row for each tap and direction, the worst first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vifprobe.analysis.policer import SetUp, enforced_past
from vifprobe.model.layout import Direction
from vifprobe.model.limits import LimitAnswer, LimitState
from vifprobe.model.reading import Finding
from vifprobe.render.limit_words import Badge, badge
from vifprobe.render.text.line import Line, Span, cells, flow, head, line, natural, wrapped
from vifprobe.render.units import BLOCKS, UNKNOWN, Glyphs, bit_rate, clean, packet_rate, si

_NONE = "-"
_ORDER = {"bad": 0, "warn": 1, "plain": 2, "good": 3}
_SEVERITIES = ("critical", "warning", "info")


@dataclass(frozen=True)
class NodeRow:
    """One tap in one direction. dropped: by its limits while it was watched; None: not counted."""

    set_up: SetUp
    direction: Direction
    answer: LimitAnswer
    findings: Sequence[Finding] = ()
    domain: str = ""
    dropped: int | None = None
    gone: bool = False

    @property
    def badge(self) -> Badge:
        """The state, in words."""
        return badge(LimitAnswer(LimitState.GONE) if self.gone else self.answer)

    @property
    def shared(self) -> bool:
        """Return True if other interfaces use the same bucket."""
        main = self.set_up.main_enforced(self.direction)
        return main is not None and main.shared


def node_lines(rows: Sequence[NodeRow], width: int = 80, glyphs: Glyphs = BLOCKS) -> list[Line]:
    """The numbers of taps by state, the table, and what was not read anywhere."""
    if not rows:
        return [line("No taps in this network namespace. Name another one with --netns.")]
    ordered = sorted(rows, key=_place)
    titles = ["tap", "direction", "limit", "declared", "installed", "dropped", "findings", "guest"]
    table = _joined([(row, _row(row, glyphs)) for row in ordered])
    kept = [
        number
        for number, title in enumerate(titles)
        if title in ("tap", "direction", "limit") or any(values[number].text not in ("", _NONE) for values in table)
    ]
    picked = [[values[number] for number in kept] for values in table]
    right = [titles[number] in ("declared", "installed", "dropped") for number in kept]
    columns = natural([titles[number] for number in kept], picked, right)
    found = [*_summary(ordered, width, glyphs), Line(), head(columns, glyphs).fitted(width, glyphs)]
    found += [cells(columns, values, glyphs).fitted(width, glyphs) for values in picked]
    unread = Counter(words for row in {row.set_up.tap: row for row in rows}.values() for words in row.set_up.not_read)
    for words, taps in unread.items():
        many = f" ({taps} taps)" if taps > 1 else ""
        found += wrapped(Span("not read ", "warn"), clean(words + many, glyphs), width)
    ending = (
        "one tap whole: vifprobe policer TAP. Packets were not counted: vifprobe watch TAP shows whether a limit holds"
    )
    return [*found, *wrapped(Span("", "faint"), ending, width)]


def _joined(rows: Sequence[tuple[NodeRow, list[Span]]]) -> list[list[Span]]:
    """Return one row for a tap whose directions are alike but for their names, else one for each direction."""
    found: list[list[Span]] = []
    for place, (row, values) in enumerate(rows):
        before, values_before = rows[place - 1] if place else (None, [])
        is_same_tap = before is not None and before.set_up.tap == row.set_up.tap
        if is_same_tap and [*values[:1], *values[2:]] == [*values_before[:1], *values_before[2:]]:
            found[-1] = [values[0], Span("both"), *values[2:]]
        else:
            found.append(values)
    return found


def _summary(rows: Sequence[NodeRow], width: int, glyphs: Glyphs) -> list[Line]:
    states = Counter(row.badge for row in rows)
    taps = len({row.set_up.tap for row in rows})
    parts = [line(f"{taps} tap{'' if taps == 1 else 's'}")]
    parts += [
        line(Span(f" {state.headline} ", state.style), f" {count}")
        for state, count in sorted(states.items(), key=lambda one: (_ORDER.get(one[0].style, 0), -one[1]))
    ]
    return flow(parts, width, 2, glyphs)


def _place(row: NodeRow) -> tuple[int, int, str, Direction]:
    worst = min((_severity(one) for one in row.findings), default=len(_SEVERITIES))
    return _ORDER.get(row.badge.style, 0), worst, row.set_up.tap, row.direction


def _severity(finding: Finding) -> int:
    return _SEVERITIES.index(finding.severity) if finding.severity in _SEVERITIES else 0


def _row(row: NodeRow, glyphs: Glyphs) -> list[Span]:
    set_up, direction, shown = row.set_up, row.direction, row.badge
    asked, held = set_up.main_declared(direction), set_up.main_enforced(direction)
    if asked is None:
        asked = next(iter(set_up.declared_in(direction)), None)
    if held is None:
        held = next(iter(enforced_past(set_up, direction)), None)
    words = shown.headline.lower() + (", shared" if row.shared else "")
    codes = dict.fromkeys(one.pattern for one in sorted(row.findings, key=_severity))
    return [
        Span(clean(set_up.tap, glyphs), "name"),
        Span(set_up.word(direction)),
        Span(words, {"bad": "missing", "warn": "degraded", "good": "ok"}.get(shown.style, "")),
        Span(_NONE if asked is None else _rate(asked.rate_bps, asked.rate_pps)),
        Span(_NONE if held is None else _rate(held.rate_bps, held.rate_pps)),
        Span(_NONE if row.dropped is None else si(row.dropped)),
        Span(" ".join(codes) or _NONE),
        Span(clean(row.domain, glyphs) or _NONE),
    ]


def _rate(rate_bps: int | None, rate_pps: int | None) -> str:
    parts = [bit_rate(rate_bps)] if rate_bps is not None else []
    parts += [packet_rate(rate_pps)] if rate_pps is not None else []
    return "+".join(parts) or UNKNOWN
