# SPDX-License-Identifier: Apache-2.0
"""`vifprobe report`: a capture as a page with plots, one HTML file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from vifprobe.errors import CaptureError
from vifprobe.foreign import safe


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
    from vifprobe.render.page import page

    capture = load(directory)
    target = Path(output) if output else Path(directory).resolve().with_suffix(".html")
    if output != "-" and not force and target.exists():
        raise CaptureError(f"{target}: there is one already.", "Name another with -o, or replace it with --force.")
    with _drawing():
        text = page(capture)
    if output == "-":
        encoding = sys.stdout.encoding or "ascii"
        sys.stdout.write(text.encode(encoding, "xmlcharrefreplace").decode(encoding))
        return
    _write(target, text)
    click.echo(safe(f"{target}: {len(text) // 1024} KiB"))


@contextmanager
def _drawing() -> Iterator[None]:
    """Some seconds with several taps: on a terminal something moves meanwhile."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status("drawing the page"):
        yield


def _write(target: Path, text: str) -> None:
    """All or nothing, and as private as the capture is."""
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        why = (error.strerror or str(error)).lower()
        raise CaptureError(f"{target}: {why}.", "Name another place with -o.") from error
