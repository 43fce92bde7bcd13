# SPDX-License-Identifier: Apache-2.0
"""`vifprobe doctor`: what this kernel and host can do, what each missing piece costs, how to get it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from vifprobe.render.text.line import Line, Span, line
from vifprobe.render.units import BLOCKS, Glyphs, cell_width, clean, pad


class CheckState(Enum):
    """ok: there. degraded: works, but with a cost. missing: what needs it can't be done."""

    OK = "ok"
    DEGRADED = "degraded"
    MISSING = "missing"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. detail: what was found; cost: what its lack means; remedy: how to get it."""

    name: str
    state: CheckState
    detail: str = ""
    cost: str = ""
    remedy: str = ""


_STATE_WIDTH = max(len(state.value) for state in CheckState)


def doctor_lines(checks: Sequence[Check], width: int = 80, glyphs: Glyphs = BLOCKS) -> list[Line]:
    """Each check in its given order: state, name and finding, below it the cost and the remedy; a count at the end."""
    name_width = max((cell_width(clean(check.name, glyphs)) for check in checks), default=0)
    lines = [row for check in checks for row in _check(check, name_width, width, glyphs)]
    counts = [f"{sum(check.state is state for check in checks)} {state.value}" for state in CheckState]
    return [*lines, Line(), line(Span(", ".join(counts), "strong"))]


def _check(check: Check, name_width: int, width: int, glyphs: Glyphs) -> list[Line]:
    indent = _STATE_WIDTH + 1
    name = clean(check.name, glyphs)
    first = line(Span(pad(check.state.value, indent), check.state.value), Span(pad(name, name_width), "name"))
    if check.detail:
        first += line(f"  {clean(check.detail, glyphs)}")
    lines = [first]
    for label, text in (("costs", check.cost), ("get it", check.remedy)):
        if text and check.state is not CheckState.OK:
            lead = " " * indent + f"{label}: "
            rows = textwrap.wrap(clean(text, glyphs), max(20, width - len(lead)), break_on_hyphens=False)
            lines += [line(lead if not number else " " * len(lead), row) for number, row in enumerate(rows)]
    return lines
