# SPDX-License-Identifier: Apache-2.0
"""Parts of a screen and how they share its height: what matters least gives way first, and says how much it hides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from vifprobe.render.text.line import Line, line
from vifprobe.render.units import Glyphs, cell_width

Draw = Callable[[int], Sequence[Line]]


@dataclass(frozen=True)
class Section:
    """One part. `draw(n)` gives exactly n of its `total` rows, the last of them saying what was left out.

    least: rows that it wants at any height. keep: 0 never goes; of the others the highest number goes first. grow: the
    lowest number gets spare rows first. gap: a blank line before it where there is room.
    """

    total: int
    least: int
    draw: Draw
    keep: int = 0
    grow: int = 9
    head: tuple[Line, ...] = ()
    gap: bool = False

    def height(self, rows: int) -> int:
        """Lines taken with `rows` rows shown: no rows, no head."""
        return rows + len(self.head) if rows else 0


def fixed(lines: Sequence[Line], keep: int = 0, gap: bool = False) -> Section:
    """A part that is shown whole or not at all."""
    kept = tuple(lines)
    return Section(len(kept), len(kept), lambda rows: kept[:rows], keep, gap=gap)


def listed(rows: Sequence[Line], what: str, glyphs: Glyphs, least: int, keep: int, grow: int) -> Section:
    """A list that may be cut at its end: ``… 3 more classes``."""
    total = len(rows)

    def draw(room: int) -> Sequence[Line]:
        return rows if room >= total else [*rows[: room - 1], more_line(total - room + 1, what, glyphs)]

    return Section(total, min(least, total), draw, keep, grow)


def more_line(hidden: int, what: str, glyphs: Glyphs) -> Line:
    """Line in the place of rows that were left out."""
    return line(f"{glyphs.ellipsis} {hidden} more {what}")


def beside(left: Section, right: Section, left_width: int) -> Section:
    """Two parts next to each other, for wide screens."""

    def join(lefts: Sequence[Line], rights: Sequence[Line]) -> list[Line]:
        return [
            a + line(" " * (left_width - sum(cell_width(span.text) for span in a.spans))) + b
            for a, b in zip_longest(lefts, rights, fillvalue=Line())
        ]

    def draw(rows: int) -> Sequence[Line]:
        return join(left.draw(min(rows, left.total)), right.draw(min(rows, right.total)))

    total, least = max(left.total, right.total), max(left.least, right.least)
    return replace(left, total=total, least=least, draw=draw, head=tuple(join(left.head, right.head)))


def fit(sections: Sequence[Section], height: int | None) -> list[Line]:
    """The lines of all parts in at most `height` lines; None: everything, however long."""
    sections = [section for section in sections if section.total]
    if height is None:
        return _lines(sections, [section.total for section in sections], [section.gap for section in sections])
    rows = [section.least for section in sections]
    for number in sorted(range(len(sections)), key=lambda number: -sections[number].keep):
        if sections[number].keep and _height(sections, rows) > height:
            rows[number] = 0
    for number in sorted(range(len(sections)), key=lambda number: sections[number].grow):
        section, before = sections[number], rows[number]
        spare = height - _height(sections, rows) - (0 if before else len(section.head))
        if spare > 0 and (before or spare >= min(section.total, 2)):
            rows[number] = min(section.total, before + spare)
    spare = height - _height(sections, rows)
    gaps = []
    for section, shown in zip(sections, rows, strict=True):
        gaps.append(section.gap and shown > 0 and spare > 0)
        spare -= gaps[-1]
    return _lines(sections, rows, gaps)[:height]


def _height(sections: Sequence[Section], rows: Sequence[int]) -> int:
    return sum(section.height(shown) for section, shown in zip(sections, rows, strict=True))


def _lines(sections: Sequence[Section], rows: Sequence[int], gaps: Sequence[bool]) -> list[Line]:
    lines: list[Line] = []
    for section, shown, gap in zip(sections, rows, gaps, strict=True):
        if gap and lines:
            lines.append(Line())
        if shown:
            lines += [*section.head, *section.draw(shown)]
    return lines
