# SPDX-License-Identifier: Apache-2.0
"""`vifprobe replay`: send a recording through the kernel program and the ideal bucket, at the file's own times."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from vifprobe.capture import manifest
from vifprobe.capture.manifest import Manifest, TapEntry
from vifprobe.capture.writer import CaptureWriter, Totals
from vifprobe.commands.flood_options import flood_options, thresholds_wanted
from vifprobe.commands.options import (
    CHARGES,
    MAC,
    RATE,
    SIZE,
    charge_option,
    declared_limit,
    exit_code,
    fail_on,
    folder_options,
    what_if_option,
)
from vifprobe.commands.output import show_beside
from vifprobe.commands.signals import ended_by_signals
from vifprobe.errors import UsageError
from vifprobe.model.layout import Direction
from vifprobe.model.reading import Reading
from vifprobe.model.whatif import WhatIf
from vifprobe.replay.player import HOOK, Replay
from vifprobe.replay.recording import PacketFile, opened

#: A shorter run shows no bar.
_BAR_AFTER_SECONDS = 2.0
#: The whole file, in the unit in which the share of samples is computed.
_WHOLE = 1_000_000


@click.command("replay")
@click.argument("file", metavar="FILE")
@click.option("-o", "--output", metavar="DIR", help="Write a capture folder, as `vifprobe capture` does.")
@click.option("--inbound", is_flag=True, help="All packets go to the guest (default: all come from the guest).")
@click.option(
    "--guest-mac",
    "guest_macs",
    type=MAC,
    multiple=True,
    metavar="MAC",
    help="MAC of the guest: packets from it are outbound, all others inbound. Can be repeated.",
)
@click.option("--rate", type=RATE, help="Limit to compare packets with, such as 100mbit.")
@click.option("--burst", type=SIZE, help="Burst of that limit, such as 3125kb (default: the rate for one second).")
@charge_option
@what_if_option
@folder_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, like the last one of `watch --json`.")
@flood_options
@fail_on
def command(
    file: str,
    output: str | None,
    inbound: bool,
    guest_macs: tuple[bytes, ...],
    rate: int | None,
    burst: int | None,
    charge: str,
    what_if: tuple[WhatIf, ...],
    bin_ns: int,
    samples: int,
    force: bool,
    as_json: bool,
    fail_on: str | None,
    no_samples: bool,
    threshold: tuple[str, ...],
    thresholds: str | None,
) -> None:
    """Count the packets of a recording.

    FILE is a pcap or pcapng file with Ethernet frames; - is standard input. Every frame goes through the same kernel
    program as on a tap, and through an ideal bucket of --rate, at the file's own times. A recording does not say
    whether a packet passed or was dropped. Replay needs root, and touches no device.

    A recording of a tap holds both directions, but not the direction of each packet. --guest-mac gives it.

    \b
    Example:
      sudo vifprobe replay tap.pcap --guest-mac fa:16:3e:01:02:03
      sudo vifprobe replay flood.pcapng --rate 100mbit --burst 3125kb
      sudo vifprobe replay flood.pcap -o evidence/
    """
    if inbound and guest_macs:
        raise UsageError("--inbound and --guest-mac cannot be combined.", "For both directions: --guest-mac.")
    limit = declared_limit(rate, burst)
    wanted = thresholds_wanted(threshold, thresholds)
    direction = Direction.INBOUND if inbound else Direction.OUTBOUND
    with ExitStack() as stack:
        packets = stack.enter_context(opened(file))
        replay = Replay(
            packets,
            direction,
            guest_macs=guest_macs,
            limit=limit,
            charge=CHARGES[charge],
            bin_ns=bin_ns if output else 0,
            samples=not no_samples,
            thresholds=wanted,
            what_ifs=what_if,
        )
        stack.enter_context(ended_by_signals(replay.stop))
        stack.enter_context(replay)
        if output is None:
            with _progress(packets) as advance:
                replay.run(advance)
            reading = replay.reading()
        else:
            options: dict[str, Any] = {"replay": True, "file": file, "what_if": [one.text for one in what_if]}
            options["guest_macs"] = [mac.hex(":") for mac in guest_macs]
            options |= {"rate_bps": rate, "burst_bytes": burst, "charge": charge}
            reading = _capture(replay, output, force, options, 0 if no_samples else samples)
        show_beside(lambda: _show(replay, reading, output, as_json), output)
    if replay.problem is not None:
        raise replay.problem
    sys.exit(exit_code([reading], fail_on))


def _capture(replay: Replay, output: str, force: bool, options: dict[str, Any], samples: int) -> Reading:
    """Run the replay and write a capture folder. samples: maximum number of packet headers in it; 0: none."""
    with CaptureWriter(output, _begin(replay, options), force=force) as writer, _progress(replay.file) as advance:
        if samples:
            writer.begin_samples(samples, _WHOLE, {})

        def batch() -> None:
            writer.add_bins(replay.take_bins())
            writer.add_samples(replay.take_samples(), replay.origin_ns + round(_WHOLE * _done(replay.file)))
            advance()

        replay.run(batch)
        writer.add_bins(replay.take_bins(final=True))
        reading = replay.reading()
        told = {"format": replay.file.format, **vars(replay.notes)}
        writer.manifest = replace(writer.manifest, options={**options, "packets_of_the_file": told})
        end_ns = replay.origin_ns + reading.duration_ns
        why = replay.problem.message if replay.problem else "stopped before the file's end" if replay.stopped else None
        totals = Totals([reading], end=reading.at, end_monotonic_ns=end_ns, lost_samples=replay.lost_samples)
        writer.finish(totals, why)
    return reading


def _done(file: PacketFile) -> float:
    """Return the share of the file that was read: 0 to 1, always 1 for a pipe."""
    return file.window.position / file.size_bytes if file.size_bytes else 1.0


def _begin(replay: Replay, options: dict[str, Any]) -> Manifest:
    entry = TapEntry(replay.file.name, 0, hooks=dict.fromkeys(replay.directions, HOOK), directions=replay.directions)
    begun = manifest.begin([entry], replay.bin_ns, options)
    first = replay.file.first
    start = begun.start if first is None else replay.wall_clock(first[0])
    return replace(begun, start=start, start_monotonic_ns=replay.origin_ns)


@contextmanager
def _progress(file: PacketFile) -> Iterator[Callable[[], None]]:
    """Show a bar on a terminal, if the run takes long enough; elsewhere show nothing."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("replaying"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    begun = time.monotonic()
    with ExitStack() as stack:
        bar = Progress(*columns, console=Console(stderr=True), transient=True)
        task = bar.add_task("replaying", total=file.size_bytes)

        def advance() -> None:
            if bar.live.is_started:
                bar.update(task, completed=file.window.position)
            elif time.monotonic() - begun > _BAR_AFTER_SECONDS:
                stack.enter_context(bar)

        yield advance


def _show(replay: Replay, reading: Reading, output: str | None, as_json: bool) -> None:
    if as_json:
        from vifprobe.render.export.jsonlines import dumps
        from vifprobe.render.text.replay import replay_object

        told = {"file": replay.file.shown, "format": replay.file.format, **vars(replay.notes)}
        sys.stdout.write(dumps(replay_object(reading, told)) + "\n")
        return
    from vifprobe.render.text.replay import recorded_words, replay_lines
    from vifprobe.render.text.terminal import print_lines, stream_glyphs, stream_width

    files = [os.fspath(path) for path in sorted(Path(output).iterdir())] if output else []
    words = recorded_words(reading, replay.file.format, replay.notes.packets)
    stream = sys.stdout
    print_lines(stream, replay_lines(reading, words, files, stream_width(stream), stream_glyphs(stream)))
