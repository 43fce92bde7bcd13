# SPDX-License-Identifier: Apache-2.0
"""SYN measures from the tables of bpf/lib/syn_sets.c and handshakes.c; how many handshakes are followed."""

from __future__ import annotations

import secrets
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from vifprobe.kernel.load import Programs
from vifprobe.model.layout import Direction
from vifprobe.model.records import AGE_BUCKETS, FLOW_EXPIRES_NS, HANDSHAKES, Distinct, SynMeasures, SynSets

#: New flows that are followed a second, of each tap and direction: where fewer came, more of them are from then on. A
#: table of 16,384 places holds eight seconds of it, if no flow ends.
FOLLOWED_PER_SECOND = 2_000
_ENOUGH_SECONDS = 0.005  # a rate over less than that says nothing
_EVENTS = ("followed", "started", "answered", "completed", "reset", "expired")

Array = npt.NDArray[Any]


class SynReader:
    """Reads the sets and counts; turns generations and adapts the share of flows that is followed.

    Two generations of sets: while the kernel side writes to one, the other one is read. It is emptied when it is needed
    again, an interval later, so that what came late to it (a packet that a CPU was at when the generation was turned)
    is in the total all the same.
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
        """Give the tables' memory back."""
        for table in ("_controls", "_sets", "_flows", "_counts"):
            self.__dict__.pop(table, None)

    def take(self) -> SynMeasures:
        """The interval since the last call, and what there is since the start."""
        now_ns = time.monotonic_ns()
        old = int(self._controls["generation"][0, 0]) & 1
        next_one = self._sets[1 - old]
        for side in _used(next_one):
            self._add_to_total(side, _copied(next_one[side]))
            next_one[side] = np.zeros((), next_one.dtype)
        # Direction by direction: a SYN that comes meanwhile is in one generation or the other.
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
        """Registers: the larger one; ports: either. What has been given away stays as it is."""
        before = self._total.get(side)
        if before is not None:
            sets = {
                name: (np.bitwise_or if name.endswith("ports") else np.maximum)(own, sets[name])
                for name, own in before.items()
            }
        self._total[side] = sets

    def _live_flows(self, now_ns: int) -> tuple[Array, Array]:
        """Flows that have not ended, and their ages in ns."""
        rows = self._flows[self._flows["key"] != 0]
        return rows, now_ns - rows["started_ns"].astype(np.int64)

    def _by_owner(self, rows: Array) -> Array:
        """Sum of what these flows stand for, of each tap and direction."""
        owners = self._controls.shape
        weights = np.left_shift(1, rows["shift"].astype(np.int64))
        summed = np.bincount(rows["owner"].astype(np.int64), weights, minlength=owners[0] * owners[1])
        return summed[: owners[0] * owners[1]].astype(np.int64).reshape(owners)

    def _handshakes(self, live: Array, ages: Array, now_ns: int) -> Array:
        told = np.zeros(self._controls.shape, HANDSHAKES)
        for name in _EVENTS:
            told[name] = self._counts[name].sum(axis=0, dtype=np.int64)
        old = ages >= FLOW_EXPIRES_NS
        # The kernel side finds an expired one only when its place is needed.
        told["expired"] += self._by_owner(live[old])
        told["open"] = self._by_owner(live[~old])
        now_every = np.left_shift(1, self._controls["shift"].astype(np.int64))
        told["every"] = self._every = np.maximum(self._every, now_every)
        ended = sum(told[name] for name in ("completed", "reset", "expired", "open"))
        told["evicted"] = np.maximum(told["started"] - ended, 0)
        return told

    def _ages(self, live: Array, ages: Array) -> npt.NDArray[np.int64]:
        told = np.zeros((*self._controls.shape, AGE_BUCKETS), np.int64)
        young = ages < FLOW_EXPIRES_NS
        rows, microseconds = live[young], np.maximum(ages[young], 0) // 1000
        # frexp: 2**(exponent - 1) <= value < 2**exponent, and 0 for 0; exact below 2**53.
        buckets = np.minimum(np.frexp(microseconds.astype(float))[1], AGE_BUCKETS - 1)
        owner = rows["owner"].astype(np.int64)
        np.add.at(told.reshape(-1, AGE_BUCKETS), (owner, buckets), np.left_shift(1, rows["shift"].astype(np.int64)))
        return told

    def _adapt(self, handshakes: Array, now_ns: int) -> None:
        """Follow more flows where few are begun; the kernel side follows fewer by itself when its table is full."""
        seconds = (now_ns - self._since_ns) / 1e9
        if seconds < _ENOUGH_SECONDS:
            return
        rates, self._before = (handshakes["followed"] - self._before) / seconds, handshakes["followed"].copy()
        shift, lookup = self._controls["shift"], self._controls["lookup_shift"]
        wanted = shift + np.ceil(np.log2(np.maximum(rates, 1) / FOLLOWED_PER_SECOND)).astype(np.int64)
        # Twice as many at once at most: a pause is no end.
        shift[:] = np.clip(wanted, np.maximum(shift.astype(np.int64) - 1, 0), 20)
        # What was begun while more flows were followed is followed to its end.
        settled = (shift <= lookup) | (now_ns - self._raised_ns > FLOW_EXPIRES_NS)
        np.copyto(lookup, shift, where=settled)
        self._raised_ns[settled] = now_ns


def _used(sets: Array) -> list[tuple[int, int]]:
    """Taps and directions with a SYN in these sets: each one leaves a register that is not 0."""
    registers = sets["sources"].view(np.uint64)
    return [(int(tap), int(direction)) for tap, direction in np.argwhere(registers.any(axis=-1))]


def _copied(sets: Any) -> SynSets:
    return {name: sets[name].copy() for name in sets.dtype.names or ()}
