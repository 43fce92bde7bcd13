# SPDX-License-Identifier: Apache-2.0
"""--what-if as people write it, and what is shown of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from render_kit import BASE

from vifprobe.commands.options import parse_what_if
from vifprobe.errors import UsageError
from vifprobe.model.layout import Bucket, Charge, Direction, PacketClass
from vifprobe.model.whatif import WhatIfRow
from vifprobe.render.text.tap_view import what_if
from vifprobe.render.units import ASCII


@pytest.mark.parametrize(
    ("text", "bucket"),
    [
        ("pps=50000", Bucket(50_000, 50_000, Charge.PACKET)),
        ("pps=997,burst=31", Bucket(997, 31, Charge.PACKET)),
        ("rate=100mbit", Bucket(12_500_000, 12_500_000)),
        ("rate=100mbit,charge=wire,burst=3125kb", Bucket(12_500_000, 3_200_000, Charge.WIRE)),
        ("burst=1500, rate=8kbit", Bucket(1_000, 1_500)),
    ],
)
def test_limits_that_are_understood(text: str, bucket: Bucket) -> None:
    """Rates and bursts as tc writes them; without a burst, a second of the rate."""
    assert parse_what_if(text).bucket == bucket
    assert parse_what_if(text).text == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "50000", "burst=5", "pps=1,rate=1mbit", "rate=1mbit,rate=2mbit", "rate=1mbit,brust=1"),
        *("pps", "pps=", "pps=0", "pps=-1", "pps=1.5", "pps=\u0663", "pps=1e3", "pps=10000000000"),
        *("pps=1,charge=wire", "pps=1,burst=1k", "rate=1", "rate=x", "rate=1mbit,burst=0"),
        "rate=100mbit,charge=packet",
    ],
)
def test_limits_that_are_refused(text: str) -> None:
    """With a word on what to write."""
    with pytest.raises(UsageError) as raised:
        parse_what_if(text)
    assert raised.value.hints


def test_what_is_shown() -> None:
    """One limit a paragraph: all packets and bytes, then the classes, SYNs first; 80 columns."""
    rows = (
        WhatIfRow("tap0", Direction.OUTBOUND, "pps=50", PacketClass.UDP, 75, 7500, 25, 2500),
        WhatIfRow("tap0", Direction.OUTBOUND, "pps=50", PacketClass.TCP_SYN, 100, 6000, 300, 18000),
        WhatIfRow("tap0", Direction.INBOUND, "pps=50", PacketClass.TCP_ACK, 10, 600, 0, 0),
    )
    shown = [line.plain for line in what_if(replace(BASE, what_ifs=rows), 80, ASCII)]
    assert shown == [
        "what if  pps=50 stops 65 % of packets, 60 % of bytes | tcp_syn 75 % | udp 25 %",
        "what if  pps=50 inbound stops 0 % of packets, 0 % of bytes | tcp_ack 0 %",
    ]
