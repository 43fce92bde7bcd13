# SPDX-License-Identifier: Apache-2.0
"""Load of this host by packets: CPU time of softirqs, of a tap's process and its vhost threads; context switches.

Source: proc(5), /proc/stat and /proc/PID/stat; drivers/vhost/vhost.c for the threads' names.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_LOOK_FOR_THREADS_SECONDS = 15.0


@dataclass(frozen=True)
class LoadSample:
    """Counters of CPU time at one moment. None: unknown.

    - guest_seconds: kernel time of the process that holds the tap (the cost of its writes to the tap), without its
      vhost threads.
    - vhost_seconds: CPU time of its vhost threads.
    - softirq_seconds, busy_seconds, context_switches: of the whole host.
    """

    at_ns: int
    softirq_seconds: float
    busy_seconds: float
    context_switches: int
    guest_seconds: float | None = None
    vhost_seconds: float | None = None


def sample_load(pid: int | None = None) -> LoadSample:
    """Now. pid: the process that holds the tap. OSError where /proc/stat can't be read."""
    at_ns = time.monotonic_ns()
    lines = {line.split(maxsplit=1)[0]: line.split()[1:] for line in Path("/proc/stat").read_text().splitlines()}
    # user nice system idle iowait irq softirq steal guest guest_nice
    spent = [int(word) / _TICKS_PER_SECOND for word in lines["cpu"]]
    busy = sum(spent[:8]) - spent[3] - spent[4]
    vhost = _vhost(pid) if pid else None
    guest = _kernel_seconds(f"/proc/{pid}/stat") if pid else None
    if guest is not None and vhost is not None and _vhost_tasks(pid or 0):
        guest -= vhost  # from 6.4 on they are threads of this very process
    return LoadSample(at_ns, spent[6], busy, int(lines["ctxt"][0]), guest, vhost)


def _vhost(pid: int) -> float | None:
    """Time of the vhost threads of a process: its own (6.4 and later), or kernel threads called `vhost-<pid>`."""
    places = _vhost_tasks(pid) or _kernel_threads(_period()).get(f"vhost-{pid}", ())
    seconds = [one for one in map(_kernel_seconds, places) if one is not None]
    return sum(seconds) if seconds else None


def _vhost_tasks(pid: int) -> tuple[str, ...]:
    return _vhost_tasks_in(pid, _period())


def _period() -> int:
    """Threads are looked for anew this often only: a big node has thousands, and this runs every second."""
    return int(time.monotonic() // _LOOK_FOR_THREADS_SECONDS)


@lru_cache(maxsize=1024)
def _vhost_tasks_in(pid: int, period: int) -> tuple[str, ...]:
    try:
        tasks = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 - QEMU has many
    except OSError:
        return ()
    places = (f"/proc/{pid}/task/{task}" for task in tasks)
    return tuple(f"{place}/stat" for place in places if _comm(place).startswith("vhost-"))


@lru_cache(maxsize=1)
def _kernel_threads(period: int) -> dict[str, tuple[str, ...]]:
    """Name -> stat files of the kernel threads, which are the children of kthreadd."""
    found: dict[str, tuple[str, ...]] = {}
    try:
        children = Path("/proc/2/task/2/children").read_text().split()
    except OSError:
        return found
    for child in children:
        name = _comm(f"/proc/{child}")
        found[name] = (*found.get(name, ()), f"/proc/{child}/stat")
    return found


def _comm(place: str) -> str:
    try:
        return os.fsdecode(Path(f"{place}/comm").read_bytes()).strip()
    except OSError:
        return ""


def _kernel_seconds(place: str) -> float | None:
    """The 15th field, stime; the second one, the name, may hold blanks and brackets."""
    try:
        words = Path(place).read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return int(words[12]) / _TICKS_PER_SECOND if len(words) > 12 else None
