# SPDX-License-Identifier: Apache-2.0
"""What counting the host's work adds to a context switch: two processes on one CPU play ping-pong over pipes."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vifprobe.kernel.btf import Btf
from vifprobe.kernel.libbpf import attach_typed_tracepoint, load_typed_tracepoint
from vifprobe.kernel.tables.sched import HostCounters

ROUND_TRIPS = 2_000  # two switches each; a run of some 10 ms
RUNS_INSIDE = 5
_EXIT = bytes.fromhex("b700000000000000 9500000000000000")  # r0 = 0; exit


@dataclass(frozen=True)
class Added:
    """Nanoseconds a switch in each round: bare, and what an empty program and vifprobe's added."""

    bare_ns: list[float]
    empty_ns: list[float]
    host_ns: list[float]


def measure(cpu: int, rounds: int) -> None:
    """Between two bare runs each, over and over, in turn; prints the medians and quartiles."""
    found = Added([], [], [])
    with _pair(cpu) as switch_ns:
        for _ in range(rounds):
            for attached, added in ((_empty, found.empty_ns), (_host, found.host_ns)):
                before = switch_ns()
                with attached():
                    inside = statistics.median(switch_ns() for _ in range(RUNS_INSIDE))
                after = switch_ns()
                found.bare_ns.extend((before, after))
                added.append(inside - (before + after) / 2)
    _print(found)


def _print(added: Added) -> None:
    """A line each, as the flood's."""
    print(f"context switch of two processes on one CPU: {statistics.median(added.bare_ns):.0f} ns bare")
    for name, values in (("empty", added.empty_ns), ("host", added.host_ns)):
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"{name:10s} {middle:8.0f} {low:7.0f} {high:7.0f}")


@contextmanager
def _pair(cpu: int) -> Iterator[Callable[[], float]]:
    """A child that answers each byte; the function plays, and gives nanoseconds a switch."""
    forth, back = os.pipe(), os.pipe()
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    child = os.fork()
    if not child:
        os.close(forth[1])
        while os.read(forth[0], 1):
            os.write(back[1], b"x")
        os._exit(0)

    # CPU time of both, so that what else runs on this CPU counts little. kernel/time/posix-cpu-timers.c, CPUCLOCK_SCHED
    clocks = (time.CLOCK_PROCESS_CPUTIME_ID, ~child << 3 | 2)

    def spent_ns() -> int:
        return sum(map(time.clock_gettime_ns, clocks))

    def switch_ns() -> float:
        write, read, to, by = os.write, os.read, forth[1], back[0]
        begun = spent_ns()
        for _ in range(ROUND_TRIPS):
            write(to, b"x")
            read(by, 1)
        return (spent_ns() - begun) / ROUND_TRIPS / 2

    try:
        yield switch_ns
    finally:
        os.close(forth[1])
        os.waitpid(child, 0)
        for fd in (forth[0], *back):
            os.close(fd)
        os.sched_setaffinity(0, before)


@contextmanager
def _empty() -> Iterator[None]:
    """An empty program on sched_switch: what any tool of this kind pays."""
    with Btf() as btf:
        program = load_typed_tracepoint("vifprobe_empty", _EXIT, btf.tracepoint_id("sched_switch"))
    link = attach_typed_tracepoint(program)
    try:
        yield
    finally:
        os.close(link)
        os.close(program)


@contextmanager
def _host() -> Iterator[None]:
    counters = HostCounters()
    try:
        yield
    finally:
        counters.close()
