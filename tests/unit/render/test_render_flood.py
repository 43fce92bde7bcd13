# SPDX-License-Identifier: Apache-2.0
"""What screens, summaries and JSON say of SYNs: estimates are marked, and quiet taps stay quiet."""

from __future__ import annotations

import json
from dataclasses import replace

from flood_kit import OUT, cells, samples
from render_kit import BASE, CONTEXT, alone, text_of

from vifprobe.analysis.flood.tracker import FloodTracker
from vifprobe.model.flood import Measure
from vifprobe.model.layout import Direction, PacketClass
from vifprobe.model.reading import Reading
from vifprobe.render.export.jsonlines import dumps, reading_object
from vifprobe.render.text.flood import flood_lines
from vifprobe.render.text.sections import fit
from vifprobe.render.text.summary import summary_lines
from vifprobe.render.text.tap_view import tap_sections
from vifprobe.render.units import ASCII, BLOCKS
from vifprobe.testing.packets import syns

COUNTED = cells((OUT, PacketClass.TCP_SYN, 20_011), (OUT, PacketClass.TCP_ACK, 101))
KERNEL = {OUT: {"sources": Measure(19_801, "different", 643), "half_open": Measure(4_096, "handshakes", 512)}}


def flooded(weight: int = 5) -> Reading:
    tracker = FloodTracker()
    tracker.add(samples(syns.spoofed(4_001), weight=weight))
    return replace(alone(COUNTED), flood=tracker.interval(COUNTED, 10**9, (OUT,), KERNEL))


def test_lines_of_a_flood_fit_and_mark_what_is_estimated() -> None:
    text = text_of(flood_lines(flooded(), 80, BLOCKS))
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith("SYNs out 20.0 k/s, >99 % of packets · completed at most <1 %")
    words = " ".join(text.split())
    assert "≈ 19.8 k ±3 % sources" in words
    assert "≈ 100 % to 198.51.100.2:80" in words
    assert "≈ 4.10 k half-open" in words
    assert "≈ 100 % no TCP options" in words
    assert "IPv4 ttl 64 window 512 no options" in words


def test_an_ascii_terminal_gets_ascii() -> None:
    text = text_of(flood_lines(flooded(), 60, ASCII))
    assert text.isascii()
    assert "~ 19.8 k +-3 % sources" in " ".join(text.split())


def test_screen_and_summary_show_them() -> None:
    reading = flooded()
    for lines in (
        summary_lines(reading, CONTEXT),
        fit(tap_sections([reading], CONTEXT, 80, BLOCKS, running=True), 24),
    ):
        assert "SYNs out" in text_of(lines)


def test_ordinary_traffic_takes_no_lines() -> None:
    assert flood_lines(BASE, 80, BLOCKS) == []
    few = cells((OUT, PacketClass.TCP_SYN, 17), (OUT, PacketClass.TCP_DATA, 1_009))
    flood = FloodTracker().interval(few, 10**9, (OUT,))
    assert flood_lines(replace(BASE, flood=flood), 80, BLOCKS) == []


def test_json() -> None:
    found = json.loads(dumps(reading_object(flooded())))["flood"]
    assert set(found) == {"outbound"}
    measures = found["outbound"]["measures"]
    assert measures["syn_packets"] == {"value": 20_011, "unit": "packets", "error": 0}
    assert measures["sources"] == {"value": 19_801, "unit": "different", "error": 643}
    assert measures["synack_per_syn"]["value"] is None
    assert 0 < measures["endpoint_top_share"]["error"] < 0.05
    top = found["outbound"]["top"][0]
    assert set(top) == {"kind", "key", "packets", "frame_bytes", "error_max"}
    assert json.loads(dumps(reading_object(BASE)))["flood"] is None
    assert Direction.INBOUND not in flooded().flood
