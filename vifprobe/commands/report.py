# SPDX-License-Identifier: Apache-2.0
"""`vifprobe report`: a capture as a page with plots, one HTML file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from vifprobe.commands.files import check_free, write_file
from vifprobe.commands.output import show_beside
from vifprobe.model.untrusted_text import safe


@click.command("report")
@click.argument("directory", metavar="DIR")
@click.option("-o", "--output", metavar="FILE", help="Page to write, - for standard output (default: DIR.html).")
@click.option("--force", is_flag=True, help="Replace the page if it is there.")
def command(directory: str, output: str | None, force: bool) -> None:
    """A page with plots from a capture: one HTML file that needs nothing else, to read, print and pass on.

    It needs no root, and can be made on any machine that the folder is copied to.

    \b
    Example:
      vifprobe report evidence/
      vifprobe report evidence/ -o flood.html
    """
    from vifprobe.capture.reader import load
    from vifprobe.render.export.page import page

    capture = load(directory)
    target = Path(output) if output else Path(directory).resolve().with_suffix(".html")
    if output != "-":
        check_free(target, force, "-o")  # before the work
    with _drawing():
        text = page(capture)
    if output == "-":
        encoding = sys.stdout.encoding or "ascii"
        sys.stdout.write(text.encode(encoding, "xmlcharrefreplace").decode(encoding))
        return
    content = text.encode()
    write_file(target, content, force, "-o")
    show_beside(lambda: click.echo(safe(f"{target}: {len(content) // 1024} KiB")), str(target))


@contextmanager
def _drawing() -> Iterator[None]:
    """Some seconds with several taps: on a terminal something moves meanwhile."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status("drawing the page"):
        yield
