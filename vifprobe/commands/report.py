# SPDX-License-Identifier: Apache-2.0
"""`vifprobe report`: one HTML page with plots, made from a capture."""

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
@click.option("--force", is_flag=True, help="Replace an existing page.")
def command(directory: str, output: str | None, force: bool) -> None:
    """Make one HTML page with plots from a capture.

    The page is a single file, to read, print and pass on. The command needs no root. It can run on another machine, to
    which the folder was copied.

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
    """Show on a terminal that the page is being drawn, which takes some seconds for several taps."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status("drawing the page"):
        yield
