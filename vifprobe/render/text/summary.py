# SPDX-License-Identifier: Apache-2.0
"""The few lines that tell the story of a run, from live totals or from a loaded capture alike."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vifprobe.analysis.reconcile import ReconcileRow
from vifprobe.capture.manifest import SAMPLES, SampleCounts
from vifprobe.model.layout import Direction, Verdict
from vifprobe.model.ports import is_guest_port, word
from vifprobe.model.reading import Counts, Finding, Reading
from vifprobe.render.context import TapContext, losses
from vifprobe.render.text import tap_view
from vifprobe.render.text.flood import flood_lines
from vifprobe.render.text.host import host_lines
from vifprobe.render.text.line import Column, Line, Span, cells, flow, head, line, wrapped
from vifprobe.render.text.tap_tables import bps, counts_of, fate_span, fates, other_direction, queue
from vifprobe.render.units import BLOCKS, Glyphs, bit_rate, clean, duration, frame_size, per_second, percent, si, whole

_INDENT = 9  # where text goes on below its label
_NAMES_MAX = 24  # so many counters are named one by one


def summary_lines(
    reading: Reading,
    context: TapContext | None = None,
    counters: Sequence[ReconcileRow] = (),
    files: Sequence[str] = (),
    width: int = 80,
    glyphs: Glyphs = BLOCKS,
    samples: SampleCounts | None = None,
) -> list[Line]:
    """One tap's run: totals with averages, who lost what, the mix of packets, whether kernel counters agree.

    reading: the run's totals. counters: rows of reconcile.csv (those of other taps are passed over). files: what was
    written. samples: of all taps.
    """
    context = context or TapContext()
    direction = tap_view.main_direction(reading)
    return [
        tap_view.title(reading, context, direction, width, glyphs),
        tap_view.headline(reading, direction, width, glyphs),
        *tap_view.gone(reading, width, glyphs),
        *tap_view.missed(reading),
        *tap_view.policer(reading, direction, context, width, glyphs),
        *totals_table(reading, direction, width, glyphs),
        *_lost(reading, direction, context, width, glyphs),
        *mix(reading, direction, width, glyphs),
        *tap_view.what_if(reading, width, glyphs),
        *[
            row
            for other in reading.directions
            if other is not direction
            for row in other_direction(reading, other, width, glyphs)
        ],
        *host_lines(reading.host, width, glyphs, has_guest=is_guest_port(reading.kind)),
        *flood_lines(reading, width, glyphs),
        *findings_lines(reading.findings, width, glyphs),
        *_agreement([row for row in counters if row.tap == reading.tap], width, glyphs),
        *[row for note in reading.notes for row in wrapped(Span("note     ", "name"), clean(note, glyphs), width)],
        *_samples(samples, width),
        *_closing(reading, files, width, glyphs),
    ]


def totals_table(reading: Reading, direction: Direction, width: int, glyphs: Glyphs) -> list[Line]:
    """Offered, and what became of it: packets, their average rate and share, and bit/s."""
    columns = [
        Column(word(reading.kind, direction).upper(), 8, right=False),
        Column("packets", 13),
        Column("average/s", 9) if width >= 78 else Column("avg/s", 7),
        Column("share", 6 if width >= 78 else 5),
        *(Column(title, 11) for title in ("charged", "as frames", "on wire")),
    ]
    if width < 72:
        del columns[5]  # what was charged and what the wire carried tell the story
    offered = reading.offered(direction)
    rows = [_totals_row(columns, "offered", offered, offered, reading, "strong", glyphs)]
    for fate in fates(reading, direction):
        counts = counts_of(reading, direction, fate)
        style = fate_span("", fate, counts).style
        rows.append(_totals_row(columns, fate.name.lower(), counts, offered, reading, style, glyphs))
    return [head(columns, glyphs), *rows, *queue(reading, direction)]


def _totals_row(
    columns: Sequence[Column],
    label: str,
    counts: Counts | None,
    offered: Counts,
    reading: Reading,
    style: str,
    glyphs: Glyphs,
) -> Line:
    packets = None if counts is None else counts.packets
    by_title = {
        "charged": None if counts is None else counts.charged_bytes,
        "as frames": None if counts is None else counts.frame_bytes,
        "on wire": None if counts is None else counts.wire_bytes,
    }
    values = [label, whole(packets), si(per_second(packets, reading)), percent(packets, offered.packets)]
    values += [bit_rate(bps(by_title[column.title], reading)) for column in columns[4:]]
    return cells(columns, [Span(value, style) for value in values], glyphs)


def _lost(reading: Reading, direction: Direction, context: TapContext, width: int, glyphs: Glyphs) -> list[Line]:
    """Drop reasons of the packets that did not pass, with exact counts."""
    lines: list[Line] = []
    for verdict in (Verdict.POLICED, Verdict.DROPPED):
        for loss in losses(reading, direction, verdict, context.reasons):
            words = f": {loss.words}" if loss.words else ""
            name = Span(f"{verdict.name.lower()} ", verdict.name.lower())
            text = f"{whole(loss.counts.packets)} by {clean(loss.name, glyphs)}{words}"
            lines += wrapped(name, text, width, _INDENT)
    for counts, words in (
        (reading.bypass(direction), "passed although above the limit (bypass)"),
        (reading.overpoliced(direction), "policed although within the limit (overpoliced)"),
    ):
        if counts is not None and counts.packets:
            lines += wrapped(Span(""), f"{whole(counts.packets)} {words}", width, _INDENT)
    return lines


def mix(reading: Reading, direction: Direction, width: int, glyphs: Glyphs) -> list[Line]:
    """Mean frame size and the share of each class, the most frequent first."""
    offered = reading.offered(direction)
    if not offered.packets:
        return []
    label = Span("packets  ", "name")
    packets = {code: reading.offered(direction, code).packets for code in reading.classes(direction)}
    parts = [line(f"mean frame {frame_size(offered.frame_bytes / offered.packets)}")]
    for code in sorted(packets, key=lambda code: (-packets[code], code)):
        parts.append(line(f"{code.name.lower()} {percent(packets[code], offered.packets)}"))
    rows = flow(parts, width, len(label.text), glyphs, first=len(label.text))
    return [line(label) + rows[0], *rows[1:]]


def findings_lines(findings: Sequence[Finding], width: int, glyphs: Glyphs) -> list[Line]:
    """Each finding with what to do about it."""
    lines: list[Line] = []
    for finding in tap_view.by_severity(findings):
        lines += tap_view.finding_lines([finding], glyphs, width)
        lines += wrapped(Span(" " * _INDENT), clean(finding.advice, glyphs), width) if finding.advice else []
    return lines


def _agreement(rows: Sequence[ReconcileRow], width: int, glyphs: Glyphs) -> list[Line]:
    """Comparison with the kernel's counters: each one that does not agree is named, with both numbers."""
    if not rows:
        return []
    agreed = [row for row in rows if row.agrees]
    open_ones = [row for row in rows if row.agrees is None]
    names = clean(", ".join(_names(agreed)), glyphs)
    text = f"{len(agreed)} of {len(rows)} counters agree{f': {names}' if names else ''}"
    if open_ones:
        text += f"; cannot be decided: {clean(', '.join(_names(open_ones)), glyphs)}"
    lines = wrapped(Span("kernel   ", "name"), text, width)
    for row in rows:
        if row.agrees is False:
            low, high = whole(row.vifprobe_low), whole(row.vifprobe_high)
            counted = low if low == high else f"{low} to {high}"
            words = f" {clean(row.counter, glyphs)}: kernel {whole(row.delta)}, vifprobe {counted}"
            lines += wrapped(Span(" DISAGREES ", "bad"), words, width, _INDENT)
    return lines


def _names(rows: Sequence[ReconcileRow]) -> list[str]:
    """Names of counters, in their order; where there are many, those of classes and policers as one each."""
    names = [row.counter for row in rows]
    if len(names) <= _NAMES_MAX:
        return names
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(_kind(name), []).append(name)
    return [found[0] if len(found) == 1 else f"{kind} ({len(found)})" for kind, found in kinds.items()]


def _kind(counter: str) -> str:
    """`tc class 1:2 drops` -> `tc class drops`; `tc police bytes: ingress ...` -> `tc police bytes`."""
    return re.sub(r"^tc class \S+", "tc class", counter).partition(": ")[0]


def _samples(counts: SampleCounts | None, width: int) -> list[Line]:
    """Numbers of headers that were kept and lost."""
    if counts is None:
        return []
    text = f"headers of {whole(counts.written)} packets in {SAMPLES}"
    if counts.left_out:
        text += f", a random part of {whole(counts.taken)} taken"
    lines = wrapped(Span("samples  ", "name"), text, width, _INDENT)
    if counts.lost:
        text = f" {whole(counts.lost)} samples were overwritten before they were read"
        lines += wrapped(Span(" LOST ", "bad"), text, width, _INDENT)
    return lines


def _closing(reading: Reading, files: Sequence[str], width: int, glyphs: Glyphs) -> list[Line]:
    known = tap_view.VERDICTS_KNOWN.get(reading.verdicts, f"verdicts {clean(reading.verdicts, glyphs)}")
    lines = [line(Span("run      ", "name"), f"{duration(reading.duration_ns)}, {known}")]
    return [*lines, *written(files, width, glyphs)]


def written(files: Sequence[str], width: int, glyphs: Glyphs) -> list[Line]:
    """Files that were written, if any."""
    if not files:
        return []
    label = Span("written  ", "name")
    rows = flow([line(clean(name, glyphs)) for name in files], width, len(label.text), glyphs, len(label.text))
    return [line(label) + rows[0], *rows[1:]]
