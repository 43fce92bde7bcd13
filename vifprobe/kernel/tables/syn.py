# SPDX-License-Identifier: Apache-2.0
"""SYN measures from the tables of bpf/lib/syn_sets.c and handshakes.c; control of the share of followed flows."""

from __future__ import annotations

import secrets
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from vifprobe.kernel.load import Programs
from vifprobe.model.layout import Direction
from vifprobe.model.records import AGE_BUCKETS, FLOW_EXPIRES_NS, HANDSHAKES, Distinct, SynMeasures, SynSets

#: New flows followed per second, of each tap and direction: where fewer come, a larger share of them is followed. A
#: table of 16,384 entries holds eight seconds of them, if no flow ends.
FOLLOWED_PER_SECOND = 2_000
_ENOUGH_SECONDS = 0.005  # a rate over a shorter time is not reliable
_EVENTS = ("followed", "started", "answered", "completed", "reset", "expired")

Array = npt.NDArray[Any]


class SynReader:
    """Reader of the sets and counts. Switches generations and adapts the share of followed flows.

    There are two generations of sets: while the kernel side writes to one, the other one is read. A generation is
    cleared when it is needed again, one interval later. So a late packet (processed by a CPU while the generation was
    switched) still counts in the total.
    """

    def __init__(self, programs: Programs) -> None:
        settings = programs.settings
        shape = settings.taps, len(Direction)
        states = programs.table("syn_states", writable=True)[: np.prod(shape)].reshape(shape)
        self._controls = states["control"]
        self._sets = np.moveaxis(states["sets"], -1, 0)
        self._flows = programs.table("flows")["way"].reshape(-1)
        self._counts = programs.table("syn_counts").reshape(settings.cpus, *shape)
        self._total: dict[tuple[int, int], SynSets] = {}
        self._before = np.zeros(shape, np.int64)
        self._every = np.ones(shape, np.int64)
        self._raised_ns = np.zeros(shape, np.int64)
        self._since_ns = time.monotonic_ns()
        self._controls["seed"] = secrets.randbits(64)

    def close(self) -> None:
        """Unmap the tables."""
        for table in ("_controls", "_sets", "_flows", "_counts"):
            self.__dict__.pop(table, None)

    def take(self) -> SynMeasures:
        """Return the measures of the interval since the last call, and those since the start."""
        now_ns = time.monotonic_ns()
        old = int(self._controls["generation"][0, 0]) & 1
        next_one = self._sets[1 - old]
        for side in _used(next_one):
            self._add_to_total(side, _copied(next_one[side]))
            next_one[side] = np.zeros((), next_one.dtype)
        # Not atomic over all directions: a SYN that comes in between is in one generation or the other.
        self._controls["generation"] += 1
        interval = {side: _copied(self._sets[old][side]) for side in _used(self._sets[old])}
        for side, sets in interval.items():
            self._add_to_total(side, sets)
        live, ages = self._live_flows(now_ns)
        handshakes = self._handshakes(live, ages, now_ns)
        self._adapt(handshakes, now_ns)
        since_ns, self._since_ns = self._since_ns, now_ns
        return SynMeasures(
            since_ns=since_ns,
            at_ns=now_ns,
            interval=Distinct(interval, self._controls.shape),
            total=Distinct(dict(self._total), self._controls.shape),
            handshakes=handshakes,
            open_age=self._ages(live, ages),
            completed_age=self._counts["completed_age"].sum(axis=0, dtype=np.int64),
        )

    def _add_to_total(self, side: tuple[int, int], sets: SynSets) -> None:
        """Merge sets into the total: maximum of the registers, union of the ports. Makes new arrays, no changes."""
        before = self._total.get(side)
        if before is not None:
            sets = {
                name: (np.bitwise_or if name.endswith("ports") else np.maximum)(own, sets[name])
                for name, own in before.items()
            }
        self._total[side] = sets

    def _live_flows(self, now_ns: int) -> tuple[Array, Array]:
        """Return the flows that have not ended, and their ages in ns."""
        rows = self._flows[self._flows["key"] != 0]
        return rows, now_ns - rows["started_ns"].astype(np.int64)

    def _by_owner(self, rows: Array) -> Array:
        """Return the sum of the weights of these flows, by tap and direction."""
        owners = self._controls.shape
        weights = np.left_shift(1, rows["shift"].astype(np.int64))
        summed = np.bincount(rows["owner"].astype(np.int64), weights, minlength=owners[0] * owners[1])
        return summed[: owners[0] * owners[1]].astype(np.int64).reshape(owners)

    def _handshakes(self, live: Array, ages: Array, now_ns: int) -> Array:
        counts = np.zeros(self._controls.shape, HANDSHAKES)
        for name in _EVENTS:
            counts[name] = self._counts[name].sum(axis=0, dtype=np.int64)
        old = ages >= FLOW_EXPIRES_NS
        # The kernel side finds an expired flow only when it needs its entry.
        counts["expired"] += self._by_owner(live[old])
        counts["open"] = self._by_owner(live[~old])
        now_every = np.left_shift(1, self._controls["shift"].astype(np.int64))
        counts["every"] = self._every = np.maximum(self._every, now_every)
        ended = sum(counts[name] for name in ("completed", "reset", "expired", "open"))
        counts["evicted"] = np.maximum(counts["started"] - ended, 0)
        return counts

    def _ages(self, live: Array, ages: Array) -> npt.NDArray[np.int64]:
        counts = np.zeros((*self._controls.shape, AGE_BUCKETS), np.int64)
        young = ages < FLOW_EXPIRES_NS
        rows, microseconds = live[young], np.maximum(ages[young], 0) // 1000
        # frexp: 2**(exponent - 1) <= value < 2**exponent, and 0 for 0; exact below 2**53.
        buckets = np.minimum(np.frexp(microseconds.astype(float))[1], AGE_BUCKETS - 1)
        owner = rows["owner"].astype(np.int64)
        np.add.at(counts.reshape(-1, AGE_BUCKETS), (owner, buckets), np.left_shift(1, rows["shift"].astype(np.int64)))
        return counts

    def _adapt(self, handshakes: Array, now_ns: int) -> None:
        """Follow a larger share of flows where few begin; the kernel side reduces it itself when its table is full."""
        seconds = (now_ns - self._since_ns) / 1e9
        if seconds < _ENOUGH_SECONDS:
            return
        rates, self._before = (handshakes["followed"] - self._before) / seconds, handshakes["followed"].copy()
        shift, lookup = self._controls["shift"], self._controls["lookup_shift"]
        wanted = shift + np.ceil(np.log2(np.maximum(rates, 1) / FOLLOWED_PER_SECOND)).astype(np.int64)
        # The share at most doubles at each call: a pause does not mean that the traffic has ended.
        shift[:] = np.clip(wanted, np.maximum(shift.astype(np.int64) - 1, 0), 20)
        # Flows that began while a larger share was followed are followed to their end.
        settled = (shift <= lookup) | (now_ns - self._raised_ns > FLOW_EXPIRES_NS)
        np.copyto(lookup, shift, where=settled)
        self._raised_ns[settled] = now_ns


def _used(sets: Array) -> list[tuple[int, int]]:
    """Return the taps and directions with a SYN in these sets: each SYN leaves a register that is not 0."""
    registers = sets["sources"].view(np.uint64)
    return [(int(tap), int(direction)) for tap, direction in np.argwhere(registers.any(axis=-1))]


def _copied(sets: Any) -> SynSets:
    return {name: sets[name].copy() for name in sets.dtype.names or ()}
