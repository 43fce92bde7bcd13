# SPDX-License-Identifier: Apache-2.0
"""Block placement: whatever a program does, it does the same after it, and what is marked runs from the end."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vifprobe.kernel.toolchain.placement import MARK, cold_last

JA, JSET, EXIT = 0x05, 0x45, 0x95
#: Conditions on r0 and an immediate: JEQ JGT JGE JSET JNE JSGT JSGE JLT JLE JSLT JSLE; of 64 and of 32 bits.
CONDITIONS = [operation << 4 | kind for operation in (1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13) for kind in (0x05, 0x06)]
STEPS = 200  # a program that runs longer has a loop


def instruction(code: int, offset: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("<BBhi", code, 0, offset, immediate)


def add(number: int) -> bytes:
    """`r0 += number`."""
    return instruction(0x07, immediate=number)


def big(number: int) -> bytes:
    """`r0 = number`, in two slots: what follows lies one further."""
    return instruction(0x18, immediate=number) + bytes(8)


def run(code: bytes, r0: int = 0) -> list[tuple[bytes, int]]:
    """Instructions other than jumps as they run, with r0 before each; of a loop, the first ones."""
    done: list[tuple[bytes, int]] = []
    slot = 0
    for _ in range(STEPS):
        now = code[slot * 8 : slot * 8 + 8]
        opcode, _, offset, immediate = struct.unpack("<BBhi", now)
        slot += 1
        if opcode == JA:
            slot += offset
        elif opcode in CONDITIONS:
            slot += offset * holds(opcode, r0, immediate)
        else:
            done.append((now, r0))
            if opcode == EXIT:
                break
            if opcode == 0x18:
                r0, slot = immediate, slot + 1
            else:
                r0 += immediate
            r0 &= 0xFFFF_FFFF_FFFF_FFFF
    return done


def holds(opcode: int, left: int, right: int) -> bool:
    """Documentation/bpf/standardization/instruction-set.rst, Jump instructions."""
    bits = 64 if opcode & 7 == 5 else 32
    left, right = left & (1 << bits) - 1, right & (1 << bits) - 1
    signed = [number - (1 << bits) if number >> bits - 1 else number for number in (left, right)]
    return {
        1: left == right,
        2: left > right,
        3: left >= right,
        4: left & right != 0,
        5: left != right,
        6: signed[0] > signed[1],
        7: signed[0] >= signed[1],
        10: left < right,
        11: left <= right,
        12: signed[0] < signed[1],
        13: signed[0] <= signed[1],
    }[opcode >> 4]


@st.composite
def programs(draw: st.DrawFn) -> bytes:
    """Any: jumps to and fro, to any instruction; marks between them."""
    kinds = draw(st.lists(st.sampled_from(["add", "big", "mark", "always", "if", "exit"]), max_size=40))
    kinds.append("exit")
    slots = [0]
    for kind in kinds[:-1]:
        slots.append(slots[-1] + (2 if kind == "big" else 1))
    code = b""
    for number, kind in enumerate(kinds):
        goal = draw(st.sampled_from(slots)) - slots[number] - 1
        value = draw(st.integers(-3, 3))
        code += {
            "add": add(value),
            "big": big(value),
            "mark": MARK,
            "always": instruction(JA, goal or 1) if goal or number < len(kinds) - 2 else add(0),
            "if": instruction(draw(st.sampled_from(CONDITIONS)), goal, value),
            "exit": instruction(EXIT),
        }[kind]
    return code


def is_whole(code: bytes) -> bool:
    """Whether no jump of it goes into the middle of an instruction."""
    slots, at = set(), 0
    while at < len(code):
        slots.add(at // 8)
        at += 16 if code[at] == 0x18 else 8
    jumps = [(slot, struct.unpack_from("<BBhi", code, slot * 8)) for slot in slots]
    return all(slot + 1 + fields[2] in slots for slot, fields in jumps if fields[0] in (JA, *CONDITIONS))


@given(code=programs().filter(is_whole), r0=st.integers(-4, 4))
def test_the_same_is_done(code: bytes, r0: int) -> None:
    placed = cold_last(code)
    before, after = run(code, r0 & 0xFFFF_FFFF_FFFF_FFFF), run(placed, r0 & 0xFFFF_FFFF_FFFF_FFFF)
    ends = [bool(done) and done[-1][0] == instruction(EXIT) for done in (before, after)]
    # In a loop, the one comes further than the other in as many steps.
    shorter = min(len(before), len(after))
    assert before == after if all(ends) else before[:shorter] == after[:shorter]


def test_what_is_marked_lies_at_the_end_and_is_jumped_over_no_more() -> None:
    """The condition is inverted, so that the common path goes straight on; the rare branch jumps back."""
    end = add(2), instruction(EXIT)
    code = b"".join((add(1), instruction(0x15, 2), MARK, add(7), *end))  # if r0 == 0 goto behind the marked branch
    assert cold_last(code) == b"".join((add(1), instruction(0x55, 2), *end, add(7), instruction(JA, -4)))


def test_what_leads_to_marks_alone_is_rare() -> None:
    """The compiler works things out before the mark, with branches of their own."""
    early = add(4), instruction(0x15, 1, 9), add(5)
    code = b"".join((instruction(0x15, 5), *early, MARK, add(7), add(2), add(3), instruction(EXIT)))
    placed = cold_last(code)
    assert placed[8:32] == b"".join((add(2), add(3), instruction(EXIT)))
    for r0 in (0, 1, 5):
        assert run(placed, r0) == run(code, r0)


def test_what_only_rare_code_leads_to_is_rare() -> None:
    code = b"".join((instruction(0x15, 4), MARK, add(1), instruction(0x15, 1, 9), add(2), add(3), instruction(EXIT)))
    assert run(cold_last(code)) == [(add(3), 0), (instruction(EXIT), 3)]
    assert cold_last(code)[8:16] == add(3)


@pytest.mark.parametrize("condition", [code for code in CONDITIONS if code & 0xF0 != 0x40])
def test_a_condition_and_its_opposite(condition: int) -> None:
    code = b"".join((instruction(condition, 2, 1), MARK, add(5), instruction(EXIT)))
    placed = cold_last(code)
    assert placed[0] != condition
    for r0 in (-2, -1, 0, 1, 2, 1 << 31, 1 << 32, (1 << 63) + 1):
        wide = r0 & 0xFFFF_FFFF_FFFF_FFFF
        assert holds(placed[0], wide, 1) is not holds(condition, wide, 1)


def test_a_condition_without_an_opposite_stays() -> None:
    code = b"".join((instruction(JSET, 2, 1), MARK, add(5), instruction(EXIT)))
    for r0 in (0, 1):
        assert run(cold_last(code), r0) == run(code, r0)


@pytest.mark.parametrize(
    "other",
    [bytes((0x06, 0, 0, 0, 1, 0, 0, 0)), bytes((0xE5, 0, 1, 0, 0, 0, 0, 0)), bytes((0x85, 0x10, 0, 0, 1, 0, 0, 0))],
    ids=["gotol", "may_goto", "call of its own function"],
)
def test_a_program_with_jumps_of_another_kind_stays_as_it_is(other: bytes) -> None:
    code = b"".join((instruction(0x15, 2), MARK, other, add(1), instruction(EXIT)))
    assert cold_last(code) == code
