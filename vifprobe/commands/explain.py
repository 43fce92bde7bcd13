# SPDX-License-Identifier: Apache-2.0
"""`vifprobe explain`: the entry of docs/findings.md for the code of a finding."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from pathlib import Path

import click

from vifprobe.errors import MissingPieceError, UsageError
from vifprobe.model.untrusted_text import quoted
from vifprobe.render.text.explain import entries, entry_lines, list_lines
from vifprobe.render.text.terminal import print_lines, stream_glyphs, stream_width

PAGE = "docs/findings.md"


@click.command("explain")
@click.argument("code", metavar="[CODE]", required=False)
def command(code: str | None) -> None:
    """Explain a finding: what it means, which numbers prove it, what to do.

    CODE is the code in front of a finding's text, such as P11 or S1. Without CODE, all codes are listed.

    \b
    Example:
      vifprobe explain P11
      vifprobe explain
    """
    found = entries(page_text())
    width, glyphs = stream_width(sys.stdout), stream_glyphs(sys.stdout)
    if code is None:
        print_lines(sys.stdout, list_lines(found, width, glyphs))
        return
    # P11-outbound is the id of a finding in JSON.
    entry = found.get(code.strip().upper().partition("-")[0])
    if entry is None:
        closest = get_close_matches(code.upper(), found, n=3, cutoff=0.5)
        hint = f"The closest are {', '.join(closest)}. " if closest else ""
        raise UsageError(f"no finding {quoted(code)}.", f"{hint}Codes: {', '.join(found)}.")
    print_lines(sys.stdout, entry_lines(entry, width, glyphs))


def page_text() -> str:
    """Return docs/findings.md: inside the installed package, or next to it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for place in (package / PAGE, package.parent / PAGE):
        if place.is_file():
            return place.read_text(encoding="utf-8")
    raise MissingPieceError(f"{package / PAGE}: no such file.", "Install vifprobe again.")
