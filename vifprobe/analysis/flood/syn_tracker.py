# SPDX-License-Identifier: Apache-2.0
"""Joins samples, the kernel's SYN measures and time bins of the watched taps with what is worked out from them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vifprobe.analysis.findings.thresholds import FloodThresholds
from vifprobe.analysis.flood.addresses import OwnAddresses
from vifprobe.analysis.flood.bursts import BurstBucket, Bursts
from vifprobe.analysis.flood.kernel import KernelSide
from vifprobe.analysis.flood.tracker import FloodTracker
from vifprobe.model.flood import Flood, Measure
from vifprobe.model.layout import SAMPLE, Direction
from vifprobe.model.ports import l2_header_bytes, turned
from vifprobe.model.reading import Cells
from vifprobe.model.records import SynMeasures

Array = npt.NDArray[Any]


class SampleSource(Protocol):
    """Interface of `vifprobe.kernel.tables.counters.Counters`, which explains each method."""

    @property
    def lost_samples(self) -> int:
        """Samples that were written over before they were taken."""

    def take_samples(self, final: bool = False) -> Array:
        """Rows of layout.SAMPLE since the last call."""

    def adapt_samples(self) -> float:
        """Share of the fullest CPU's ring that holds samples not taken yet."""

    def syn_measures(self) -> SynMeasures | None:
        """SYN measures of the interval that this call ends; None where there are none."""


class TapSynTracker:
    """One tap's. number: its place in the kernel's tables. kind: of the device. bin_ns: width of time bins, or 0."""

    def __init__(
        self,
        number: int,
        directions: tuple[Direction, ...],
        bin_ns: int = 0,
        thresholds: FloodThresholds | None = None,
        kind: str = "tap",
    ) -> None:
        self.thresholds = thresholds or FloodThresholds()
        # A policer charges by the hook that it is at.
        l2_bytes = l2_header_bytes(kind)
        self.bursts = {one: Bursts(turned(kind, one), bin_ns, l2_bytes) for one in directions} if bin_ns else {}
        self.tracker = FloodTracker()
        self._directions = directions
        self._number = number
        self._kernel = KernelSide(number)
        self._lost = 0
        self._silent: dict[Direction, Flood] = {}

    def add(self, samples: Array, lost: int) -> None:
        """Samples of all taps. lost: samples that found no place so far, of all taps."""
        self.tracker.add(samples[samples["tap"] == self._number], lost - self._lost)
        self._lost = lost

    def interval(self, cells: Cells, duration_ns: int, found: SynMeasures | None) -> dict[Direction, Flood]:
        """The interval that ends now, whose packets `cells` are."""
        is_silent = not len(cells) and self._is_silent(found)
        now = self._kernel.interval(found) if found is not None else {}
        floods = self.tracker.interval(cells, duration_ns, self._directions, now)
        self._silent = floods if is_silent else {}
        return floods

    def repeat(self, duration_ns: int, found: SynMeasures | None) -> dict[Direction, Flood] | None:
        """The interval that ends now, in which no packet came: as the one before, if there was nothing in that either.
        None: it is not, ask for `interval`.
        """
        if not self._silent or not self._is_silent(found):
            return None
        seconds = Measure(round(duration_ns / 1e9, 9), "s")
        floods = {one: Flood({**known.measures, "seconds": seconds}) for one, known in self._silent.items()}
        self.tracker.repeat(floods, duration_ns, self._directions)
        return floods

    def _is_silent(self, found: SynMeasures | None) -> bool:
        return self.tracker.interval_is_empty and (found is None or self._kernel.is_silent(found))

    def total(self, cells: Cells, duration_ns: int, found: SynMeasures | None) -> dict[Direction, Flood]:
        """The run up to the end of the last interval."""
        known = self._kernel.total(found) if found is not None else {}
        floods = self.tracker.total(cells, duration_ns, self._directions, known)
        for direction, bursts in self.bursts.items():
            flood = floods[direction]
            floods[direction] = Flood({**flood.measures, **dict(bursts.measures())}, flood.top)
        return floods

    def add_bins(self, bins: Array, buckets: Mapping[Direction, BurstBucket | None], final: bool = False) -> None:
        """Time bins of all taps. buckets: the installed limits."""
        own = bins[bins["tap"] == self._number]
        for direction, bursts in self.bursts.items():
            bursts.add(own[own["direction"] == direction], buckets.get(direction), final)

    @property
    def own_addresses(self) -> OwnAddresses:
        """All that is known of the port's own addresses: from the host, and from its packets."""
        known = self.tracker.knowledge
        return replace(known.host, ips=known.ips, sources=known.sources)


class SynTracker:
    """All watched taps'. What was sampled is worked out here, and kept for who takes it, the newest KEPT of it.

    kinds: of the taps' devices, in the order of their numbers; all are taps where none are given.
    """

    KEPT = 65_536
    MAY_WAIT = 0.125  # of a ring

    def __init__(
        self,
        counters: SampleSource,
        directions: tuple[Direction, ...],
        taps: int,
        bin_ns: int,
        thresholds: FloodThresholds | None,
        kinds: Sequence[str] = (),
    ) -> None:
        named = kinds or ["tap"] * taps
        self.taps = [TapSynTracker(number, directions, bin_ns, thresholds, kind) for number, kind in enumerate(named)]
        self._counters = counters
        self._kept: deque[Array] = deque()
        self._kept_rows = self._lost = 0
        self._found: SynMeasures | None = None
        self._ended = False

    def look_if_due(self) -> None:
        """Take what came if it must not wait for the end of the interval: taking costs the same for few as for many."""
        if not self._ended and self._counters.adapt_samples() > self.MAY_WAIT:
            self.look()

    def look(self, final: bool = False) -> Array:
        """Take what came since the last time. final: once, when nothing is attached any more."""
        if self._ended:
            return np.zeros(0, SAMPLE)
        self._ended = final
        fresh = self._counters.take_samples(final)
        lost = self._counters.lost_samples
        # Where nothing came and nothing was lost there is nothing to add; with hundreds of taps that is most of them.
        numbers = range(len(self.taps)) if lost != self._lost else np.unique(fresh["tap"]).tolist()
        self._lost = lost
        for number in numbers:
            self.taps[number].add(fresh, lost)
        if len(fresh):  # of nothing, too, there could be too much
            self._kept.append(fresh)
            self._kept_rows += len(fresh)
        while len(self._kept) > 1 and self._kept_rows > self.KEPT:
            self._kept_rows -= len(self._kept.popleft())
        return fresh

    def take_samples(self) -> Array:
        """Samples (rows of layout.SAMPLE) since the last call."""
        self.look()
        kept, self._kept, self._kept_rows = self._kept, deque(), 0
        return np.concatenate([np.zeros(0, SAMPLE), *kept])

    def end_interval(self) -> None:
        """The interval that ends now is the one that the next calls of `floods` are for."""
        self.look()
        self._found = self._counters.syn_measures()

    def repeat(self, number: int, duration_ns: int) -> dict[Direction, Flood] | None:
        """Of one tap for which nothing was counted: see TapSynTracker.repeat."""
        return self.taps[number].repeat(duration_ns, self._found)

    def floods(self, number: int, cells: Cells, duration_ns: int, final: bool) -> dict[Direction, Flood]:
        """Of one tap, whose packets `cells` are: the interval (once each), or the run."""
        tap = self.taps[number]
        return (tap.total if final else tap.interval)(cells, duration_ns, self._found)
