# SPDX-License-Identifier: Apache-2.0
"""BPF machine code, as far as the loader touches it: the numbers that `r = imm64` instructions load."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_LOAD_IMM64 = 0x18  # BPF_LD | BPF_IMM | BPF_DW, include/uapi/linux/bpf.h; takes two slots of 8 bytes
#: Source register of an imm64 load: a plain number, (BPF_PSEUDO_MAP_FD) a map's fd, or (BPF_PSEUDO_MAP_VALUE) a map's
#: fd in the place of the address of its only value.
NUMBER_LOAD = 0
FD_LOAD = 1
VALUE_LOAD = 2


def immediates(code: bytes, kind: int) -> Iterator[tuple[int, int]]:
    """(Offset of the immediate, its lower half) of each imm64 load of this kind."""
    at = 0
    while at < len(code):
        if code[at] != _LOAD_IMM64:
            at += 8
            continue
        if code[at + 1] >> 4 == kind:
            yield at + 4, struct.unpack_from("<i", code, at + 4)[0]
        at += 16


def replaced(code: bytes, kind: int, values: dict[int, int]) -> bytes:
    """The code with these immediates of imm64 loads replaced; KeyError-free: others stay."""
    changed = bytearray(code)
    for at, value in immediates(code, kind):
        if value in values:
            struct.pack_into("<i", changed, at, values[value])
    return bytes(changed)


def with_maps(code: bytes, kind: int, fds: dict[int, int]) -> bytes:
    """The code with a map where it loads a number: number -> the map's fd. kind: FD_LOAD, or VALUE_LOAD for the address
    of the map's only value.
    """
    changed = bytearray(code)
    for at, value in immediates(code, NUMBER_LOAD):
        if value in fds:
            changed[at - 3] |= kind << 4
            struct.pack_into("<i", changed, at, fds[value])
    return bytes(changed)


def with_number(code: bytes, placeholder: int, number: int) -> bytes:
    """The code with an unsigned number of 64 bits wherever it loads this one."""
    changed = bytearray(code)
    for at, value in immediates(code, NUMBER_LOAD):
        if value == placeholder:
            struct.pack_into("<I", changed, at, number & 0xFFFFFFFF)
            struct.pack_into("<I", changed, at + 8, number >> 32)
    return bytes(changed)


def as_immediate(number: int) -> int:
    """32 bits, signed, as an instruction holds them."""
    return number - (1 << 32) if number >= 1 << 31 else number
