# SPDX-License-Identifier: Apache-2.0
"""What `vifprobe watch` itself costs while taps are idle: CPU time, start, end, the length of intervals."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from vifprobe.testing.net.taps import private_netns, tap
from vifprobe.testing.waiting import wait_until

SECONDS = 6.0  # measured, once the run is settled
SETTLED_INTERVALS = 7  # compiling, loading and the first audit are over by then
START_SECONDS = 120.0
_NFT_RULES = 10_000


@dataclass(frozen=True)
class Case:
    """One run. rules: of an nft chain on the first tap. hogs: processes that take all CPUs meanwhile."""

    name: str
    taps: int
    queues: int = 1
    rules: int = 0
    hogs: int = 0
    options: tuple[str, ...] = ("--json",)


CASES = (
    Case("1 tap", 1),
    Case("1 tap, lines", 1, options=()),
    Case("50 taps", 50),
    Case("200 taps", 200),
    Case("200 taps, lines", 200, options=()),
    Case("8 taps", 8),
    Case("8 taps of 256 queues", 8, queues=256),
    Case("1 tap, 10,000 nft rules", 1, rules=_NFT_RULES),
    Case("50 taps, all CPUs busy", 50, hogs=os.cpu_count() or 1),
)


@dataclass
class Found:
    """What the runs of one case took: % of a core, and seconds to counting, to the end, of the longest interval."""

    share: list[float] = field(default_factory=list)
    start: list[float] = field(default_factory=list)
    end: list[float] = field(default_factory=list)
    interval: list[float] = field(default_factory=list)


def measure(rounds: int, only: str = "", tree: str = "") -> None:
    """Run each case `rounds` times in turn and print the medians. tree: another source tree to compare with."""
    trees = [str(Path(__file__).parents[2]), *([tree] if tree else [])]
    found = {(case.name, one): Found() for case in CASES for one in trees}
    cases = [case for case in CASES if not only or case.name in only.split(";")]
    for _ in range(rounds):
        for case in cases:
            with _set_up(case):
                for one in trees:
                    _run(case, one, found[case.name, one])
    print(f"{'vifprobe watch':26s} {'% of a core':>12s} {'start s':>8s} {'end s':>8s} {'interval s':>11s}", end="")
    print(f"   ({rounds} rounds)")
    for case in cases:
        for one in trees:
            got = found[case.name, one]
            share, start, end = (statistics.median(values) for values in (got.share, got.start, got.end))
            name = case.name if one == trees[0] else "  the other tree"
            print(f"{name:26s} {share:12.1f} {start:8.2f} {end:8.2f} {max(got.interval):11.2f}", flush=True)
    print("start: to the first interval's end; end: from SIGTERM on; interval: the longest one of 1 s")


@contextmanager
def _set_up(case: Case) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(private_netns())
        for number in range(case.taps):
            stack.enter_context(tap(f"tap{number}", multi_queue=case.queues > 1, queues=case.queues))
        if case.rules:
            rule = "ip saddr 203.0.113.7 counter"
            text = "\n".join(f"add rule netdev t c {rule}" for _ in range(case.rules))
            head = 'add table netdev t\nadd chain netdev t c { type filter hook ingress device "tap0" priority 0; }\n'
            subprocess.run(["nft", "-f", "-"], input=head + text, text=True, check=True)
        for _ in range(case.hogs):
            hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(hog.wait)
            stack.callback(hog.kill)
        yield


def _run(case: Case, tree: str, found: Found) -> None:
    python = Path(tree) / ".venv" / "bin" / "python"
    command = [str(python), "-m", "vifprobe", "watch", *(f"tap{number}" for number in range(case.taps)), *case.options]
    with tempfile.TemporaryFile("w+b") as out:
        begun = time.time()
        process = subprocess.Popen(command, stdout=out, cwd=tree)
        try:

            def lines() -> int:
                return os.pread(out.fileno(), 1 << 30, 0).count(b"\n")

            settled = case.taps * SETTLED_INTERVALS
            wait_until(lambda: lines() >= settled or process.poll() is not None, START_SECONDS, poll_seconds=0.1)
            clock = ~process.pid << 3 | 2  # kernel/time/posix-cpu-timers.c: the process's CPU time
            before, since = time.clock_gettime_ns(clock), time.monotonic_ns()
            deadline = time.monotonic() + SECONDS
            wait_until(lambda: time.monotonic() > deadline, SECONDS + 10, poll_seconds=0.5)
            spent, lasted = time.clock_gettime_ns(clock) - before, time.monotonic_ns() - since
            asked = time.monotonic()
            process.terminate()
            process.wait(START_SECONDS)
            found.end.append(time.monotonic() - asked)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        found.share.append(100 * spent / lasted)
        out.seek(0)
        if "--json" in case.options:
            _times([json.loads(line) for line in out], begun, found)
        else:
            found.start.append(float("nan"))
            found.interval.append(float("nan"))


def _times(objects: list[dict[str, Any]], begun: float, found: Found) -> None:
    own = [one for one in objects if one["tap"] == "tap0"]
    found.start.append(datetime.fromisoformat(own[0]["at"]).timestamp() - begun)
    # The first one is as long as it takes to attach everything, the last ones are the rest and the totals.
    found.interval.append(max(one["duration_ns"] for one in own[1:-2]) / 1e9)
