# SPDX-License-Identifier: Apache-2.0
"""Lines of styled text and columns, without rich: what a screen says is settled here, how it is coloured is not.

A style is the name of a meaning (`STYLES`), so that nothing is said by colour alone and plain text loses no fact.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vifprobe.model.untrusted_text import CHARACTERS_MAX, safe
from vifprobe.render.units import BLOCKS, Glyphs, cell_width, clip, pad

#: Meaning -> how rich writes it. Reverse video for what must be seen first: it works without colour too.
STYLES = {
    "": "",
    "head": "bold underline",
    "name": "bold",
    "faint": "dim",
    "strong": "bold",
    "passed": "green",
    "policed": "yellow",
    "dropped": "red",
    "queued": "cyan",
    "unknown": "magenta",
    "good": "bold reverse green",
    "warn": "bold reverse yellow",
    "bad": "bold reverse red",
    "plain": "bold reverse",
    "ok": "green",
    "degraded": "bold yellow",
    "missing": "bold red",
}


class Span(NamedTuple):
    """Cleaned text of one style."""

    text: str
    style: str = ""


@dataclass(frozen=True)
class Line:
    """One line of a screen. Its text can be shown, whatever it was made from: see vifprobe.model.untrusted_text."""

    spans: tuple[Span, ...] = ()

    def __post_init__(self) -> None:
        if not all(len(span.text) <= CHARACTERS_MAX and span.text.isprintable() for span in self.spans):
            object.__setattr__(self, "spans", tuple(Span(safe(span.text), span.style) for span in self.spans))

    @property
    def plain(self) -> str:
        """The text alone, without trailing blanks."""
        return "".join(span.text for span in self.spans).rstrip()

    def __add__(self, other: Line) -> Line:
        return Line(self.spans + other.spans)

    def fitted(self, width: int, glyphs: Glyphs = BLOCKS) -> Line:
        """The same line in at most `width` columns; an ellipsis where something was cut off."""
        if cell_width(self.plain) <= width:
            return self
        spans, room = [], width
        for span in self.spans:
            wide = cell_width(span.text)
            if wide > room or (wide == room and span is not self.spans[-1]):
                spans.append(Span(clip(span.text + " " * (wide == room), room, glyphs), span.style))
                break
            spans.append(span)
            room -= wide
        return Line(tuple(spans))


def line(*parts: str | Span) -> Line:
    """A line from plain strings and spans."""
    return Line(tuple(part if isinstance(part, Span) else Span(part) for part in parts))


class Column(NamedTuple):
    """A column of a fixed width; numbers go to the right edge."""

    title: str
    width: int
    right: bool = True


def cells(columns: Sequence[Column], values: Sequence[str | Span], glyphs: Glyphs = BLOCKS) -> Line:
    """One row: each value clipped and filled to its column, one blank between columns."""
    spans = []
    for number, (column, value) in enumerate(zip(columns, values, strict=True)):
        span = value if isinstance(value, Span) else Span(value)
        text = pad(clip(span.text, column.width, glyphs), column.width, column.right)
        spans.append(Span((" " if number else "") + text, span.style))
    return Line(tuple(spans))


def head(columns: Sequence[Column], glyphs: Glyphs = BLOCKS) -> Line:
    """The title row of a table."""
    return cells(columns, [Span(column.title, "head") for column in columns], glyphs)


def natural(titles: Sequence[str], rows: Sequence[Sequence[str | Span]], right: Sequence[bool]) -> list[Column]:
    """Columns as wide as the widest of their cells."""
    widths = [cell_width(title) for title in titles]
    for row in rows:
        for number, value in enumerate(row):
            widths[number] = max(widths[number], cell_width(value.text if isinstance(value, Span) else value))
    return [Column(title, width, edge) for title, width, edge in zip(titles, widths, right, strict=True)]


def wrapped(label: Span, text: str, width: int, indent: int | None = None) -> list[Line]:
    """A label and text that goes on in further lines, `indent` columns in (else: below its own beginning)."""
    start = cell_width(label.text)
    indent = start if indent is None else indent
    rows = textwrap.wrap(" " * start + text, max(width, indent + 20), subsequent_indent=" " * indent) or [""]
    return [line(label, rows[0][start:]), *(line(row) for row in rows[1:])]


def one_line(parts: Sequence[Line], width: int, glyphs: Glyphs = BLOCKS) -> Line:
    """As many of the parts, in their order, as one line holds; the first one always."""
    return (flow(parts, width, 0, glyphs) or [Line()])[0]


def flow(parts: Sequence[Line], width: int, indent: int, glyphs: Glyphs = BLOCKS, first: int = 0) -> list[Line]:
    """Parts put one after the other with a dot between them, going on in a new line where the next one won't fit.

    indent: blanks before every line but the first, which starts at column `first` (what stands there is the caller's).
    """
    joint = f" {glyphs.dot} "
    lines: list[Line] = []
    now, used = Line(), first
    for part in parts:
        wide = cell_width(part.plain)
        if now.spans and used + len(joint) + wide > width:
            lines.append(now)
            now, used = Line(), indent
        if now.spans:
            now += line(Span(joint, "faint"))
            used += len(joint)
        elif lines:
            now += line(" " * indent)
        now += part
        used += wide
    return [*lines, now] if now.spans else lines
