# SPDX-License-Identifier: Apache-2.0
"""`vifprobe policer`: every place that declares or enforces a limit, of one tap or of the whole node, with findings."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from vifprobe.commands.options import (
    DIRECTIONS,
    DURATION,
    RATE,
    SIZE,
    declared_limits,
    direction_option,
    fail_on,
    fails,
)
from vifprobe.commands.signals import ended_by_signals
from vifprobe.errors import EXIT_DONE, EXIT_FINDING, TapError
from vifprobe.host.net.selection import is_pattern
from vifprobe.model.layout import Direction
from vifprobe.model.limits import LimitAnswer
from vifprobe.session.audit.snapshot import PolicerReport, audit_node, audit_tap

_ONE_SECONDS, _NODE_SECONDS = 1.0, 0.5


@click.command("policer")
@click.argument("taps", nargs=-1, metavar="[TAP...]")
@direction_option
@click.option("--netns", metavar="NAME", help="Network namespace of the taps: name, path or pid.")
@click.option("--rate", type=RATE, help="Declared limit, such as 100mbit.")
@click.option("--burst", type=SIZE, help="Burst of that limit, such as 3125kb.")
@click.option("-d", "--duration", type=DURATION, help="How long to watch: 1s for one tap, 500ms for many.")
@click.option("--no-packets", is_flag=True, help="Read configuration, counters and events only: no BPF program.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each tap, with all evidence.")
@fail_on
def command(
    taps: tuple[str, ...],
    direction: str,
    netns: str | None,
    rate: int | None,
    burst: int | None,
    duration: int | None,
    no_packets: bool,
    as_json: bool,
    fail_on: str | None,
) -> None:
    """Show who declares a tap's limit, who enforces it, and what is wrong.

    Without a tap, or with patterns such as 'tap8*': all of these taps, a row for each tap and direction. Their packets
    are not counted then; the kernel's own counters are read.

    \b
    Example:
      sudo vifprobe policer
      sudo vifprobe policer tap834d76e9-5f
      sudo vifprobe policer tap834d76e9-5f --rate 100mbit --burst 3125kb --json
      sudo vifprobe policer --fail-on critical
    """
    limits, directions = declared_limits(direction, rate, burst), DIRECTIONS[direction]
    is_one = len(taps) == 1 and not is_pattern(taps[0])
    if is_one:
        seconds = _ONE_SECONDS if duration is None else duration / 1e9
        packets = not no_packets
        found = [
            audit_tap(taps[0], limits, directions, seconds, netns=netns, packets=packets, stoppable=ended_by_signals)
        ]
    else:
        seconds = _NODE_SECONDS if duration is None else duration / 1e9
        found = [*audit_node(taps, limits, directions, seconds, netns=netns, stoppable=ended_by_signals)]
    if as_json:
        for report in found:
            _json(report)
    elif is_one:
        _text(found[0])
    else:
        _node(found)
    if is_one and found[0].gone:
        raise TapError(f"{taps[0]}: deleted during the audit.", "The lines above show what was known before.")
    sys.exit(EXIT_FINDING if fails((one for report in found for one in report.findings), fail_on) else EXIT_DONE)


def _node(reports: Sequence[PolicerReport]) -> None:
    from vifprobe.render.text.node import NodeRow, node_lines
    from vifprobe.render.text.terminal import print_lines, stream_glyphs, stream_width

    stream = sys.stdout
    rows = [
        NodeRow(
            report.set_up,
            direction,
            report.limit_states.get(direction, LimitAnswer()),
            [one for one in report.findings if direction.name.lower() in one.id.split("-")],
            report.domain,
            report.dropped.get(direction),
            report.gone,
        )
        for report in reports
        for direction in report.directions
    ]
    print_lines(stream, node_lines(rows, stream_width(stream), stream_glyphs(stream)))


def _text(report: PolicerReport) -> None:
    from vifprobe.render.text.policer import AuditView, policer_lines
    from vifprobe.render.text.terminal import print_lines, stream_glyphs, stream_width

    stream = sys.stdout
    width, glyphs = stream_width(stream), stream_glyphs(stream)
    view = AuditView(
        report.set_up,
        report.rows,
        report.findings,
        report.limit_states,
        report.directions,
        report.domain,
        report.notes,
        report.gone,
    )
    print_lines(stream, policer_lines(view, width, glyphs))


def _json(report: PolicerReport) -> None:
    from vifprobe.render.export.jsonlines import dumps

    set_up = report.set_up
    found: dict[str, Any] = {
        "schema": 1,
        "tap": report.tap,
        "at": report.at.isoformat(timespec="microseconds"),
        "duration_ns": report.duration_ns,
        "gone": report.gone,
        "kind": set_up.kind,
        "domain": report.domain or None,
        **{direction.name.lower(): _direction(report, direction) for direction in report.directions},
        "rows": [{**row._asdict(), "direction": row.direction.name.lower()} for row in report.rows],
        "findings": [asdict(finding) for finding in report.findings],
        "earlier": list(set_up.earlier),
        "not_read": list(set_up.not_read),
        "notes": list(report.notes),
    }
    sys.stdout.write(dumps(found) + "\n")


def _direction(report: PolicerReport, direction: Direction) -> dict[str, Any]:
    from vifprobe.render.export.jsonlines import answer_object

    asked, held = report.set_up.main_declared(direction), report.set_up.main_enforced(direction)
    return {
        **answer_object(report.limit_states[direction]),
        "declared_bps": asked.rate_bps if asked else None,
        "declared_burst_bytes": asked.burst_bytes if asked else None,
        "installed_bps": held.rate_bps if held else None,
        "installed_pps": held.rate_pps if held else None,
        "installed_burst_bytes": held.burst_bytes if held else None,
        "shared": held.shared if held else None,
        "dropped_packets": report.dropped.get(direction),
    }
