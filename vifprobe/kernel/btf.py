# SPDX-License-Identifier: Apache-2.0
"""The running kernel's own type information (BTF): struct offsets and enum values, which differ between kernels."""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from vifprobe.errors import KernelError
from vifprobe.kernel.libbpf import library

VMLINUX = Path("/sys/kernel/btf/vmlinux")

# include/uapi/linux/btf.h
_KIND_PTR, _KIND_STRUCT, _KIND_UNION, _KIND_ENUM, _KIND_TYPEDEF, _KIND_FUNC, _KIND_FUNC_PROTO = 2, 4, 5, 6, 8, 12, 13
_TYPE = struct.Struct("=III")  # name_off, info, size or type
_MEMBER = struct.Struct("=III")  # name_off, type, offset (in bits; with kind_flag: bitfield size << 24 | offset)
_PARAMETER = struct.Struct("=II")  # name_off, type
_ENUM_VALUE = struct.Struct("=Ii")


class _Type(NamedTuple):
    address: int  # of the entries that follow the head
    kind: int
    entries: int
    kind_flag: bool
    target: int  # size of a struct, or id of the type referred to


class Btf:
    """BTF of vmlinux or of a module, read with libbpf. A context manager: libbpf's copy is freed on exit.

    base: for a module, the BTF of vmlinux, whose ids and names the module's continue. Raises KernelError where the
    kernel has no BTF.
    """

    def __init__(self, path: Path = VMLINUX, base: Btf | None = None) -> None:
        self._lib = library()
        self._path = path
        self._found: dict[tuple[str, int], int] = {}
        self._btf = None
        if path.exists() and base is None:
            self._btf = self._lib.btf__parse_raw(str(path).encode())
        elif path.exists() and base is not None:
            self._btf = self._lib.btf__parse_raw_split(str(path).encode(), base._btf)
        if not self._btf:
            raise KernelError(
                f"this kernel has no BTF type information ({path}).",
                "vifprobe reads struct offsets from it and never guesses them.",
                "Use a kernel built with CONFIG_DEBUG_INFO_BTF, as all current distribution kernels are.",
            )

    def __enter__(self) -> Btf:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lib.btf__free(self._btf)

    def offset_bytes(self, struct_name: str, member: str) -> int:
        """Return the byte offset of a member, also of one in an anonymous member. Raises KernelError without it."""
        found = self.offset_bits(struct_name, member)
        if found is None:
            raise KernelError(f"struct {struct_name} of this kernel has no member {member}.")
        return found // 8

    def offset_bits(self, struct_name: str, member: str) -> int | None:
        """Return the bit offset of a member (of a bitfield, for example); None without a member of that name."""
        return self._member(self._find(struct_name, _KIND_STRUCT), member)

    def enum(self, name: str) -> dict[str, int]:
        """Return the names and values of an enum; empty where the kernel has none of that name."""
        number = self._lib.btf__find_by_name_kind(self._btf, name.encode(), _KIND_ENUM)
        if number <= 0:
            return {}
        head = self._type(number)
        entries = ctypes.string_at(head.address, head.entries * _ENUM_VALUE.size)
        return {self._name(at): value for at, value in _ENUM_VALUE.iter_unpack(entries)}

    def names_ending(self, suffix: str) -> set[str]:
        """Return all names in this file, of whatever, that end so. Raises OSError.

        The text is searched: going through the types takes a hundred times as long.
        """
        text, ending, found = self._path.read_bytes(), suffix.encode() + b"\0", set()
        at = -1
        while (at := text.find(ending, at + 1)) >= 0:
            found.add(text[text.rfind(b"\0", 0, at) + 1 : at + len(suffix)].decode(errors="replace"))
        return found

    def function_id(self, name: str, module: Path | None = None) -> int | None:
        """Return the BTF id of a function; None where there is none of that name, or it is inlined everywhere.

        module: file of a module's BTF, whose ids continue those of vmlinux; None for vmlinux.
        """
        if module is None:
            found = self._lib.btf__find_by_name_kind(self._btf, name.encode(), _KIND_FUNC)
        else:
            split = self._lib.btf__parse_raw_split(str(module).encode(), self._btf)
            if not split:
                return None
            found = self._lib.btf__find_by_name_kind(split, name.encode(), _KIND_FUNC)
            self._lib.btf__free(split)
        return int(found) if found > 0 else None

    def tracepoint_id(self, name: str) -> int:
        """Return the BTF id of a raw tracepoint's type, with which a typed program is loaded."""
        return self._find(f"btf_trace_{name}", _KIND_TYPEDEF)

    def tracepoint_arguments(self, name: str) -> int:
        """Return the number of arguments of a raw tracepoint's program; 0 where the kernel has no such tracepoint.

        ``typedef void (*btf_trace_NAME)(void *data, arguments...)``, include/trace/bpf_probe.h.
        """
        number = self._lib.btf__find_by_name_kind(self._btf, f"btf_trace_{name}".encode(), _KIND_TYPEDEF)
        if number <= 0:
            return 0
        pointer = self._type(self._type(number).target)
        return self._type(pointer.target).entries - 1

    def tracepoint_pointers(self, name: str, struct_name: str) -> list[int]:
        """Return the numbers of a raw tracepoint's arguments, from 0, that are pointers to a struct; [] without any.

        The order of arguments changes between kernels: they have types in BTF, but no names.
        """
        number = self._lib.btf__find_by_name_kind(self._btf, f"btf_trace_{name}".encode(), _KIND_TYPEDEF)
        if number <= 0:
            return []
        prototype = self._type(self._type(self._type(number).target).target)
        entries = ctypes.string_at(prototype.address, prototype.entries * _PARAMETER.size)
        types = [at for _, at in _PARAMETER.iter_unpack(entries)]
        wanted = self._find(struct_name, _KIND_STRUCT)
        return [place for place, one in enumerate(types[1:]) if self._points_to(one, wanted)]

    def _points_to(self, number: int, wanted: int) -> bool:
        head = self._type(number)
        return head.kind == _KIND_PTR and head.target == wanted

    def _find(self, name: str, kind: int) -> int:
        # Cached: libbpf searches all types each time, which takes some milliseconds.
        if (name, kind) not in self._found:
            self._found[name, kind] = int(self._lib.btf__find_by_name_kind(self._btf, name.encode(), kind))
        number = self._found[name, kind]
        if number <= 0:
            raise KernelError(f"this kernel's type information has no {name}.")
        return number

    def _type(self, number: int) -> _Type:
        address = self._lib.btf__type_by_id(self._btf, number)
        _, info, target = _TYPE.unpack(ctypes.string_at(address, _TYPE.size))
        return _Type(address + _TYPE.size, info >> 24 & 0x1F, info & 0xFFFF, bool(info >> 31), target)

    def _name(self, offset: int) -> str:
        return (self._lib.btf__name_by_offset(self._btf, offset) or b"").decode()

    def _member(self, number: int, wanted: str) -> int | None:
        """Return the offset in bits. Anonymous structs and unions (struct_group) are searched, but no typedefs."""
        head = self._type(number)
        members = ctypes.string_at(head.address, head.entries * _MEMBER.size)
        for name_at, type_number, offset in _MEMBER.iter_unpack(members):
            bits = offset & 0xFFFFFF if head.kind_flag else offset
            name = self._name(name_at)
            if name == wanted:
                return int(bits)
            if not name and self._type(type_number).kind in (_KIND_STRUCT, _KIND_UNION):
                inner = self._member(type_number, wanted)
                if inner is not None:
                    return int(bits) + inner
        return None
