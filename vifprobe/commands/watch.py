# SPDX-License-Identifier: Apache-2.0
"""`vifprobe watch`: live screen, lines for a pipe, JSON, CSV."""

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
@click.option("--duration", type=DURATION, help="End after this long; else Ctrl-C ends it.")
@click.option("--csv", "csv_file", metavar="FILE", help="Also write each interval's rows to this file; - prints them.")
@click.option("--force", is_flag=True, help="Replace the file of --csv if it is there.")
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
    force: bool,
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
        # Signals first: one that comes while the hooks are attached must not leave them there.
        stack.enter_context(ended_by_signals(probe.stop))
        output = standard_output()
        sinks = [stack.enter_context(streaming(output, probe.stop))]
        rights.plan()
        stack.enter_context(probe)
        # After the probe: a run that never starts must not have replaced the file of an earlier one.
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
                take()  # worked out; nobody needs them any more
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
    """The file of --csv. Raises CaptureError, and OutputError at the end where a write has failed."""
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
    """The live screen on a terminal, else one line an interval."""
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
                # What is declared becomes known while the screen is up.
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
