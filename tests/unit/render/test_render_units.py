# SPDX-License-Identifier: Apache-2.0
"""Numbers, names and small pictures as text."""

from __future__ import annotations

import pytest

from vifprobe.model.layout import SIZE_EDGES_BYTES, size_range_bytes
from vifprobe.render import units
from vifprobe.render.units import ASCII, BLOCKS


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "?"),
        (0, "0"),
        (0.02, "<0.1"),
        (0.3, "0.3"),
        (7, "7"),
        (7.25, "7.2"),
        (99.94, "99.9"),
        (99.96, "100"),
        (999, "999"),
        (999.4, "999"),
        (999.5, "1.00 k"),
        (1000, "1.00 k"),
        (9_994, "9.99 k"),
        (9_996, "10.0 k"),
        (99_960, "100 k"),
        (312_503, "313 k"),
        (999_499, "999 k"),
        (999_500, "1.00 M"),
        (135_000_000, "135 M"),
        (1.35e9, "1.35 G"),
        (1e21, "1000 E"),
    ],
)
def test_si(value: float | None, text: str) -> None:
    assert units.si(value) == text


def test_si_stays_within_six_columns_and_never_calls_something_nothing() -> None:
    value = 0.0013
    while value < 9e20:
        text = units.si(value)
        assert len(text) <= 6, value
        assert text.strip("0. kMGTPE") != "", value
        value *= 1.0937


@pytest.mark.parametrize(
    ("part", "of_all", "text"),
    [
        (0, 0, "-"),
        (0, 7, "0 %"),
        (7, 7, "100 %"),
        (1, 1_000_003, "<1 %"),
        (1_000_002, 1_000_003, ">99 %"),
        (31, 100, "31 %"),
        (None, 7, "?"),
        (7, None, "?"),
        (1, 101, "1 %"),
        (100, 101, ">99 %"),
        (99, 100, "99 %"),
    ],
)
def test_percent_keeps_0_and_100_for_none_and_all(part: int | None, of_all: int | None, text: str) -> None:
    assert units.percent(part, of_all) == text


@pytest.mark.parametrize(
    ("span_ns", "text"),
    [
        (0, "0 ms"),
        (100_000, "0.100 ms"),
        (100_000_000, "100 ms"),
        (999_499_999, "999 ms"),
        (999_500_000, "1 s"),
        (7_500_000_000, "7.5 s"),
        (30_000_000_000, "30 s"),
        (59_949_999_999, "59.9 s"),
        (59_950_000_000, "1m00s"),
        (125_000_000_000, "2m05s"),
        (3_725_000_000_000, "1h02m05s"),
    ],
)
def test_duration(span_ns: int, text: str) -> None:
    assert units.duration(span_ns) == text


def test_rates_carry_their_unit_once() -> None:
    assert units.bit_rate(99_800_000) == "99.8 Mbit/s"
    assert units.bit_rate(640) == "640 bit/s"
    assert units.bit_rate(None) == "?"
    assert units.packet_rate(312_000) == "312 k/s"
    assert units.packet_rate(7) == "7/s"


def test_burst_as_tc_takes_it() -> None:
    assert units.tc_size(3125 * 1024) == "3125kb"
    assert units.tc_size(3125 * 1024 + 1) == "3200001b"
    assert units.tc_size(0) == "0b"
    assert units.tc_size(None) == "?"


def test_size_buckets_show_both_edges() -> None:
    texts = [units.size_range(*size_range_bytes(bucket)) for bucket in range(len(SIZE_EDGES_BYTES))]
    assert texts[0] == "0-31 B"
    assert texts[-1] == "65536+ B"
    assert all("-" in text for text in texts[:-1])
    assert len(set(texts)) == len(texts)
    assert max(map(len, texts)) <= 13


@pytest.mark.parametrize("glyphs", [BLOCKS, ASCII])
@pytest.mark.parametrize("width", [1, 7, 31])
def test_bars_are_as_wide_as_asked_and_honest_at_the_ends(glyphs: units.Glyphs, width: int) -> None:
    for part in (0, 1, 331, 499, 991, 996, 997):
        assert len(units.bar(part, 997, width, glyphs)) == width
    full = glyphs.bars[-1] * width
    assert units.bar(0, 997, width, glyphs).strip() == ""
    assert units.bar(1, 1_000_003, width, glyphs).strip() != ""
    assert units.bar(997, 997, width, glyphs) == full
    assert units.bar(None, 997, width, glyphs).strip() == ""
    if width > 1 or glyphs is BLOCKS:
        assert units.bar(996, 997, width, glyphs) != full


def test_sparks_tell_nothing_little_and_unknown_apart() -> None:
    assert units.spark([0, 1, 499, 997, None], 997) == "▁▂▅█?"
    assert units.spark([0, 1, 499, 997, None], 997, ASCII) == "_.=#?"
    assert units.spark([0, 0], 0) == "▁▁"


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("tap0", "tap0"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\rc\td", "a\\x0ab\\x0dc\\x09d"),
        ("\u202egnp", "\\u202egnp"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("\x9b31m", "\\x9b31m"),
        ("raw\udcff", "raw\\udcff"),
        ("\U000e0001tag", "\\U000e0001tag"),
        ("[bold]x[/]", "[bold]x[/]"),
        ("größe-名", "größe-名"),
    ],
)
def test_names_from_outside_are_made_harmless(hostile: str, shown: str) -> None:
    assert units.clean(hostile) == shown
    assert units.clean(hostile, ASCII).isascii()
    assert units.clean(hostile, ASCII).isprintable()


def test_names_fit_an_encoding_between_the_two() -> None:
    assert units.clean("größe-名", units.glyphs_for("latin-1")) == "gr\\xf6\\xdfe-\\u540d"
    assert units.glyphs_for("utf-16").sparks == BLOCKS.sparks
    for encoding in ("ascii", "latin-1", "no-such-encoding", None, ""):
        assert units.glyphs_for(encoding) is ASCII


@pytest.mark.parametrize("width", range(9))
def test_clip_counts_columns_not_characters(width: int) -> None:
    for text in ("名名名名", "abcdefgh", "a\u0301bcdefgh", "abc"):
        clipped = units.clip(text, width)
        assert units.cell_width(clipped) <= width
        assert clipped == text or clipped.endswith("…") or not width
        assert units.cell_width(units.pad(clipped, 11)) == 11
        assert units.cell_width(units.clip(text, width, ASCII)) <= width
