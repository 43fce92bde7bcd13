# SPDX-License-Identifier: Apache-2.0
"""Reading of one tap in one interval: the model that live view, capture, JSON and notebooks share.

Live view and saved capture give the same :class:`Reading`, so that the same renderer shows both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vifprobe.model.flood import Flood
from vifprobe.model.host_cost import HostCost
from vifprobe.model.layout import CELL, SIZE_UNKNOWN, Direction, Expected, PacketClass, Verdict
from vifprobe.model.limits import LimitAnswer, LimitState
from vifprobe.model.whatif import WhatIfRow

Cells = npt.NDArray[np.void]  # structured, dtype layout.CELL

_KEY = [name for name in CELL.names or () if name not in ("packets", "frame_bytes", "charged_bytes", "wire_bytes")]
_COUNTERS = ["packets", "frame_bytes", "charged_bytes", "wire_bytes"]


class Counts(NamedTuple):
    """Sums over some cells.

    frame_bytes: skb->len at the hook, a GSO frame's whole length. charged_bytes: what the installed policer charges (tc
    and nft at ingress: without the L2 header). wire_bytes: each segment as Ethernet carries it, preamble and gap
    included.
    .
    """

    packets: int = 0
    frame_bytes: int = 0
    charged_bytes: int = 0
    wire_bytes: int = 0

    def __add__(self, other: object) -> Counts:
        if not isinstance(other, Counts):
            return NotImplemented
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))


class LostAt(NamedTuple):
    """Packets of a tap that were lost at another device since the start of the run.

    - device: name of the device; "" for several, of which no more is known.
    - reason: number of the kernel's drop reason.
    - dropped: packets that count as dropped.
    - copies: copies of packets that count as passed, and packets that count as passed and were lost later, in a queue.
    """

    device: str
    reason: int
    dropped: int
    copies: int


def no_cells() -> Cells:
    """An empty cell table."""
    return np.zeros(0, dtype=CELL)


def count(cells: Cells) -> Counts:
    """Sum of all rows."""
    if not len(cells):
        return Counts()
    return Counts(*(int(cells[name].sum()) for name in _COUNTERS))


def merge(*tables: Cells) -> Cells:
    """One table with each key once and the counters summed; rows of zero packets are left out, keys in order."""
    rows = np.concatenate([no_cells(), *tables])
    if not len(rows):
        return rows
    keys, where = np.unique(rows[_KEY], return_inverse=True)
    merged = np.zeros(len(keys), dtype=CELL)
    for name in _KEY:
        merged[name] = keys[name]
    for name in _COUNTERS:
        np.add.at(merged[name], where, rows[name])
    present: Cells = merged[merged["packets"] != 0]
    return present


def subtract(now: Cells, before: Cells) -> Cells:
    """Return what was added between two cumulative tables."""
    negative = before.copy()
    for name in _COUNTERS:
        negative[name] *= -1
    return merge(now, negative)


def unsized_notes(cells: Cells, has_reasons: bool = False) -> list[str]:
    """Return notes on packets that are counted without their size; nothing if there are none.

    has_reasons: whether drops have a reason on this kernel, so that one without is a lack.
    """
    unsized = cells[cells["size"] == SIZE_UNKNOWN]
    if not len(unsized):
        return []
    packets, of_all = count(unsized).packets, count(cells).packets
    found = [
        f"{packets:,} of {of_all:,} packets are counted without their size: there were more kinds and sizes of packets "
        "than this tap has room for"
    ]
    lost = np.isin(unsized["verdict"], (Verdict.POLICED, Verdict.DROPPED)) & (unsized["reason"] == 0)
    if has_reasons and lost.any():
        found.append(f"{count(unsized[lost]).packets:,} of these were lost, and are counted without the reason")
    return found


def _of(
    cells: Cells,
    direction: Direction,
    verdict: Verdict | None = None,
    packet_class: PacketClass | None = None,
    expected: Expected | None = None,
) -> Cells:
    if not len(cells):  # of most taps of a host, most of the time
        return cells
    rows = cells["direction"] == direction
    for name, wanted in (("verdict", verdict), ("packet_class", packet_class), ("expected", expected)):
        if wanted is not None:
            rows &= cells[name] == wanted
    found: Cells = cells[rows]
    return found


@dataclass(frozen=True)
class Limit:
    """The limit of one direction, as declared (libvirt, OVS, or the user) and as installed in the kernel.

    Bits and packets per second, bytes of burst; None: unknown or none.
    """

    declared_bps: int | None = None
    installed_bps: int | None = None
    installed_pps: int | None = None
    burst_bytes: int | None = None


@dataclass(frozen=True)
class Finding:
    """A conclusion with its proof: `evidence` holds the numbers it rests on, `advice` what to do, in plain words."""

    id: str
    pattern: str
    severity: str  # info, warning or critical
    title: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    advice: str = ""


@dataclass(frozen=True)
class Reading:
    """Counts of one tap in one interval (or, where `final`, of the whole run).

    tap: its name. at: wall clock at the interval's end. start_ns, duration_ns: monotonic, from the start of the run.
    cells: rows of dtype layout.CELL, this interval's packets only, every key once; `cells["tap"]` is without meaning
    here. Rows of verdict QUEUED are by how many the queue has grown, below 0 where it has shrunk: so passed + policed +
    dropped + queued rows are what was offered. queued: the queue at the end, left out of totals. missed: packets that
    are in no cell: their headers could not be read, or their end went by unseen. missed_in: the same by direction, {}
    where only the sum is known. missed_bytes: frame bytes of those among them whose length is known. late_verdicts: of
    all taps, packets that were dropped after they had been counted as passed. recursion_misses: of all taps, events
    that the kernel kept from the programs: what they would have told (drops, mostly) is missing. verdicts: "reason"
    where the kernel itself named each drop, "inferred" where it was worked out, "" where unknown. limits: by direction.
    directions: those that were watched; of another one nothing is known, not even that it was silent. host: what the
    host did meanwhile, None where that is not counted (yet). flood: what its SYNs are like, by direction; {} where
    nobody looked. what_ifs: what limits that were tried out would have done, counted at arrival. untracked: in
    totals, inbound packets of which only the end was seen: waiting since before the start, or cut from a longer frame.
    gone_ns: when the tap was seen to be deleted, monotonic, from the start of the run; None while it is there.
    lost_at: packets that other devices lost; empty in a loaded capture, whose notes have it.
    kind: of the device, see vifprobe.model.ports; of what is not a guest's port, outbound is what it received, inbound
    what it sent.

    limit_states: whether the limit of a direction is in force, where that was decided; read it with `limit_state`.

    repeats: an earlier reading of the tap, where nothing has come and nothing was changed since: all is as in that one
    but at, start_ns, duration_ns, host, and the measure `seconds` in flood. What was made of it can be used again.
    """

    tap: str
    at: datetime
    start_ns: int
    duration_ns: int
    cells: Cells
    missed: int = 0
    missed_in: Mapping[Direction, int] = field(default_factory=dict)
    missed_bytes: int = 0
    late_verdicts: int = 0
    recursion_misses: int = 0
    verdicts: str = "reason"
    limits: Mapping[Direction, Limit] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    final: bool = False
    directions: tuple[Direction, ...] = tuple(Direction)
    host: HostCost | None = None
    flood: Mapping[Direction, Flood] = field(default_factory=dict)
    what_ifs: tuple[WhatIfRow, ...] = ()
    untracked: int = 0
    queued: Cells = field(default_factory=no_cells)
    gone_ns: int | None = None
    kind: str = "tap"
    lost_at: tuple[LostAt, ...] = ()
    limit_states: Mapping[Direction, LimitAnswer] = field(default_factory=dict)
    repeats: Reading | None = field(default=None, compare=False, repr=False)

    @property
    def gone(self) -> bool:
        """True if the tap was deleted before this reading was made: no later interval has one of it."""
        return self.gone_ns is not None

    def limit_state(self, direction: Direction) -> LimitAnswer:
        """Return the state of the limit that was asked for. Of a tap that is gone only totals have an answer."""
        if self.gone and not self.final:
            return LimitAnswer(LimitState.GONE)
        return self.limit_states.get(direction, LimitAnswer())

    def where(
        self,
        direction: Direction,
        verdict: Verdict | None = None,
        packet_class: PacketClass | None = None,
        expected: Expected | None = None,
    ) -> Cells:
        """The cells of one direction, and of one verdict, class and expectation where given."""
        return _of(self.cells, direction, verdict, packet_class, expected)

    def missed_of(self, direction: Direction) -> int:
        """Packets of one direction that are in no cell, at most."""
        return self.missed_in.get(direction, self.missed)

    def unsized(self, direction: Direction) -> Counts:
        """Packets that are counted without their size: see SIZE_UNKNOWN."""
        rows = self.where(direction)
        return count(rows[rows["size"] == SIZE_UNKNOWN])

    def offered(self, direction: Direction, packet_class: PacketClass | None = None) -> Counts:
        """All that arrived at the tap's hook, whatever became of it (inbound: or will)."""
        return count(self.where(direction, packet_class=packet_class))

    def counts(self, direction: Direction, verdict: Verdict, packet_class: PacketClass | None = None) -> Counts | None:
        """Return the packets of this verdict; None if any packet of that direction and class has an unknown outcome.

        QUEUED is a gauge: what was in the queue at the interval's end, however long it had been there.
        """
        if not self.knows_verdicts(direction, packet_class):
            return None
        if verdict is Verdict.QUEUED and not self.final:
            return count(_of(self.queued, direction, packet_class=packet_class))
        return count(self.where(direction, verdict, packet_class))

    def knows_verdicts(self, direction: Direction, packet_class: PacketClass | None = None) -> bool:
        """Return True if the outcome of every packet counted here is known."""
        return len(self.where(direction, Verdict.UNKNOWN, packet_class)) == 0

    def bypass(self, direction: Direction) -> Counts | None:
        """Passed although the ideal bucket said exceed; None where no limit was held against it."""
        return self._crossed(direction, Verdict.PASSED, Expected.EXCEED)

    def overpoliced(self, direction: Direction) -> Counts | None:
        """Policed although the ideal bucket said conform; None where no limit was held against it."""
        return self._crossed(direction, Verdict.POLICED, Expected.CONFORM)

    def would(self, direction: Direction, expected: Expected, packet_class: PacketClass | None = None) -> Counts | None:
        """Return the packets with this answer of the ideal bucket; None if it was not asked for every packet."""
        unasked = self.where(direction, packet_class=packet_class, expected=Expected.NONE)
        if len(unasked) or not self._has_limit(direction):
            return None
        return count(self.where(direction, packet_class=packet_class, expected=expected))

    def _has_limit(self, direction: Direction) -> bool:
        limit = self.limits.get(direction)
        return limit is not None and limit.declared_bps is not None

    def _crossed(self, direction: Direction, verdict: Verdict, expected: Expected) -> Counts | None:
        if len(self.where(direction, expected=Expected.NONE)) or not self.knows_verdicts(direction):
            return None
        if not self._has_limit(direction):
            return None
        return count(self.where(direction, verdict, expected=expected))

    def classes(self, direction: Direction) -> tuple[PacketClass, ...]:
        """The classes seen in this direction, in the order of PacketClass."""
        return tuple(PacketClass(code) for code in np.unique(self.where(direction)["packet_class"]))
