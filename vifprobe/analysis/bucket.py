# SPDX-License-Identifier: Apache-2.0
"""The ideal token bucket in Python: the same integers as bpf/bucket.c, packet for packet.

Source: net/sched/act_police.c, tcf_police_act: tokens grow with time up to the burst; a packet conforms when there are
enough for all of it, and only then takes them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NSEC_PER_SEC = 1_000_000_000
#: Above this a burst in the kernel's units (bytes * 1e9) leaves 64 bits.
BURST_MAX_BYTES = 2**64 // NSEC_PER_SEC // 2


@dataclass
class TokenBucket:
    """Full at the start. bytes_per_second, burst_bytes: above 0."""

    bytes_per_second: int
    burst_bytes: int

    def __post_init__(self) -> None:
        if self.bytes_per_second <= 0 or not 0 < self.burst_bytes <= BURST_MAX_BYTES:
            raise ValueError(f"no bucket: {self.bytes_per_second} byte/s, burst of {self.burst_bytes} bytes")
        self._tokens = self.burst_bytes * NSEC_PER_SEC
        self._updated_ns = 0

    @property
    def fill_ns(self) -> int:
        """How long an empty bucket takes to be full, rounded up."""
        return -(-self.burst_bytes * NSEC_PER_SEC // self.bytes_per_second)

    def conforms(self, at_ns: int, charged_bytes: int) -> bool:
        """What the bucket says of a packet that arrives at this time (monotonic ns, above 0)."""
        elapsed_ns = max(0, at_ns - self._updated_ns)
        self._updated_ns = max(at_ns, self._updated_ns)
        self._tokens = min(self.burst_bytes * NSEC_PER_SEC, self._tokens + elapsed_ns * self.bytes_per_second)
        cost = charged_bytes * NSEC_PER_SEC
        if cost > self._tokens:
            return False
        self._tokens -= cost
        return True


def judge(
    bucket: TokenBucket, at_ns: Iterable[int], charged_bytes: Iterable[int]
) -> npt.NDArray[np.bool_]:
    """For each packet in order of arrival: does it conform?"""
    pairs = zip(at_ns, charged_bytes, strict=True)
    return np.fromiter((bucket.conforms(int(at), int(size)) for at, size in pairs), dtype=np.bool_)
