# SPDX-License-Identifier: Apache-2.0
"""Compare the probe's counts with the kernel's own counters, read before and after attaching and detaching."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from vifprobe.analysis.reconcile import CounterSamples, ReconcileRow, probe_count, reconcile
from vifprobe.errors import HostError
from vifprobe.host.counters import CounterMeaning, CounterSample, Unit, read_counters_of
from vifprobe.host.net.links import Link
from vifprobe.kernel.symbols import function_at
from vifprobe.model.layout import VLAN_TAG_BYTES, Ethertype, Verdict
from vifprobe.model.ports import direction_at, l2_header_bytes
from vifprobe.model.reading import Reading, count
from vifprobe.session.coverage import Coverage
from vifprobe.session.inbound_totals import InboundTotals

#: The four readings, in order; see vifprobe.analysis.reconcile.
MOMENTS = ("before_attach", "after_attach", "before_detach", "after_detach")

_VERDICTS = {
    CounterMeaning.PASSED: Verdict.PASSED,
    CounterMeaning.POLICED: Verdict.POLICED,
    CounterMeaning.DROPPED: Verdict.DROPPED,
}

Samples = dict[int, tuple[CounterSample, ...]]


class CounterCheck:
    """Reads the kernel's counters at each of MOMENTS, and compares them in :meth:`rows`.

    problems: counters that could not be read, as text.
    """

    def __init__(self) -> None:
        self._read: dict[str, Samples] = {}
        self._links: tuple[Link, ...] = ()
        self.problems: list[str] = []

    def __call__(self, moment: str, links: tuple[Link, ...]) -> None:
        """Read all counters of the watched interfaces now."""
        self._links = links
        previous = next(reversed(self._read.values()), {})
        try:
            self._read[moment] = read_counters_of(links, previous)
        except HostError as error:
            self.problems.append(f"counters {moment.replace('_', ' ')}: {error.message}")

    def rows(
        self, totals: Sequence[Reading], gaps: Sequence[Coverage] = (), reasons: Mapping[int, str] | None = None
    ) -> list[ReconcileRow]:
        """Return one row for each counter, compared with the totals of the run.

        - totals: final readings of the taps.
        - gaps: intervals in which a tap was unwatched.
        - reasons: names of the kernel's drop reasons, to attribute inbound drops; None without drop reasons.
        """
        readings = {reading.tap: reading for reading in totals}
        found = [row for link in self._links for row in self._rows(link, readings[link.name], reasons or {})]
        partly = {(gap.tap, gap.direction) for gap in gaps}
        return [_at_least(row) if (row.tap, row.direction) in partly else row for row in found]

    def _rows(self, link: Link, reading: Reading, reasons: Mapping[int, str]) -> Iterator[ReconcileRow]:
        known: dict[str, CounterSample] = {}
        egress = direction_at(link.kind, "egress")
        inbound_totals = InboundTotals(reading, reasons, function_at) if reading.knows_verdicts(egress) else None
        for samples in self._read.values():
            known |= {sample.counter: sample for sample in samples.get(link.ifindex, ())}
        for counter, sample in known.items():
            if sample.direction not in reading.directions:
                continue
            values = {moment: self._value(moment, link.ifindex, counter) for moment in MOMENTS}
            if sample.direction is egress:
                probe = inbound_totals.bounds(sample, values["before_attach"]) if inbound_totals is not None else None
            else:
                counted = _counted(reading, sample)
                probe = None if counted is None else probe_count(counted, reading.missed_of(sample.direction))
            gauge = sample.counts is CounterMeaning.QUEUED
            yield reconcile(CounterSamples(link.name, sample.direction, counter, **values, gauge=gauge), probe)

    def _value(self, moment: str, ifindex: int, counter: str) -> int | None:
        samples = self._read.get(moment, {}).get(ifindex, ())
        return next((sample.value for sample in samples if sample.counter == counter), None)


def _at_least(row: ReconcileRow) -> ReconcileRow:
    """Return the row without an upper bound, for a run with an unwatched part: its packets are unknown."""
    too_much = row.delta is not None and row.vifprobe_low is not None and row.vifprobe_low > row.delta
    return row._replace(vifprobe_high=None, agrees=False if too_much else None)


def _counted(reading: Reading, sample: CounterSample) -> int | None:
    """Return the probe's count for a counter; None where the probe has no such count."""
    direction = sample.direction
    if sample.shared or sample.counts is CounterMeaning.PART:
        return None
    if reading.missed_of(direction) and sample.unit is not Unit.PACKETS:
        return None
    verdict = _VERDICTS.get(sample.counts)
    if verdict is not None and not reading.knows_verdicts(direction):
        return None
    rows = reading.where(direction, verdict)
    counts = count(rows)
    if sample.unit is Unit.LENGTH_BYTES:
        return counts.frame_bytes - l2_header_bytes(reading.kind) * counts.packets
    value = int(getattr(counts, sample.unit.value))
    if sample.unit is Unit.FRAME_BYTES:
        # The device counted the outer VLAN tag, which the kernel removes from the frame before tc.
        value += VLAN_TAG_BYTES * int(rows["packets"][rows["ethertype"] == Ethertype.VLAN].sum(dtype=np.int64))
    return value
