# SPDX-License-Identifier: Apache-2.0
"""CPU time and context switches of the host while a probe runs: the scheduler's counters, joined with thread names.

The programs are loaded in a separate thread, so that packets are counted and shown without waiting for them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from vifprobe.analysis.recent import Recent
from vifprobe.errors import VifprobeError
from vifprobe.host.procs.threads import Threads
from vifprobe.kernel.tables.sched import HostCounters, HostCounts
from vifprobe.model.host_cost import HostCost, HostCostSum, scaled_packets
from vifprobe.model.records import HostScope

#: Readings at shorter intervals share one interval of the host.
LEAST_NS = 95_000_000
#: Number of unread intervals that are kept, the newest ones: some 10 KiB each.
KEPT = 512
_COUNTS = ("voluntary", "involuntary", "cpu_ns")


@dataclass
class _Offered:
    """Offered packets of one tap.

    - packets, ns: since the last host interval, and the time in which they were counted.
    - shown: scaled to the last host interval.
    - total: of all host intervals.
    """

    packets: int = 0
    ns: int = 0
    shown: int = 0
    total: int = 0


class HostCollector:
    """Host cost from `start` to `close`.

    problem: why nothing is counted; "" while counting, or while the programs are being loaded.
    """

    def __init__(self) -> None:
        self.problem = ""
        self._run_start_ns = 0
        self._counters: HostCounters | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._load, name="host cost", daemon=True)
        self._lock = threading.Lock()
        self._threads = Threads()
        self._turned = False
        self._recursion_misses = 0
        self._last_turn_ns = self._start_bound_ns = 0
        self._cost: HostCost | None = None
        self._total: HostCost | None = None
        self._summed = HostCostSum()
        self._offered: dict[str, _Offered] = {}
        self._idle: dict[int | None, HostCost] = {}  # by process: the last interval for taps without packets
        self._new: Recent[HostCost] = Recent(KEPT)

    def start(self) -> None:
        """Start to load the programs."""
        self._thread.start()

    def wait(self) -> None:
        """Wait until the programs are loaded, or loading has failed."""
        self._thread.join()

    def _load(self) -> None:
        try:
            made = HostCounters()
        except (VifprobeError, OSError, MemoryError) as error:
            self.problem = error.message if isinstance(error, VifprobeError) else str(error) or "out of memory"
            return
        with self._lock:
            if self._closed:
                made.close()
            else:
                self._counters = made

    def close(self) -> None:
        """Detach the programs; the counts stay readable. Harmless when called again."""
        with self._lock:
            self._closed = True
            counters, self._counters = self._counters, None
        if counters is not None:
            counters.close()
        if self._thread.is_alive():
            self._thread.join()  # else the programs could be attached after this

    def turn(self, run_start_ns: int, final: bool = False) -> None:
        """End the host's interval. Call it just before packets are read, and `read` just after."""
        self._run_start_ns = run_start_ns
        now_ns = time.monotonic_ns()
        self._turned = self._counters is not None and (final or now_ns - self._last_turn_ns >= LEAST_NS)
        if self._turned and self._counters is not None:
            self._last_turn_ns = now_ns
            self._counters.turn()

    def read(self, pids: Mapping[str, int | None]) -> None:
        """Read the interval that `turn` ended, 1 ms later at the earliest. pids: tap name -> its process, or None."""
        if not self._turned or self._counters is None:
            return
        self._threads.pids = frozenset(pid for pid in pids.values() if pid is not None)
        counts = self._counters.read()
        summed = self._sum_of(counts)
        self._summed.add_all(summed)
        self._cost, self._idle = self._as_cost(counts, summed), {}
        self._new.add(self._cost)
        if self._total is None:
            self._start_bound_ns = counts.start_bound_ns + counts.unseen_bound_ns
        before = self._total or replace(self._cost, duration_ns=0, missed_switches=0, unnamed_switches=0)
        self._total = replace(
            before,
            duration_ns=self._cost.start_ns + self._cost.duration_ns - before.start_ns,
            # What one interval has too much, the next one has too little: the ends of the run are left.
            bound_ns=self._start_bound_ns + counts.end_bound_ns + counts.owed_ns,
            missed_switches=before.missed_switches + self._cost.missed_switches,
            unnamed_switches=before.unnamed_switches + self._cost.unnamed_switches,
            unseen_cpus=self._cost.unseen_cpus,
        )

    def of_tap(self, tap: str, pid: int | None, packets: int, duration_ns: int) -> HostCost | None:
        """Return the last interval for a tap's reading; None: nothing counted yet.

        - tap, pid: name of the tap and its process.
        - packets, duration_ns: offered packets and duration of the reading.
        """
        own = self._offered.setdefault(tap, _Offered())
        own.packets += packets
        own.ns += duration_ns
        if self._cost is None:
            return None
        if self._turned:
            own.shown = scaled_packets(own.packets, own.ns, self._cost.duration_ns)
            own.total += own.shown
            own.packets = own.ns = 0
        if own.shown:
            return replace(self._cost, pid=pid, offered_packets=own.shown)
        if pid not in self._idle:
            self._idle[pid] = replace(self._cost, pid=pid)
        return self._idle[pid]

    def total_of_tap(self, tap: str, pid: int | None) -> HostCost | None:
        """Return the cost of the whole run so far; None: nothing counted yet."""
        if self._total is None:
            return None
        offered = self._offered.get(tap, _Offered()).total
        return replace(self._total, rows=self._summed.rows(), pid=pid, offered_packets=offered)

    def take(self) -> list[HostCost]:
        """Return the intervals since the last call, at most the newest KEPT."""
        return self._new.take()

    def _sum_of(self, counts: HostCounts) -> HostCostSum:
        summed = HostCostSum()
        for task in counts.tasks:
            names = (bytes(task[name]).decode("utf-8", "replace") for name in ("comm", "process"))
            who = self._threads.who(int(task["pid"]), int(task["tgid"]), bool(task["is_kernel"]), *names)
            summed.add(*who, (int(task[name]) for name in _COUNTS))
        if any(counts.unnamed.values()):
            summed.add(HostScope.OTHER, "(unnamed)", None, (counts.unnamed[name] for name in _COUNTS))
        idle = counts.idle_switches.tolist()
        summed.add(HostScope.IDLE, "swapper", None, (0, sum(idle), 0))
        for cpu in range(len(counts.busy_ns)):
            whole = (int(counts.voluntary[cpu]), int(counts.involuntary[cpu]) + idle[cpu], int(counts.busy_ns[cpu]))
            summed.add(HostScope.CPU, f"cpu{cpu}", None, whole)
            summed.add(HostScope.TOTAL, "host", None, whole)
            for scope, ns in zip((HostScope.SOFTIRQ_NET_TX, HostScope.SOFTIRQ_NET_RX), counts.softirq_ns, strict=True):
                summed.add(scope, f"cpu{cpu}", None, (0, 0, int(ns[cpu])))
        return summed

    def _as_cost(self, counts: HostCounts, summed: HostCostSum) -> HostCost:
        missed = counts.recursion_misses - self._recursion_misses
        self._recursion_misses = counts.recursion_misses
        return HostCost(
            start_ns=counts.start_ns - self._run_start_ns,
            duration_ns=counts.duration_ns,
            rows=summed.rows(),
            bound_ns=counts.bound_ns,
            missed_switches=counts.unseen_switches + missed,
            unnamed_switches=counts.unnamed["voluntary"] + counts.unnamed["involuntary"],
            unseen_cpus=counts.unseen_cpus,
        )
