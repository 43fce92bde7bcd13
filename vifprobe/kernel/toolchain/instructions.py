# SPDX-License-Identifier: Apache-2.0
"""Changes to BPF machine code: the numbers that `r = imm64` instructions load."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from vifprobe.model.layout import Loaded

_LOAD_IMM64 = 0x18  # BPF_LD | BPF_IMM | BPF_DW, include/uapi/linux/bpf.h; takes two slots of 8 bytes
# Source register of an imm64 load: a plain number, or BPF_PSEUDO_MAP_FD, BPF_PSEUDO_MAP_VALUE.
_NUMBER, _MAP, _MAP_VALUE = 0, 1, 2
_LOADED = frozenset(map(int, Loaded))


@dataclass(frozen=True)
class Constant:
    """A value that a program loads in place of a constant of layout.Loaded."""

    number: int
    kind: ClassVar[int]


class Number(Constant):
    """An unsigned number of 64 bits."""

    kind = _NUMBER


class MapOf(Constant):
    """The kernel address of a map. number: the map's fd."""

    kind = _MAP


class ValueOf(Constant):
    """The kernel address of the only value of a map. number: the map's fd."""

    kind = _MAP_VALUE


def map_loads(code: bytes) -> Iterator[tuple[int, int]]:
    """Return (offset, number) of each reference to a map. The number is the map's fd, or its index in the list of maps.

    Raises ValueError where the last instruction is truncated.
    """
    return ((at, number) for at, kind, number in _loads(code) if kind == _MAP)


def linked(code: bytes, maps: Sequence[int], constants: Mapping[Loaded, Constant] | None = None) -> bytes:
    """Return the compiled code with fds and constants filled in, ready to load.

    - maps: fds of the maps; the compiled code has the indexes of this list.
    - constants: values of the constants that the C text names by LOADED(). Raises KeyError where one is missing.
    """
    values = {int(name): constant for name, constant in (constants or {}).items()}
    changed = bytearray(code)
    for at, kind, number in _loads(code):
        if kind == _MAP:
            struct.pack_into("<i", changed, at, maps[number])
        elif kind == _NUMBER and number in _LOADED:
            constant = values[number]
            changed[at - 3] |= constant.kind << 4
            struct.pack_into("<I", changed, at, constant.number & 0xFFFFFFFF)
            struct.pack_into("<I", changed, at + 8, constant.number >> 32)
    return bytes(changed)


def _loads(code: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (offset of the immediate, source register, number) of each imm64 load; fds and indexes have 32 bits."""
    at = 0
    while at < len(code):
        if code[at] != _LOAD_IMM64:
            at += 8
            continue
        if at + 16 > len(code):
            raise ValueError("the last instruction is truncated")
        low, high = struct.unpack_from("<I4xI", code, at + 4)
        yield at + 4, code[at + 1] >> 4, high << 32 | low
        at += 16
