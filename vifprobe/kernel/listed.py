# SPDX-License-Identifier: Apache-2.0
"""All BPF programs and links, listed by the kernel's own iterators.

BPF_PROG_GET_FD_BY_ID and the like need CAP_SYS_ADMIN. An iterator needs CAP_BPF and CAP_PERFMON: the kernel calls
vifprobe's program once for each object, and the program writes the object's numbers to the output. Source:
kernel/bpf/{bpf_iter,prog_iter,link_iter}.c; Linux 5.9 and later, links 5.19 and later.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from functools import cache

from vifprobe.errors import KernelError
from vifprobe.kernel import libbpf
from vifprobe.kernel.btf import Btf

_READ_BYTES = 1 << 16
_NAME_BYTES = 16  # BPF_OBJ_NAME_LEN
_PROGRAM, _LINK = struct.Struct(f"=I{_NAME_BYTES}s"), struct.Struct("=I")

# Opcodes, registers and helpers of include/uapi/linux/bpf.h.
_LOAD_64, _LOAD_32, _STORE_32 = 0x79, 0x61, 0x63
_MOVE, _MOVE_NUMBER, _ADD_NUMBER, _JUMP_IF_EQUAL, _CALL, _EXIT = 0xBF, 0xB7, 0x07, 0x15, 0x85, 0x95
_FRAME = 10
_SEQ_WRITE = 127
_PLACE = -24  # of the entry, in the stack


def program_names() -> dict[int, str]:
    """Return id -> name of all programs; "" for a program without a name.

    Raises OSError or KernelError where this kernel has no such iterator, or does not permit it.
    """
    found = _PROGRAM.iter_unpack(_read(_programs()))
    return {number: os.fsdecode(name.split(b"\0", 1)[0]) for number, name in found}


def link_ids() -> set[int]:
    """Return the ids of all links. Raises as program_names does."""
    return {number for (number,) in _LINK.iter_unpack(_read(_links()))}


def _read(link: int) -> bytes:
    made = libbpf.open_iterator(link)
    try:
        return b"".join(iter(lambda: os.read(made, _READ_BYTES), b""))
    finally:
        os.close(made)


@cache
def _programs() -> int:
    with Btf() as btf:
        aux, number, name = (
            btf.offset_bytes(*member)
            for member in (("bpf_prog", "aux"), ("bpf_prog_aux", "id"), ("bpf_prog_aux", "name"))
        )
    return _attached("bpf_prog", _code([aux], [number, *range(name, name + _NAME_BYTES, 4)]))


@cache
def _links() -> int:
    with Btf() as btf:
        number = btf.offset_bytes("bpf_link", "id")
    return _attached("bpf_link", _code([], [number]))


def _attached(target: str, code: bytes) -> int:
    """Attach a program to an iterator until this process ends; return the fd of the link."""
    with Btf() as btf:
        btf_id = btf.function_id(f"bpf_iter_{target}")
    if btf_id is None:
        raise KernelError(f"this kernel's type information has no bpf_iter_{target}.")
    program = libbpf.load_iterator(f"vifprobe_{target[4:]}s", code, btf_id)
    try:
        return libbpf.attach_iterator(program)
    finally:
        os.close(program)


def _code(pointers: Sequence[int], words: Sequence[int]) -> bytes:
    """Return the code of an iterator program.

    - pointers: offsets of the pointers to follow, starting at the object.
    - words: offsets of the 32-bit words to write, in the struct that the pointers lead to.
    """
    # struct bpf_iter__bpf_prog: meta, prog (NULL after the last one); struct bpf_iter_meta: seq.
    code = [
        _step(_LOAD_64, 6, 1, 8),
        _step(_JUMP_IF_EQUAL, 6, 0, 7 + len(pointers) + 2 * len(words)),
        _step(_LOAD_64, 7, 1, 0),
        _step(_LOAD_64, 7, 7, 0),
        *(_step(_LOAD_64, 6, 6, offset) for offset in pointers),
    ]
    for place, offset in enumerate(words):
        code += [_step(_LOAD_32, 0, 6, offset), _step(_STORE_32, _FRAME, 0, _PLACE + 4 * place)]
    code += [
        _step(_MOVE, 1, 7),
        _step(_MOVE, 2, _FRAME),
        _step(_ADD_NUMBER, 2, number=_PLACE),
        _step(_MOVE_NUMBER, 3, number=4 * len(words)),
        _step(_CALL, number=_SEQ_WRITE),
        _step(_MOVE_NUMBER, 0),
        _step(_EXIT),
    ]
    return b"".join(code)


def _step(opcode: int, to: int = 0, source: int = 0, offset: int = 0, number: int = 0) -> bytes:
    """Return one instruction: struct bpf_insn."""
    return struct.pack("=BBhi", opcode, to | source << 4, offset, number)
