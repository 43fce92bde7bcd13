# SPDX-License-Identifier: Apache-2.0
"""Does a counter that someone else keeps (device, tc action, nft) agree with what the probe counted?

Counters can't be read at the instant of attaching, so each is read four times, around attaching and around detaching::

    before_attach | attach | after_attach ... before_detach | detach | after_detach

The probe was attached for longer than the inner pair (after_attach to before_detach) and for less than the outer pair
(before_attach to after_detach). Its count therefore lies between the counter's inner and outer growth, or one of the
two counts wrongly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from vifprobe.model.layout import Direction
from vifprobe.model.quantities import Change, Foreign


class ReconcileRow(NamedTuple):
    """One row of reconcile.csv. `before`, `after`, `delta`: the counter's outer samples and their difference, which
    is negative where a gauge fell.

    vifprobe_low = vifprobe_high: the probe's count is exact; low < high: it missed packets, some are undecided, or the
    counter counts them a little later (what lies in the tap's ring).
    agrees: see :func:`reconcile`. None: unknown.
    """

    tap: str
    direction: Direction
    counter: str
    before: Foreign | None
    after: Foreign | None
    delta: Change | None
    vifprobe_low: Foreign | None
    vifprobe_high: Foreign | None
    agrees: bool | None


@dataclass(frozen=True)
class CounterSamples:
    """One counter of one tap and direction, read four times; None where it was not there to be read.

    counter: its name with its source, such as ``device rx_packets`` or ``tc police drops``. Values in the counter's own
    unit, which must be that of the probe's count it is held against. gauge: it goes up and down.
    """

    tap: str
    direction: Direction
    counter: str
    before_attach: int | None
    after_attach: int | None
    before_detach: int | None
    after_detach: int | None
    gauge: bool = field(default=False, kw_only=True)

    def started_over(self) -> bool:
        """Return True if a later sample is below an earlier one: the qdisc, rule or device was replaced."""
        if self.gauge:
            return False
        samples = (self.before_attach, self.after_attach, self.before_detach, self.after_detach)
        return any(later < earlier for earlier, later in pairwise(value for value in samples if value is not None))


@dataclass(frozen=True)
class ProbeCount:
    """The probe's count of the same packets: between `low` and `high`, both inclusive; equal if exact.

    slack: by how much the counter can differ from what it counts, either way. Raises ValueError for low > high or
    low < 0.
    """

    low: int
    high: int
    slack: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ValueError(f"a count between {self.low} and {self.high}")


def probe_count(counted: int, missed: int = 0, undecided: int = 0) -> ProbeCount:
    """A count that up to `missed` packets in no cell and `undecided` ones without a verdict yet may add to."""
    return ProbeCount(counted, counted + missed + undecided)


def _growth(first: int | None, last: int | None) -> int | None:
    return None if first is None or last is None else last - first


def _is_within(growth: int | None, probe: ProbeCount) -> bool | None:
    """Of a gauge, which moves while it is read: only that it agrees can be told."""
    return True if growth is not None and probe.low <= growth <= probe.high else None


def _wider(growth: int | None, slack: int) -> int | None:
    return None if growth is None else growth + slack


def _agrees(inner: int | None, outer: int | None, probe: ProbeCount) -> bool | None:
    if outer is None:
        return None
    if probe.low > outer or (inner is not None and probe.high < inner):
        return False
    if inner is None or probe.low < inner or probe.high > outer:
        return None
    return True


def reconcile(samples: CounterSamples, probe: ProbeCount | None) -> ReconcileRow:
    """Hold one counter against the probe's count.

    agrees is True where the probe's count lies within [inner growth, outer growth], False where it can't, None where
    that can't be told: no count of the probe (`probe` is None), the counter was absent at an outer sample or started
    over (then delta is None too), an inner sample is absent, or an inexact count reaches beyond the bracket.
    """
    inner = _growth(samples.after_attach, samples.before_detach)
    outer = _growth(samples.before_attach, samples.after_detach)
    if samples.started_over():
        inner = outer = None
    slack = 0 if probe is None else probe.slack
    return ReconcileRow(
        tap=samples.tap,
        direction=samples.direction,
        counter=samples.counter,
        before=samples.before_attach,
        after=samples.after_detach,
        delta=outer,
        vifprobe_low=None if probe is None else max(0, probe.low - slack),
        vifprobe_high=None if probe is None else probe.high + slack,
        agrees=None
        if probe is None
        else _is_within(outer, probe)
        if samples.gauge
        else _agrees(_wider(inner, -slack), _wider(outer, slack), probe),
    )
