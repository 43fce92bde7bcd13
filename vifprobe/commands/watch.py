# SPDX-License-Identifier: Apache-2.0
"""`vifprobe watch`: a live screen, lines in a pipe, JSON or CSV."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import click

from vifprobe.commands.channel import Channel
from vifprobe.commands.files import open_for_rows
from vifprobe.commands.flood_options import flood_options, samples_wanted, thresholds_wanted
from vifprobe.commands.options import (
    CHARGES,
    DIRECTIONS,
    DURATION,
    declared_limits,
    exit_code,
    fail_on,
    tap_options,
)
from vifprobe.commands.output import Output, standard_output, streaming
from vifprobe.commands.progress import TapProgress, on_last_row
from vifprobe.commands.signals import ended_by_signals
from vifprobe.errors import OutputError, ReaderGoneError, TapError, UsageError
from vifprobe.model.reading import Reading
from vifprobe.model.whatif import WhatIf
from vifprobe.session import rights
from vifprobe.session.probe import Probe

Show = Callable[[list[Reading]], None]


@click.command("watch")
@tap_options
@flood_options
@click.option("--interval", type=DURATION, default="1s", show_default=True, help="Time between two readings.")
@click.option("--duration", type=DURATION, help="Length of the run (default: until Ctrl-C).")
@click.option("--csv", "csv_file", metavar="FILE", help="Also write each interval's rows to this file; - prints them.")
@click.option("--force", is_flag=True, help="Replace an existing file of --csv.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each interval and tap, one a line.")
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
    force: bool,
    as_json: bool,
    fail_on: str | None,
    no_samples: bool,
    threshold: tuple[str, ...],
    thresholds: str | None,
) -> None:
    """Show what the guest sends: what passes, what is policed, what is dropped, and why.

    \b
    Example:
      sudo vifprobe watch tap834d76e9-5f
      sudo vifprobe watch tap834d76e9-5f --interval 100ms --duration 10s --json
    """
    progress = TapProgress()
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
        progress=progress,
    )
    if as_json and csv_file == "-":
        raise UsageError(
            "--csv - and --json both write to standard output.", "Give --csv a file name, or leave out one of them."
        )
    last: list[Reading] = []
    with ExitStack() as stack:
        # Signals first: a signal that comes during attaching must not leave hooks attached.
        stack.enter_context(ended_by_signals(probe.stop))
        output = standard_output()
        sinks = [stack.enter_context(streaming(output, probe.stop))]
        rights.plan()
        stack.enter_context(probe)
        # After the probe: a run that does not start must not replace the file of an earlier run.
        shows = [_csv(output)] if csv_file == "-" else []
        if csv_file is not None and not shows:
            rows = stack.enter_context(_rows_file(csv_file, force, probe.stop))
            shows.append(_csv(rows))
            sinks.append(rows.channel)
        if csv_file != "-":
            shows.append(_json if as_json else stack.enter_context(_view(output, probe, progress)))
        rights.give_up()
        seconds = None if duration is None else duration / 1e9
        for batch in probe.intervals(interval / 1e9, seconds, sinks):
            last = list(batch)
            for take in (probe.take_samples, probe.take_events, probe.take_host):
                take()  # the readings contain them; free the memory
            for show in shows:
                show(last)
    if probe.gone:
        raise TapError(f"{', '.join(probe.gone)}: deleted while it was watched.", "What was seen until then is above.")
    sys.exit(exit_code(last, fail_on))


def _json(readings: list[Reading]) -> None:
    from vifprobe.render.export.jsonlines import reading_line

    sys.stdout.write("".join(reading_line(reading) + "\n" for reading in readings))


def _csv(output: Output) -> Show:
    from vifprobe.render.export.csvlines import csv_header, csv_rows

    output.write(csv_header())
    return lambda readings: output.writelines(csv_rows(reading) for reading in readings if not reading.final)


@contextmanager
def _rows_file(name: str, force: bool, end_run: Callable[[], None]) -> Iterator[Output]:
    """Open the file of --csv. Raises CaptureError, and OutputError at the end if a write failed."""
    fd = open_for_rows(name, force, "--csv")
    channel = Channel(fd, name)
    try:
        with streaming(output := Output(channel), end_run):
            yield output
    except ReaderGoneError as error:
        raise OutputError(error.message) from error
    finally:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            channel.cut_last_line()
        os.close(fd)


@contextmanager
def _view(stream: Output, probe: Probe, progress: TapProgress) -> Iterator[Show]:
    """Open the live screen on a terminal; elsewhere write one line for each interval."""
    from vifprobe.render.context import TapContext
    from vifprobe.render.text.terminal import is_live_terminal

    if is_live_terminal(stream):
        from vifprobe.render.text.screen import LiveScreen

        def context(tap: str) -> TapContext:
            audit = probe.audit(tap)
            domain = audit.declared.domain if audit.declared else ""
            return TapContext(domain, probe.features.reasons, audit.declared_known, audit.installed_known)

        with LiveScreen(stream) as screen:
            progress.show = on_last_row

            def update(readings: list[Reading]) -> None:
                # Declared limits may become known while the screen is shown.
                screen.contexts.update({reading.tap: context(reading.tap) for reading in readings})
                if readings and not readings[0].final:
                    screen.update(readings)

            yield update
        return
    from vifprobe.render.text.lines import interval_line, lines_header

    stream.write(lines_header([link.kind for link in probe.links]) + "\n")

    def show(readings: list[Reading]) -> None:
        stream.write("".join(interval_line(reading) + "\n" for reading in readings))

    yield show
