# SPDX-License-Identifier: Apache-2.0
"""Numbers, names and small pictures as text. No colour, no rich: every kind of output uses these.

Two rules hold throughout: what is not 0 is never shown as 0 (nor what is not all as 100 %), and None, the unknown, is
shown as ``?``.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from vifprobe.model.reading import Reading
from vifprobe.model.untrusted_text import safe

UNKNOWN = "?"

_PREFIXES = ("", "k", "M", "G", "T", "P", "E")


@dataclass(frozen=True)
class Glyphs:
    """Characters for pictures that a stream can show, and the encoding that foreign names are fitted to.

    bars: ascending parts of one character cell, the last one full. sparks: ascending levels, the first is for 0. about,
    bound: before an estimate, and before by how much it can be off.
    """

    encoding: str
    bars: str
    sparks: str
    dot: str
    ellipsis: str
    about: str = "≈"
    bound: str = "±"


BLOCKS = Glyphs("utf-8", "▏▎▍▌▋▊▉█", "▁▂▃▄▅▆▇█", "·", "…")
ASCII = Glyphs("ascii", "#", "_.:-=+*#", "|", "...", "~", "+-")


def per_second(value: float | None, reading: Reading) -> float | None:
    """A count of this reading as a rate; None for no count or no time."""
    return None if value is None or reading.duration_ns <= 0 else value * 1e9 / reading.duration_ns


def glyphs_for(encoding: str | None) -> Glyphs:
    """Block characters where `encoding` can write them, else plain ASCII."""
    encoding = encoding or "ascii"
    wanted = BLOCKS.bars + BLOCKS.sparks + BLOCKS.dot + BLOCKS.ellipsis + BLOCKS.about + BLOCKS.bound
    try:
        wanted.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return Glyphs(encoding, BLOCKS.bars, BLOCKS.sparks, BLOCKS.dot, BLOCKS.ellipsis)


def clean(text: str, glyphs: Glyphs = BLOCKS) -> str:
    r"""Text from outside, made harmless: what is not printable in `glyphs` is written as ``\x1b`` or ``\u202e``.

    Terminal escapes, line ends, bidirectional overrides, zero-width characters and lone surrogates all go that way.
    """
    shown = safe(text)
    return shown if shown.isascii() else shown.encode(glyphs.encoding, "backslashreplace").decode(glyphs.encoding)


def cell_width(text: str) -> int:
    """Columns that cleaned text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(_char_width(char) for char in text)


def _char_width(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def clip(text: str, width: int, glyphs: Glyphs = BLOCKS) -> str:
    """At most `width` columns of cleaned text, with an ellipsis where something was cut off."""
    if cell_width(text) <= width:
        return text
    if width <= len(glyphs.ellipsis):
        return glyphs.ellipsis[: max(width, 0)]
    room, kept = width - len(glyphs.ellipsis), []
    for char in text:
        room -= _char_width(char)
        if room < 0:
            break
        kept.append(char)
    return "".join(kept) + glyphs.ellipsis


def pad(text: str, width: int, right: bool = False) -> str:
    """Cleaned text filled with spaces to `width` columns; `right`: put to the right edge."""
    fill = " " * max(0, width - cell_width(text))
    return fill + text if right else text + fill


def si(value: float | None) -> str:
    """Three significant digits and an SI prefix: ``312 k``, ``1.35 G``, ``7``; never wider than 6 columns.

    A number below 1000 that is not whole gets at most one decimal: more would promise what an interval can't give.
    """
    if value is None:
        return UNKNOWN
    if value < 0:
        return "-" + si(-value)
    if 0 < value < 0.05:
        return "<0.1"
    if value < 999.5:
        decimals = 0 if value == int(value) or value >= 99.95 else 1
        return f"{value:.{decimals}f}"
    power = 0
    while value >= 999.5 and power < len(_PREFIXES) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {_PREFIXES[power]}"


def rate(value: float | None, unit: str) -> str:
    """``99.8 Mbit/s``, ``312 k/s``; ``?`` for None. Number and prefix stay together with the unit."""
    if value is None:
        return UNKNOWN
    text = si(value)
    return text + unit if " " in text else f"{text} {unit}" if unit[0].isalpha() else text + unit


def bit_rate(bps: float | None) -> str:
    """Bits per second, in SI prefixes as network gear writes them."""
    return rate(bps, "bit/s")


def packet_rate(pps: float | None) -> str:
    """Packets per second, where the text around it says that these are packets."""
    return rate(pps, "/s")


def whole(value: int | None) -> str:
    """An exact count for people: thousands separators. Never for CSV or JSON."""
    return UNKNOWN if value is None else f"{value:,}"


def percent(part: float | None, all_of: float | None) -> str:
    """``31 %``, ``<1 %``, ``>99 %``; 0 and 100 only where exactly that is meant. ``-`` for a part of nothing."""
    if part is None or all_of is None:
        return UNKNOWN
    if not all_of:
        return "-"
    if part in (0, all_of):
        return "100 %" if part else "0 %"
    share = 100 * part / all_of
    return "<1 %" if share < 0.95 else ">99 %" if 99 < share < 100 else f"{share:.0f} %"


def frame_size(mean_bytes: float | None) -> str:
    """A frame length: whole bytes, no prefix, so that 1514 reads as 1514."""
    return UNKNOWN if mean_bytes is None else f"{mean_bytes:.0f} B"


def size_range(lower: int | None, upper: int | None) -> str:
    """Both edges of a size bucket, the upper one included: ``48-55 B``, ``65536+ B``; ``unknown``."""
    if lower is None:
        return "unknown"
    return f"{lower}+ B" if upper is None else f"{lower}-{upper} B"


def tc_size(size_bytes: int | None) -> str:
    """A burst as tc takes it: ``3125kb`` where it is a multiple of 1024, else exact bytes, ``50000b``."""
    if size_bytes is None:
        return UNKNOWN
    return f"{size_bytes // 1024}kb" if size_bytes and size_bytes % 1024 == 0 else f"{size_bytes}b"


def duration(span_ns: int) -> str:
    """``100 ms``, ``7.5 s``, ``30 s``, ``2m05s``, ``1h02m05s``."""
    if span_ns < 999_500_000:
        return f"{span_ns / 1e6:.0f} ms" if span_ns >= 999_500 or not span_ns else f"{span_ns / 1e6:.3f} ms"
    if span_ns < 59_950_000_000:
        return f"{span_ns / 1e9:.1f}".removesuffix(".0") + " s"
    minutes, seconds = divmod(round(span_ns / 1e9), 60)
    if minutes < 60:
        return f"{minutes}m{seconds:02}s"
    return f"{minutes // 60}h{minutes % 60:02}m{seconds:02}s"


def bar(part: float | None, all_of: float | None, width: int, glyphs: Glyphs = BLOCKS) -> str:
    """A bar of `width` columns for a share; anything above 0 leaves a mark, and only all of it fills the bar."""
    if part is None or not all_of or part <= 0:
        return " " * width
    steps = len(glyphs.bars)
    filled = round(min(part / all_of, 1) * width * steps)
    filled = max(1, min(filled, width * steps - (part < all_of)))
    text = glyphs.bars[-1] * (filled // steps)
    if filled % steps:
        text += glyphs.bars[filled % steps - 1]
    return pad(text, width)


def spark(values: Sequence[float | None], top: float, glyphs: Glyphs = BLOCKS) -> str:
    """One character a value, `top` the highest level; 0 has a level of its own, None is ``?``."""
    levels = len(glyphs.sparks) - 1
    marks = []
    for value in values:
        if value is None:
            marks.append(UNKNOWN)
        elif value <= 0 or top <= 0:
            marks.append(glyphs.sparks[0])
        else:
            marks.append(glyphs.sparks[max(1, min(levels, round(levels * value / top)))])
    return "".join(marks)
