# SPDX-License-Identifier: Apache-2.0
"""Peaks in windows of 1, 10 and 100 ms, and bursts that empty a full bucket: from the timeline's bins.

A policer lets a burst through at line rate after each silence. What the limit's mean hides, the next switch feels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vifprobe.model.flood import Measure
from vifprobe.model.layout import ETH_HEADER_BYTES, NSEC_PER_SEC, Direction, Verdict

Array = npt.NDArray[Any]

WINDOWS_NS = (1_000_000, 10_000_000, 100_000_000)
#: A CPU's bin comes when that CPU starts its next one; what comes later than this counts as late, and in no window.
HORIZON_NS = 2_000_000_000
_FULL, _EMPTY = 0.9, 0.1


@dataclass(frozen=True)
class BurstBucket:
    """The installed limit: bytes a second, and bytes that pass at once after silence."""

    bytes_per_second: float
    burst_bytes: float


@dataclass
class Burst:
    """From (nearly) full to (nearly) empty. over_rate: how many times the limit's rate passed meanwhile."""

    duration_ns: int = 0
    charged_bytes: int = 0
    packets: int = 0
    syn_packets: int = 0
    over_rate: float = 0.0


class Bursts:
    """Of one tap and direction. bin_ns: width of the bins. l2_bytes: what each of its packets begins with."""

    def __init__(self, direction: Direction, bin_ns: int, l2_bytes: int = ETH_HEADER_BYTES) -> None:
        self._l2_bytes = l2_bytes if direction is Direction.OUTBOUND else 0  # what its policer does not charge
        self._bin_ns = bin_ns
        self._waiting: dict[int, list[int]] = {}
        self._done: int | None = None  # number of the last bin that was looked at
        widest = max(WINDOWS_NS) // bin_ns
        self._past: Array = np.zeros(max(widest, 1), np.int64)
        self.peak_bytes = {window: 0 for window in WINDOWS_NS if window % bin_ns == 0}
        self._bucket: BurstBucket | None = None
        self._tokens = 0.0
        self._now = Burst()
        self.bursts: list[Burst] = []
        self.burst_count = self.late_packets = self.unknown_packets = 0

    def add(self, bins: Array, bucket: BurstBucket | None, final: bool = False) -> None:
        """Bins (rows of layout.BIN of this tap and direction) that came while this limit was installed."""
        if bucket != self._bucket:
            self._bucket, self._tokens, self._now = bucket, bucket.burst_bytes if bucket else 0.0, Burst()
        passed = bins[bins["verdict"] != Verdict.POLICED]
        self.unknown_packets += int(bins["packets"][bins["verdict"] == Verdict.UNKNOWN].sum())
        for start_ns, packets, frame_bytes, syns in passed[
            ["start_ns", "packets", "frame_bytes", "syn_packets"]
        ].tolist():
            number = start_ns // self._bin_ns
            if self._done is not None and number <= self._done:
                self.late_packets += packets
                continue
            counted = self._waiting.setdefault(number, [0, 0, 0])
            for place, value in enumerate((frame_bytes - self._l2_bytes * packets, packets, syns)):
                counted[place] += value
        if self._waiting:
            newest = max(self._waiting)
            self._look_until(newest + 1 if final else newest - HORIZON_NS // self._bin_ns)

    def _look_until(self, end: int) -> None:
        ready = sorted(number for number in self._waiting if number < end)
        if not ready:
            return
        quiet = len(self._past)
        runs = np.split(ready, np.flatnonzero(np.diff(ready) > quiet) + 1)
        for run in runs:
            first = int(run[0])
            if self._done is not None and first - self._done <= quiet:
                first = self._done + 1  # silence in between belongs to the windows, too
            else:
                self._past = np.zeros(quiet, np.int64)
                self._fill(first - 1 - self._done if self._done is not None else 0)
            counted = [self._waiting.pop(number, [0, 0, 0]) for number in range(first, int(run[-1]) + 1)]
            self._look(counted)
            self._done = int(run[-1])

    def _look(self, counted: list[list[int]]) -> None:
        """Consecutive bins."""
        whole = np.concatenate([self._past, np.array([one[0] for one in counted], np.int64)])
        sums = np.concatenate([[0], np.cumsum(whole)])
        for window in self.peak_bytes:
            wide = max(1, window // self._bin_ns)
            self.peak_bytes[window] = max(self.peak_bytes[window], int((sums[wide:] - sums[:-wide]).max()))
        self._past = whole[-len(self._past) :]
        if self._bucket is not None:
            for charged, packets, syns in counted:
                self._step(self._bucket, charged, packets, syns)

    def _fill(self, bins: int) -> None:
        """Silence."""
        if self._bucket is not None:
            filled = self._tokens + bins * self._bin_ns / NSEC_PER_SEC * self._bucket.bytes_per_second
            self._tokens = min(self._bucket.burst_bytes, filled)

    def _step(self, bucket: BurstBucket, charged: int, packets: int, syns: int) -> None:
        """One bin through the bucket. A burst begins where it was last full, and ends where it is first empty."""
        self._fill(1)
        if self._tokens >= _FULL * bucket.burst_bytes:
            self._now = Burst()
        self._tokens = max(0.0, self._tokens - charged)
        now = self._now
        if now.duration_ns < 0:  # told already; not full again since
            return
        now.duration_ns += self._bin_ns
        now.charged_bytes += charged
        now.packets += packets
        now.syn_packets += syns
        if self._tokens <= _EMPTY * bucket.burst_bytes:
            now.over_rate = now.charged_bytes * NSEC_PER_SEC / now.duration_ns / bucket.bytes_per_second
            self.burst_count += 1
            self.bursts = sorted([*self.bursts, now], key=lambda one: -one.over_rate)[:_KEPT]
            self._now = Burst(duration_ns=-1)

    def measures(self) -> Iterator[tuple[str, Measure]]:
        """For flood.csv: bit/s as charged in the fullest window of each width, and how often the bucket was emptied."""
        known = not self.unknown_packets
        for window, passed in self.peak_bytes.items():
            name = f"passed_peak_{window // 1_000_000}ms_bps"
            yield name, Measure(8 * passed * NSEC_PER_SEC // window if known else None, "bit/s")
        yield "bucket_emptied", Measure(self.burst_count if known and self._bucket else None, "times")
        yield "timeline_late_packets", Measure(self.late_packets, "packets")


_KEPT = 1_000
