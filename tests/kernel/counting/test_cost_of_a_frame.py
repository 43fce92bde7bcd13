# SPDX-License-Identifier: Apache-2.0
"""No frame costs much more than another one, whatever the guest makes of it (`scripts/bench --worst` measures it).

Asserted by what the programs are made of, not by time: each calls only helpers that take some nanoseconds, and none
more often than its loops say.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest

from vifprobe.kernel.features import read_features, read_trace_fields
from vifprobe.kernel.settings import Settings, possible_cpus
from vifprobe.kernel.toolchain.cache import compiled
from vifprobe.kernel.toolchain.source import source_directory, source_text

# include/uapi/linux/bpf.h: what calls a helper, and the helpers' numbers.
_CALL, _EXIT, _JUMP, _LOAD_IMM64 = 0x85, 0x95, 0x05, 0x18
_JUMP_CLASSES = (0x05, 0x06)  # of 64 and of 32 bits
_LOAD_BYTES = 26
#: Of one packet: of its first bytes, of extension headers, of a sample. A call takes a third of a plain packet's time.
COPIES = 3
#: Each of them does the same few steps for any packet; bpf_skb_load_bytes copies the bytes that are asked for, here of
#: headers alone. None walks a stack, takes a lock, or wakes somebody.
CHEAP = {
    1: "bpf_map_lookup_elem",
    5: "bpf_ktime_get_ns",
    7: "bpf_get_prandom_u32",
    8: "bpf_get_smp_processor_id",
    26: "bpf_skb_load_bytes",
    113: "bpf_probe_read_kernel",
}


def helpers(code: bytes) -> Iterator[int]:
    """The helpers that it calls, in the order of its instructions."""
    at = 0
    while at < len(code):
        if code[at] == _CALL:
            (number,) = struct.unpack_from("=i", code, at + 4)
            yield number
        at += 16 if code[at] == _LOAD_IMM64 else 8


def steps(code: bytes) -> dict[int, tuple[tuple[int, ...], int]]:
    """Of each instruction, by its place: where it goes on, and the helper that it calls or 0."""
    found: dict[int, tuple[tuple[int, ...], int]] = {}
    for place in range(0, len(code), 8):
        opcode, _, offset, number = struct.unpack_from("=BBhi", code, place)
        onwards = place + (16 if opcode == _LOAD_IMM64 else 8)
        goes_on: tuple[int, ...] = (onwards,)
        if opcode == _EXIT:
            goes_on = ()
        elif opcode == _JUMP:
            goes_on = (onwards + 8 * offset,)
        elif opcode & 7 in _JUMP_CLASSES and opcode != _CALL:
            goes_on = (onwards, onwards + 8 * offset)
        found[place] = goes_on, number if opcode == _CALL else 0
    return found


def most_calls(code: bytes, helper: int) -> int:
    """How often a run of the program calls it at most; AssertionError where a loop does."""
    along = steps(code)
    most: dict[int, int] = {}
    waiting = [0]
    while waiting:
        place = waiting.pop()
        goes_on, called = along[place]
        calls = most.get(place, 0) + (called == helper)
        assert calls <= len(code) // 8, "called in a loop"
        for following in goes_on:
            if calls > most.get(following, -1):
                most[following] = calls
                waiting.append(following)
    return max(most.values())


def test_calls_are_counted_along_the_longest_way() -> None:
    call, on, jump, back = ((_CALL, 0, 0, _LOAD_BYTES), (0xB7, 0, 0, 0), (0x15, 0, 2, 0), (0x15, 0, -3, 0))

    def made(*instructions: tuple[int, int, int, int]) -> bytes:
        return b"".join(struct.pack("=BBhi", *one) for one in (*instructions, (_EXIT, 0, 0, 0)))

    assert most_calls(made(on), _LOAD_BYTES) == 0
    assert most_calls(made(call, jump, call, call), _LOAD_BYTES) == 3
    assert most_calls(made(call, (_JUMP, 0, 1, 0), call, call), _LOAD_BYTES) == 2
    assert most_calls(made(call, on, on, back), 1) == 0
    with pytest.raises(AssertionError):
        most_calls(made(call, on, back), _LOAD_BYTES)


@pytest.mark.parametrize("deep", [False, True])
def test_programs_call_what_takes_the_same_time_for_each_packet(deep: bool) -> None:
    fields = read_trace_fields()
    settings = Settings(cpus=possible_cpus(), trace=fields)
    if deep:
        settings = replace(settings, bin_ns=10_000_000, samples=True, syn=True, follow=fields, what_ifs=1)
    code = compiled(source_text(), source_directory(), settings.flags(read_features())).code
    called = {name: set(helpers(part)) for name, part in code.items()}
    assert 8 in called["drop"]
    copies = {name: most_calls(part, _LOAD_BYTES) for name, part in code.items()}
    assert {name for name, number in copies.items() if number > COPIES} == set(), copies
    assert copies["observe"] == 2 + deep
    assert {name: numbers - set(CHEAP) for name, numbers in called.items() if numbers - set(CHEAP)} == {}
