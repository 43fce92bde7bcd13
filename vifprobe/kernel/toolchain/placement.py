# SPDX-License-Identifier: Apache-2.0
"""Block placement: rare code is moved behind the code that almost every packet runs.

Between two packets of a flood, the kernel runs so much code that a program has left the first-level cache when it runs
again. Rare code between common code is then fetched for nothing. Compilers place blocks by `__builtin_expect`, but
bcc's compiler keeps the order of the source. So `unlikely()` of bpf/lib/likely.h leaves a mark where a rare branch
begins. Code that is reached only through marks is moved to the end here, and the marks are removed. The README in this
folder has measurements.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# include/uapi/linux/bpf.h and bpf_common.h
_LOAD_IMM64 = 0x18  # takes two slots of 8 bytes
_JUMP_CLASSES = (0x05, 0x06)  # BPF_JMP, BPF_JMP32
_JA, _CALL, _EXIT, _MAY_GOTO = 0x0, 0x8, 0x9, 0xE
_LONG_JUMP = 0x06  # BPF_JMP32 | BPF_JA: its distance is in the immediate
_CALL_OF_OWN = 1  # source register of a call: BPF_PSEUDO_CALL, a function of this program
#: Each condition's opposite: JEQ JNE, JGT JLE, JGE JLT, JSGT JSLE, JSGE JSLT. JSET has none.
_OPPOSITE = {0x1: 0x5, 0x2: 0xB, 0x3: 0xA, 0x6: 0xD, 0x7: 0xC}
_OPPOSITE |= {there: here for here, there in _OPPOSITE.items()}
#: `goto +0`: what bpf/lib/likely.h leaves where a rare branch begins.
MARK = bytes((0x05, 0, 0, 0, 0, 0, 0, 0))


@dataclass
class _Block:
    """Basic block: instructions that run in sequence.

    - body: the instructions, without jumps at the end.
    - jump: the conditional jump at the end; None without one.
    - taken: number of the block that `jump` goes to; None without a jump.
    - follows: number of the block that runs otherwise; None after an exit.
    - marked: it begins with a MARK.
    """

    body: list[bytes]
    jump: bytes | None = None
    taken: int | None = None
    follows: int | None = None
    marked: bool = False

    @property
    def successors(self) -> Iterator[int]:
        return (number for number in (self.taken, self.follows) if number is not None)


def cold_last(code: bytes) -> bytes:
    """Return the same program with the blocks that are reached without passing a MARK first, the rest at the end.

    The marks are removed. A program with other kinds of jumps is returned unchanged, with its marks (which do nothing).
    No version of bcc has made such jumps from this text so far.
    """
    if any(_is_other_jump(instruction) for _, instruction in _slots(code)):
        return code
    blocks = _blocks(code)
    order = _chained(blocks)
    hot = set(order)
    return _joined(blocks, [*order, *(number for number in range(len(blocks)) if number not in hot)])


def _slots(code: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (slot, instruction) of each instruction."""
    at = 0
    while at < len(code):
        size = 16 if code[at] == _LOAD_IMM64 else 8
        yield at // 8, code[at : at + size]
        at += size


def _is_other_jump(instruction: bytes) -> bool:
    operation = _operation(instruction)
    is_own_call = operation == _CALL and instruction[1] >> 4 == _CALL_OF_OWN
    return instruction[0] == _LONG_JUMP or operation == _MAY_GOTO or is_own_call


def _blocks(code: bytes) -> list[_Block]:
    """Return the basic blocks in code order; the index is the block's number."""
    slots = list(_slots(code))
    begins = {0}
    for slot, instruction in slots:
        if (target := _target(slot, instruction)) is not None:
            begins |= {target, slot + 1}
        elif _operation(instruction) == _EXIT:
            begins.add(slot + 1)
    numbers = {slot: number for number, slot in enumerate(sorted(begins))}
    blocks: list[_Block] = []
    for slot, instruction in slots:
        if slot in begins:
            blocks.append(_Block([], follows=len(blocks) + 1))
        block, target = blocks[-1], _target(slot, instruction)
        if instruction == MARK:
            block.marked = True
        elif target is None:
            block.body.append(instruction)
            if _operation(instruction) == _EXIT:
                block.follows = None
        elif _operation(instruction) == _JA:
            block.follows = numbers[target]
        else:
            block.jump, block.taken = instruction, numbers[target]
    return blocks


def _operation(instruction: bytes) -> int | None:
    """Return the operation of a jump, call or exit; None for other instructions."""
    return instruction[0] >> 4 if instruction[0] & 7 in _JUMP_CLASSES else None


def _target(slot: int, instruction: bytes) -> int | None:
    """Return the slot that a jump goes to; None for other instructions."""
    if _operation(instruction) in (None, _CALL, _EXIT):
        return None
    return slot + 1 + int(struct.unpack_from("<h", instruction, 2)[0])


def _rare(blocks: Sequence[_Block]) -> set[int]:
    """Return the blocks that are marked or lead only to rare ones: the compiler moves early work before a mark."""
    rare = {number for number, block in enumerate(blocks) if block.marked}
    found = -1
    while found != len(rare):
        found = len(rare)
        for number, block in enumerate(blocks):
            after = set(block.successors)
            if after and after <= rare:
                rare.add(number)
    return rare


def _chained(blocks: Sequence[_Block]) -> list[int]:
    """Return the blocks that are reached without a mark, each followed by its successor where possible."""
    rare = _rare(blocks)
    order: list[int] = []
    waiting, known = [0], {0}
    while waiting:
        order.append(waiting.pop())
        following = [n for n in blocks[order[-1]].successors if n not in known and n not in rare]
        known.update(following)
        waiting += following
    return order


def _joined(blocks: Sequence[_Block], order: Sequence[int]) -> bytes:
    """Return the code of all blocks in this order, with jumps where the next block is not the successor."""
    parts: list[tuple[bytes, int | None]] = []  # instruction; the block it jumps to
    begins: dict[int, int] = {}  # where a block's parts begin
    for number, after in zip(order, [*order[1:], None], strict=True):
        block = blocks[number]
        begins[number] = len(parts)
        parts += [(instruction, None) for instruction in block.body]
        jump, taken, follows = block.jump, block.taken, block.follows
        if jump is not None and taken == after and jump[0] >> 4 in _OPPOSITE:
            opposite = _OPPOSITE[jump[0] >> 4] << 4 | jump[0] & 0xF
            jump, taken, follows = bytes((opposite,)) + jump[1:], follows, taken
        if jump is not None:
            parts.append((jump, taken))
        if follows is not None and follows != after:
            parts.append((MARK, follows))
    slots, slot = [], 0
    for instruction, _ in parts:
        slots.append(slot)
        slot += len(instruction) // 8
    code = bytearray()
    for (instruction, goal), slot in zip(parts, slots, strict=True):
        code += instruction
        if goal is not None:
            struct.pack_into("<h", code, len(code) - len(instruction) + 2, slots[begins[goal]] - slot - 1)
    return bytes(code)
