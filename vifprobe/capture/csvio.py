# SPDX-License-Identifier: Apache-2.0
"""CSV as a capture keeps it: header line, UTF-8, LF, full integers, empty = unknown, one line a row.

Text cells can hold names that a guest, a process or a sender of captures chose. Unprintable characters (line breaks
and terminal escapes among them) are written as backslash escapes, and a cell that a spreadsheet would take for a
formula gets a leading apostrophe. The reader undoes both.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar, get_type_hints

from vifprobe.capture import rows as r
from vifprobe.capture.bounds import COLUMNS_MAX, LINE_BYTES_MAX
from vifprobe.capture.codecs import Codec, codec_of
from vifprobe.errors import CaptureError
from vifprobe.model.untrusted_text import quoted

Row = TypeVar("Row", bound=tuple[Any, ...])


@dataclass(frozen=True)
class Table(Generic[Row]):
    """One CSV file: its name and its row type, from which columns and their types follow."""

    file: str
    row: Callable[..., Row]

    @cached_property
    def codecs(self) -> dict[str, Codec]:
        """Column name -> codec, in the order of the file."""
        return {name: codec_of(hint) for name, hint in get_type_hints(self.row, include_extras=True).items()}

    @property
    def columns(self) -> tuple[str, ...]:
        """Column names, in the order of the file."""
        return tuple(self.codecs)

    def header(self) -> bytes:
        """The header line."""
        return (",".join(self.columns) + "\n").encode()

    def encode(self, rows: Iterable[Row]) -> bytes:
        """The lines of some rows, without the header. Raises ValueError for a value that a reader would refuse."""
        encoders = list(self.codecs.values())
        lines = []
        for row in rows:
            try:
                cells = [codec.encode(value) for codec, value in zip(encoders, row, strict=True)]
            except ValueError as error:
                raise ValueError(f"{self._refused(row)}: {error}") from None
            lines.append(",".join(cells) + "\n")
        return "".join(lines).encode()

    def _refused(self, row: Row) -> str:
        """The first column whose codec can't write its value."""
        for (name, codec), value in zip(self.codecs.items(), row, strict=False):
            try:
                codec.encode(value)
            except ValueError:
                return name
        return f"{len(row)} values"


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


def _split(table: Table[Any], number: int, line: str) -> list[str]:
    if '"' not in line:
        return line.split(",")
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error as error:
        raise CaptureError(f"{table.file}: line {number}: {error}.", f"The line is {quoted(line)}.") from None


def _ended(table: Table[Any], data: bytes, finished: bool, warnings: list[str]) -> int:
    """Return the number of bytes that whole lines take."""
    end = data.rfind(b"\n") + 1
    if end < len(data):
        if finished:
            raise CaptureError(f"{table.file}: the last line does not end: the file is cut short.")
        # A run that was killed or ran out of disk stops anywhere; every line before that is whole.
        number = data.count(b"\n") + 1
        warnings.append(f"{table.file}: line {number} is cut short and was left out.")
    return end


def _lines(table: Table[Any], data: bytes, end: int) -> Iterator[list[str]]:
    """The lines up to `end`, some at a time: as text they take four times as much, or more."""
    start, number = 0, 1
    while start < end:
        stop = data.rfind(b"\n", start, start + LINE_BYTES_MAX) + 1
        if not stop:
            raise CaptureError(f"{table.file}: line {number} is longer than {LINE_BYTES_MAX} bytes.")
        try:
            lines = data[start:stop].decode().split("\n")[:-1]
        except UnicodeDecodeError as error:
            number += data.count(b"\n", start, start + error.start)
            raise CaptureError(f"{table.file}: line {number} is not UTF-8.") from None
        yield lines
        start, number = stop, number + len(lines)


def _places(table: Table[Any], found: list[str]) -> tuple[list[int], list[str]]:
    """Where each column of the table stands in this file, and what was found besides."""
    wanted = f"Expected the columns {','.join(table.columns)}."
    if len(found) > COLUMNS_MAX:
        raise CaptureError(f"{table.file}: line 1 has {len(found)} columns.", wanted)
    missing = [name for name in table.columns if name not in found]
    if missing:
        raise CaptureError(f"{table.file}: line 1 lacks the column {', '.join(missing)}.", wanted)
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice:
        raise CaptureError(f"{table.file}: line 1 has the column {quoted(', '.join(twice))} more than once.", wanted)
    extra = [name for name in found if name not in table.columns]
    warnings = [f"{table.file}: unknown columns left out: {quoted(', '.join(extra))}."] if extra else []
    return [found.index(name) for name in table.columns], warnings


def _decode_row(table: Table[Row], number: int, cells: list[str], places: list[int]) -> Row:
    values = []
    for (name, codec), place in zip(table.codecs.items(), places, strict=True):
        try:
            values.append(codec.decode(cells[place]))
        except ValueError:
            raise CaptureError(
                f"{table.file}: line {number}: {name} is {quoted(cells[place])}.", f"Expected {codec.expects}."
            ) from None
    return table.row(*values)


def decode_some(table: Table[Row], data: bytes, finished: bool, warnings: list[str]) -> Iterator[list[Row]]:
    """The rows of a file's content, some at a time: see decode. warnings: grow on the way."""
    end = _ended(table, data, finished, warnings)
    header: list[str] = []
    number = 0
    for lines in _lines(table, data, end):
        rows = []
        for line in lines:
            number += 1
            cells = _split(table, number, line)
            if number == 1:
                header = cells
                places, notes = _places(table, header)
                warnings += notes
                continue
            if len(cells) != len(header):
                raise CaptureError(f"{table.file}: line {number} has {len(cells)} cells.", f"Expected {len(header)}.")
            rows.append(_decode_row(table, number, cells, places))
        yield rows
    if not header and finished:
        raise CaptureError(f"{table.file}: line 1 is missing.", f"Expected the columns {','.join(table.columns)}.")
    if not header:
        warnings.append(f"{table.file}: empty: nothing was written to it.")


def decode(table: Table[Row], data: bytes, finished: bool = True) -> Decoded[Row]:
    """The rows of a file's content. `finished`: its writer came to its end, so a last line cut short is damage.

    Columns are found by name; unknown ones are left out with a warning. Raises CaptureError, which names the file (but
    not its folder), the line and what was expected.
    """
    warnings: list[str] = []
    rows = [row for some in decode_some(table, data, finished, warnings) for row in some]
    return Decoded(tuple(rows), tuple(warnings))
