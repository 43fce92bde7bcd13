# SPDX-License-Identifier: Apache-2.0
"""The kernel's police action as a function to watch (bpf/progs/police_exit.c): where its type information is.

Source: net/sched/act_police.c, tcf_police_act; kernel/bpf/btf.c (BPF_BTF_GET_NEXT_ID, names of modules).
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from dataclasses import dataclass

from vifprobe.errors import KernelError
from vifprobe.kernel.btf import VMLINUX, Btf
from vifprobe.kernel.libbpf import library

_FUNCTION, _MODULE = "tcf_police_act", "act_police"
_NAME_BYTES = 64

_held: list[int] = []


def hold() -> None:
    """Have the module's type information at hand for as long as the process lives: to find it takes CAP_SYS_ADMIN."""
    if VMLINUX.with_name(_MODULE).exists():
        with suppress(KernelError):
            _held.append(_module_fd(_MODULE))


class _BtfInfo(ctypes.Structure):
    """struct bpf_btf_info, include/uapi/linux/bpf.h."""

    _fields_ = (
        ("btf", ctypes.c_uint64),
        ("btf_size", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("name", ctypes.c_uint64),
        ("name_len", ctypes.c_uint32),
        ("kernel_btf", ctypes.c_uint32),
    )


@dataclass(frozen=True)
class PoliceFunction:
    """btf_id: of the function. btf_fd: of its module's type information, to be closed; 0 where it is built in."""

    btf_id: int
    btf_fd: int

    def close(self) -> None:
        """Give the descriptor back."""
        if self.btf_fd:
            os.close(self.btf_fd)


def police_function() -> PoliceFunction:
    """Where the police action is. Raises KernelError where it can't be watched: act_police is not loaded, or the kernel
    has no type information of modules (before 5.11).
    """
    module = VMLINUX.with_name(_MODULE)
    is_module = module.exists()
    with Btf() as btf:
        btf_id = btf.function_id(_FUNCTION, module if is_module else None)
    if btf_id is None:
        raise KernelError(f"this kernel's type information has no {_FUNCTION}.")
    return PoliceFunction(btf_id, _module_fd(_MODULE) if is_module else 0)


def _module_fd(name: str) -> int:
    """Descriptor of a module's type information, by its name."""
    lib, number = library(), ctypes.c_uint32(0)
    while lib.bpf_btf_get_next_id(number, ctypes.byref(number)) == 0:
        fd = lib.bpf_btf_get_fd_by_id(number)
        if fd < 0:  # gone since, or not ours to see
            continue
        if _name(fd) == name:
            return int(fd)
        os.close(fd)
    if _held:
        return os.dup(_held[0])
    raise KernelError(
        f"the type information of the module {name} is not to be had: that takes CAP_SYS_ADMIN, which a run gives up "
        "once it counts.",
        "Start it again now that the module is loaded.",
    )


def _name(fd: int) -> str:
    name = ctypes.create_string_buffer(_NAME_BYTES)
    info = _BtfInfo(name=ctypes.addressof(name), name_len=_NAME_BYTES)
    length = ctypes.c_uint32(ctypes.sizeof(info))
    if library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(length)) < 0:
        return ""
    return name.value.decode(errors="replace")
