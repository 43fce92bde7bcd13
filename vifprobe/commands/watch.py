# SPDX-License-Identifier: Apache-2.0
"""`vifprobe watch`: live screen, lines for a pipe, JSON, CSV."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

import click

from vifprobe.analysis.reading import Reading
from vifprobe.analysis.whatif import WhatIf
from vifprobe.commands.flood_options import flood_options, samples_wanted, thresholds_wanted
from vifprobe.commands.options import (
    CHARGES,
    DIRECTIONS,
    DURATION,
    declared_limits,
    ended_by_signals,
    exit_code,
    fail_on,
    tap_options,
)
from vifprobe.errors import CaptureError, TapError
from vifprobe.probe import Probe

Show = Callable[[list[Reading]], None]


@click.command("watch")
@tap_options
@flood_options
@click.option("--interval", type=DURATION, default="1s", show_default=True, help="Time between two readings.")
@click.option("--duration", type=DURATION, help="End after this long; else Ctrl-C ends it.")
@click.option("--csv", "csv_file", metavar="FILE", help="Also write each interval's rows to this file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object an interval and tap, one line each.")
@fail_on
def command(
    taps: tuple[str, ...],
    direction: str,
    netns: str | None,
    rate: int | None,
    burst: int | None,
    charge: str,
    what_if: tuple[WhatIf, ...],
    create_qdisc: bool,
    no_host: bool,
    interval: int,
    duration: int | None,
    csv_file: str | None,
    as_json: bool,
    fail_on: str | None,
    no_samples: bool,
    threshold: tuple[str, ...],
    thresholds: str | None,
) -> None:
    """Show what the guest sends, what passes, what is policed and dropped, and why.

    \b
    Example:
      sudo vifprobe watch tap834d76e9-5f
      sudo vifprobe watch tap834d76e9-5f --interval 100ms --duration 10s --json
    """
    probe = Probe(
        *taps,
        directions=DIRECTIONS[direction],
        netns=netns,
        limits=declared_limits(direction, rate, burst),
        create_qdisc=create_qdisc,
        charge=CHARGES[charge],
        host=not no_host,
        samples=samples_wanted(no_samples),
        thresholds=thresholds_wanted(threshold, thresholds),
        what_ifs=what_if,
    )
    last: list[Reading] = []
    with ExitStack() as stack:
        # Signals first: one that comes while the hooks are hung must not leave them hanging.
        stack.enter_context(ended_by_signals(probe.stop))
        stack.enter_context(probe)
        # After the probe: a run that never starts must not have emptied the file of an earlier one.
        shows = [stack.enter_context(_csv(csv_file))] if csv_file else []
        shows.append(_json if as_json else stack.enter_context(_view(sys.stdout, probe)))
        seconds = None if duration is None else duration / 1e9
        for batch in probe.intervals(interval / 1e9, seconds):
            last = list(batch)
            for take in (probe.take_samples, probe.take_events, probe.take_host):
                take()  # worked out; nobody needs them any more
            for show in shows:
                show(last)
    if probe.gone:
        raise TapError(f"{', '.join(probe.gone)}: deleted while it was watched.", "What was seen until then is above.")
    sys.exit(exit_code(last, fail_on))


def _json(readings: list[Reading]) -> None:
    from vifprobe.render.jsonlines import reading_line

    for reading in readings:
        sys.stdout.write(reading_line(reading) + "\n")
    sys.stdout.flush()


@contextmanager
def _csv(path: str) -> Iterator[Show]:
    from vifprobe.render.csvlines import csv_header, csv_rows

    try:
        stream = Path(path).open("w", encoding="utf-8", newline="")  # noqa: SIM115 - closed below
    except OSError as error:
        raise _no_csv(path, error) from error

    def write(lines: Iterable[str]) -> None:
        # Only what befalls this file is its error: the pipe that stdout goes to may break in the same run.
        try:
            stream.writelines(lines)
            stream.flush()
        except OSError as error:
            raise _no_csv(path, error) from error

    try:
        write([csv_header()])
        yield lambda readings: write(csv_rows(reading) for reading in readings if not reading.final)
    finally:
        with suppress(OSError):  # all was flushed, or told not to be
            stream.close()


def _no_csv(path: str, error: OSError) -> CaptureError:
    return CaptureError(f"{path}: {error.strerror}.", "Choose another place for --csv.")


@contextmanager
def _view(stream: TextIO, probe: Probe) -> Iterator[Show]:
    """The live screen on a terminal, else one line an interval."""
    from vifprobe.render.context import TapContext
    from vifprobe.render.terminal import is_live_terminal

    if is_live_terminal(stream):
        from vifprobe.render.screen import LiveScreen

        def context(tap: str) -> TapContext:
            audit = probe.audit(tap)
            domain = audit.declared.domain if audit.declared else ""
            return TapContext(domain, probe.features.reasons, audit.declared_known, installed_known=True)

        with LiveScreen(stream) as screen:

            def update(readings: list[Reading]) -> None:
                # What is declared becomes known while the screen is up.
                screen.contexts.update({reading.tap: context(reading.tap) for reading in readings})
                if readings and not readings[0].final:
                    screen.update(readings)

            yield update
        return
    from vifprobe.render.lines import interval_line, lines_header

    stream.write(lines_header([link.kind for link in probe.links]) + "\n")

    def show(readings: list[Reading]) -> None:
        stream.writelines(interval_line(reading) + "\n" for reading in readings)
        stream.flush()

    yield show
