# SPDX-License-Identifier: Apache-2.0
"""Inbound packets in flight, as bpf/lib/inflight.c records them: queued, ended or lost.

The end of a packet can pass unobserved: another program redirects it, or the kernel runs no tracepoint program at that
moment. Its entry is reused later, and then the packet counts as missed. Until then it looks like a queued packet.

So the packets that have been in flight for some readings are compared with the queue length that the qdisc reports.
The excess is written off, the oldest first: such an entry is marked as lost and counts as missed. If such a packet
ends later, it counts with its verdict, and the mark goes with its entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vifprobe.kernel.load import Programs
from vifprobe.model.layout import Verdict, cell_key_shifts, take_apart

#: Fields read from an inbound packet in flight (struct inflight of bpf/lib/tables.c).
IN_FLIGHT = np.dtype(
    [(name, np.uint64) for name in ("skb", "key", "drop_key", "frame_bytes", "charged_bytes", "wire_bytes")]
)
_VERDICT_SHIFT, _VERDICT_MASK = cell_key_shifts()["verdict"]
_OPEN = np.uint64(_VERDICT_MASK << _VERDICT_SHIFT)
_QUEUED = np.uint64(Verdict.QUEUED << _VERDICT_SHIFT)
#: Readings for which a packet must have been in flight: by then it is in the queue.
_READINGS = 2

Array = npt.NDArray[Any]


class InflightPackets(NamedTuple):
    """Packets in flight, as rows of IN_FLIGHT.

    - queued: no verdict yet; their key says QUEUED.
    - ended: with their verdict, not yet counted in a cell.
    - lost: written off, count as missed.
    """

    queued: Array
    ended: Array
    lost: Array


class Inflight:
    """Reader of the table of inbound packets in flight. The table is empty where inbound packets are not followed."""

    def __init__(self, programs: Programs) -> None:
        self._follows = programs.settings.follow is not None
        if self._follows:
            self._index = programs.table("inflight_index")
            self._inflight = programs.table("inflight", writable=True)
            # By entry: the packet of the last reading, and the number of consecutive readings with it.
            self._identities = np.zeros(len(self._inflight), np.uint64)
            self._readings = np.zeros(len(self._inflight), np.uint16)

    def close(self) -> None:
        """Unmap the tables."""
        for table in ("_index", "_inflight"):
            self.__dict__.pop(table, None)

    def look(self) -> InflightPackets:
        """Return all packets in flight now."""
        rows, is_lost = self._read()[:2]
        open_ = rows["key"] & _OPEN == 0
        rows["key"][open_ & ~is_lost] |= _QUEUED
        return InflightPackets(rows[open_ & ~is_lost], rows[~open_], rows[open_ & is_lost])

    def write_off(self, waiting: Callable[[Iterable[int]], Mapping[int, int]]) -> bool:
        """Mark packets that cannot be queued any more as lost.

        waiting: callback that returns the queue lengths in packets, by tap number; taps with an unknown queue length
        are left out. Return False where no packet is in flight: the queues need not be read again.
        """
        if not self._follows:
            return False
        places = self._count_readings()
        old = places[self._readings[places] > _READINGS]
        if not len(old):
            return len(places) > 0
        identities, numbers = self._identities[old], take_apart(self._inflight["key"][old])["tap"]
        lengths = waiting([int(number) for number in np.unique(numbers)])
        # A packet that is still here was here all the time: it was in the queue when the length was read.
        still = (_identity(self._inflight[old]) == identities) & (self._index["skb"].reshape(-1)[old] != 0)
        for number, length in lengths.items():
            own = old[still & (numbers == number)]
            if len(own) > length:
                oldest = own[np.argsort(-self._readings[own].astype(np.int64), kind="stable")][: len(own) - length]
                self._inflight["lost"][oldest] = 1
        return True

    def _read(self) -> tuple[Array, Array, Array]:
        """Return (rows, True for each row marked as lost, entry numbers)."""
        if not self._follows:
            return np.zeros(0, IN_FLIGHT), np.zeros(0, bool), np.zeros(0, np.int64)
        addresses = self._index["skb"].flatten()
        where = np.flatnonzero(addresses)
        known = self._inflight[where]
        # Entries that were reused for another packet, or are being written now, are counted with the next reading.
        whole = known["skb"] == addresses[where]
        known, where = known[whole], where[whole]
        rows = np.zeros(len(known), IN_FLIGHT)
        for name in IN_FLIGHT.names or ():
            rows[name] = known[name]
        return rows, known["lost"] != 0, where

    def _count_readings(self) -> Array:
        """Return the entry numbers of the queued packets. Counts the consecutive readings of each one."""
        rows, is_lost, where = self._read()
        places: Array = where[(rows["key"] & _OPEN == 0) & ~is_lost]
        identities = _identity(self._inflight[places])
        readings = np.where(self._identities[places] == identities, self._readings[places] + 1, 1)
        self._identities.fill(0)
        self._readings.fill(0)
        self._identities[places], self._readings[places] = identities, readings
        return places


def _identity(packets: Array) -> Array:
    """Return numbers that distinguish a packet from others in the same entry."""
    identity: Array = np.bitwise_xor(packets["skb"], packets["checksum"].astype(np.uint64) << np.uint64(32))
    return identity
