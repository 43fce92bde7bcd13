# SPDX-License-Identifier: Apache-2.0
"""The tables of one tap: totals, by packet class, by frame size, and the short history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vifprobe.model.layout import SIZE_UNKNOWN, Direction, Expected, PacketClass, Verdict, size_range_bytes
from vifprobe.model.ports import word
from vifprobe.model.reading import Counts, Reading
from vifprobe.render.text.line import Column, Line, Span, cells, flow, head, line
from vifprobe.render.text.sections import Section, fixed, listed, more_line
from vifprobe.render.units import (
    UNKNOWN,
    Glyphs,
    bar,
    bit_rate,
    duration,
    frame_size,
    packet_rate,
    per_second,
    percent,
    si,
    size_range,
    spark,
)

#: From this width on there is room for bars and full titles.
ROOMY = 76
_BAR_MIN, _BAR_MAX = 4, 40
VERDICTS = (Verdict.PASSED, Verdict.POLICED, Verdict.DROPPED)


IDEAL = (Expected.CONFORM, Expected.EXCEED)

#: What a row or a column of a table stands for.
Fate = Verdict | Expected


def fates(reading: Reading, direction: Direction) -> tuple[Fate, ...]:
    """Return the fates to list: verdicts; in a replay, which has none, what the ideal bucket said."""
    if reading.verdicts:
        return VERDICTS
    return () if reading.would(direction, Expected.EXCEED) is None else IDEAL


def counts_of(
    reading: Reading, direction: Direction, fate: Fate, packet_class: PacketClass | None = None
) -> Counts | None:
    """The packets of a row or column, None where they are unknown."""
    if isinstance(fate, Expected):
        return reading.would(direction, fate, packet_class)
    return reading.counts(direction, fate, packet_class)


def fate_span(text: str, fate: Fate, counts: Counts | None) -> Span:
    """A figure in its fate's colour: what would have been stopped looks like what was."""
    if isinstance(fate, Expected):
        fate = Verdict.POLICED if fate is Expected.EXCEED else Verdict.PASSED
    return verdict_span(text, fate, counts)


def verdict_span(text: str, verdict: Verdict, counts: Counts | None) -> Span:
    """A figure in its verdict's colour; nothing is coloured that isn't there."""
    if counts is None:
        return Span(text, "unknown")
    return Span(text, verdict.name.lower() if counts.packets else "faint")


def bps(counted_bytes: int | None, reading: Reading) -> float | None:
    """Bits per second of a byte count of this reading."""
    return per_second(None if counted_bytes is None else 8 * counted_bytes, reading)


def _rate_column(roomy: bool) -> Column:
    return Column("packets/s", 9) if roomy else Column("pkts/s", 7)


def _bar_column(columns: Sequence[Column], width: int) -> Column:
    """Return the column of bars: the width that the others leave, 0 if it is too narrow."""
    left = width - sum(column.width + 1 for column in columns)
    return Column("", min(left, _BAR_MAX) if left >= _BAR_MIN else 0, right=False)


def totals(reading: Reading, direction: Direction, width: int, glyphs: Glyphs) -> Section:
    """Offered, passed, policed, dropped: packets/s, share, and bit/s as charged, as frames and on the wire."""
    roomy = width >= ROOMY
    columns = [
        Column(word(reading.kind, direction).upper(), 8 + roomy, right=False),
        _rate_column(roomy),
        Column("share", 6 if roomy else 5),
        *(Column(title, 11) for title in ("charged", "as frames", "on wire")),
    ]
    columns.append(_bar_column(columns, width))
    offered = reading.offered(direction)
    rows = [_totals_row(columns, "offered", offered, offered, reading, "strong", glyphs)]
    for fate in fates(reading, direction):
        counts = counts_of(reading, direction, fate)
        style = fate_span("", fate, counts).style
        rows.append(_totals_row(columns, fate.name.lower(), counts, offered, reading, style, glyphs))
    return fixed([head(columns, glyphs), *rows, *queue(reading, direction)], gap=True)


def queue(reading: Reading, direction: Direction) -> list[Line]:
    """Packets that wait in the device's queue now; no line if there are none."""
    queued = reading.counts(direction, Verdict.QUEUED)
    if queued is None or not queued.packets:
        return []
    words = f"queued now: {queued.packets:,} packet{'s' * (queued.packets != 1)}, {si(queued.frame_bytes)}B"
    return [line(Span(words, "queued"))]


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
    rates = (
        [None] * 3
        if counts is None
        else [bps(value, reading) for value in (counts.charged_bytes, counts.frame_bytes, counts.wire_bytes)]
    )
    values = [
        label,
        si(per_second(packets, reading)),
        percent(packets, offered.packets),
        *(bit_rate(value) for value in rates),
        bar(packets, offered.packets, columns[-1].width, glyphs),
    ]
    return cells(columns, [Span(value, style) for value in values], glyphs)


def classes(reading: Reading, direction: Direction, width: int, glyphs: Glyphs) -> Section:
    """One row a packet class, the most frequent first."""
    roomy = width >= ROOMY - 2
    columns = [
        Column("class", 10, right=False),
        _rate_column(roomy),
        Column("share", 6 if roomy else 5),
        *(Column(fate.name.lower(), 8 if roomy else 7) for fate in fates(reading, direction)),
        Column("mean", 7),
    ]
    columns.append(_bar_column(columns, width))
    seen = sorted(reading.classes(direction), key=lambda code: (-reading.offered(direction, code).packets, code))
    rows = [_class_row(columns, reading, direction, code, glyphs) for code in seen]
    section = listed(rows, "classes", glyphs, least=4, keep=1, grow=2)
    return replace(section, head=(head(columns, glyphs),), gap=True)


def _class_row(
    columns: Sequence[Column], reading: Reading, direction: Direction, code: PacketClass, glyphs: Glyphs
) -> Line:
    of_all, offered = reading.offered(direction).packets, reading.offered(direction, code)
    values: list[str | Span] = [
        Span(code.name.lower(), "name"),
        si(per_second(offered.packets, reading)),
        percent(offered.packets, of_all),
    ]
    for fate in fates(reading, direction):
        counts = counts_of(reading, direction, fate, code)
        figure = si(per_second(None if counts is None else counts.packets, reading))
        values.append(fate_span(figure, fate, counts))
    values += [
        frame_size(offered.frame_bytes / offered.packets if offered.packets else None),
        bar(offered.packets, of_all, columns[-1].width, glyphs),
    ]
    return cells(columns, values, glyphs)


def sizes(reading: Reading, direction: Direction, width: int, glyphs: Glyphs) -> Section:
    """Histogram of frame lengths: the fullest buckets that fit, in order of size, both edges written out."""
    rows = reading.where(direction)
    packets = np.bincount(rows["size"], weights=rows["packets"], minlength=SIZE_UNKNOWN + 1).astype(np.int64)
    seen = [int(bucket) for bucket in np.flatnonzero(packets)]
    roomy = width >= ROOMY
    columns = [Column("frame size", 13), _rate_column(roomy), Column("share", 6)]
    columns.append(_bar_column(columns, width))

    def draw(room: int) -> list[Line]:
        cut = room < len(seen)
        fullest = sorted(seen, key=lambda bucket: -packets[bucket])[: room - cut]
        lines = [_size_row(columns, reading, bucket, packets, glyphs) for bucket in sorted(fullest)]
        return [*lines, more_line(len(seen) - len(fullest), "sizes", glyphs)] if cut else lines

    return Section(len(seen), min(2, len(seen)), draw, 6, 4, (head(columns, glyphs),), gap=True)


def _size_row(columns: Sequence[Column], reading: Reading, bucket: int, packets: np.ndarray, glyphs: Glyphs) -> Line:
    here, of_all = int(packets[bucket]), int(packets.sum())
    values = [
        size_range(*size_range_bytes(bucket)),
        si(per_second(here, reading)),
        percent(here, of_all),
        bar(here, of_all, columns[-1].width, glyphs),
    ]
    return cells(columns, values, glyphs)


def history(readings: Sequence[Reading], direction: Direction, width: int, glyphs: Glyphs) -> Section:
    """Offered and passed packets/s of the last intervals on one scale, the newest at the right."""
    past = [reading for reading in readings if not reading.final]
    past = past[-max(1, width - 32) :]
    if len(past) < 2:
        return fixed([])
    offered = [per_second(reading.offered(direction).packets, reading) for reading in past]
    passed = []
    for reading in past:
        counts = reading.counts(direction, Verdict.PASSED)
        passed.append(per_second(None if counts is None else counts.packets, reading))
    top = max((value for value in offered if value is not None), default=0.0)
    span_ns = sum(reading.duration_ns for reading in past)
    return fixed(
        [
            line("offered ", Span(spark(offered, top, glyphs), "strong"), f"  peak {packet_rate(top)}"),
            line("passed  ", Span(spark(passed, top, glyphs), "passed"), Span(f"  last {duration(span_ns)}", "faint")),
        ],
        keep=5,
        gap=True,
    )


def other_direction(reading: Reading, direction: Direction, width: int, glyphs: Glyphs) -> list[Line]:
    """The direction that has no table, in one line (two where it is narrow)."""
    offered = reading.offered(direction)
    pps, frames = per_second(offered.packets, reading), bit_rate(bps(offered.frame_bytes, reading))
    label = Span(f"{word(reading.kind, direction)}  ", "name")
    parts = [line(label, f"offered {packet_rate(pps)}, {frames} as frames")]
    if not reading.knows_verdicts(direction) and width < ROOMY:
        return flow([*parts, line(Span(f"verdicts {UNKNOWN}", "unknown"))], width, len(label.text), glyphs)
    if offered.packets and reading.counts(direction, Verdict.PASSED) == offered and not queue(reading, direction):
        return flow([*parts, line(Span("all passed", "passed"))], width, len(label.text), glyphs)
    outcome = Line()
    for verdict in (*VERDICTS, Verdict.QUEUED):
        counts = reading.counts(direction, verdict)
        packets = None if counts is None else counts.packets
        if verdict is Verdict.QUEUED and not packets:
            continue
        figure = si(packets if verdict is Verdict.QUEUED else per_second(packets, reading))  # a gauge is no rate
        outcome += line(" " if outcome.spans else "", f"{verdict.name.lower()} ", verdict_span(figure, verdict, counts))
    parts.append(outcome)
    return flow(parts, width, len(label.text), glyphs)
