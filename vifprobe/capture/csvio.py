# SPDX-License-Identifier: Apache-2.0
"""CSV as a capture keeps it: header line, UTF-8, LF, full integers, empty = unknown, one line a row.

Text cells can hold names that a guest, a process or a sender of captures chose. Unprintable characters (line breaks
and terminal escapes among them) are written as backslash escapes, and a cell that a spreadsheet would take for a
formula gets a leading apostrophe. The reader undoes both.
"""

from __future__ import annotations

import csv
import math
import re
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import IntEnum
from functools import cached_property
from numbers import Integral
from typing import Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

from vifprobe.capture import rows as r
from vifprobe.errors import CaptureError
from vifprobe.layout import Expected, Verdict

Row = TypeVar("Row", bound=tuple[Any, ...])

#: Codes that mean "not known" or "nothing to hold it against": an empty cell.
EMPTY_CODES: Mapping[type[IntEnum], IntEnum] = {Verdict: Verdict.UNKNOWN, Expected: Expected.NONE}

# What starts a formula in a spreadsheet (OWASP, "CSV Injection"), full-width forms included. Tab and CR are in the
# list too, but never reach a file: they are unprintable and so written as an escape.
_FORMULA_STARTS = frozenset("=+-@\uff1d\uff0b\uff0d\uff20")
_APOSTROPHE = "'"
# A semicolon splits cells where the decimal sign is a comma: what follows it must not start a formula either.
_NEEDS_QUOTES = re.compile('[,;"]|^ | $')
_ESCAPE = re.compile(r"\\(\\|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")
_INTEGER = re.compile(r"-?[0-9]{1,19}", re.ASCII)
_DECIMAL = re.compile(r"-?[0-9]+(\.[0-9]+)?", re.ASCII)
_INT64_MAX = 2**63 - 1
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class Codec:
    """How one type of column is written and read. `decode` raises ValueError; `expects` says what it takes."""

    encode: Callable[[Any], str]
    decode: Callable[[str], Any]
    expects: str


def _escape(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def printable(text: str) -> str:
    """Text with each character that a terminal or a reader of lines could act upon as a backslash escape."""
    return text if text.isprintable() and "\\" not in text else "".join(map(_escape, text))


def encode_text(text: str) -> str:
    """Text as it stands in a cell, before CSV quoting: printable, and no formula."""
    safe = printable(text)
    if safe.startswith(_APOSTROPHE) or safe.lstrip(" ")[:1] in _FORMULA_STARTS:
        return _APOSTROPHE + safe
    return safe


def decode_text(cell: str) -> str:
    """The text that :func:`encode_text` was given. Raises ValueError for a character number that there is not."""
    return _ESCAPE.sub(
        lambda found: "\\" if found[1] == "\\" else chr(int(found[1][1:], 16)), cell.removeprefix(_APOSTROPHE)
    )


def _quote(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"' if _NEEDS_QUOTES.search(cell) else cell


def _decode_integer(cell: str) -> int:
    if not _INTEGER.fullmatch(cell) or abs(int(cell)) > _INT64_MAX:
        raise ValueError
    return int(cell)


def _decode_count(cell: str) -> int:
    number = _decode_integer(cell)
    if number < 0:
        raise ValueError
    return number


def _encode_number(value: float) -> str:
    if not math.isfinite(value):
        return ""
    return f"{value:d}" if isinstance(value, Integral) else format(Decimal(repr(float(value))), "f")


def _decode_number(cell: str) -> float:
    if not _DECIMAL.fullmatch(cell):
        raise ValueError
    return float(cell) if "." in cell else _decode_integer(cell)


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

    return Codec(lambda code: names[int(code)], decode, "one of " + ", ".join(name or "(empty)" for name in numbers))


_CODECS: Mapping[Any, Codec] = {
    str: Codec(lambda text: _quote(encode_text(text)), decode_text, "text"),
    int: Codec("{:d}".format, _decode_count, "a whole number from 0 to 2^63 - 1"),
    r.Moment: Codec("{:d}".format, _decode_integer, "a whole number"),
    float: Codec(_encode_number, _decode_number, "a decimal number"),
    bool: Codec(lambda value: "true" if value else "false", _decode_bool, "true or false"),
}


def _optional(codec: Codec) -> Codec:
    return Codec(
        lambda value: "" if value is None else codec.encode(value),
        lambda cell: None if cell == "" else codec.decode(cell),
        f"{codec.expects}, or empty",
    )


def _codec(hint: Any) -> Codec:
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        codec = _codec(float if float in kinds else kinds[0])
        return _optional(codec) if len(kinds) < len(get_args(hint)) else codec
    if isinstance(hint, type) and issubclass(hint, IntEnum):
        return _code_codec(hint)
    return _CODECS[hint]


@dataclass(frozen=True)
class Table(Generic[Row]):
    """One CSV file: its name and its row type, from which columns and their types follow."""

    file: str
    row: Callable[..., Row]

    @cached_property
    def codecs(self) -> dict[str, Codec]:
        """Column name -> codec, in the order of the file."""
        return {name: _codec(hint) for name, hint in get_type_hints(self.row, include_extras=True).items()}

    @property
    def columns(self) -> tuple[str, ...]:
        """Column names, in the order of the file."""
        return tuple(self.codecs)

    def header(self) -> bytes:
        """The header line."""
        return (",".join(self.columns) + "\n").encode()

    def encode(self, rows: Iterable[Row]) -> bytes:
        """The lines of some rows, without the header."""
        encoders = [codec.encode for codec in self.codecs.values()]
        lines = (",".join([encode(value) for encode, value in zip(encoders, row, strict=True)]) for row in rows)
        return "".join(line + "\n" for line in lines).encode()


HISTOGRAM = Table("histogram.csv", r.HistogramRow)
TIMELINE = Table("timeline.csv", r.TimelineRow)
DROPS = Table("drops.csv", r.DropRow)
LOST = Table("lost.csv", r.LostRow)
POLICER = Table("policer.csv", r.PolicerRow)
RECONCILE = Table("reconcile.csv", r.ReconcileRow)
FLOOD = Table("flood.csv", r.FloodRow)
TOP = Table("top.csv", r.TopRow)
HOST = Table("host.csv", r.HostRow)
EVENTS = Table("events.csv", r.EventRow)
WHAT_IF = Table("whatif.csv", r.WhatIfRow)
TABLES: tuple[Table[Any], ...] = (
    *(HISTOGRAM, TIMELINE, DROPS, LOST, POLICER, RECONCILE, FLOOD, TOP, HOST, EVENTS),
    WHAT_IF,
)


@dataclass(frozen=True)
class Decoded(Generic[Row]):
    """The rows of a file, row i from line i + 2, and what a reader of them should know."""

    rows: tuple[Row, ...] = ()
    warnings: tuple[str, ...] = ()


def show(value: object) -> str:
    """A foreign value for an error text: quoted, control characters escaped, cut when long."""
    text = ascii(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


def _split(table: Table[Any], number: int, line: str) -> list[str]:
    if '"' not in line:
        return line.split(",")
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error as error:
        raise CaptureError(f"{table.file}: line {number}: {error}.", f"The line is {show(line)}.") from None


def _lines(table: Table[Any], data: bytes, finished: bool) -> tuple[list[str], list[str]]:
    warnings = []
    end = data.rfind(b"\n") + 1
    if end < len(data):
        if finished:
            raise CaptureError(f"{table.file}: the last line does not end: the file is cut short.")
        # A run that was killed or ran out of disk stops anywhere; every line before that is whole.
        number = data.count(b"\n") + 1
        warnings.append(f"{table.file}: line {number} is cut short and was left out.")
    try:
        text = data[:end].decode()
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise CaptureError(f"{table.file}: line {number} is not UTF-8.") from None
    return text.split("\n")[:-1], warnings


def _places(table: Table[Any], found: list[str]) -> tuple[list[int], list[str]]:
    """Where each column of the table stands in this file, and what was found besides."""
    wanted = f"Expected the columns {','.join(table.columns)}."
    missing = [name for name in table.columns if name not in found]
    if missing:
        raise CaptureError(f"{table.file}: line 1 lacks the column {', '.join(missing)}.", wanted)
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice:
        raise CaptureError(f"{table.file}: line 1 has the column {show(', '.join(twice))} more than once.", wanted)
    extra = [name for name in found if name not in table.columns]
    warnings = [f"{table.file}: unknown columns left out: {show(', '.join(extra))}."] if extra else []
    return [found.index(name) for name in table.columns], warnings


def _decode_row(table: Table[Row], number: int, cells: list[str], places: list[int]) -> Row:
    values = []
    for (name, codec), place in zip(table.codecs.items(), places, strict=True):
        try:
            values.append(codec.decode(cells[place]))
        except ValueError:
            raise CaptureError(
                f"{table.file}: line {number}: {name} is {show(cells[place])}.", f"Expected {codec.expects}."
            ) from None
    return table.row(*values)


def decode(table: Table[Row], data: bytes, finished: bool = True) -> Decoded[Row]:
    """The rows of a file's content. `finished`: its writer came to its end, so a last line cut short is damage.

    Columns are found by name; unknown ones are left out with a warning. Raises CaptureError, which names the file (but
    not its folder), the line and what was expected.
    """
    lines, warnings = _lines(table, data, finished)
    if not lines:
        if finished:
            raise CaptureError(f"{table.file}: line 1 is missing.", f"Expected the columns {','.join(table.columns)}.")
        return Decoded((), (*warnings, f"{table.file}: empty: nothing was written to it."))
    header = _split(table, 1, lines[0])
    places, notes = _places(table, header)
    rows = []
    for number, line in enumerate(lines[1:], 2):
        cells = _split(table, number, line)
        if len(cells) != len(header):
            raise CaptureError(f"{table.file}: line {number} has {len(cells)} cells.", f"Expected {len(header)}.")
        rows.append(_decode_row(table, number, cells, places))
    return Decoded(tuple(rows), (*warnings, *notes))
