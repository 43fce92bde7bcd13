# SPDX-License-Identifier: Apache-2.0
"""BTF of the kernel's police action, to which bpf/progs/police_exit.c attaches.

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
    """Open the module's BTF and keep it until the process ends: finding it later needs CAP_SYS_ADMIN."""
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
    """BTF of the police function.

    - btf_id: of the function.
    - btf_fd: of its module's BTF; 0 where it is built in. The caller calls `close`.
    """

    btf_id: int
    btf_fd: int

    def close(self) -> None:
        """Close the descriptor."""
        if self.btf_fd:
            os.close(self.btf_fd)


def police_function() -> PoliceFunction:
    """Return the BTF of the police action.

    Raises KernelError where it can't be watched: act_police is not loaded, or the kernel has no BTF of modules (before
    5.11).
    """
    module = VMLINUX.with_name(_MODULE)
    is_module = module.exists()
    with Btf() as btf:
        btf_id = btf.function_id(_FUNCTION, module if is_module else None)
    if btf_id is None:
        raise KernelError(f"this kernel's type information has no {_FUNCTION}.")
    return PoliceFunction(btf_id, _module_fd(_MODULE) if is_module else 0)


def _module_fd(name: str) -> int:
    """Return a descriptor of a module's BTF, by the module's name. Raises KernelError."""
    lib, number = library(), ctypes.c_uint32(0)
    while lib.bpf_btf_get_next_id(number, ctypes.byref(number)) == 0:
        fd = lib.bpf_btf_get_fd_by_id(number)
        if fd < 0:  # unloaded since, or not permitted
            continue
        if _name(fd) == name:
            return int(fd)
        os.close(fd)
    if _held:
        return os.dup(_held[0])
    raise KernelError(
        f"the type information of the module {name} is not available: reading it needs CAP_SYS_ADMIN, which a run "
        "drops once it counts.",
        "Restart vifprobe now that the module is loaded.",
    )


def _name(fd: int) -> str:
    name = ctypes.create_string_buffer(_NAME_BYTES)
    info = _BtfInfo(name=ctypes.addressof(name), name_len=_NAME_BYTES)
    length = ctypes.c_uint32(ctypes.sizeof(info))
    if library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(length)) < 0:
        return ""
    return name.value.decode(errors="replace")
