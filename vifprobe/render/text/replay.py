# SPDX-License-Identifier: Apache-2.0
"""Summary of `replay`: with the tables of the live screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vifprobe.model.layout import Direction, Expected, PacketClass
from vifprobe.model.reading import Limit, Reading, count
from vifprobe.render.context import TapContext
from vifprobe.render.export.jsonlines import reading_object
from vifprobe.render.text import tap_view
from vifprobe.render.text.flood import flood_lines
from vifprobe.render.text.line import Line, Span, line, wrapped
from vifprobe.render.text.sections import Section, fit, fixed
from vifprobe.render.text.summary import findings_lines, mix, totals_table, written
from vifprobe.render.text.tap_tables import IDEAL, classes, sizes
from vifprobe.render.units import BLOCKS, Glyphs, bit_rate, clean, duration, tc_size, whole


def replay_lines(
    reading: Reading,
    recorded: str,
    files: Sequence[str] = (),
    width: int = 80,
    glyphs: Glyphs = BLOCKS,
) -> list[Line]:
    """The file's packets as one run of a tap. recorded: format and time span, in words. files: what was written."""
    direction = tap_view.main_direction(reading)
    others = [other for other in reading.directions if other is not direction]
    context = TapContext()
    notes = [row for note in reading.notes for row in wrapped(Span("note     ", "name"), clean(note, glyphs), width)]
    sections: list[Section] = [
        fixed([tap_view.title(reading, context, direction, width, glyphs)]),
        fixed([tap_view.headline(reading, direction, width, glyphs)]),
        fixed(tap_view.missed(reading)),
        fixed(_limit(reading.limits.get(direction, Limit()))),
        fixed(tap_view.what_if(reading, width, glyphs)),
        fixed(totals_table(reading, direction, width, glyphs)),
        fixed(mix(reading, direction, width, glyphs)),
        *(fixed(totals_table(reading, other, width, glyphs)) for other in others),
        fixed(flood_lines(reading, width, glyphs)),
        fixed(findings_lines(reading.findings, width, glyphs)),
        classes(reading, direction, width, glyphs),
        sizes(reading, direction, width, glyphs),
        fixed(notes),
        fixed([line(Span("recorded ", "name"), recorded)]),
        fixed(written(files, width, glyphs)),
    ]
    return fit(sections, None)


def replay_object(reading: Reading, told: Mapping[str, Any]) -> dict[str, Any]:
    """The last object of `watch --json`, and with it what only a replay knows. told: of the file and its packets.

    `replay.conform` and `replay.exceed`: what the ideal bucket said, of all and by class; null without a limit. Of a
    recording of both directions they are of the outbound ones, and `replay.inbound` has the others.
    """
    main = tap_view.main_direction(reading)
    replay = {**told, **_ideal(reading, main), "notes": list(reading.notes)}
    replay |= {other.name.lower(): _ideal(reading, other) for other in reading.directions if other is not main}
    return {**reading_object(reading), "replay": replay}


def _ideal(reading: Reading, direction: Direction) -> dict[str, Any]:
    return {
        one.name.lower(): None if reading.would(direction, one) is None else _by_class(reading, direction, one)
        for one in IDEAL
    }


def _by_class(reading: Reading, direction: Direction, expected: Expected) -> dict[str, Any]:
    """Counts of all packets, and of each class that was seen."""

    def counts(packet_class: PacketClass | None) -> dict[str, int]:
        return count(reading.where(direction, packet_class=packet_class, expected=expected))._asdict()

    return {**counts(None), "classes": {code.name.lower(): counts(code) for code in reading.classes(direction)}}


def recorded_words(reading: Reading, file_format: str, packets: int) -> str:
    """`pcap, 1,000,003 packets in 12.3 s, until 2026-11-22 10:00:00`."""
    ended = f"until {reading.at:%Y-%m-%d %H:%M:%S}"
    return f"{file_format}, {whole(packets)} packets in {duration(reading.duration_ns)}, {ended}"


def _limit(limit: Limit) -> list[Line]:
    """The limit that the packets were compared with."""
    if limit.declared_bps is None:
        return []
    burst = f" burst {tc_size(limit.burst_bytes)}" if limit.burst_bytes is not None else ""
    words = f"ideal bucket of {bit_rate(limit.declared_bps)}{burst}, at the packets' own times"
    return [line(Span("policer  ", "name"), words)]
