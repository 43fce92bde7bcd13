# SPDX-License-Identifier: Apache-2.0
"""Numbers that hold on a busy machine: medians with their confidence, and the kernel's own account of its programs."""

from __future__ import annotations

import math
import os
import statistics
import struct
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from vifprobe.kernel.libbpf import library, object_info

# struct bpf_prog_info: run_time_ns, run_cnt (include/uapi/linux/bpf.h)
_RUN_TIME_OFFSET = 192
_DRAWS = 2_000


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(lower, median, upper): the median and its 95 % interval, whatever the distribution: ranks of a fair coin."""
    ordered = sorted(values)
    rank = max(0, math.floor((len(ordered) - 1.96 * math.sqrt(len(ordered))) / 2))
    return ordered[rank], statistics.median(ordered), ordered[len(ordered) - 1 - rank]


def ratio_interval(values: Sequence[float], others: Sequence[float]) -> tuple[float, float, float]:
    """(lower, ratio, upper): of the medians, values over others, with its 95 % interval by the bootstrap. Rounds are
    drawn anew from those that were measured: the same ones for both where there are as many of each.
    """
    random = np.random.default_rng(1)
    own, other = np.asarray(values), np.asarray(others)
    drawn = random.integers(0, len(own), (_DRAWS, len(own)))
    drawn_others = drawn if len(other) == len(own) else random.integers(0, len(other), (_DRAWS, len(other)))
    ratios = np.median(own[drawn], axis=1) / np.median(other[drawn_others], axis=1)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return float(low), float(np.median(own) / np.median(other)), float(high)


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
