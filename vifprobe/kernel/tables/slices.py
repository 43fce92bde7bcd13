# SPDX-License-Identifier: Apache-2.0
"""Slices of CPU time that cross the end of an interval: the part of each before it, and the error bound."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vifprobe.model.records import HOST_TASK

Array = npt.NDArray[Any]

#: The longest tick that a kernel can be built with (CONFIG_HZ=100).
TICK_NS_MAX = 10_000_000
PF_KTHREAD = 0x00200000  # include/linux/sched.h


@dataclass(frozen=True)
class Slices:
    """The slice that ran on each CPU when an interval ended.

    - pid: of the thread; 0: idle, or not known yet.
    - ns: CPU time of the slice up to that moment.
    - bound_ns: maximum by which `ns` is too high: time that interrupts or a hypervisor took from the slice, where the
      kernel accounts those separately.
    """

    pid: Array
    ns: Array
    bound_ns: Array


def no_slices(cpus: int) -> Slices:
    """Return slices for idle CPUs."""
    return Slices(*(np.zeros(cpus, np.int64) for _ in range(3)))


def share(start_ns: int, turned_ns: int, end_ns: int, cpu_ns: int) -> tuple[int, int]:
    """Return the CPU time before the turn of a slice that has ended, and its error bound; both in ns.

    Where the kernel accounts interrupts separately, cpu_ns is less than the duration of the slice.
    """
    whole, ran = end_ns - start_ns, min(max(turned_ns - start_ns, 0), end_ns - start_ns)
    if whole <= 0:
        return 0, 0
    least, most = max(0, cpu_ns - (whole - ran)), min(cpu_ns, ran)
    return min(max(cpu_ns * ran // whole, least), most), max(0, most - least)


def _running(pid: int, ran_ns: int, entered_cpu_ns: int, no_tick: bool) -> tuple[int, int]:
    """Return CPU time and error bound of a slice that still runs, by the clock; both in ns.

    The kernel's own accounting of the slice is one tick old at most.
    """
    if not pid or ran_ns <= 0:
        return 0, 0
    accounted = _accounted_ns(pid)
    if accounted is None or no_tick:
        return ran_ns, 0 if accounted is None else max(0, ran_ns - max(0, accounted - entered_cpu_ns))
    least = max(0, accounted - entered_cpu_ns)
    return min(ran_ns, least + TICK_NS_MAX), max(0, min(ran_ns, least + TICK_NS_MAX) - least)


def _accounted_ns(pid: int) -> int | None:
    """Return a thread's CPU time up to the last tick or switch; None where it has ended.

    Source: first field of /proc/PID/schedstat (proc_pid_schedstat in fs/proc/base.c).
    """
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_bytes().split()[0])
    except (OSError, IndexError):
        return None


def crossing(host: Array, number: int, turned_ns: int, no_tick: set[int]) -> Slices:
    """Return the slice that ran on each CPU when an interval ended.

    - host: state of each CPU (struct host_cpu of bpf/progs/sched.c), read after the end.
    - number: of the interval.
    - turned_ns: end of the interval, monotonic clock.
    - no_tick: CPUs that the kernel does not interrupt for accounting (nohz_full).
    """
    slices = no_slices(len(host))
    after = host["intervals"][:, (number + 1) & 1]
    for cpu in range(len(host)):
        if after["interval"][cpu] == number + 1:  # the slice has ended since
            pid = int(after["crossed_pid"][cpu])
            start, end, cpu_ns = (int(after[f"crossed_{name}"][cpu]) for name in ("from_ns", "to_ns", "cpu_ns"))
            ran, bound = share(start, turned_ns, end, cpu_ns)
        else:
            pid, start = int(host["running"][cpu]), int(host["entered_ns"][cpu])
            ran, bound = _running(pid, turned_ns - start, int(host["entered_cpu_ns"][cpu]), cpu in no_tick)
        if pid:
            slices.pid[cpu], slices.ns[cpu], slices.bound_ns[cpu] = pid, ran, bound
    return slices


def thread_from_proc(pid: int) -> Array:
    """Return the names of a thread that has not left its CPU since counting began, from /proc, as a HOST_TASK row."""
    row = np.zeros(1, HOST_TASK)
    row["pid"] = row["tgid"] = pid
    try:
        row["comm"] = Path(f"/proc/{pid}/comm").read_bytes().rstrip(b"\n")[:15]
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        row["tgid"] = int(status["Tgid"])
        row["process"] = Path(f"/proc/{status['Tgid'].strip()}/comm").read_bytes().rstrip(b"\n")[:15]
        row["is_kernel"] = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[6]) & PF_KTHREAD != 0
    except (OSError, KeyError, ValueError, IndexError):
        pass  # it has ended: only its number is known
    return row


def listed_cpus(name: str) -> set[int]:
    """Return the CPUs in a list of /sys/devices/system/cpu; empty where the list is empty or missing."""
    try:
        words = Path(f"/sys/devices/system/cpu/{name}").read_text().strip().split(",")
    except OSError:
        return set()
    ends = (word.partition("-") for word in words if word[:1].isdigit())
    return {cpu for low, _, high in ends for cpu in range(int(low), int(high or low) + 1)}


def visit_cpus() -> None:
    """Run on each CPU for a moment, to cause a switch there.

    The running task of a CPU is known only after a switch, and a guest that spins on an idle host can run for seconds
    without one. Isolated CPUs are not visited: they are reported as unseen until they switch.
    """
    allowed = os.sched_getaffinity(0)
    try:
        for cpu in sorted(allowed - listed_cpus("isolated") - listed_cpus("nohz_full")):
            with suppress(OSError):  # taken offline
                os.sched_setaffinity(0, {cpu})
    finally:
        os.sched_setaffinity(0, allowed)
