# SPDX-License-Identifier: Apache-2.0
"""`vifprobe capture`: a folder of evidence that can be read, compared and passed on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from vifprobe.capture import manifest
from vifprobe.capture.manifest import CoverageGap, Manifest, TapEntry
from vifprobe.capture.rows import EventRow
from vifprobe.capture.tables import host_rows
from vifprobe.capture.writer import CaptureWriter, Totals
from vifprobe.commands.flood_options import flood_options, samples_wanted, thresholds_wanted
from vifprobe.commands.options import (
    CHARGES,
    DIRECTIONS,
    DURATION,
    declared_limits,
    exit_code,
    fail_on,
    folder_options,
    tap_options,
)
from vifprobe.commands.output import show_beside
from vifprobe.commands.progress import TapProgress
from vifprobe.commands.signals import ended_by_signals
from vifprobe.errors import CaptureError, TapError
from vifprobe.host.taps import describe
from vifprobe.kernel.settings import BIN_LOG_ENTRIES
from vifprobe.kernel.symbols import function_at
from vifprobe.model.reading import Reading
from vifprobe.model.whatif import WhatIf
from vifprobe.render.context import TapContext
from vifprobe.render.text.summary import summary_lines
from vifprobe.render.text.terminal import print_lines, stream_glyphs, stream_width
from vifprobe.session import rights
from vifprobe.session.counter_check import CounterCheck
from vifprobe.session.probe import Probe

CHECKPOINT_SECONDS = 5.0  # a kill can lose the totals of this time; the timeline is written at once


@click.command("capture")
@tap_options
@flood_options
@click.option("-d", "--duration", type=DURATION, required=True, help="Length of the capture, such as 30s.")
@click.option("-o", "--output", required=True, metavar="DIR", help="Folder to create, with mode 0700.")
@folder_options
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
    duration: int,
    output: str,
    bin_ns: int,
    samples: int,
    force: bool,
    fail_on: str | None,
    no_samples: bool,
    threshold: tuple[str, ...],
    thresholds: str | None,
) -> None:
    """Count for a given time and write a folder of evidence: CSV, manifest, findings.

    \b
    Example:
      sudo vifprobe capture tap834d76e9-5f -d 30s -o evidence/
      sudo vifprobe capture tap834d76e9-5f -d 5s --bin 1ms -o fine/
    """
    counter_check = CounterCheck()
    progress = TapProgress()
    probe = Probe(
        *taps,
        directions=DIRECTIONS[direction],
        netns=netns,
        limits=declared_limits(direction, rate, burst),
        bin_ns=bin_ns,
        counter_check=counter_check,
        create_qdisc=create_qdisc,
        charge=CHARGES[charge],
        samples=samples_wanted(no_samples),
        thresholds=thresholds_wanted(threshold, thresholds),
        what_ifs=what_if,
        host=not no_host,
        progress=progress,
    )
    options = {"duration_ns": duration, "direction": direction, "netns": netns, "rate_bps": rate, "burst_bytes": burst}
    options["what_if"] = [limit.text for limit in what_if]
    rights.plan()
    # Signals first: a signal that comes during attaching must not leave hooks attached.
    with ended_by_signals(probe.stop), probe:
        begun = _begin(probe, bin_ns, options)
        with CaptureWriter(output, begun, force=force) as writer:
            if not no_samples:
                writer.begin_samples(samples, duration, probe.features.reasons)
            rights.give_up()
            totals, problem = _run(probe, writer, duration / 1e9, counter_check, progress)
            last = writer.manifest
            show_beside(lambda: _show(totals, last, probe, output), output)
    if problem is not None:
        raise problem
    sys.exit(exit_code(list(totals.readings), fail_on))


def _begin(probe: Probe, bin_ns: int, options: dict[str, Any]) -> Manifest:
    entries, hooks = [], probe.hooks
    for link, tap in zip(probe.links, describe(probe.links), strict=True):
        port = tap.port_id or tap.port_prefix
        entries.append(TapEntry(link.name, link.ifindex, tap.domain, port, hooks=hooks[link.name], kind=link.kind))
    return manifest.begin(entries, bin_ns, options, probe.start_ns)


def _run(
    probe: Probe, writer: CaptureWriter, seconds: float, counter_check: CounterCheck, progress: TapProgress
) -> tuple[Totals, CaptureError | TapError | None]:
    """Count to the end. Return the totals, and the error of a run that ended early; None if it did not."""
    problem: CaptureError | TapError | None = None
    due = CHECKPOINT_SECONDS
    final: tuple[Reading, ...] = ()
    with _bar(seconds, progress) as advance:
        for batch in probe.intervals(_interval_seconds(probe, writer.manifest.bin_ns), seconds):
            if batch and batch[0].final:
                final = batch
            if problem is not None or not batch or final:
                continue
            ended = (batch[0].start_ns + batch[0].duration_ns) / 1e9
            advance(ended)
            try:
                _append(probe, writer)
                if ended >= due:
                    due = ended + CHECKPOINT_SECONDS
                    writer.checkpoint(_totals(probe, writer, counter_check, probe.totals()))
            except CaptureError as error:
                problem = error  # a full disk, for example: the totals still fit into the space reserved for them
                probe.stop()
        totals = _totals(probe, writer, counter_check, final or probe.totals())
    if problem is None and probe.gone:
        problem = TapError(f"{', '.join(probe.gone)}: deleted during the capture.", "What was seen until then is kept.")
    if not isinstance(problem, CaptureError):
        _append(probe, writer)
    writer.finish(totals, None if problem is None else problem.message)
    return totals, problem


def _append(probe: Probe, writer: CaptureWriter) -> None:
    """Append what was counted since the last call."""
    writer.add_bins(probe.take_bins())
    writer.add_samples(probe.take_samples())
    if costs := probe.take_host():
        writer.add_host(row for cost in costs for row in host_rows(cost))
    writer.add_events(
        EventRow(event.at_ns - probe.start_ns, tap, event.kind, event.detail, event.by_pid, event.by_comm or "")
        for tap, event in probe.take_events()
    )


def _interval_seconds(probe: Probe, bin_ns: int) -> float:
    """Return an interval so short that the kernel's log of time bins is at most half full."""
    bins_per_second = len(probe.links) * len(probe.directions) * 1e9 / bin_ns
    return min(1.0, max(0.02, BIN_LOG_ENTRIES / 2 / bins_per_second))


def _totals(probe: Probe, writer: CaptureWriter, counter_check: CounterCheck, readings: tuple[Reading, ...]) -> Totals:
    gaps = [CoverageGap(gap.tap, gap.start_ns - probe.start_ns, gap.duration_ns, gap.words) for gap in probe.gaps]
    if probe.lost_bins:
        whole = readings[0].duration_ns
        why = f"{probe.lost_bins} time bins were overwritten before they were read"
        gaps += [CoverageGap(link.name, 0, whole, why) for link in probe.links]
    compared = counter_check.rows(readings, probe.gaps, probe.features.reasons)
    rows = probe.policer_rows()
    return Totals(readings, probe.features.reasons, function_at, compared, gaps, rows, lost_samples=probe.lost_samples)


@contextmanager
def _bar(seconds: float, progress: TapProgress) -> Iterator[Callable[[float], None]]:
    """Show a bar on a terminal, which also shows the progress of detaching; elsewhere show nothing."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f} of {task.total:.0f} s"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("capturing", total=seconds)
        progress.show = lambda text: bar.update(task, description=text or "capturing")
        yield lambda done: bar.update(task, completed=min(done, seconds))


def _show(totals: Totals, manifest: Manifest, probe: Probe, output: str) -> None:
    """Print the summary lines."""
    stream = sys.stdout
    domains = {entry.name: entry.domain or "" for entry in manifest.taps}
    files: Sequence[str] = [str(path) for path in sorted(Path(output).iterdir())]
    for number, reading in enumerate(totals.readings):
        audit = probe.audit(reading.tap)
        known = (audit.declared_known, audit.installed_known)
        context = TapContext(domains[reading.tap], probe.features.reasons, *known)
        last = number == len(totals.readings) - 1
        width, glyphs = stream_width(stream), stream_glyphs(stream)
        lines = summary_lines(
            reading, context, totals.reconcile, files if last else (), width, glyphs, manifest.samples if last else None
        )
        print_lines(stream, lines)
