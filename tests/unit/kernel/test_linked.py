# SPDX-License-Identifier: Apache-2.0
"""What is written into compiled code as it is loaded: maps, and the constants that the C text asks for."""

from __future__ import annotations

import struct

import pytest

from vifprobe.kernel.toolchain.instructions import MapOf, Number, ValueOf, linked, map_loads
from vifprobe.model.layout import Loaded

EXIT = struct.pack("<BBhi", 0x95, 0, 0, 0)
R3 = 3
#: BPF_PSEUDO_MAP_FD, BPF_PSEUDO_MAP_VALUE (include/uapi/linux/bpf.h)
MAP, VALUE = 1, 2


def load(number: int, source: int = 0) -> bytes:
    """`r3 = number ll`; source: what kind of number it is."""
    return struct.pack("<BBhIBBhI", 0x18, source << 4 | R3, 0, number & 0xFFFFFFFF, 0, 0, 0, number >> 32)


def test_maps_are_written_by_their_places() -> None:
    code = load(1, MAP) + load(0, MAP) + load(1) + EXIT
    assert list(map_loads(code)) == [(4, 1), (20, 0)]
    assert linked(code, (17, 19)) == load(19, MAP) + load(17, MAP) + load(1) + EXIT


@pytest.mark.parametrize("number", [0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32, (1 << 64) - 1])
def test_a_number_is_written_whole(number: int) -> None:
    code = load(Loaded.NETNS) + EXIT + load(Loaded.NETNS)
    assert linked(code, (), {Loaded.NETNS: Number(number)}) == load(number) + EXIT + load(number)


def test_addresses_of_a_map_and_of_its_value() -> None:
    code = load(Loaded.PER_CPU_PLACE) + load(Loaded.SHARED) + EXIT
    constants = {Loaded.PER_CPU_PLACE: MapOf(23), Loaded.SHARED: ValueOf(29)}
    assert linked(code, (), constants) == load(23, MAP) + load(29, VALUE) + EXIT


def test_a_number_beyond_32_bits_that_looks_like_a_constant_stays() -> None:
    code = load(Loaded.NETNS | 1 << 32)
    assert linked(code, (), {Loaded.NETNS: Number(7)}) == code


def test_a_constant_that_is_asked_for_and_not_given_is_an_error() -> None:
    with pytest.raises(KeyError):
        linked(load(Loaded.DIRECTION), (), {Loaded.NETNS: Number(7)})


def test_no_two_constants_are_alike_in_the_code() -> None:
    values = [int(name) for name in Loaded]
    assert len(set(values)) == len(values)
    assert all(0 < value < 1 << 31 for value in values)  # what `asm("%0 = ... ll")` and an immediate hold alike
