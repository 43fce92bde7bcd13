# SPDX-License-Identifier: Apache-2.0
"""Lines written to a stream: in colour on a terminal, else as plain text. Imports rich only where there is colour."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from typing import TextIO

from vifprobe.render.text.line import STYLES, Line
from vifprobe.render.units import Glyphs, glyphs_for

#: Columns where there is no terminal to ask.
PLAIN_WIDTH = 80


def is_live_terminal(stream: TextIO) -> bool:
    """Return True if `stream` is a terminal that a screen can be drawn on (else: one line an interval)."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def stream_glyphs(stream: TextIO) -> Glyphs:
    """Return the glyphs that this stream's encoding has."""
    return glyphs_for(getattr(stream, "encoding", None))


def stream_width(stream: TextIO) -> int:
    """Columns to lay lines out for."""
    return shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns if stream.isatty() else PLAIN_WIDTH


def print_lines(stream: TextIO, lines: Iterable[Line]) -> None:
    """Write the lines. Colour only on a terminal; rich honours NO_COLOR there."""
    if not is_live_terminal(stream):
        stream.write("".join(line.plain + "\n" for line in lines))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, markup=False, emoji=False, highlight=False, legacy_windows=False)
    for line in lines:
        text = Text()
        for span in line.spans:
            text.append(span.text, STYLES[span.style])
        console.print(text, soft_wrap=True)
