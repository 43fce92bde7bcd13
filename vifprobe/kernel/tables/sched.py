# SPDX-License-Identifier: Apache-2.0
"""CPU time and context switches by thread: the programs of `bpf/progs/sched.c`, their tables read at each interval.

An interval ends when its number is incremented on every CPU (`turn`). Once each CPU has been observed between two
switches after that, nothing writes to the tables of the interval any more, and they are read (`read`).

A slice of CPU time that was running at the turn is split by its times. Its start is in the CPU's state (struct
host_cpu). If it has ended since, the kernel side has recorded it whole as the slice that crossed the turn.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vifprobe.errors import KernelError
from vifprobe.kernel import libbpf
from vifprobe.kernel.btf import Btf
from vifprobe.kernel.features import require_capabilities
from vifprobe.kernel.settings import possible_cpus
from vifprobe.kernel.tables.mapped import MappedArray
from vifprobe.kernel.tables.slices import (
    PF_KTHREAD,
    Slices,
    crossing,
    listed_cpus,
    no_slices,
    thread_from_proc,
    visit_cpus,
)
from vifprobe.kernel.toolchain.cache import compiled
from vifprobe.kernel.toolchain.instructions import linked
from vifprobe.kernel.toolchain.source import source_directory
from vifprobe.model.records import HOST_TASK

Array = npt.NDArray[Any]

SOURCE = "progs/sched.c"
#: Tasks with a row of their own on one CPU in one interval, and slots tried for one; others are counted as unnamed.
TASK_ROWS = 1024
TASK_PROBES = 8
#: The tracepoints; each program has the name of its tracepoint.
_TRACEPOINTS = ("sched_switch", "softirq_entry", "softirq_exit")
#: Name in bpf/progs/sched.c -> member of task_struct.
_MEMBERS = {
    "TASK_PID": "pid",
    "TASK_TGID": "tgid",
    "TASK_FLAGS": "flags",
    "TASK_COMM": "comm",
    "TASK_GROUP_LEADER": "group_leader",
    "TASK_VOLUNTARY": "nvcsw",
}
_COUNTS = ("voluntary", "involuntary", "cpu_ns")
_NOBODY = np.zeros(0, HOST_TASK)
#: Name in bpf/progs/sched.c -> member of the sched_entity in task_struct.
_ENTITY_MEMBERS = {"TASK_CPU_NS": "sum_exec_runtime", "TASK_PICKED_CPU_NS": "prev_sum_exec_runtime"}
_READ_RETRIES = 40
#: More than long enough for the stores of a program that read the older interval's number to reach memory.
SETTLE_SECONDS = 0.001


@dataclass(frozen=True)
class HostCounts:
    """Counts of one interval of the whole host. Monotonic clock.

    - start_ns, duration_ns: of the interval.
    - tasks: rows of records.HOST_TASK, one for each thread that ran.
    - voluntary, involuntary: switches from tasks, by CPU number.
    - idle_switches: switches from the idle task, by CPU number.
    - busy_ns: time that tasks ran, by CPU number.
    - unnamed: counts of tasks for which no row was free; the four above contain them.
    - softirq_ns, softirq_runs: shape (2, CPUs), NET_TX and NET_RX.
    - start_bound_ns, end_bound_ns: error bound of the sum of all tasks' CPU times, at each end of the interval.
    - unseen_bound_ns: CPU time of slices that began with a switch that was not seen: they can have begun, in part,
      before the interval.
    - owed_ns: CPU time that this and earlier intervals have too much, and that no interval has yet too little: a slice
      was estimated too long when it was cut.
    - unseen_switches: minimum number of switches that the tracepoint did not report.
    - unseen_cpus: CPUs without a switch so far: the task that runs there, if any, is unknown.
    - recursion_misses: events since the start for which the kernel did not run the programs.
    """

    start_ns: int
    duration_ns: int
    tasks: Array
    voluntary: Array
    involuntary: Array
    idle_switches: Array
    busy_ns: Array
    unnamed: dict[str, int]
    softirq_ns: Array
    softirq_runs: Array
    start_bound_ns: int
    end_bound_ns: int
    unseen_bound_ns: int = 0
    owed_ns: int = 0
    unseen_switches: int = 0
    unseen_cpus: tuple[int, ...] = ()
    recursion_misses: int = 0

    @property
    def bound_ns(self) -> int:
        """Return the error bound of the sum of all tasks' CPU times."""
        return self.start_bound_ns + self.end_bound_ns + self.unseen_bound_ns


def flags(cpus: int) -> list[str]:
    """Return the compiler's -D flags: offsets and argument numbers from the running kernel's BTF.

    Raises KernelError where the BTF lacks one.
    """
    with Btf() as btf:
        # (preempt, prev, next), (preempt, prev_state, prev, next) or (preempt, prev, next, prev_state).
        tasks = btf.tracepoint_pointers("sched_switch", "task_struct")
        if len(tasks) != 2:
            raise KernelError("this kernel's tracepoint sched:sched_switch does not have two task_struct arguments.")
        values: dict[str, int] = {name: btf.offset_bytes("task_struct", member) for name, member in _MEMBERS.items()}
        entity = btf.offset_bytes("task_struct", "se")
        values |= {name: entity + btf.offset_bytes("sched_entity", member) for name, member in _ENTITY_MEMBERS.items()}
    values |= {"PREV_ARGUMENT": tasks[0], "NEXT_ARGUMENT": tasks[1]}
    values |= {"CPUS": cpus, "TASK_ROWS": TASK_ROWS, "TASK_PROBES": TASK_PROBES}
    return [f"-D{name}={value}" for name, value in values.items()]


class HostCounters:
    """Programs on the scheduler's and the softirqs' tracepoints, attached until `close` or the end of the process.

    Raises KernelError where this kernel lacks a tracepoint or its type information, or refuses a program. Nothing
    stays attached then.
    """

    def __init__(self) -> None:
        require_capabilities()
        self._cpus = possible_cpus()
        self._no_tick = listed_cpus("nohz_full")
        self._fds: list[int] = []
        self._programs: list[int] = []
        try:
            self._open()
        except OSError as error:
            self.close()
            raise KernelError(f"CPU time and context switches can't be counted: {error.strerror}.") from error
        except BaseException:
            self.close()
            raise
        self._number = 0
        self._turned_ns = self._before_ns = 0
        self._turn_took_ns = self._end_bound_ns = 0
        self._slices = no_slices(self._cpus)
        self._softirqs = self._softirqs_before = self._softirqs_now()
        self._identities: dict[int, Array] = {}
        self._owed = np.zeros(0, HOST_TASK)
        self._busy_owed = np.zeros(self._cpus, np.int64)
        visit_cpus()
        # CPU time before the first turn belongs to no interval.
        self.snapshot()

    def _open(self) -> None:
        directory = source_directory()
        text = f'#line 1 "{directory / SOURCE}"\n{(directory / SOURCE).read_text()}'
        made = compiled(text, directory, flags(self._cpus))
        maps = []
        for shape in made.maps:
            sizes = (shape.key_bytes, shape.value_bytes, shape.entries)
            maps.append(libbpf.create_map(shape.name, shape.kind, *sizes, shape.flags))
            self._fds.append(maps[-1])
        arrays = {
            shape.name: MappedArray(fd, np.lib.format.descr_to_dtype(shape.leaf), shape.entries, writable).rows
            for fd, shape in zip(maps, made.maps, strict=True)
            for writable in (shape.name == "host_cpus",)
        }
        self._host, self._rows, self._used_rows = (
            arrays[name] for name in ("host_cpus", "task_rows", "used_task_rows")
        )
        with Btf() as btf:
            ids = {name: btf.tracepoint_id(name) for name in _TRACEPOINTS}
        for name, btf_id in ids.items():
            code = linked(made.code[name], maps)
            self._programs.append(libbpf.load_typed_tracepoint(f"vifprobe_{name}", code, btf_id))
            self._fds.append(self._programs[-1])
        self._host["now"] = 1
        for fd in self._programs:
            self._fds.append(libbpf.attach_typed_tracepoint(fd))

    def close(self) -> None:
        """Detach and free everything; harmless when called again."""
        for table in ("_host", "_rows", "_used_rows"):
            self.__dict__.pop(table, None)
        while self._fds:  # the links first
            os.close(self._fds.pop())

    @property
    def recursion_misses(self) -> int:
        """Return the number of events since loading for which the kernel did not run the programs (0 before 5.12)."""
        return sum(libbpf.recursion_misses(fd) for fd in self._programs)

    def snapshot(self) -> HostCounts:
        """End the interval that began at the last turn, or at the start, and return its counts."""
        self.turn()
        time.sleep(SETTLE_SECONDS)
        return self.read()

    def turn(self) -> None:
        """End the interval now. `read` must follow before the next turn."""
        self._number += 1
        self._before_ns, self._turned_ns = self._turned_ns, time.monotonic_ns()
        self._host["now"] = self._number + 1
        # A slice that ends in this time is counted before the turn. It is long where this thread loses its CPU.
        self._turn_took_ns = time.monotonic_ns() - self._turned_ns
        self._softirqs_before, self._softirqs = self._softirqs, np.maximum(self._softirqs_now(), self._softirqs)

    def read(self) -> HostCounts:
        """Return the interval that the last turn ended. Call it SETTLE_SECONDS after that turn at the earliest."""
        host = self._whole()
        before, self._slices = self._slices, crossing(host, self._number, self._turned_ns, self._no_tick)
        ended = host["intervals"][:, self._number & 1].copy()
        ended[ended["interval"] != self._number] = 0
        cpu, rows = self._listed(ended["rows"])
        slices = ((before, -1), (self._slices, 1))
        tasks = self._settled(self._tasks(rows, slices))
        unnamed = {name: int(ended[f"unnamed_{name}"].sum()) for name in _COUNTS}
        by_cpu = {
            name: np.bincount(cpu, rows[name], self._cpus).astype(np.int64) + ended[f"unnamed_{name}"].astype(np.int64)
            for name in _COUNTS
        }
        busy_ns = by_cpu["cpu_ns"] + sum(sign * one.ns for one, sign in slices) + self._busy_owed
        self._busy_owed, busy_ns = np.minimum(busy_ns, 0), np.maximum(busy_ns, 0)
        softirqs = self._softirqs - self._softirqs_before
        online = listed_cpus("online")
        start_bound_ns = self._end_bound_ns
        self._end_bound_ns = int(self._slices.bound_ns.sum()) + self._turn_took_ns * len(online)
        return HostCounts(
            start_ns=self._before_ns,
            duration_ns=self._turned_ns - self._before_ns,
            tasks=tasks,
            voluntary=by_cpu["voluntary"],
            involuntary=by_cpu["involuntary"],
            idle_switches=ended["idle_switches"].astype(np.int64),
            busy_ns=busy_ns,
            unnamed=unnamed,
            softirq_ns=softirqs[0],
            softirq_runs=softirqs[1],
            start_bound_ns=start_bound_ns,
            end_bound_ns=self._end_bound_ns,
            unseen_bound_ns=int(ended["unseen_cpu_ns"].sum()),
            owed_ns=-int(self._owed["cpu_ns"].sum()),
            unseen_switches=int(ended["unseen_switches"].sum()),
            unseen_cpus=tuple(cpu for cpu in sorted(online) if not host["ended"][cpu]),
            recursion_misses=self.recursion_misses,
        )

    def _whole(self) -> Array:
        """Return the state of all CPUs (struct host_cpu), each one read between two switches.

        A program takes less than a microsecond, with interrupts off: the read only waits where a hypervisor has
        stopped a CPU. Such a CPU's counts are left to the next interval, and its running task is unknown in this one.
        """
        host = self._host.copy()
        torn = np.arange(self._cpus)
        for attempt in range(_READ_RETRIES):
            ended = self._host["ended"][torn]
            host[torn] = self._host[torn]
            torn = torn[self._host["begun"][torn] != ended]
            if not len(torn):
                return host
            if attempt > _READ_RETRIES // 2:
                time.sleep(SETTLE_SECONDS)
        host["running"][torn] = 0
        return host

    def _listed(self, used: Array) -> tuple[Array, Array]:
        """Return CPU and row of each task of the interval that has ended."""
        tables = (np.arange(self._cpus) * 2 + (self._number & 1)) * TASK_ROWS
        places = [self._used_rows[table : table + count] for table, count in zip(tables, used, strict=True)]
        return np.repeat(np.arange(self._cpus), used), self._rows[np.concatenate(places)]

    def _tasks(self, rows: Array, slices: tuple[tuple[Slices, int], ...]) -> Array:
        """Return the rows of all CPUs by thread, with the slices that cross the ends of the interval."""
        found = np.zeros(len(rows), HOST_TASK)
        for name in ("pid", "tgid", *_COUNTS):
            found[name] = rows[name]
        found["is_kernel"] = rows["flags"] & PF_KTHREAD != 0
        for name in ("comm", "process"):
            found[name] = np.ascontiguousarray(rows[name]).view("S16")[:, 0] if len(rows) else b""
        parts = [found]
        identities: dict[int, Array] = {}
        for one, sign in slices:
            for cpu in np.flatnonzero(one.pid):
                pid = int(one.pid[cpu])
                row = identities[pid] = self._identity(pid, found)
                row["cpu_ns"] = sign * one.ns[cpu]
                parts.append(row.copy())
        self._identities = identities
        return _by_thread(np.concatenate(parts))

    def _settled(self, tasks: Array) -> Array:
        """Return the tasks without negative CPU times.

        A running slice can have been estimated too long (by bound_ns at most). The difference is deducted in the next
        interval, so that the sum over all intervals is right.
        """
        owed = self._owed[np.isin(self._owed["pid"], tasks["pid"])]
        tasks = _by_thread(np.concatenate([tasks, owed]))
        self._owed = tasks[tasks["cpu_ns"] < 0].copy()
        for name in ("voluntary", "involuntary"):
            self._owed[name] = 0
        tasks["cpu_ns"] = np.maximum(tasks["cpu_ns"], 0)
        shown: Array = tasks[(tasks["cpu_ns"] > 0) | (tasks["voluntary"] + tasks["involuntary"] > 0)]
        return shown

    def _identity(self, pid: int, found: Array) -> Array:
        """Return a row with a thread's names and counts of zero."""
        own = found[found["pid"] == pid][:1]
        if not len(own):
            own = self._identities.get(pid, _NOBODY)
        if not len(own):
            own = thread_from_proc(pid)
        row: Array = own.copy()
        for name in _COUNTS:
            row[name] = 0
        return row

    def _softirqs_now(self) -> Array:
        """Return ns (with the running softirq) and runs of NET_TX and NET_RX; shape (2, 2, CPUs)."""
        now = time.monotonic_ns()
        raw = self._host["softirqs"].copy()
        inside = np.where(raw["entered_ns"] != 0, now - raw["entered_ns"].astype(np.int64), 0)
        ns = raw["ns"].astype(np.int64) + np.maximum(inside, 0)
        return np.stack([ns.T, raw["runs"].astype(np.int64).T])


def _by_thread(rows: Array) -> Array:
    """Return one row for each thread: the sum of its counts, with the names of its first row."""
    pids, first, where = np.unique(rows["pid"], return_index=True, return_inverse=True)
    merged: Array = rows[first]
    for name in _COUNTS:
        merged[name] = 0
        np.add.at(merged[name], where, rows[name])
    return merged if len(pids) else rows
