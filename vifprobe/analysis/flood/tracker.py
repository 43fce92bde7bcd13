# SPDX-License-Identifier: Apache-2.0
"""Follows one tap's samples, and says for each interval, for the last second and for the run what its SYNs are like.

Memory is bounded whatever is sent: a reservoir, a histogram and a few sums for each direction and span.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from vifprobe.analysis.flood.addresses import Knowledge, OwnAddresses
from vifprobe.analysis.flood.gaps import GapHistogram
from vifprobe.analysis.flood.headers import PACKET, packets_of, pick
from vifprobe.analysis.flood.measures import Sampled, flood_of
from vifprobe.analysis.flood.reservoir import Reservoir, Uniform, uniform
from vifprobe.model.flood import Flood, Measure
from vifprobe.model.layout import Direction, PacketClass
from vifprobe.model.reading import Cells, merge, no_cells

Array = npt.NDArray[Any]

#: Rows of a reservoir: shares within 1.1 %.
RESERVOIR_ROWS = 16_384
#: Findings are drawn from so much time at least: in less, a rate is chance.
JUDGED_NS = 900_000_000
#: Measures of the kernel side that are of a moment.
_GAUGES = {"half_open", "half_open_young"}
#: (tap-wide) measures that the kernel side keeps itself, such as distinct sources, by direction and name.
KernelMeasures = Mapping[Direction, Mapping[str, Measure]]


class _Span:
    """Samples of one direction since it began."""

    def __init__(self, random: Uniform) -> None:
        self._reservoir = Reservoir(RESERVOIR_ROWS, PACKET, random)
        self._gaps = GapHistogram()
        self._lost = 0

    def add(self, syns: Array, lost: int) -> None:
        self._reservoir.add(syns)
        self._gaps.add(syns["gap_ns"], syns["weight"])
        self._lost += lost

    def sampled(self) -> Sampled:
        seen, spread = self._reservoir.seen, self._reservoir.spread()
        missing = self._lost / (self._lost + seen) if self._lost else 0.0
        rows, weights = self._reservoir.rows, self._reservoir.weights()
        return Sampled(rows, weights, spread._replace(missing=missing), self._gaps, seen, self._lost)


class FloodTracker:
    """One tap. host: what is known of its addresses. random: for tests, one that is seeded."""

    def __init__(self, host: OwnAddresses | None = None, random: Uniform = uniform) -> None:
        self._random = random
        self._knowledge = Knowledge(host or OwnAddresses())
        self._run, self._judging, self._interval = self._spans(), self._spans(), self._spans()
        self._judged_cells: Cells = no_cells()
        self._judged_ns = 0
        self._long_intervals, self._interval_is_empty = False, True
        self.judged: Mapping[Direction, Flood] = {}

    def know(self, host: OwnAddresses) -> None:
        """Take what the host knows of the port: it can become known after the start."""
        self._knowledge.host = host

    @property
    def knowledge(self) -> Knowledge:
        """The port's own addresses, as far as known."""
        return self._knowledge

    def _spans(self) -> dict[Direction, _Span]:
        return {direction: _Span(self._random) for direction in Direction}

    def add(self, samples: Array, lost: int = 0) -> None:
        """Samples of this tap (rows of layout.SAMPLE). lost: samples that found no place on their way, since the last
        call.
        """
        self._interval_is_empty = False
        packets = packets_of(samples)
        self._knowledge.learn(packets)
        syns = pick(packets, (packets["packet_class"] == PacketClass.TCP_SYN) & packets["has_tcp"])
        spans = (self._run, self._interval, *([] if self._long_intervals else [self._judging]))
        for direction in Direction:
            own = pick(syns, syns["direction"] == direction)
            for span in spans:
                span[direction].add(own, lost)

    def interval(
        self, cells: Cells, duration_ns: int, directions: tuple[Direction, ...], kernel: KernelMeasures | None = None
    ) -> dict[Direction, Flood]:
        """The interval that ends now, whose packets `cells` are; the next one begins. Brings `judged` up to date."""
        found = self._floods(self._interval, cells, duration_ns, directions, kernel)
        self._interval, self._interval_is_empty = self._spans(), True
        self._judge(found, cells, duration_ns, directions)
        return found

    @property
    def interval_is_empty(self) -> bool:
        """Return True if no sample came, and none was lost, since the last interval."""
        return self._interval_is_empty

    def repeat(self, found: dict[Direction, Flood], duration_ns: int, directions: tuple[Direction, ...]) -> None:
        """An interval without a packet, whose floods are known to be these."""
        if duration_ns >= JUDGED_NS and self._long_intervals and not self._judged_ns:
            self.judged = found
        else:
            self._judge(found, no_cells(), duration_ns, directions)

    def _judge(
        self, found: dict[Direction, Flood], cells: Cells, duration_ns: int, directions: tuple[Direction, ...]
    ) -> None:
        """An interval that is long enough is judged as it is; shorter ones are added up."""
        had_all, self._long_intervals = not self._long_intervals, duration_ns >= JUDGED_NS
        if self._long_intervals:
            self.judged = found
        elif had_all:
            self._judged_cells, self._judged_ns = merge(self._judged_cells, cells), self._judged_ns + duration_ns
            if self._judged_ns < JUDGED_NS:
                return
            # Of what the kernel side measured, that which is not of an interval alone.
            now = {
                direction: {name: flood.measures[name] for name in _GAUGES & flood.measures.keys()}
                for direction, flood in found.items()
            }
            self.judged = self._floods(self._judging, self._judged_cells, self._judged_ns, directions, now)
        self._judging, self._judged_cells, self._judged_ns = self._spans(), no_cells(), 0

    def total(
        self, cells: Cells, duration_ns: int, directions: tuple[Direction, ...], kernel: KernelMeasures | None = None
    ) -> dict[Direction, Flood]:
        """The run so far, whose packets `cells` are."""
        return self._floods(self._run, cells, duration_ns, directions, kernel)

    def _floods(
        self,
        spans: dict[Direction, _Span],
        cells: Cells,
        duration_ns: int,
        directions: tuple[Direction, ...],
        kernel: KernelMeasures | None,
    ) -> dict[Direction, Flood]:
        return {
            direction: flood_of(
                direction,
                cells,
                duration_ns,
                directions,
                spans[direction].sampled(),
                self._knowledge,
                (kernel or {}).get(direction, {}),
            )
            for direction in directions
        }
