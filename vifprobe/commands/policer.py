# SPDX-License-Identifier: Apache-2.0
"""`vifprobe policer`: every place that declares or enforces a limit for a tap, side by side, with findings."""

from __future__ import annotations

import sys
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
from vifprobe.model.layout import Direction
from vifprobe.session.audit.snapshot import PolicerReport, audit_tap


@click.command("policer")
@click.argument("tap", metavar="TAP")
@direction_option
@click.option("--netns", metavar="NAME", help="Network namespace of the tap: name, path or pid.")
@click.option("--rate", type=RATE, help="Declared limit, such as 100mbit.")
@click.option("--burst", type=SIZE, help="Burst of that limit, such as 3125kb.")
@click.option("-d", "--duration", type=DURATION, default="1s", show_default=True, help="How long to watch the tap.")
@click.option("--no-packets", is_flag=True, help="Read configuration, counters and events only: no BPF program.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with the evidence of each finding.")
@fail_on
def command(
    tap: str,
    direction: str,
    netns: str | None,
    rate: int | None,
    burst: int | None,
    duration: int,
    no_packets: bool,
    as_json: bool,
    fail_on: str | None,
) -> None:
    """Show who declares a tap's limit, who enforces it, and what is wrong.

    \b
    Example:
      sudo vifprobe policer tap834d76e9-5f
      sudo vifprobe policer tap834d76e9-5f --rate 100mbit --burst 3125kb --json
    """
    report = audit_tap(
        tap,
        declared_limits(direction, rate, burst),
        DIRECTIONS[direction],
        duration / 1e9,
        netns=netns,
        packets=not no_packets,
        stoppable=ended_by_signals,
    )
    if as_json:
        _json(report)
    else:
        _text(report)
    if report.gone:
        raise TapError(f"{tap}: deleted during the audit.", "The lines above show what was known before.")
    sys.exit(EXIT_FINDING if fails(report.findings, fail_on) else EXIT_DONE)


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
    }
