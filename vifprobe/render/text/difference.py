# SPDX-License-Identifier: Apache-2.0
"""`vifprobe diff`: two captures side by side, what changed first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vifprobe.analysis.difference import Difference, MeasureChange
from vifprobe.capture.reader import Capture
from vifprobe.model.layout import Direction
from vifprobe.model.ports import word
from vifprobe.model.reading import Finding
from vifprobe.render.export.jsonlines import SCHEMA, finding_object
from vifprobe.render.text.line import Column, Line, Span, cells, head, line, wrapped
from vifprobe.render.text.tap_view import by_severity, finding_lines
from vifprobe.render.units import BLOCKS, UNKNOWN, Glyphs, bit_rate, clean, duration, packet_rate, si, tc_size

_INDENT = 9
#: Rates within this share of each other are shown as unchanged: no flood is that steady.
_STEADY = 0.02


def diff_lines(
    before: Capture,
    after: Capture,
    differences: Sequence[Difference],
    width: int = 80,
    glyphs: Glyphs = BLOCKS,
) -> list[Line]:
    """Both runs' names, then per tap the findings that came and went, then the measures."""
    lines = [*_run("before", before, width, glyphs), *_run("after", after, width, glyphs)]
    for found in differences:
        lines += [Line(), _title(found, glyphs), *_findings(found, width, glyphs)]
        for direction in Direction:
            changes = [one for one in found.changes if one.direction is direction and (one.before or one.after)]
            lines += _table(changes, word(found.after.kind, direction), width, glyphs)
    for name, capture in (("before", before), ("after", after)):
        shown = {getattr(found, name).tap for found in differences}
        only = [tap.name for tap in capture.manifest.taps if tap.name not in shown]
        if only:
            lines += wrapped(Span("only     ", "warn"), f"{name}: {clean(', '.join(only), glyphs)}", width)
    return lines


def diff_object(before: Capture, after: Capture, differences: Sequence[Difference]) -> dict[str, Any]:
    """The same for `--json`: rates per second, null where unknown."""
    return {
        "schema": SCHEMA,
        **{name: _run_object(capture) for name, capture in (("before", before), ("after", after))},
        "taps": [_tap_object(found) for found in differences],
    }


def _run_object(capture: Capture) -> dict[str, Any]:
    manifest = capture.manifest
    return {
        "directory": str(capture.directory),
        "start": manifest.start.isoformat(),
        "host": manifest.host,
        "kernel_version": manifest.kernel_version,
        "complete": manifest.complete,
        "taps": [tap.name for tap in manifest.taps],
        "warnings": list(capture.warnings),
    }


def _tap_object(found: Difference) -> dict[str, Any]:
    def told(findings: Sequence[Finding]) -> list[dict[str, str]]:
        return [finding_object(finding) for finding in findings]

    return {
        "before": found.before.tap,
        "after": found.after.tap,
        "duration_ns": {"before": found.before.duration_ns, "after": found.after.duration_ns},
        "changes": [
            {
                "direction": change.direction.name.lower(),
                "measure": change.measure,
                "unit": change.unit,
                "before": change.before,
                "after": change.after,
                "factor": change.factor,
            }
            for change in found.changes
        ],
        "findings": {"gone": told(found.gone), "new": told(found.new), "still": told(found.still)},
    }


def _run(label: str, capture: Capture, width: int, glyphs: Glyphs) -> list[Line]:
    manifest = capture.manifest
    spans = {reading.duration_ns for reading in capture.readings()}
    parts = [str(capture.directory), manifest.start.strftime("%Y-%m-%d %H:%M:%S %z"), manifest.host]
    parts += [duration(max(spans))] if spans else []
    words = clean(", ".join(part for part in parts if part), glyphs)
    lines = wrapped(Span(f"{label:<{_INDENT}}", "name"), words, width)
    for warning in capture.warnings:
        lines += wrapped(Span(" " * _INDENT + "! ", "warn"), clean(warning, glyphs), width, _INDENT + 2)
    return lines


def _title(found: Difference, glyphs: Glyphs) -> Line:
    names = [clean(run.tap, glyphs) for run in (found.before, found.after)]
    return line(Span(names[0] if names[0] == names[1] else f"{names[0]} -> {names[1]}", "head"))


def _findings(found: Difference, width: int, glyphs: Glyphs) -> list[Line]:
    lines: list[Line] = []
    groups = (("GONE", "good", found.gone), ("NEW", "bad", found.new), ("STILL", "warn", found.still))
    for label, style, findings in groups:
        for finding in by_severity(findings):
            first, *more = finding_lines([finding], glyphs, width - 8)
            lines.append(line(Span(f" {label:<5} ", style), " ") + first)
            lines += [line(" " * 8) + row for row in more]
    return lines


def _table(changes: Sequence[MeasureChange], title: str, width: int, glyphs: Glyphs) -> list[Line]:
    if not changes:
        return []
    side = 14
    columns = [
        Column(title.upper(), max(12, min(26, width - 2 * side - 14)), right=False),
        Column("before", side),
        Column("after", side),
        Column("change", 11),
    ]
    return [Line(), head(columns, glyphs)] + [_row(columns, change, glyphs) for change in changes]


def _row(columns: Sequence[Column], change: MeasureChange, glyphs: Glyphs) -> Line:
    values = [figure(change.before, change.unit), figure(change.after, change.unit)]
    text, style = _words(change)
    return cells(columns, [Span(change.measure.replace("_", " "), "name"), *values, Span(text, style)], glyphs)


def figure(value: float | None, unit: str) -> str:
    """A value in its unit, for people."""
    if value is None:
        return UNKNOWN
    if unit == "bit/s":
        return bit_rate(value)
    if unit == "packets/s":
        return packet_rate(value)
    return tc_size(round(value)) if unit == "bytes" else f"{si(value)} {unit}"


def _words(change: MeasureChange) -> tuple[str, str]:
    """`+67 %`, `x 12`, `gone`: what happened, and its style."""
    if change.before is None or change.after is None:
        return UNKNOWN, "unknown"
    if change.factor is None:
        return ("new", "strong") if change.after else ("same", "faint")
    if not change.after:
        return "gone", "strong"
    if change.before == change.after or abs(change.factor - 1) <= _STEADY:
        return "same" if change.before == change.after else f"{100 * (change.factor - 1):+.1f} %", "faint"
    return (f"x {si(change.factor)}" if change.factor >= 3 else f"{100 * (change.factor - 1):+.0f} %"), "strong"
