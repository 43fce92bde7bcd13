# SPDX-License-Identifier: Apache-2.0
"""The ideal token bucket in Python: the same integers as bpf/lib/token_bucket.c, packet for packet.

Source: net/sched/act_police.c, tcf_police_act: tokens (nanoseconds) grow with time up to the burst; a packet conforms
when there are enough for all of it, and only then takes them. What is in the bucket is kept as the moment at which it
would be empty.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from vifprobe.model.layout import BUCKET_SLACK_NS, Bucket, Verdict


class TokenBucket:
    """A bucket in use; full at `full_at_ns`.

    settle() is for where a policer is installed: see settle_bucket() of bpf/lib/token_bucket.c for what it may correct
    and why.
    """

    def __init__(self, limit: Bucket, full_at_ns: int = 0) -> None:
        self._limit = limit
        self._burst_ns = limit.burst_ns
        self._mult, self._shift = limit.ratio
        self._empty_ns = full_at_ns - self._burst_ns
        self._unsure_ns = self._burst_ns

    def conforms(self, at_ns: int, charged_bytes: int) -> bool:
        """What it says of a packet that arrives at this time."""
        cost_ns = self._cost_ns(charged_bytes)
        return self._take(at_ns, cost_ns, cost_ns)

    def settle(self, at_ns: int, charged_bytes: int, conforms: bool, verdict: Verdict) -> bool:
        """What stands in the end of what conforms() said of that packet, the last one, once its verdict is known."""
        if conforms != (verdict is Verdict.POLICED):
            return conforms
        cost_ns = self._cost_ns(charged_bytes)
        if conforms:
            return not self._give_back(at_ns, cost_ns)
        return cost_ns <= self._burst_ns and self._take(at_ns, cost_ns, 0)

    def _cost_ns(self, charged_bytes: int) -> int:
        return charged_bytes * self._mult >> self._shift

    def _take(self, at_ns: int, cost_ns: int, least_ns: int) -> bool:
        over_ns = max(0, at_ns - self._empty_ns - self._burst_ns)
        if at_ns - self._empty_ns - over_ns < least_ns:
            return False
        self._empty_ns += over_ns + cost_ns
        if over_ns:
            self._unsure_ns = max(self._unsure_ns - over_ns, BUCKET_SLACK_NS)
        return True

    def _give_back(self, at_ns: int, cost_ns: int) -> bool:
        left_ns = at_ns - self._empty_ns
        shift_ns = max(0, left_ns + 1)
        if shift_ns > self._unsure_ns:
            return False
        self._empty_ns += shift_ns - cost_ns
        self._unsure_ns = min(cost_ns, self._unsure_ns - shift_ns)
        return True


def judge(limit: Bucket, at_ns: Iterable[int], charged_bytes: Iterable[int]) -> npt.NDArray[np.bool_]:
    """For each packet in order of arrival: does it conform? Nothing installed that could know better."""
    bucket = TokenBucket(limit)
    pairs = zip(at_ns, charged_bytes, strict=True)
    return np.fromiter((bucket.conforms(int(at), int(size)) for at, size in pairs), dtype=np.bool_)
