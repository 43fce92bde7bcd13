# SPDX-License-Identifier: Apache-2.0
"""Numbers that hold on a busy machine: medians with their confidence, and the kernel's own account of its programs."""

from __future__ import annotations

import math
import os
import statistics
import struct
from collections.abc import Callable, Iterable, Sequence

from vifprobe.kernel.libbpf import library, object_info

# struct bpf_prog_info: run_time_ns, run_cnt (include/uapi/linux/bpf.h)
_RUN_TIME_OFFSET = 192


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(lower, median, upper): the median and its 95 % interval, whatever the distribution: ranks of a fair coin."""
    ordered = sorted(values)
    rank = max(0, math.floor((len(ordered) - 1.96 * math.sqrt(len(ordered))) / 2))
    return ordered[rank], statistics.median(ordered), ordered[len(ordered) - 1 - rank]


def own_ns(programs: Iterable[int], run: Callable[[], object], packets: int) -> float:
    """Nanoseconds a packet that the programs (fds) themselves take while `run` sends that many packets, as bpf_stats
    has it: reading the clock twice a run is in it, so that an empty program has its price, too.
    """
    fds = list(programs)
    stats = library().bpf_enable_stats(0)  # BPF_STATS_RUN_TIME, as long as the fd is open
    if stats < 0:
        return math.nan
    try:
        before = sum(map(_run_time_ns, fds))
        run()
        return (sum(map(_run_time_ns, fds)) - before) / packets
    finally:
        os.close(stats)


def _run_time_ns(fd: int) -> int:
    return int(struct.unpack_from("=Q", object_info(fd), _RUN_TIME_OFFSET)[0])
