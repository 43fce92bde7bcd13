# SPDX-License-Identifier: Apache-2.0
"""SYN measures out of the tables that bpf/syn.c and handshakes.c write, and how many handshakes are followed."""

from __future__ import annotations

import secrets
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from vifprobe.kernel.build import Programs
from vifprobe.layout import Direction
from vifprobe.records import AGE_BUCKETS, FLOW_EXPIRES_NS, HANDSHAKES, Distinct, SynMeasures

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
        sides = programs.table("syn_sides", writable=True)[: np.prod(shape)].reshape(shape)
        self._controls = sides["control"]
        self._sets = np.moveaxis(sides["sets"], -1, 0)
        self._flows = programs.table("flows")["way"].reshape(-1)
        self._counts = programs.table("syn_counts").reshape(settings.cpus, *shape)
        self._total = _copied(self._sets[0])
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
        _merge(self._total, next_one)
        for name in next_one.dtype.names or ():
            next_one[name] = 0
        # Direction by direction: a SYN that comes meanwhile is in one generation or the other.
        self._controls["generation"] += 1
        interval = _copied(self._sets[old])
        _merge(self._total, interval)
        live, ages = self._live_flows(now_ns)
        handshakes = self._handshakes(live, ages, now_ns)
        self._adapt(handshakes, now_ns)
        since_ns, self._since_ns = self._since_ns, now_ns
        return SynMeasures(
            since_ns=since_ns,
            at_ns=now_ns,
            interval=_distinct(interval),
            total=_distinct(self._total),
            handshakes=handshakes,
            open_age=self._ages(live, ages),
            completed_age=self._counts["completed_age"].sum(axis=0, dtype=np.int64),
        )

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
        np.add.at(
            told.reshape(-1, AGE_BUCKETS), (owner, buckets), np.left_shift(1, rows["shift"].astype(np.int64))
        )
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
        for side in np.ndindex(shift.shape):
            if shift[side] <= lookup[side] or now_ns - self._raised_ns[side] > FLOW_EXPIRES_NS:
                lookup[side] = shift[side]
                self._raised_ns[side] = now_ns


def _copied(sets: Array) -> dict[str, npt.NDArray[np.uint8]]:
    return {name: sets[name].copy() for name in sets.dtype.names or ()}


def _merge(total: dict[str, npt.NDArray[np.uint8]], sets: Any) -> None:
    """Registers: the larger one; ports: either."""
    for name, own in total.items():
        (np.bitwise_or if name.endswith("ports") else np.maximum)(own, sets[name], out=own)


def _distinct(sets: dict[str, npt.NDArray[np.uint8]]) -> Distinct:
    def ports(name: str) -> npt.NDArray[np.bool_]:
        return np.unpackbits(sets[name], axis=-1, bitorder="little").astype(bool)

    return Distinct(
        sources=sets["sources"].copy(),
        destinations=sets["destinations"].copy(),
        source_ports=ports("source_ports"),
        destination_ports=ports("destination_ports"),
    )
