# SPDX-License-Identifier: Apache-2.0
"""Scope of a thread: a guest's vCPU, its vhost worker, Open vSwitch, ksoftirqd, or others.

Found by names. A guest can't choose its threads' names, but any process on the host can choose its own: a kernel
thread's name counts for a kernel thread only, and a guest's threads are those of the process that holds its tap.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from vifprobe.model.records import HostScope

#: Beginning of a thread's name -> what it is. QEMU: softmmu/cpus.c and iothread.c name them where `-name` says
#: debug-threads=on (libvirt does); then the kernel's vhost workers (drivers/vhost/vhost.c); cloud-hypervisor, crosvm,
#: firecracker.
_KINDS = (
    ("CPU ", HostScope.QEMU_VCPU),
    ("vcpu", HostScope.QEMU_VCPU),
    ("crosvm_vcpu", HostScope.QEMU_VCPU),
    ("fc_vcpu", HostScope.QEMU_VCPU),
    ("vhost-", HostScope.QEMU_VHOST),
    ("IO ", HostScope.QEMU_IOTHREAD),
    ("iothread", HostScope.QEMU_IOTHREAD),
)
_OVS_PROCESS = "ovs-vswitchd"
_GUESTS = ("qemu", "kvm")
_NUMBERED = re.compile(r"(?:[/:-]u?)?\d.*$")
_GUEST_TIME_FIELD = 43  # of /proc/PID/task/TID/stat, proc(5)
_LOOK_SECONDS = 5.0


class Who(NamedTuple):
    """Key under which a thread's time is counted. pid: of its process; None where several processes are added up."""

    scope: HostScope
    name: str
    pid: int | None


class Threads:
    """Finds the scope of threads. pids: of the processes that hold watched taps; can be changed."""

    def __init__(self, pids: Iterable[int] = ()) -> None:
        self.pids = frozenset(pids)
        self._guest_threads: dict[int, frozenset[int]] = {}
        self._looked = 0.0

    def who(self, pid: int, tgid: int, is_kernel: bool, comm: str, process: str) -> Who:
        """Return the key of a thread.

        - pid, comm: id and name of the thread.
        - tgid, process: id of its process, and name of that one's first thread.
        - is_kernel: it is a kernel thread.
        """
        if is_kernel:
            return _kernel_thread(pid, comm)
        if tgid in self.pids:
            return Who(self._kind(pid, tgid, comm, process), comm, tgid)
        if process == _OVS_PROCESS:
            return Who(HostScope.OVS, _without_number(comm), tgid)
        # Each other guest has a separate line: it can be the one that uses the CPUs.
        return Who(HostScope.OTHER, process or comm, tgid if process.startswith(_GUESTS) else None)

    def _kind(self, pid: int, tgid: int, comm: str, process: str) -> HostScope:
        found = next((kind for start, kind in _KINDS if comm.startswith(start)), HostScope.QEMU_EMULATOR)
        if found is HostScope.QEMU_EMULATOR and comm == process and pid != tgid and pid in self._vcpus(tgid):
            return HostScope.QEMU_VCPU
        return found

    def _vcpus(self, tgid: int) -> frozenset[int]:
        """Return the threads that have run guest code, of a QEMU without thread names."""
        now = time.monotonic()
        if now - self._looked > _LOOK_SECONDS:
            self._guest_threads, self._looked = {}, now
        if tgid not in self._guest_threads:
            self._guest_threads[tgid] = frozenset(_with_guest_time(tgid))
        return self._guest_threads[tgid]


def _kernel_thread(pid: int, comm: str) -> Who:
    if comm.startswith("ksoftirqd/"):
        return Who(HostScope.KSOFTIRQD, comm, pid)
    if comm.startswith("vhost-") and comm[6:].isdigit():
        return Who(HostScope.VHOST, comm, pid)
    return Who(HostScope.OTHER, f"[{_without_number(comm)}]", None)


def _without_number(comm: str) -> str:
    """`kworker/0:1`, `handler12` -> `kworker`, `handler`."""
    return _NUMBERED.sub("", comm) or comm


def _with_guest_time(tgid: int) -> list[int]:
    try:
        tasks = os.listdir(f"/proc/{tgid}/task")  # noqa: PTH208 - QEMU has many
    except OSError:
        return []
    return [int(task) for task in tasks if _guest_time(f"/proc/{tgid}/task/{task}/stat")]


def _guest_time(place: str) -> int:
    # The second field, the name, may hold blanks and brackets.
    words = _read(place).rpartition(b")")[2].split()
    at = _GUEST_TIME_FIELD - 3
    return int(words[at]) if len(words) > at else 0


def _read(place: str) -> bytes:
    try:
        return Path(place).read_bytes()
    except OSError:
        return b""
