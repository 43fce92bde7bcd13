# SPDX-License-Identifier: Apache-2.0
"""`vifprobe taps`: the taps of this host, whose they are, and what their counters say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vifprobe.render.text.line import Column, Line, Span, cells, head, line, natural
from vifprobe.render.units import BLOCKS, UNKNOWN, Glyphs, bit_rate, clean, si


@dataclass(frozen=True)
class TapRow:
    """One tap. None: not known, or not readable without root.

    outbound_packets: from the guest, a tap's rx counter (which counts policed packets too), a macvtap's tx counter;
    inbound_packets: to the guest, the other one. declared_bps, installed_bps: of outbound packets,
    what counts of the limits that somebody declares, and of those in the kernel; inbound_...: of inbound packets.
    not_read: places that could declare or hold a limit and were not read.
    outbound_hook: the hook of the device that outbound packets pass, `ingress` or `egress`.
    """

    name: str
    kind: str = "tap"
    bridge: str | None = None
    qemu_pid: int | None = None
    domain: str | None = None
    port_id: str | None = None
    outbound_packets: int | None = None
    inbound_packets: int | None = None
    declared_bps: int | None = None
    installed_bps: int | None = None
    inbound_declared_bps: int | None = None
    inbound_installed_bps: int | None = None
    not_read: tuple[str, ...] = ()
    outbound_hook: str = "ingress"


#: The hook that outbound packets pass, and the device counter that they are in.
_OUTBOUND_AT = {"ingress": "ingress, rx", "egress": "egress, tx"}


#: What somebody declares and what is in the kernel, outbound and inbound.
_RATES = ("declared", "installed", "declared in", "installed in")


def _rates(row: TapRow) -> tuple[int | None, ...]:
    return row.declared_bps, row.installed_bps, row.inbound_declared_bps, row.inbound_installed_bps


def taps_lines(rows: Sequence[TapRow], glyphs: Glyphs = BLOCKS) -> list[Line]:
    """A table as wide as it needs to be, by name; columns that hold nothing are left out."""
    if not rows:
        return [line("No taps in this network namespace. Name another one with --netns.")]
    titles = ["tap", "kind", "bridge", "domain", "QEMU pid", "port", *_RATES, "outbound", "inbound", "outbound at"]
    ordered = sorted(rows, key=lambda row: row.name)
    table = [_row(row, glyphs) for row in ordered]
    always = {"tap", "domain", "outbound", "inbound", "outbound at"}
    kept = [
        number
        for number, title in enumerate(titles)
        if title in always or any(values[number].text != UNKNOWN for values in table)
    ]
    right = [title in ("QEMU pid", *_RATES, "outbound", "inbound") for title in titles]
    picked = [[values[number] for number in kept] for values in table]
    columns: list[Column] = natural([titles[number] for number in kept], picked, [right[number] for number in kept])
    unread = Counter(words for row in ordered for words in row.not_read)
    return [
        head(columns, glyphs),
        *(cells(columns, values, glyphs) for values in picked),
        *(
            line(Span("not read ", "warn"), clean(f"{words}{f' ({taps} taps)' if taps > 1 else ''}", glyphs))
            for words, taps in unread.items()
        ),
        line(Span("outbound = packets from the guest (rx includes policed ones), inbound = to it", "faint")),
    ]


def _row(row: TapRow, glyphs: Glyphs) -> list[Span]:
    values = [
        row.name,
        row.kind,
        row.bridge,
        row.domain,
        None if row.qemu_pid is None else str(row.qemu_pid),
        row.port_id,
        *(None if one is None else bit_rate(one) for one in _rates(row)),
        None if row.outbound_packets is None else si(row.outbound_packets),
        None if row.inbound_packets is None else si(row.inbound_packets),
        _OUTBOUND_AT.get(row.outbound_hook, row.outbound_hook),
    ]
    styles = ["name", *[""] * (len(values) - 1)]
    return [
        Span(UNKNOWN, "faint") if value is None else Span(clean(value, glyphs), style)
        for value, style in zip(values, styles, strict=True)
    ]
