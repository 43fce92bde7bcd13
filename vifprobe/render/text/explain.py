# SPDX-License-Identifier: Apache-2.0
"""Entries of docs/findings.md, as text for a terminal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from vifprobe.render.text.line import Line, Span, line
from vifprobe.render.units import Glyphs, clean

_HEADING = re.compile(r"## (?P<code>[PS][0-9]+): (?P<title>.+)")
_LABEL = re.compile(r"\*\*(?P<label>[^*]+:)\*\*")


@dataclass(frozen=True)
class Entry:
    """One finding of the page. body: its paragraphs and list items, in Markdown, each on one line."""

    code: str
    title: str
    body: tuple[str, ...]


def entries(page: str) -> dict[str, Entry]:
    """Return the entries of the page by code, in its order."""
    found = {}
    for section in re.split(r"^(?=## )", page, flags=re.MULTILINE):
        heading, _, body = section.partition("\n")
        if match := _HEADING.fullmatch(heading):
            found[match["code"]] = Entry(match["code"], match["title"], tuple(_blocks(body)))
    return found


def _blocks(body: str) -> Iterator[str]:
    """Paragraphs and list items: what the page breaks into lines is one line again."""
    for paragraph in re.split(r"\n\n+|\n(?=- )", body.strip()):
        yield " ".join(paragraph.split())


def entry_lines(entry: Entry, width: int, glyphs: Glyphs) -> list[Line]:
    """Return the entry: its heading, then paragraphs with a blank line before each, and list items."""
    lines = [line(Span(entry.code, "strong"), f" {clean(entry.title, glyphs)}")]
    before = ""
    for block in entry.body:
        is_item = block.startswith("- ")
        if not (is_item and before.startswith("- ")):
            lines.append(Line())
        match = _LABEL.match(block)
        label = match["label"] if match else ""
        text = clean(label + block[match.end() :] if match else block, glyphs)
        rows = textwrap.wrap(text, width, subsequent_indent="  " if is_item else "", break_on_hyphens=False)
        lines.append(line(Span(rows[0][: len(label)], "head"), rows[0][len(label) :]))
        lines += map(line, rows[1:])
        before = block
    return lines


def list_lines(found: Mapping[str, Entry], width: int, glyphs: Glyphs) -> list[Line]:
    """Return one line for each code, and how to read an entry."""
    return [*_rows(found.values(), width, glyphs), Line(), line("Read one with `vifprobe explain CODE`.")]


def _rows(found: Iterable[Entry], width: int, glyphs: Glyphs) -> Iterator[Line]:
    for entry in found:
        code = f"{entry.code:<4}"
        rows = textwrap.wrap(
            code + clean(entry.title, glyphs), width, subsequent_indent=" " * len(code), break_on_hyphens=False
        )
        yield line(Span(rows[0][: len(code)], "strong"), rows[0][len(code) :])
        yield from map(line, rows[1:])
