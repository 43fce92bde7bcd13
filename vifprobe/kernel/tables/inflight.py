# SPDX-License-Identifier: Apache-2.0
"""Inbound packets in flight, as bpf/lib/inflight.c records them: those that wait, have ended, or are lost.

A packet's end can go by unseen: another program redirects it, or the kernel runs no tracepoint program just then. Its
place is taken again in time, and it is counted as missed then. Until then it looks like one that waits; so what has
been there for some looks is held against how many packets wait by the queueing discipline's own count, and what is too
much, the oldest first, is written off: a mark in its place, by which it counts as missed. Should it end after all, it
counts as what it ended as, and the mark goes with its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vifprobe.kernel.load import Programs
from vifprobe.model.layout import Verdict, cell_key_shifts, take_apart

#: What is read of an inbound packet on its way (struct inflight of bpf/lib/tables.c).
IN_FLIGHT = np.dtype(
    [(name, np.uint64) for name in ("skb", "key", "drop_key", "frame_bytes", "charged_bytes", "wire_bytes")]
)
_VERDICT_SHIFT, _VERDICT_MASK = cell_key_shifts()["verdict"]
_OPEN = np.uint64(_VERDICT_MASK << _VERDICT_SHIFT)
_QUEUED = np.uint64(Verdict.QUEUED << _VERDICT_SHIFT)
#: Looks at which a packet must have been there before: it is in the queue by then, no more on its way into it.
_LOOKS = 2

Array = npt.NDArray[Any]


class InflightPackets(NamedTuple):
    """Rows of IN_FLIGHT. queued: with that verdict. ended: with their verdict, in no cell yet. lost: missed."""

    queued: Array
    ended: Array
    lost: Array


class Inflight:
    """Reads the memory of inbound packets on their way; nothing is there where they are not followed."""

    def __init__(self, programs: Programs) -> None:
        self._follows = programs.settings.follow is not None
        if self._follows:
            self._index = programs.table("inflight_index")
            self._inflight = programs.table("inflight", writable=True)
            # By place: who was there at the last look, and at how many looks in a row.
            self._who = np.zeros(len(self._inflight), np.uint64)
            self._looks = np.zeros(len(self._inflight), np.uint16)

    def close(self) -> None:
        """Give the tables' memory back."""
        for table in ("_index", "_inflight"):
            self.__dict__.pop(table, None)

    def look(self) -> InflightPackets:
        """All of them, now."""
        rows, is_lost = self._read()[:2]
        open_ = rows["key"] & _OPEN == 0
        rows["key"][open_ & ~is_lost] |= _QUEUED
        return InflightPackets(rows[open_ & ~is_lost], rows[~open_], rows[open_ & is_lost])

    def write_off(self, waiting: Callable[[Iterable[int]], Mapping[int, int]]) -> bool:
        """Mark those that can't be waiting any more. waiting: packets in the queues of taps, by their numbers; without
        those where that is not known. False where none is on its way: nothing has to be looked at again.
        """
        if not self._follows:
            return False
        places = self._look_again()
        old = places[self._looks[places] > _LOOKS]
        if not len(old):
            return len(places) > 0
        who, numbers = self._who[old], take_apart(self._inflight["key"][old])["tap"]
        lengths = waiting([int(number) for number in np.unique(numbers)])
        # What is still there has been there all the time: in the queue, if anywhere, when that was counted.
        still = (_identity(self._inflight[old]) == who) & (self._index["skb"].reshape(-1)[old] != 0)
        for number, length in lengths.items():
            own = old[still & (numbers == number)]
            if len(own) > length:
                oldest = own[np.argsort(-self._looks[own].astype(np.int64), kind="stable")][: len(own) - length]
                self._inflight["lost"][oldest] = 1
        return True

    def _read(self) -> tuple[Array, Array, Array]:
        """Rows, which of them are marked, and their places."""
        if not self._follows:
            return np.zeros(0, IN_FLIGHT), np.zeros(0, bool), np.zeros(0, np.int64)
        addresses = self._index["skb"].flatten()
        where = np.flatnonzero(addresses)
        known = self._inflight[where]
        # Taken by another packet since, or being written just now: counted with the next reading.
        whole = known["skb"] == addresses[where]
        known, where = known[whole], where[whole]
        rows = np.zeros(len(known), IN_FLIGHT)
        for name in IN_FLIGHT.names or ():
            rows[name] = known[name]
        return rows, known["lost"] != 0, where

    def _look_again(self) -> Array:
        """Places of those that wait now; counts the looks at which each has been there."""
        rows, is_lost, where = self._read()
        places: Array = where[(rows["key"] & _OPEN == 0) & ~is_lost]
        who = _identity(self._inflight[places])
        looks = np.where(self._who[places] == who, self._looks[places] + 1, 1)
        self._who.fill(0)
        self._looks.fill(0)
        self._who[places], self._looks[places] = who, looks
        return places


def _identity(packets: Array) -> Array:
    """Tells a packet from others at its place."""
    told: Array = np.bitwise_xor(packets["skb"], packets["checksum"].astype(np.uint64) << np.uint64(32))
    return told
