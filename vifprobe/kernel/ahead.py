# SPDX-License-Identifier: Apache-2.0
"""Which BPF programs are linked to a device's tcx hooks: they run before any qdisc and can decide before its policer.

netlink does not tell of them. Source: include/uapi/linux/bpf.h (BPF_PROG_QUERY), kernel/bpf/tcx.c; Linux 6.6 and later.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import NamedTuple

from vifprobe.kernel import libbpf
from vifprobe.kernel.attach import PROGRAM_NAME_PREFIX

_PROGRAMS_MAX = 64  # BPF_MPROG_MAX, include/linux/bpf_mprog.h
_NAME_AT, _NAME_BYTES = 64, 16  # struct bpf_prog_info: name


class TcxProgram(NamedTuple):
    """A program on a tcx hook, in the order in which they run. name: "" where it can't be read. own: vifprobe's."""

    id: int
    name: str
    own: bool


class _QueryOpts(ctypes.Structure):
    """struct bpf_prog_query_opts of libbpf 1.0: what later ones add is left alone."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("query_flags", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
        ("prog_ids", ctypes.c_void_p),
        ("prog_cnt", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("prog_attach_flags", ctypes.c_void_p),
    )


def tcx_programs(ifindex: int, ingress: bool) -> tuple[TcxProgram, ...]:
    """The programs on one side of a device; none on kernels without tcx. OSError: not permitted, or no such device."""
    return tuple(_program(number) for number in tcx_program_ids(ifindex, ingress))


def tcx_program_ids(ifindex: int, ingress: bool) -> tuple[int, ...]:
    """Their ids alone: one system call. OSError: as tcx_programs."""
    ids = (ctypes.c_uint32 * _PROGRAMS_MAX)()
    options = _QueryOpts(
        sz=ctypes.sizeof(_QueryOpts), prog_ids=ctypes.cast(ids, ctypes.c_void_p), prog_cnt=_PROGRAMS_MAX
    )
    hook = libbpf.BPF_TCX_INGRESS if ingress else libbpf.BPF_TCX_EGRESS
    result = libbpf.library().bpf_prog_query_opts(ifindex, hook, ctypes.byref(options))
    if result < 0:
        if -result == errno.EINVAL:  # before 6.6: the hook is not known
            return ()
        raise OSError(-result, os.strerror(-result))
    return tuple(ids[: options.prog_cnt])


def _program(number: int) -> TcxProgram:
    name = program_name(number)
    return TcxProgram(number, name, name.startswith(PROGRAM_NAME_PREFIX))


def program_name(number: int) -> str:
    """Name of a loaded program by its id, as `bpftool prog` lists it; "" where it has none or is gone."""
    fd = libbpf.library().bpf_prog_get_fd_by_id(number)
    if fd < 0:
        return ""
    try:
        info = libbpf.object_info(fd)
    except OSError:
        return ""
    finally:
        os.close(fd)
    raw = struct.unpack_from(f"{_NAME_BYTES}s", info, _NAME_AT)[0] if len(info) >= _NAME_AT + _NAME_BYTES else b""
    return os.fsdecode(raw.split(b"\0", 1)[0])
