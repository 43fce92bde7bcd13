# SPDX-License-Identifier: Apache-2.0
"""Durations, rates and sizes as people write them."""

from __future__ import annotations

import pytest

from vifprobe.errors import EXIT_USAGE, UsageError
from vifprobe.model.units import parse_duration_ns, parse_rate_bps, parse_size_bytes


@pytest.mark.parametrize(
    ("text", "span_ns"),
    [
        ("500ms", 500_000_000),
        ("30s", 30_000_000_000),
        ("5m", 300_000_000_000),
        ("2h", 7_200_000_000_000),
        ("7us", 7_000),
        ("1ns", 1),
        ("0.1s", 100_000_000),
        (".5s", 500_000_000),
        ("1.s", 1_000_000_000),
        (" 30 S ", 30_000_000_000),
        ("0.000000001s", 1),
    ],
)
def test_durations(text: str, span_ns: int) -> None:
    assert parse_duration_ns(text) == span_ns


@pytest.mark.parametrize(
    ("text", "bps"),
    [
        ("100mbit", 100_000_000),
        ("100kbit", 100_000),
        ("1gbit", 1_000_000_000),
        ("1tbit", 10**12),
        ("12500kbps", 100_000_000),  # Nova's quota:vif_*_average=12500
        ("12500KBps", 100_000_000),
        ("125mbps", 10**9),
        ("1bps", 8),
        ("31bit", 31),
        ("100000007", 100_000_007),
        ("1kibit", 1024),
        ("1mibps", 8 * 1024**2),
        ("2.5gbit", 2_500_000_000),
        ("0.0000000011gbit", 1),
    ],
)
def test_rates_as_tc_reads_them(text: str, bps: int) -> None:
    assert parse_rate_bps(text) == bps


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("3125kb", 3125 * 1024),  # libvirt's burst
        ("3125k", 3125 * 1024),
        ("64KB", 65536),
        ("1mb", 1024**2),
        ("1m", 1024**2),
        ("3g", 3 * 1024**3),
        ("8kbit", 1024),
        ("1514", 1514),
        ("1514b", 1514),
        ("0.5kb", 512),
        ("4294967295", 2**32 - 1),
    ],
)
def test_sizes_as_tc_reads_them(text: str, size_bytes: int) -> None:
    assert parse_size_bytes(text) == size_bytes


BAD = [
    "",
    " ",
    "s",
    "abc",
    "-5s",
    "+5s",
    "1e3s",
    "inf",
    "nan",
    "0x10",
    "5 5s",
    "1_000s",
    "\u0663\u0660s",
    "1..2s",
    ".s",
    "5s\n5s",
]


@pytest.mark.parametrize("text", [*BAD, "30", "5d", "5kbit", "0s", "0.0000000001s", "9999999999999h"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_duration_ns(text)
    assert ascii(text) in caught.value.message
    assert "500ms" in caught.value.hints[0]


@pytest.mark.parametrize("text", [*BAD, "100mb", "100k", "0", "0mbit", "0.9bit", "9" * 19, "5s", "100mbit/s", "10%"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_rate_bps(text)
    assert ascii(text) in caught.value.message
    assert "100mbit" in caught.value.hints[0]
    assert caught.value.exit_code == EXIT_USAGE


@pytest.mark.parametrize("text", [*BAD, "3125kbps", "4294967296", "4gb", "0b", "1bit"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size_bytes(text)
    assert ascii(text) in caught.value.message
    assert "3125kb" in caught.value.hints[0]


def test_a_hostile_value_is_shown_escaped_and_short() -> None:
    with pytest.raises(UsageError) as caught:
        parse_rate_bps("\x1b]0;owned\x07" + "9" * 997)
    assert "\x1b" not in caught.value.message
    assert len(caught.value.message) < 131
