# SPDX-License-Identifier: Apache-2.0
"""Who ran on this host's CPUs: the programs of `bpf/progs/sched.c`, and their tables read interval by interval.

An interval ends when its number is counted up on every CPU (`turn`). Once each CPU has been seen between two switches
since, nothing writes to its tables any more, and they are read (`read`). A slice of CPU time that had begun by then and
was not over is cut in two by its times: its beginning is in the CPU's own words, or, if it has ended since, the kernel
side has put it down whole as the slice that crossed the turn.
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
#: Tasks that a CPU can tell apart in one interval, and slots tried for one; others are counted without their names.
TASK_ROWS = 1024
TASK_PROBES = 8
#: The programs, by their tracepoints.
_TRACEPOINTS = ("sched_switch", "softirq_entry", "softirq_exit")
#: What bpf/progs/sched.c calls them -> member of task_struct.
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
#: The same of the sched_entity in it.
_ENTITY_MEMBERS = {"TASK_CPU_NS": "sum_exec_runtime", "TASK_PICKED_CPU_NS": "prev_sum_exec_runtime"}
_READ_RETRIES = 40
#: Stores of a program that saw the older interval's number are in memory by then, by far.
SETTLE_SECONDS = 0.001


@dataclass(frozen=True)
class HostCounts:
    """One interval of the whole host. Monotonic clock.

    tasks: rows of records.HOST_TASK, every thread that ran once. voluntary, involuntary, idle_switches, busy_ns: by CPU
    number; switches from tasks, from the idle task, and the time that tasks ran. unnamed: what tasks did for which no
    row was free (in those four too). softirq_ns, softirq_runs: shape (2, CPUs), NET_TX and NET_RX. bound_ns: what the
    CPU times of all tasks together may be off by. unseen_switches: switches (at least) that the tracepoint did not tell
    of. unseen_cpus: CPUs that did not switch once, so that it is not known what runs there, if anything.
    recursion_misses: events that the kernel kept from the programs, since the start.
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
    bound_ns: int
    unseen_switches: int = 0
    unseen_cpus: tuple[int, ...] = ()
    recursion_misses: int = 0


def flags(cpus: int) -> list[str]:
    """The compiler's -D flags, offsets and argument places from the running kernel's BTF. KernelError: it lacks one."""
    with Btf() as btf:
        # (preempt, prev, next), (preempt, prev_state, prev, next) or (preempt, prev, next, prev_state).
        tasks = btf.tracepoint_pointers("sched_switch", "task_struct")
        if len(tasks) != 2:
            raise KernelError("this kernel's tracepoint sched:sched_switch does not tell of two tasks.")
        values: dict[str, int] = {name: btf.offset_bytes("task_struct", member) for name, member in _MEMBERS.items()}
        entity = btf.offset_bytes("task_struct", "se")
        values |= {name: entity + btf.offset_bytes("sched_entity", member) for name, member in _ENTITY_MEMBERS.items()}
    values |= {"PREV_ARGUMENT": tasks[0], "NEXT_ARGUMENT": tasks[1]}
    values |= {"CPUS": cpus, "TASK_ROWS": TASK_ROWS, "TASK_PROBES": TASK_PROBES}
    return [f"-D{name}={value}" for name, value in values.items()]


class HostCounters:
    """The scheduler's and the softirqs' tracepoints, attached from the making to `close`. They end with the process.

    KernelError: this kernel lacks a tracepoint or its type information, or refuses a program; nothing is left then.
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
            raise KernelError(f"what the host does can't be counted: {error.strerror}.") from error
        except BaseException:
            self.close()
            raise
        self._number = 0
        self._turned_ns = self._before_ns = 0
        self._slices = no_slices(self._cpus)
        self._softirqs = self._softirqs_before = self._softirqs_now()
        self._identities: dict[int, Array] = {}
        self._owed = np.zeros(0, HOST_TASK)
        self._busy_owed = np.zeros(self._cpus, np.int64)
        visit_cpus()
        # What ran before the first turn belongs to no interval.
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
        """Events that the kernel kept from the programs, since they were loaded (since 5.12; before, 0)."""
        return sum(libbpf.recursion_misses(fd) for fd in self._programs)

    def snapshot(self) -> HostCounts:
        """The interval since the last turn, or since the making."""
        self.turn()
        time.sleep(SETTLE_SECONDS)
        return self.read()

    def turn(self) -> None:
        """End the interval, now; `read` it before the next turn."""
        self._number += 1
        self._before_ns, self._turned_ns = self._turned_ns, time.monotonic_ns()
        self._host["now"] = self._number + 1
        self._softirqs_before, self._softirqs = self._softirqs, np.maximum(self._softirqs_now(), self._softirqs)

    def read(self) -> HostCounts:
        """The interval that the last turn ended; to be called SETTLE_SECONDS after it at the earliest."""
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
            bound_ns=int(before.bound_ns.sum() + self._slices.bound_ns.sum()),
            unseen_switches=int(ended["unseen_switches"].sum()),
            unseen_cpus=tuple(cpu for cpu in sorted(listed_cpus("online")) if not host["ended"][cpu]),
            recursion_misses=self.recursion_misses,
        )

    def _whole(self) -> Array:
        """All CPUs' words, each CPU's from between two switches.

        A program takes less than a microsecond, with interrupts off: only one whose CPU a hypervisor has stopped keeps
        us waiting. What it does is then left to the next interval, and what runs there is not known in this one.
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
        """CPU and row of each task of the interval that has ended."""
        tables = (np.arange(self._cpus) * 2 + (self._number & 1)) * TASK_ROWS
        places = [self._used_rows[table : table + count] for table, count in zip(tables, used, strict=True)]
        return np.repeat(np.arange(self._cpus), used), self._rows[np.concatenate(places)]

    def _tasks(self, rows: Array, slices: tuple[tuple[Slices, int], ...]) -> Array:
        """Rows of all CPUs, and slices that began or end in another interval, by thread."""
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
        """Tasks with no less than no time: a running slice that was held to be longer than it was (by bound_ns at most)
        is made up for in the next interval, so that the sum of all is right.
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
        """A row that names a thread and counts nothing."""
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
        """Shape (2, 2, CPUs): ns, what runs now included, and runs; of NET_TX and NET_RX."""
        now = time.monotonic_ns()
        raw = self._host["softirqs"].copy()
        inside = np.where(raw["entered_ns"] != 0, now - raw["entered_ns"].astype(np.int64), 0)
        ns = raw["ns"].astype(np.int64) + np.maximum(inside, 0)
        return np.stack([ns.T, raw["runs"].astype(np.int64).T])


def _by_thread(rows: Array) -> Array:
    """Each thread once, its counts added up. Names: of the row of it that came first."""
    pids, first, where = np.unique(rows["pid"], return_index=True, return_inverse=True)
    merged: Array = rows[first]
    for name in _COUNTS:
        merged[name] = 0
        np.add.at(merged[name], where, rows[name])
    return merged if len(pids) else rows
