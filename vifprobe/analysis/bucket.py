# SPDX-License-Identifier: Apache-2.0
"""The ideal token bucket in Python: the same integers as bpf/bucket.c, packet for packet.

Source: net/sched/act_police.c, tcf_police_act: tokens grow with time up to the burst; a packet conforms when there are
enough for all of it, and only then takes them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from vifprobe.layout import NSEC_PER_SEC, Bucket


class TokenBucket:
    """A bucket in use; full at the start."""

    def __init__(self, limit: Bucket) -> None:
        self._limit = limit
        self._tokens = limit.burst_bytes * NSEC_PER_SEC
        self._updated_ns = 0

    def conforms(self, at_ns: int, charged_bytes: int) -> bool:
        """What it says of a packet that arrives at this time (ns, above 0)."""
        elapsed_ns = max(0, at_ns - self._updated_ns)
        self._updated_ns = max(at_ns, self._updated_ns)
        filled = self._tokens + elapsed_ns * self._limit.bytes_per_second
        self._tokens = min(self._limit.burst_bytes * NSEC_PER_SEC, filled)
        cost = charged_bytes * NSEC_PER_SEC
        if cost > self._tokens:
            return False
        self._tokens -= cost
        return True


def judge(limit: Bucket, at_ns: Iterable[int], charged_bytes: Iterable[int]) -> npt.NDArray[np.bool_]:
    """For each packet in order of arrival: does it conform?"""
    bucket = TokenBucket(limit)
    pairs = zip(at_ns, charged_bytes, strict=True)
    return np.fromiter((bucket.conforms(int(at), int(size)) for at, size in pairs), dtype=np.bool_)
