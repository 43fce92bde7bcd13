# SPDX-License-Identifier: Apache-2.0
"""Everything that a screen says about one tap, as sections in reading order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vifprobe.model.layout import Direction, PacketClass, Verdict
from vifprobe.model.limits import LimitState
from vifprobe.model.ports import is_guest_port, word
from vifprobe.model.reading import Finding, Limit, Reading
from vifprobe.model.whatif import Share, WhatIfRow, by_limit, total
from vifprobe.render.context import Loss, TapContext, losses
from vifprobe.render.limit_words import figures, gone_words, live_badge
from vifprobe.render.text import tap_tables
from vifprobe.render.text.flood import flood_lines
from vifprobe.render.text.host import host_section
from vifprobe.render.text.line import Line, Span, flow, line, one_line, wrapped
from vifprobe.render.text.sections import Section, beside, fixed, listed
from vifprobe.render.units import (
    Glyphs,
    bit_rate,
    cell_width,
    clean,
    duration,
    packet_rate,
    per_second,
    percent,
    tc_size,
    whole,
)

#: From this width on the size table stands beside the class table.
WIDE = 112
_CLASSES_WIDTH = 74
_GUTTER = 3

_SEVERITIES = {"critical": ("!!", "bad"), "warning": ("! ", "warn"), "info": ("i ", "strong")}
_MEANING = {
    Direction.OUTBOUND: (
        "outbound = from the guest, inbound = to the guest",
        "outbound = from guest, inbound = to guest",
        "outbound = from the guest",
    ),
    Direction.INBOUND: ("inbound = to the guest, outbound = from the guest", "inbound = to the guest"),
}
_NO_GUEST = (
    "not a guest's port: received = came in, sent = left",
    "received = came in, sent = left",
    "not a guest's port",
)
VERDICTS_KNOWN = {
    "reason": "verdicts from the kernel",
    "inferred": "verdicts INFERRED",
    "": "verdicts unknown",
}


def main_direction(reading: Reading) -> Direction:
    """The direction that gets the tables: outbound, unless only inbound is watched."""
    return Direction.OUTBOUND if Direction.OUTBOUND in reading.directions else Direction.INBOUND


def tap_sections(
    readings: Sequence[Reading], context: TapContext, width: int, glyphs: Glyphs, running: bool
) -> list[Section]:
    """The sections for the newest of one tap's readings; the older ones are its history."""
    reading = readings[-1]
    direction = main_direction(reading)
    findings = finding_lines(reading.findings, glyphs, None if running else width)
    classes = tap_tables.classes(reading, direction, _CLASSES_WIDTH if width >= WIDE else width, glyphs)
    sizes_width = width - _CLASSES_WIDTH - _GUTTER if width >= WIDE else width
    sizes = tap_tables.sizes(reading, direction, sizes_width, glyphs)
    tables = [beside(classes, sizes, _CLASSES_WIDTH + _GUTTER)] if width >= WIDE else [classes, sizes]
    return [
        fixed([title(reading, context, direction, width, glyphs)], gap=True),
        fixed([headline(reading, direction, width, glyphs)]),
        fixed(missed(reading)),
        fixed(policer(reading, direction, context, width, glyphs)),
        tap_tables.totals(reading, direction, width, glyphs),
        *_where(reading, direction, context, glyphs),
        fixed(what_if(reading, width, glyphs), keep=4),
        *_other(reading, direction, width, glyphs),
        host_section(reading.host, width, glyphs, has_guest=is_guest_port(reading.kind)),
        listed(flood_lines(reading, width, glyphs), "lines about SYNs", glyphs, least=3, keep=5, grow=2),
        replace(listed(findings, "findings", glyphs, least=2, keep=3, grow=1), gap=True),
        *tables,
        tap_tables.history(readings, direction, width, glyphs),
        listed([line(f"note: {clean(note, glyphs)}") for note in reading.notes], "notes", glyphs, 1, keep=3, grow=1),
        fixed([status(reading, width, glyphs, running)], gap=True),
    ]


def title(reading: Reading, context: TapContext, direction: Direction, width: int, glyphs: Glyphs) -> Line:
    """Tap, domain, and what the directions mean."""
    left = line(Span(clean(reading.tap, glyphs), "name"))
    if context.domain:
        left += line(f"  {clean(context.domain, glyphs)}")
    meanings = _MEANING[direction] if is_guest_port(reading.kind) else _NO_GUEST
    for meaning in meanings:
        blank = width - cell_width(left.plain) - len(meaning)
        if blank >= 2:
            return left + line(" " * blank, Span(meaning, "faint"))
    meaning = meanings[-1]
    room = width - len(meaning) - 2
    return left.fitted(room, glyphs) + line("  ", Span(meaning, "faint"))


def headline(reading: Reading, direction: Direction, width: int, glyphs: Glyphs) -> Line:
    """Is the limit working? The state in reverse video, then as much of what it rests on as the line holds."""
    found = live_badge(reading.limit_state(direction))
    badge = Span(f" {found.headline} ", found.style)
    words = [line(Span(word, "strong")) for word in figures(reading, direction)]
    return line(badge, " ") + one_line(words, width - len(badge.text) - 1, glyphs)


def gone(reading: Reading, width: int, glyphs: Glyphs) -> list[Line]:
    """That the tap of these totals was deleted meanwhile; nothing while it is there."""
    if not reading.gone:
        return []
    return [line(Span(" TAP IS GONE ", "bad"), f" {gone_words(reading)}").fitted(width, glyphs)]


def missed(reading: Reading) -> list[Line]:
    """Packets that no cell holds: said loudly, and not at all where there are none."""
    if not reading.missed:
        return []
    size = f" ({whole(reading.missed_bytes)} bytes)" if reading.missed_bytes else ""
    text = f" MISSED {whole(reading.missed)} packets{size}: not counted, figures too low "
    return [line(Span(text, "bad"))]


def policer(reading: Reading, direction: Direction, context: TapContext, width: int, glyphs: Glyphs) -> list[Line]:
    """Declared and installed limit, and whether they agree."""
    label, limit = Span("policer  ", "name"), reading.limits.get(direction, Limit())
    declared = _limit_text(limit.declared_bps, None, context.declared_known)
    installed = _limit_text(limit.installed_bps, limit.installed_pps, context.installed_known)
    burst = f" burst {tc_size(limit.burst_bytes)}" if limit.burst_bytes is not None else ""
    agree = _agree(limit, reading.limit_state(direction).state)
    parts = [line(f"declared {declared}"), line(f"installed {installed}{burst}")]
    if agree is not None:
        parts.append(line(Span("they agree", "ok") if agree else Span(" THEY DIFFER ", "bad")))
    if agree and width < tap_tables.ROOMY:
        parts = [line("declared ", Span("=", "ok"), f" installed {installed}{burst}")]
    rows = flow(parts, width, len(label.text), glyphs, first=len(label.text))
    return [line(label) + rows[0], *rows[1:]]


def what_if(reading: Reading, width: int, glyphs: Glyphs) -> list[Line]:
    """Packets and bytes that each --what-if limit would stop, in total and by class, SYNs first."""
    main, lines = main_direction(reading), []
    for direction in sorted(reading.directions, key=lambda direction: direction is not main):
        for limit, rows in by_limit(reading.what_ifs, direction).items():
            whose = "" if direction is main else f" {word(reading.kind, direction)}"
            parts = [line(Span(clean(limit, glyphs), "strong"), f"{whose} stops {_stopped(total(rows))}")]
            for row in sorted(rows, key=_syns_first):
                share = percent(row.stopped_packets, row.passed_packets + row.stopped_packets)
                parts.append(line(f"{row.packet_class.name.lower()} {share}"))
            label = Span("what if  ", "name")
            flowing = flow(parts, width, len(label.text), glyphs, first=len(label.text))
            lines += [line(label) + flowing[0], *flowing[1:]]
    return lines


def _syns_first(row: WhatIfRow) -> tuple[bool, int]:
    return row.packet_class is not PacketClass.TCP_SYN, -row.stopped_packets


def _stopped(share: Share) -> str:
    packets, size = percent(share.stopped_packets, share.packets), percent(share.stopped_frame_bytes, share.frame_bytes)
    return f"{packets} of packets, {size} of bytes"


def _agree(limit: Limit, state: LimitState) -> bool | None:
    """Return True if declared and installed are the same; None where either is unknown, or nothing was declared."""
    if state in (LimitState.ABSENT, LimitState.DIFFERS):
        return False
    return True if limit.declared_bps is not None and limit.installed_bps is not None else None


def _limit_text(bps: int | None, pps: int | None, known: bool) -> str:
    texts = [bit_rate(bps)] if bps is not None else []
    if pps is not None:
        texts.append(packet_rate(pps).replace("/s", " packets/s").replace("  ", " "))
    return " + ".join(texts) or ("NONE" if known else "unknown")


def _where(reading: Reading, direction: Direction, context: TapContext, glyphs: Glyphs) -> list[Section]:
    """Where lost packets went, and what crossed the ideal bucket's opinion. What was dropped is left out last."""
    found = [
        _loss_line(Verdict.DROPPED, loss, reading, glyphs)
        for loss in losses(reading, direction, Verdict.DROPPED, context.reasons)
    ]
    for counts, words in (
        (reading.bypass(direction), "passed although above the limit (bypass)"),
        (reading.overpoliced(direction), "policed although within the limit (overpoliced)"),
    ):
        if counts is not None and counts.packets:
            found.append(line(f"{packet_rate(per_second(counts.packets, reading))} {words}"))
    policed = [
        _loss_line(Verdict.POLICED, loss, reading, glyphs)
        for loss in losses(reading, direction, Verdict.POLICED, context.reasons)
    ]
    return [
        listed(found, "reasons", glyphs, least=2, keep=2, grow=1),
        listed(policed, "reasons", glyphs, least=0, keep=7, grow=5),
    ]


def _loss_line(verdict: Verdict, loss: Loss, reading: Reading, glyphs: Glyphs) -> Line:
    name = verdict.name.lower()
    words = f": {loss.words}" if loss.words else ""
    figure = packet_rate(per_second(loss.counts.packets, reading))
    return line(Span(f"{name} ", name), f"{figure} {clean(loss.name, glyphs)}{words}")


def _other(reading: Reading, direction: Direction, width: int, glyphs: Glyphs) -> list[Section]:
    others = [other for other in reading.directions if other is not direction]
    return [fixed(tap_tables.other_direction(reading, other, width, glyphs), keep=4) for other in others]


def by_severity(findings: Sequence[Finding]) -> list[Finding]:
    """The worst first; a severity that is not known counts as the worst."""
    order = list(_SEVERITIES)
    return sorted(findings, key=lambda finding: order.index(finding.severity) if finding.severity in order else 0)


def finding_lines(findings: Sequence[Finding], glyphs: Glyphs, wrap: int | None = None) -> list[Line]:
    """One line a finding, the worst first; `wrap`: columns in which a long title goes on in a further line."""
    lines: list[Line] = []
    for finding in by_severity(findings):
        mark, style = _SEVERITIES.get(finding.severity, _SEVERITIES["critical"])
        label = f"{mark} {clean(finding.pattern, glyphs)}"
        words = clean(finding.title, glyphs)
        if wrap:
            lines += wrapped(Span(label, style), f" {words}", wrap, 9)
        else:
            lines.append(line(Span(label, style), f" {words}"))
    return lines


def status(reading: Reading, width: int, glyphs: Glyphs, running: bool) -> Line:
    """Footer: how to end the run, its length, the source of the verdicts."""
    parts = ["Ctrl-C ends"] if running else []
    if reading.final:
        parts.append(f"whole run, {duration(reading.duration_ns)}")
    else:
        parts.append(f"ran {duration(reading.start_ns + reading.duration_ns)}")
    parts.append(VERDICTS_KNOWN.get(reading.verdicts, f"verdicts {clean(reading.verdicts, glyphs)}"))
    parts.append(reading.at.astimezone().strftime("%H:%M:%S"))
    if not reading.final:
        word = "every" if running else "rates of the last"  # which is seldom a whole interval
        parts.append(f"{word} {duration(round(reading.duration_ns, -7) or reading.duration_ns)}")
    return one_line([line(Span(part, "faint")) for part in parts], width, glyphs)
