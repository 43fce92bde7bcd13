# SPDX-License-Identifier: Apache-2.0
"""Codecs of the cells of a capture's tables, by the type of the column.

Each codec reads back whatever it writes: `encode` raises ValueError for a value that `decode` would refuse.
"""

from __future__ import annotations

import math
import re
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import IntEnum
from numbers import Integral
from typing import Any, Union, get_args, get_origin

from vifprobe.capture.bounds import SPAN_BITS
from vifprobe.model.layout import Expected, Verdict
from vifprobe.model.quantities import Change, Code, Foreign, Moment
from vifprobe.model.untrusted_text import escape

#: Codes that mean "not known" or "nothing to hold it against": an empty cell.
EMPTY_CODES: Mapping[type[IntEnum], IntEnum] = {Verdict: Verdict.UNKNOWN, Expected: Expected.NONE}

# What starts a formula in a spreadsheet (OWASP, "CSV Injection"), full-width forms included. Tab and CR are in the
# list too, but never reach a file: they are unprintable and so written as an escape.
_FORMULA_STARTS = frozenset("=+-@\uff1d\uff0b\uff0d\uff20")
_APOSTROPHE = "'"
# A semicolon splits cells where the decimal sign is a comma: what follows it must not start a formula either.
_NEEDS_QUOTES = re.compile('[,;"]|^ | $')
_ESCAPE = re.compile(r"\\(\\|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")
_INTEGER = re.compile(r"-?[0-9]{1,22}", re.ASCII)
# The longest float64 has 309 digits before the point, and 341 behind it.
_DECIMAL = re.compile(r"-?[0-9]{1,400}(\.[0-9]{1,400})?", re.ASCII)
_COUNT_BITS, _FOREIGN_BITS, _CODE_BITS = 63, 72, 32
#: Longer texts are cut: each character can take 10 in a cell, and csv.reader takes 131,072 at most.
TEXT_CHARACTERS_MAX = 4096


@dataclass(frozen=True)
class Codec:
    """Codec of one type of column. `decode` raises ValueError; `expects` says what it takes."""

    encode: Callable[[Any], str]
    decode: Callable[[str], Any]
    expects: str


def _escape(character: str) -> str:
    if character == "\\":
        return "\\\\"
    return character if character.isprintable() else escape(character)


def printable(text: str) -> str:
    """Text with each character that a terminal or a reader of lines could act upon as a backslash escape."""
    return text if text.isprintable() and "\\" not in text else "".join(map(_escape, text))


def encode_text(text: str) -> str:
    """Text as it stands in a cell, before CSV quoting: printable, no formula, and not endless."""
    safe = printable(text if len(text) <= TEXT_CHARACTERS_MAX else text[: TEXT_CHARACTERS_MAX - 1] + "…")
    if safe.startswith(_APOSTROPHE) or safe.lstrip(" ")[:1] in _FORMULA_STARTS:
        return _APOSTROPHE + safe
    return safe


def decode_text(cell: str) -> str:
    """The text that :func:`encode_text` was given. Raises ValueError for a character number that there is not."""
    cell = cell.removeprefix(_APOSTROPHE)
    if "\\" not in cell:
        return sys.intern(cell)  # the same few names again and again
    return _ESCAPE.sub(lambda found: "\\" if found[1] == "\\" else chr(int(found[1][1:], 16)), cell)


def _quote(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"' if _NEEDS_QUOTES.search(cell) else cell


def _whole(bits: int, signed: bool = False) -> Codec:
    """Whole numbers of at most so many bits."""
    highest = 2**bits - 1
    lowest = -highest if signed else 0
    expects = f"a whole number from {f'-2^{bits} + 1' if signed else 0} to 2^{bits} - 1"

    def encode(value: Any) -> str:
        cell = f"{value:d}"
        if not lowest <= value <= highest:
            raise ValueError(f"{cell} is not {expects}")
        return cell

    def decode(cell: str) -> int:
        if not _INTEGER.fullmatch(cell) or not lowest <= int(cell) <= highest:
            raise ValueError
        return int(cell)

    return Codec(encode, decode, expects)


def _encode_number(value: float) -> str:
    try:
        if not math.isfinite(value):
            return ""
    except OverflowError:
        raise ValueError("a number that float64 can't hold") from None
    if isinstance(value, Integral):
        return f"{value:d}"
    cell = format(Decimal(repr(float(value))), "f")
    return cell if "." in cell else cell + ".0"


def _decode_number(cell: str) -> float:
    if not _DECIMAL.fullmatch(cell) or not math.isfinite(float(cell)):
        raise ValueError
    return float(cell) if "." in cell else int(cell)


def _decode_bool(cell: str) -> bool:
    if cell not in ("true", "false"):
        raise ValueError
    return cell == "true"


def _code_codec(codes: type[IntEnum]) -> Codec:
    names = {int(code): code.name.lower() for code in codes}
    empty = EMPTY_CODES.get(codes)
    if empty is not None:
        names[int(empty)] = ""
    numbers = {name: codes(number) for number, name in names.items()}

    def decode(cell: str) -> IntEnum:
        if cell not in numbers:
            raise ValueError
        return numbers[cell]

    def encode(code: Any) -> str:
        if int(code) not in names:
            raise ValueError(f"{int(code)} is none of {codes.__name__}")
        return names[int(code)]

    return Codec(encode, decode, "one of " + ", ".join(name or "(empty)" for name in numbers))


_CODECS: Mapping[Any, Codec] = {
    str: Codec(lambda text: _quote(encode_text(text)), decode_text, "text"),
    int: _whole(_COUNT_BITS),
    Moment: _whole(SPAN_BITS, signed=True),
    Foreign: _whole(_FOREIGN_BITS),
    Change: _whole(_FOREIGN_BITS, signed=True),
    Code: _whole(_CODE_BITS),
    float: Codec(_encode_number, _decode_number, "a decimal number"),
    bool: Codec(lambda value: "true" if value else "false", _decode_bool, "true or false"),
}


def _optional(codec: Codec) -> Codec:
    return Codec(
        lambda value: "" if value is None else codec.encode(value),
        lambda cell: None if cell == "" else codec.decode(cell),
        f"{codec.expects}, or empty",
    )


def codec_of(hint: Any) -> Codec:
    """The codec of a column, by its type. Raises KeyError for a type that no column may have."""
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        codec = codec_of(float if float in kinds else kinds[0])
        return _optional(codec) if len(kinds) < len(get_args(hint)) else codec
    if isinstance(hint, type) and issubclass(hint, IntEnum):
        return _code_codec(hint)
    return _CODECS[hint]
