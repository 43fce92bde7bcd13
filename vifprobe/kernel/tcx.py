# SPDX-License-Identifier: Apache-2.0
"""BPF programs linked to a device's tcx hooks. They run before any qdisc, so they can drop before its policer.

netlink does not report them. Source: include/uapi/linux/bpf.h (BPF_PROG_QUERY), kernel/bpf/tcx.c; Linux 6.6 and later.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from vifprobe.errors import KernelError
from vifprobe.kernel import libbpf
from vifprobe.kernel.attach import PROGRAM_NAME_PREFIX
from vifprobe.kernel.listed import link_ids, program_names
from vifprobe.process.capabilities import Capability, raised

_PROGRAMS_MAX = 64  # BPF_MPROG_MAX, include/linux/bpf_mprog.h
_BPF_DESCRIPTORS = ("anon_inode:bpf-prog", "anon_inode:bpf_link")
_SCAN_SECONDS = 0.2
_LINKS_MAX = 100_000
_NAME_AT, _NAME_BYTES = 64, 16  # struct bpf_prog_info: name


class TcxProgram(NamedTuple):
    """A program on a tcx hook.

    - id: of the program.
    - name: "" where it can't be read.
    - own: True for vifprobe's own program.
    """

    id: int
    name: str
    own: bool


class _QueryOpts(ctypes.Structure):
    """struct bpf_prog_query_opts of libbpf 1.0, without the members of later versions."""

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
    """Return the programs on one hook of a device in the order in which they run; none on kernels without tcx.

    Raises OSError where it is not permitted, or the device does not exist.
    """
    return tuple(_program(number) for number in tcx_program_ids(ifindex, ingress))


def tcx_program_ids(ifindex: int, ingress: bool) -> tuple[int, ...]:
    """Return the program ids of a hook, with one system call. Raises OSError as tcx_programs does."""
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
    """Return the name of a loaded program by its id, as `bpftool prog` lists it; "" without a name or program."""
    fd = libbpf.library().bpf_prog_get_fd_by_id(number)
    if fd == -errno.EPERM:
        with suppress(OSError, KernelError):
            return program_names().get(number, "")
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


def program_holders(wanted: Collection[int], seconds: float = _SCAN_SECONDS) -> dict[int, tuple[str, ...]]:
    """Return program id -> `comm (pid 812)` of each process that holds the program or a link to it.

    This process is left out. Searches the descriptors of all processes for `seconds` at most, so the result can be
    incomplete.
    """
    lines = {f"prog_id:\t{number}\n".encode(): number for number in wanted}
    found: dict[int, dict[str, None]] = {}
    until = time.monotonic() + seconds
    with raised(Capability.SYS_PTRACE):
        for folder in os.scandir("/proc"):
            if time.monotonic() > until:
                break
            if not folder.name.isdigit() or int(folder.name) == os.getpid():
                continue
            for info in _bpf_descriptors(folder.path):
                held = [number for line, number in lines.items() if line in info]
                for number in held:
                    found.setdefault(number, {})[f"{_comm(folder.path)} (pid {folder.name})"] = None
    return {number: tuple(names) for number, names in found.items()}


def _bpf_descriptors(process: str) -> Iterator[bytes]:
    """Return fdinfo of a process's descriptors of programs and links (kernel/bpf/syscall.c, *_show_fdinfo)."""
    with suppress(OSError):  # it has ended
        for fd in Path(f"{process}/fd").iterdir():
            with suppress(OSError):
                if str(fd.readlink()) in _BPF_DESCRIPTORS:
                    yield Path(f"{process}/fdinfo/{fd.name}").read_bytes()


def _comm(process: str) -> str:
    with suppress(OSError):
        return os.fsdecode(Path(f"{process}/comm").read_bytes()).rstrip("\n")
    return "?"


class NewLinks:
    """Detects BPF links made since the last call: netlink does not report XDP programs that are attached by a link.

    Takes one system call where there are none: ids only grow (kernel/bpf/syscall.c, bpf_link_prime: idr_alloc_cyclic).
    Without CAP_SYS_ADMIN all links are listed. Where the kernel can't list them (before 5.19), the result is True.
    """

    def __init__(self) -> None:
        self._last = 0
        self.is_new()

    def is_new(self) -> bool:
        """Return True where links were made; False where the kernel has no links (before 5.7) or refuses the query."""
        is_new, number = False, ctypes.c_uint32()
        # Links that are freed during the loop are skipped; the loop is bounded.
        for _ in range(_LINKS_MAX):
            result = libbpf.library().bpf_link_get_next_id(self._last, ctypes.byref(number))
            if result == -errno.EPERM:
                return self._is_new_listed()
            if result < 0:
                break
            self._last, is_new = number.value, True
        return is_new

    def _is_new_listed(self) -> bool:
        try:
            newest = max(link_ids(), default=0)
        except (OSError, KernelError):
            return True
        is_new, self._last = newest > self._last, max(newest, self._last)
        return is_new
