# SPDX-License-Identifier: Apache-2.0
"""The SYN lines of a screen and a summary. ``≈`` is an estimate, with by how much it can be off where that matters."""

from __future__ import annotations

from vifprobe.model.flood import Flood
from vifprobe.model.layout import Direction
from vifprobe.model.ports import is_guest_port
from vifprobe.model.reading import Reading
from vifprobe.render.text.line import Line, Span, flow, line
from vifprobe.render.units import Glyphs, clean, percent, si

#: From so many SYNs a second on, or such a share of the packets, they are worth lines of a screen.
SHOWN_PPS = 100.0
SHOWN_SHARE = 0.25
_LABEL = 9
#: Followed handshakes are shown in place of the upper bound where they are off by at most this share of the SYNs.
_SURE = 0.1
_SHARES = {
    "unknown_source_share": "not the port's own",
    "foreign_mac_share": "foreign MAC",
    "impossible_source_share": "impossible sources",
    "no_options_share": "no TCP options",
    "sequence_destination_share": "sequence = destination",
    "sequence_zero_share": "sequence 0",
    "sequence_constant_share": "sequence constant",
    "sequence_incrementing_share": "sequence counted up",
}


def flood_lines(reading: Reading, width: int, glyphs: Glyphs) -> list[Line]:
    """Lines for each direction whose SYNs are worth them; none elsewhere."""
    lines: list[Line] = []
    for direction, flood in reading.flood.items():
        pps, share = flood.value("syn_pps") or 0.0, flood.value("syn_share") or 0.0
        if pps >= SHOWN_PPS or (share >= SHOWN_SHARE and pps >= 1):
            lines += _lines(_label(reading.kind, direction), flood, width, glyphs)
    return lines


def _label(kind: str, direction: Direction) -> str:
    if not is_guest_port(kind):
        return "SYNs rx  " if direction is Direction.OUTBOUND else "SYNs tx  "
    return "SYNs out " if direction is Direction.OUTBOUND else "SYNs in  "


def _lines(label: str, flood: Flood, width: int, glyphs: Glyphs) -> list[Line]:
    parts = [*_counts(flood, glyphs), *_targets(flood, glyphs), *_marks(flood, glyphs)]
    rows = flow([line(part) for part in parts], width, _LABEL, glyphs, _LABEL)
    return [line(Span(label, "name")) + rows[0], *rows[1:]]


def _counts(flood: Flood, glyphs: Glyphs) -> list[str]:
    pps, share = flood.value("syn_pps"), flood.value("syn_share")
    found = [f"{si(pps)}/s, {_share(share)} of packets"]
    answered = flood.value("synack_per_syn")
    if answered is not None:
        found.append(f"SYN-ACK for {_share(min(answered, 1.0))}")
    base = (flood.value("syn_packets") or 0) - (flood.value("syn_policed_packets") or 0)
    completed = flood.known("handshakes_completed")
    most = flood.value("handshakes_completed_max")
    if base and most is not None:
        if completed is not None and completed.value <= most and completed.error <= _SURE * base:
            found.append(f"completed {_mark(completed.error, glyphs)}{_share(completed.value / base)}")
        else:
            found.append(f"completed at most {_share(min(1.0, most / base))}" if most else "none completed")
    half_open = flood.known("half_open")
    if half_open is not None and half_open.value:
        found.append(f"{_mark(half_open.error, glyphs)}{si(half_open.value)} half-open")
    return found


def _targets(flood: Flood, glyphs: Glyphs) -> list[str]:
    found = []
    for name, one, many in (
        ("sources", "source", "sources"),
        ("destinations", "destination", "destinations"),
        ("destination_ports", "port", "ports"),
    ):
        known = flood.known(name)
        if known is not None:
            bound = f" {glyphs.bound}{_share(known.error / known.value)}" if known.error and known.value else ""
            found.append(f"{_mark(known.error, glyphs)}{si(known.value)}{bound} {one if known.value == 1 else many}")
    target, share = flood.leading("endpoint"), flood.known("endpoint_top_share")
    if target is not None and share is not None and share.value >= SHOWN_SHARE:
        found.append(f"{_mark(share.error, glyphs)}{_share(share.value)} to {clean(target.key, glyphs)}")
    return found


def _marks(flood: Flood, glyphs: Glyphs) -> list[str]:
    """Fingerprint, and what is odd about the packets."""
    found = []
    for name, words in _SHARES.items():
        known = flood.known(name)
        if known is not None and known.low > 0.01:
            found.append(f"{_mark(known.error, glyphs)}{_share(known.value)} {words}")
    print_of, syns = flood.leading("fingerprint"), flood.value("syn_packets")
    if print_of is not None and syns and 2 * print_of.packets > syns:
        found.append(clean(print_of.key, glyphs))
    return found


def _mark(error: float, glyphs: Glyphs) -> str:
    return f"{glyphs.about} " if error else ""


def _share(value: float | None) -> str:
    return percent(None if value is None else value, 1.0)
