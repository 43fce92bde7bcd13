# SPDX-License-Identifier: Apache-2.0
"""Inbound packets in flight, as bpf/lib/inflight.c records them: those that wait, have ended, or are lost.

The end of a packet can go by unseen: another program redirects it, or the kernel runs no tracepoint program just then.
Its entry is reused in time, and then it counts as missed. Until then it looks like one that waits. So the packets that
have been in flight for some readings are compared with the number of packets that wait by the qdisc's own count. What
is too much is written off, the oldest first: its entry is marked as lost and counts as missed. Should such a packet end
after all, it counts with its verdict, and the mark goes with its entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vifprobe.kernel.load import Programs
from vifprobe.model.layout import Verdict, cell_key_shifts, take_apart

#: Fields that are read of an inbound packet in flight (struct inflight of bpf/lib/tables.c).
IN_FLIGHT = np.dtype(
    [(name, np.uint64) for name in ("skb", "key", "drop_key", "frame_bytes", "charged_bytes", "wire_bytes")]
)
_VERDICT_SHIFT, _VERDICT_MASK = cell_key_shifts()["verdict"]
_OPEN = np.uint64(_VERDICT_MASK << _VERDICT_SHIFT)
_QUEUED = np.uint64(Verdict.QUEUED << _VERDICT_SHIFT)
#: Readings at which a packet must have been in flight before: by then it is in the queue.
_READINGS = 2

Array = npt.NDArray[Any]


class InflightPackets(NamedTuple):
    """Rows of IN_FLIGHT. queued: with that verdict. ended: with their verdict, in no cell yet. lost: missed."""

    queued: Array
    ended: Array
    lost: Array


class Inflight:
    """Reads the table of inbound packets in flight. It is empty where inbound packets are not followed."""

    def __init__(self, programs: Programs) -> None:
        self._follows = programs.settings.follow is not None
        if self._follows:
            self._index = programs.table("inflight_index")
            self._inflight = programs.table("inflight", writable=True)
            # By entry: the packet that was there at the last reading, and at how many readings in a row.
            self._identities = np.zeros(len(self._inflight), np.uint64)
            self._readings = np.zeros(len(self._inflight), np.uint16)

    def close(self) -> None:
        """Give the tables' memory back."""
        for table in ("_index", "_inflight"):
            self.__dict__.pop(table, None)

    def look(self) -> InflightPackets:
        """All packets in flight, now."""
        rows, is_lost = self._read()[:2]
        open_ = rows["key"] & _OPEN == 0
        rows["key"][open_ & ~is_lost] |= _QUEUED
        return InflightPackets(rows[open_ & ~is_lost], rows[~open_], rows[open_ & is_lost])

    def write_off(self, waiting: Callable[[Iterable[int]], Mapping[int, int]]) -> bool:
        """Mark packets that cannot be waiting any more as lost.

        waiting: returns the packets in the queues of taps, by tap number; taps whose queue is not known are left out.
        False: no packet is in flight, so the queues need not be read again.
        """
        if not self._follows:
            return False
        places = self._count_readings()
        old = places[self._readings[places] > _READINGS]
        if not len(old):
            return len(places) > 0
        identities, numbers = self._identities[old], take_apart(self._inflight["key"][old])["tap"]
        lengths = waiting([int(number) for number in np.unique(numbers)])
        # A packet that is still here was here all the time: if anywhere, in the queue when that was counted.
        still = (_identity(self._inflight[old]) == identities) & (self._index["skb"].reshape(-1)[old] != 0)
        for number, length in lengths.items():
            own = old[still & (numbers == number)]
            if len(own) > length:
                oldest = own[np.argsort(-self._readings[own].astype(np.int64), kind="stable")][: len(own) - length]
                self._inflight["lost"][oldest] = 1
        return True

    def _read(self) -> tuple[Array, Array, Array]:
        """(Rows, True for those that are marked as lost, entry numbers)."""
        if not self._follows:
            return np.zeros(0, IN_FLIGHT), np.zeros(0, bool), np.zeros(0, np.int64)
        addresses = self._index["skb"].flatten()
        where = np.flatnonzero(addresses)
        known = self._inflight[where]
        # Reused for another packet since, or being written now: counted with the next reading.
        whole = known["skb"] == addresses[where]
        known, where = known[whole], where[whole]
        rows = np.zeros(len(known), IN_FLIGHT)
        for name in IN_FLIGHT.names or ():
            rows[name] = known[name]
        return rows, known["lost"] != 0, where

    def _count_readings(self) -> Array:
        """Entry numbers of the packets that wait now; counts at how many readings each was there."""
        rows, is_lost, where = self._read()
        places: Array = where[(rows["key"] & _OPEN == 0) & ~is_lost]
        identities = _identity(self._inflight[places])
        readings = np.where(self._identities[places] == identities, self._readings[places] + 1, 1)
        self._identities.fill(0)
        self._readings.fill(0)
        self._identities[places], self._readings[places] = identities, readings
        return places


def _identity(packets: Array) -> Array:
    """Numbers that tell a packet from others in its entry."""
    told: Array = np.bitwise_xor(packets["skb"], packets["checksum"].astype(np.uint64) << np.uint64(32))
    return told
