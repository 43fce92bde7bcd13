# SPDX-License-Identifier: Apache-2.0
"""`vifprobe report`: a capture as one HTML page that needs nothing else: no script, font or picture from outside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from vifprobe.capture.manifest import TapEntry
from vifprobe.capture.reader import Capture
from vifprobe.errors import MissingPieceError
from vifprobe.model.layout import Direction, Expected, Verdict
from vifprobe.model.ports import is_guest_port, word
from vifprobe.model.reading import Counts, Finding, Limit, Reading, count
from vifprobe.render.export import plots
from vifprobe.render.limit_words import figures, gone_words, live_badge
from vifprobe.render.text.policer import proof
from vifprobe.render.text.tap_view import VERDICTS_KNOWN, by_severity
from vifprobe.render.units import UNKNOWN, bit_rate, clean, duration, packet_rate, per_second, percent, tc_size, whole

_VERDICTS = (Verdict.PASSED, Verdict.POLICED, Verdict.DROPPED, Verdict.QUEUED)
_EVENTS_MARKED = 12  # moments drawn into a plot; all are in the table
_ALMOST_ALL = 0.98  # a plot of the SYNs alone would be the plot of all packets again
_ROWS_MAX = 500  # of a table on the page: the CSV has them all


@dataclass(frozen=True)
class TableView:
    """A table of the page: cleaned text, `numbers` are the places of right-aligned columns."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: tuple[int, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class PlotView:
    """A plot and what it shows, in words."""

    caption: str
    svg: str


@dataclass(frozen=True)
class DirectionView:
    """One direction of a tap."""

    name: str
    words: str
    tables: tuple[TableView, ...]
    plots: tuple[PlotView, ...]


@dataclass(frozen=True)
class TapView:
    """One tap: findings first."""

    name: str
    who: str
    findings: tuple[dict[str, str], ...]
    directions: tuple[DirectionView, ...]
    notes: tuple[str, ...]


def page(capture: Capture) -> str:
    """The page's text. Raises MissingPieceError without jinja2 or matplotlib."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise MissingPieceError(
            f"the page needs jinja2, which can't be imported: {error}.",
            "pip install 'vifprobe[report]', or copy the capture folder to a machine that has it: no root is needed.",
        ) from error
    environment = Environment(
        loader=PackageLoader("vifprobe.render.export"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    readings = {reading.tap: reading for reading in capture.readings()}
    return environment.get_template("report.html.j2").render(
        host=clean(capture.manifest.host),
        kernel=clean(capture.manifest.kernel_version),
        version=clean(capture.manifest.vifprobe_version),
        hook=clean(capture.manifest.hook),
        start=capture.manifest.start.strftime("%Y-%m-%d %H:%M:%S %z"),
        lasted=duration(max((reading.duration_ns for reading in readings.values()), default=0)),
        warnings=[clean(warning) for warning in capture.warnings],
        taps=[_tap(capture, entry, readings.get(entry.name)) for entry in capture.manifest.taps],
        tables=_common_tables(capture),
        host_plot=plots.host(capture.host) if any(row.cpu_ns and row.duration_ns for row in capture.host) else "",
    )


def _tap(capture: Capture, entry: TapEntry, reading: Reading | None) -> TapView:
    who = ", ".join(clean(part) for part in (entry.domain, entry.port) if part)
    if reading is None:
        return TapView(clean(entry.name), who, (), (), ("no totals were written for this tap",))
    known = VERDICTS_KNOWN.get(reading.verdicts, "")
    notes = [gone_words(reading), *reading.notes, f"{whole(reading.missed)} packets missed", known]
    return TapView(
        clean(entry.name),
        who,
        tuple(_finding(finding) for finding in by_severity(reading.findings)),
        tuple(_direction(capture, reading, direction) for direction in reading.directions),
        tuple(clean(note) for note in notes if note),
    )


def _finding(finding: Finding) -> dict[str, str]:
    return {
        "pattern": clean(finding.pattern),
        "severity": finding.severity if finding.severity in ("info", "warning", "critical") else "critical",
        "title": clean(finding.title),
        "advice": clean(finding.advice),
        "proof": clean(proof(finding.evidence)),
    }


def _direction(capture: Capture, reading: Reading, direction: Direction) -> DirectionView:
    limit = reading.limits.get(direction, Limit())
    words = [live_badge(reading.limit_state(direction)).headline, *figures(reading, direction)[:1]]
    words += [f"declared {bit_rate(limit.declared_bps)}"] if limit.declared_bps is not None else []
    words += [f"installed {bit_rate(limit.installed_bps)}"] if limit.installed_bps is not None else []
    words += [f"installed {packet_rate(limit.installed_pps)}"] if limit.installed_pps is not None else []
    words += [f"burst {tc_size(limit.burst_bytes)}"] if limit.burst_bytes is not None else []
    name = word(reading.kind, direction)
    if is_guest_port(reading.kind):
        name += " (from the guest)" if direction is Direction.OUTBOUND else " (to the guest)"
    if not reading.offered(direction).packets:
        return DirectionView(name, ", ".join(words), (), ())
    tables = [_totals(reading, direction), _classes(reading, direction), *_crossed(reading, direction)]
    drawn = [*_timelines(capture, reading, direction, limit)]
    drawn.append(PlotView("Packets by class and verdict.", plots.classes(reading, direction)))
    drawn.append(PlotView("Packets by frame size and verdict.", plots.sizes(reading, direction)))
    return DirectionView(name, ", ".join(words), tuple(tables), tuple(drawn))


def _timelines(capture: Capture, reading: Reading, direction: Direction, limit: Limit) -> list[PlotView]:
    place = next(number for number, tap in enumerate(capture.manifest.taps) if tap.name == reading.tap)
    bins = capture.bins[(capture.bins["tap"] == place) & (capture.bins["direction"] == direction)]
    if not len(bins):
        return []
    manifest = capture.manifest
    events = [event for event in capture.events if event.tap == reading.tap][:_EVENTS_MARKED]
    moments = [(event.at_ns / 1e9, event.kind) for event in events]
    end_ns = reading.start_ns + reading.duration_ns
    gaps = [
        (gap.start_ns / 1e9, (end_ns if gap.duration_ns is None else gap.start_ns + gap.duration_ns) / 1e9)
        for gap in manifest.gaps
        if gap.tap == reading.tap
    ]

    def draw(caption: str, measure: str, line: float | None) -> PlotView:
        svg = plots.timeline(bins, manifest.start_monotonic_ns, manifest.bin_ns, measure, line, moments, gaps)
        return PlotView(caption, svg)

    drawn = [
        draw("Packets per second by verdict.", "packets", limit.installed_pps),
        draw(
            "Bit/s by verdict, as frames; a policer at ingress charges less (no Ethernet header).",
            "frame_bytes",
            limit.declared_bps,
        ),
    ]
    if 0 < bins["syn_packets"].sum() < _ALMOST_ALL * bins["packets"].sum():
        drawn.append(draw("SYNs per second by verdict.", "syn_packets", None))
    return drawn


def _figures(counts: Counts | None, offered: Counts, reading: Reading) -> tuple[str, ...]:
    def bits(value: int | None) -> str:
        rate = per_second(None if value is None else 8 * value, reading)
        return bit_rate(rate)

    if counts is None:
        return (UNKNOWN,) * 6
    return (
        whole(counts.packets),
        packet_rate(per_second(counts.packets, reading)),
        percent(counts.packets, offered.packets),
        bits(counts.charged_bytes),
        bits(counts.frame_bytes),
        bits(counts.wire_bytes),
    )


_FIGURES = ("packets", "average", "share", "charged", "as frames", "on the wire")


def _totals(reading: Reading, direction: Direction) -> TableView:
    offered = reading.offered(direction)
    rows = [("offered", *_figures(offered, offered, reading))]
    for verdict in _VERDICTS:
        counts = reading.counts(direction, verdict)
        if verdict is not Verdict.QUEUED or (counts and counts.packets):
            rows.append((verdict.name.lower(), *_figures(counts, offered, reading)))
    return TableView("Totals", ("", *_FIGURES), tuple(rows), tuple(range(1, 7)))


def _classes(reading: Reading, direction: Direction) -> TableView:
    offered, rows = reading.offered(direction), []
    for code in sorted(reading.classes(direction), key=lambda code: -reading.offered(direction, code).packets):
        counts = reading.offered(direction, code)
        verdicts = [reading.counts(direction, verdict, code) for verdict in _VERDICTS[:3]]
        told = [whole(None if found is None else found.packets) for found in verdicts]
        share = percent(counts.packets, offered.packets)
        rows.append((code.name.lower(), whole(counts.packets), share, *told))
    columns = ("class", "offered", "share", "passed", "policed", "dropped")
    return TableView("Packet classes", columns, tuple(rows), tuple(range(1, 6)))


def _crossed(reading: Reading, direction: Direction) -> list[TableView]:
    """Table of the ideal bucket's answer against the verdict; none without a limit to compare with."""
    if reading.bypass(direction) is None:
        return []
    rows = []
    for expected in (Expected.CONFORM, Expected.EXCEED):
        found = [count(reading.where(direction, verdict, expected=expected)) for verdict in _VERDICTS[:3]]
        rows.append((expected.name.lower(), *(whole(counts.packets) for counts in found)))
    columns = ("ideal bucket", "passed", "policed", "dropped")
    note = "exceed and passed is bypass, conform and policed is overpoliced"
    return [TableView("Compared with the declared limit", columns, tuple(rows), (1, 2, 3), note)]


def _common_tables(capture: Capture) -> list[TableView]:
    """The tables of all taps, as the CSV files have them."""
    tables = [
        _plain("Who declares and who enforces a limit", capture.policer),
        _plain("Events", capture.events),
        _plain("Drops by reason", capture.drops),
        _plain("Compared with the kernel's own counters", capture.reconcile),
        _plain("Flood measures", capture.flood),
        _plain("Most frequent", capture.top),
        _plain("Not watched", capture.manifest.gaps, astuple, ("tap", "start_ns", "duration_ns", "why")),
    ]
    return [table for table in tables if table.rows]


def _plain(
    title: str,
    rows: Sequence[Any],
    values: Callable[[Any], tuple[Any, ...]] = tuple,
    columns: tuple[str, ...] | None = None,
) -> TableView:
    names = columns or (rows[0]._fields if rows else ())
    shown = [values(row) for row in rows[:_ROWS_MAX]]
    numbers = tuple(place for place in range(len(names)) if any(type(row[place]) in (int, float) for row in shown))
    note = f"{len(rows) - _ROWS_MAX} more rows are in the CSV file" if len(rows) > _ROWS_MAX else ""
    text = tuple(tuple(_cell(value) for value in row) for row in shown)
    return TableView(title, tuple(name.replace("_", " ") for name in names), text, numbers, note)


def _cell(value: Any) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, Direction):
        return value.name.lower()
    if type(value) is int:
        return whole(value)
    return f"{value:.6g}" if isinstance(value, float) else clean(str(value))
