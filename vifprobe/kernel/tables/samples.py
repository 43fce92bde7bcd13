# SPDX-License-Identifier: Apache-2.0
"""Sampled headers from the ring that bpf/lib/samples.c writes, and the control of the sampling rate."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vifprobe.kernel.load import Programs
from vifprobe.kernel.settings import SAMPLE_FIRST
from vifprobe.kernel.tables.ring import unread
from vifprobe.model.layout import (
    PENDING_SAMPLED,
    SAMPLE,
    SAMPLE_MEAN_MAX,
    SAMPLE_RAISES,
    Direction,
    Verdict,
    cell_key_shifts,
    take_apart,
)

#: Samples per second at most, all taps and CPUs together, beyond the first ones of each class and verdict.
SAMPLES_PER_SECOND = 20_000
#: One packet of this number is sampled until the rates are first measured: 15,625 of a million packets/s.
FIRST_MEAN = 64
_ENOUGH_SECONDS = 0.005  # a rate over a shorter time is not reliable
_COUNTED = ("frame_bytes", "charged_bytes", "wire_bytes", "weight")
_COPIED = ("at_ns", "gap_ns", *_COUNTED, "header_bytes", "flags", "vlan_tci")

Array = npt.NDArray[Any]


class Samples:
    """Reader of the ring. A record is final once it is in the ring.

    The means follow the packet rates. Where traffic rises faster than the means are set, the kernel side raises them
    itself (bpf/lib/samples.c, raise_interval()).

    - lost: number of samples that were overwritten before they were read.
    - per_second: maximum number of samples per second.
    """

    def __init__(self, programs: Programs, per_second: int = SAMPLES_PER_SECOND) -> None:
        settings = programs.settings
        self._cpus = settings.cpus
        self._ring = programs.table("samples").reshape(self._cpus, -1)
        self._staged = programs.table("staged").reshape(self._cpus, len(Direction))
        # Both sides write `mean` and `raises`: the last write wins, and the kernel side raises it again if needed.
        samplers = programs.table("tap_cpu_states", writable=True)["sampler"][: settings.tap_cpu_states]
        self._samplers = samplers.reshape(self._cpus, -1, len(Direction))
        self._read = programs.table("samples_taken", writable=True)["count"]
        self._taken = np.zeros(self._cpus, np.int64)
        self._packets = np.zeros(self._samplers.shape, np.int64)
        self._measured_ns = time.monotonic_ns()
        self._fixed = False
        self.lost = 0
        self.per_second = per_second
        self._samplers["mean"] = FIRST_MEAN

    def close(self) -> None:
        """Unmap the tables. After this only `lost` can be used."""
        for table in ("_ring", "_staged", "_samplers", "_read"):
            self.__dict__.pop(table, None)

    def take_one_in(self, mean: int) -> None:
        """Sample one packet in `mean` from now on, at any rate; 0: none at all, not even the first ones."""
        if not 0 <= mean <= SAMPLE_MEAN_MAX:
            raise ValueError(f"mean {mean}: not between 0 and {SAMPLE_MEAN_MAX}")
        self._fixed = True
        self._samplers["raises"] = SAMPLE_RAISES
        self._samplers["mean"] = mean

    def means(self) -> Array:
        """Return the mean of each tap and direction: one packet of this number is sampled. Shape (taps, directions)."""
        means: Array = self._samplers["mean"][0].copy()
        return means

    def packets(self) -> Array:
        """Return the exact number of packets offered to the samplers, shape (taps, directions)."""
        packets: Array = self._samplers["packets"].sum(axis=0, dtype=np.int64)
        return packets

    def waiting(self, cpu_states: Array) -> float:
        """Return the fraction of the fullest CPU's ring that unread records use."""
        return float((cpu_states["samples"].astype(np.int64) - self._taken).max()) / self._ring.shape[1]

    def take(self, cpu_states: Array, settled: Sequence[int] | Array = ()) -> Array:
        """Return the rows of layout.SAMPLE that are new since the last call, ordered by time.

        settled: CPUs whose staged outbound packet is known to have passed; given only once, at the end.
        """
        parts = [self._new(cpu, cpu_states) for cpu in range(self._cpus)]
        parts += [
            self._passed(cpu, cpu_states["key"][cpu]) for cpu in settled if cpu_states["traits"][cpu] & PENDING_SAMPLED
        ]
        rows = _decode(np.concatenate(parts))
        self.adapt()
        return rows[np.argsort(rows["at_ns"], kind="stable")]

    def _new(self, cpu: int, cpu_states: Array) -> Array:
        rows, lost, head = unread(self._ring[cpu], int(self._taken[cpu]), lambda: int(cpu_states["samples"][cpu]))
        self.lost += lost
        self._taken[cpu] = self._read[cpu] = head
        return rows

    def _passed(self, cpu: int, key: np.uint64) -> Array:
        """Return the staged packet as commit_sample() of bpf/lib/samples.c would write it. key: of the CPU's state."""
        row = self._staged[cpu, Direction.OUTBOUND : Direction.OUTBOUND + 1].copy()
        row["key"] = key  # the kernel side writes it with the verdict
        fields = take_apart(row["key"])
        own = self._samplers[cpu, fields["tap"][0], Direction.OUTBOUND]
        if row["tentative"][0] and own["first"][fields["packet_class"][0] * 4 + Verdict.PASSED] < SAMPLE_FIRST:
            row["weight"] = 1
        elif row["position"][0] >= own["next_at"]:
            row["weight"] = own["drawn_mean"]
        else:
            return row[:0]
        row["key"] |= np.uint64(Verdict.PASSED << cell_key_shifts()["verdict"][0])
        row["drop_key"] = 0
        return row

    def adapt(self) -> None:
        """Set each mean so that about `per_second` samples are taken and the rings do not fill.

        Each tap and direction gets an equal share. Means are powers of two, so that a steady rate keeps its mean.
        """
        if self._fixed:
            return
        now_ns, packets = time.monotonic_ns(), self._samplers["packets"].astype(np.int64)
        seconds = (now_ns - self._measured_ns) / 1e9
        if seconds < _ENOUGH_SECONDS:
            return
        new, self._packets, self._measured_ns = packets - self._packets, packets, now_ns
        total = max(1, int(new.sum()))
        busiest = new.sum(axis=(1, 2)).max() / total
        # At most half a ring until the next call, if the interval stays as long as the last one.
        wanted = min(float(self.per_second), self._ring.shape[1] / 2 / seconds / max(busiest, 1 / self._cpus))
        rates = new.sum(axis=0) / seconds
        share = max(wanted, 1.0) / max(1, int((rates > 0).sum()))
        means = 2.0 ** np.ceil(np.log2(np.maximum(rates / share, 1)))
        self._samplers["raises"] = 0
        self._samplers["mean"] = np.where(rates > 0, np.minimum(means, SAMPLE_MEAN_MAX), self._samplers["mean"][0])


def _decode(raw: Array) -> Array:
    rows = np.zeros(len(raw), SAMPLE)
    for name, values in take_apart(raw["key"]).items():
        rows[name] = values
    rows["reason"] = raw["drop_key"] >> np.uint64(32)
    rows["location"] = raw["drop_key"] & np.uint64(0xFFFFFFFF)
    for name in _COPIED:
        rows[name] = raw[name]
    # The bytes after the headers belong to an earlier packet.
    valid = np.arange(rows["headers"].shape[1]) < rows["header_bytes"][:, np.newaxis]
    rows["headers"] = np.where(valid, raw["headers"], 0)
    return rows
