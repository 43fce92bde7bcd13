# SPDX-License-Identifier: Apache-2.0
"""Made-up readings for the render tests, and golden texts.

A golden text is renewed with ``VIFPROBE_RENEW_GOLDEN=1 pytest tests/unit`` (then read the diff: it is what users see).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np

from vifprobe.analysis.limit_state import answers_of
from vifprobe.model.layout import CELL, Direction, Expected, PacketClass, Verdict, size_bucket
from vifprobe.model.reading import Cells, Finding, Limit, Reading, merge, no_cells
from vifprobe.render.context import TapContext
from vifprobe.render.text.line import Line

GOLDEN = Path(__file__).parent / "golden"
TAP = "tap834d76e9-5f"
START = datetime(2026, 11, 22, 5, 12, 44, 123456, tzinfo=timezone.utc)
SECOND_NS = 1_000_000_000
LIMIT = Limit(declared_bps=100_000_000, installed_bps=100_000_000, burst_bytes=3125 * 1024)
REASONS = {70: "TC_INGRESS", 72: "QDISC_DROP", 91: "SKB_DROP_REASON_NO_TX_TARGET", 94: "FULL_RING"}
CONTEXT = TapContext("instance-0000002a", REASONS, True, True)
FINDINGS = (
    Finding("a", "P8", "info", "policed but counted: /proc/net/dev shows 270 k/s, a third of it passes"),
    Finding("b", "P6", "warning", "small packets: 100 Mbit/s as charged are 134 Mbit/s on the wire of the uplink"),
    Finding("c", "S1", "critical", "SYN flood: 96 % of packets are tcp_syn", advice="Ask the owner of the VM."),
)


def cell(
    packets: int,
    frame_bytes: int,
    packet_class: PacketClass,
    verdict: Verdict = Verdict.PASSED,
    direction: Direction = Direction.OUTBOUND,
    reason: int = 0,
    expected: Expected = Expected.NONE,
) -> Cells:
    """`packets` frames of one length, charged without the L2 header."""
    rows = np.zeros(1, CELL)
    rows["packets"] = packets
    rows["size"] = size_bucket(frame_bytes)
    rows["packet_class"], rows["verdict"], rows["direction"] = packet_class, verdict, direction
    rows["reason"], rows["expected"] = reason, expected
    rows["frame_bytes"] = packets * frame_bytes
    rows["charged_bytes"] = packets * (frame_bytes - 14)
    rows["wire_bytes"] = packets * (max(frame_bytes, 60) + 24)
    return rows


def flood(factor: float = 1.0) -> Cells:
    """A SYN flood at 2.7 times the limit among ordinary traffic; some of the few inbound packets were lost."""
    return merge(
        cell(round(90001 * factor), 54, PacketClass.TCP_SYN),
        cell(round(169991 * factor), 54, PacketClass.TCP_SYN, Verdict.POLICED, reason=70),
        cell(round(5003 * factor), 1514, PacketClass.TCP_DATA),
        cell(round(1009 * factor), 1514, PacketClass.TCP_DATA, Verdict.POLICED, reason=70),
        cell(17, 70000, PacketClass.TCP_DATA),
        cell(4001, 66, PacketClass.TCP_ACK),
        cell(601, 90, PacketClass.UDP, Verdict.DROPPED, reason=91),
        cell(11, 300, PacketClass.UDP),
        cell(7, 74, PacketClass.TCP_RST),
        cell(5, 86, PacketClass.ICMPV6),
        cell(3, 60, PacketClass.ARP),
        cell(1, 31, PacketClass.MALFORMED),
        cell(1181, 98, PacketClass.ICMP, Verdict.PASSED, Direction.INBOUND),
        cell(7, 98, PacketClass.ICMP, Verdict.POLICED, Direction.INBOUND, reason=72),
        cell(11, 98, PacketClass.ICMP, Verdict.DROPPED, Direction.INBOUND, reason=94),
        cell(2, 98, PacketClass.ICMP, Verdict.QUEUED, Direction.INBOUND),
    )


def judged(reading: Reading, context: TapContext | None = None) -> Reading:
    """With the states of its limits, as a run that knows as much as the context says decides them."""
    known = context or TapContext(declared_known=True, installed_known=True)
    return replace(reading, limit_states=answers_of(reading, known.declared_known, known.installed_known))


BASE = judged(
    Reading(
        TAP,
        START,
        0,
        SECOND_NS,
        flood(),
        limits={Direction.OUTBOUND: LIMIT},
        findings=FINDINGS,
        queued=cell(5, 98, PacketClass.ICMP, Verdict.QUEUED, Direction.INBOUND),
    )
)


def unfollowed(reading: Reading = BASE) -> Reading:
    """The same where the kernel could not tell what became of the inbound packets."""
    outbound = reading.where(Direction.OUTBOUND)
    inbound = cell(1201, 98, PacketClass.ICMP, Verdict.UNKNOWN, Direction.INBOUND)
    return judged(replace(reading, cells=merge(outbound, inbound), queued=no_cells()))


def at(number: int, reading: Reading = BASE) -> Reading:
    """The same in the interval of that number."""
    return replace(reading, at=START + timedelta(seconds=number), start_ns=number * SECOND_NS)


def history(length: int = 37) -> list[Reading]:
    """A flood that swells and falls."""
    return [replace(at(number), cells=flood(1 - (number % 11) / 23)) for number in range(length)]


def alone(*cells: Cells, limit: Limit = LIMIT) -> Reading:
    """A second of just these cells."""
    return judged(Reading(TAP, START, 0, SECOND_NS, merge(*cells), limits={Direction.OUTBOUND: limit}))


def text_of(lines: Iterable[Line]) -> str:
    """What a terminal without colour shows."""
    return "".join(line.plain + "\n" for line in lines)


def check_golden(name: str, text: str) -> None:
    """Fails where the text is not the committed one."""
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("VIFPROBE_RENEW_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{path.name} differs; see render_kit.py for how to renew it"
