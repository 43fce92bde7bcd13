# SPDX-License-Identifier: Apache-2.0
"""Notes on a recording: what is odd about its packets, collected while they are replayed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vifprobe.replay.packet import Remarks

Array = npt.NDArray[Any]

#: IEEE 802.3: longest frame without FCS, with two tags. What is longer was put together by the sender or on the way.
WIRE_MAX_BYTES = 1522
MAC_BYTES = 6


@dataclass
class ReplayNotes:
    """Remarks on the packets of a file.

    first_ns, last_ns: earliest and latest time, since 1970. backwards: earlier than the one before. wild: with a time
    years away from the first's, taken as the one before. cut: of which the file does not have all bytes. refused: that
    TEST_RUN takes only with their length beside them. long: that no wire carries in one piece. strangers: inbound ones
    that are for another MAC than the guest's.
    """

    packets: int = 0
    first_ns: int = 0
    last_ns: int = 0
    backwards: int = 0
    wild: int = 0
    cut: int = 0
    refused: int = 0
    long: int = 0
    strangers: int = 0

    def notes(self, remarks: Remarks, missed: int) -> Iterator[str]:
        """In words. missed: packets that could not be counted."""
        if remarks.cut_bytes:
            yield f"the file ends within a packet: its last {remarks.cut_bytes:,} bytes were left out"
        if remarks.lost_packets:
            yield f"the recording program reports that {remarks.lost_packets:,} packets were lost"
        if self.cut:
            yield (
                f"{self.cut:,} frames were recorded cut short: they count with their whole length, and by their "
                f"headers as far as those are there; of {missed:,} too little is there, they are missed"
            )
        if self.refused:
            yield (
                f"{self.refused:,} frames are too short or too long for BPF_PROG_TEST_RUN as they are: the same "
                "program counted them by their length alone"
            )
        if self.long:
            yield (
                f"{self.long:,} frames are longer than Ethernet's {WIRE_MAX_BYTES} bytes (TSO, or a larger MTU): in "
                "which segments they were sent the file does not say, each counts as one on the wire"
            )
        if self.strangers:
            yield (
                f"{self.strangers:,} frames are neither from the guest nor for its MAC or a group: counted as "
                "inbound, as a bridge that floods them to the tap would have them"
            )
        if self.backwards:
            yield f"{self.backwards:,} packets are older than the one before them: the ideal bucket saw no time pass"
        if self.wild:
            yield f"{self.wild:,} packets have a time years away from the first: taken as that of the packet before"
        if remarks.without_time:
            yield f"{remarks.without_time:,} packets have no time: taken as that of the packet before"


@dataclass
class Answers:
    """Frames to the file's first sender: if there are any, both directions are in the file.

    sender: its MAC. packets: to it.
    """

    sender: bytes = b""
    packets: int = 0
    _sender: Array = field(default_factory=lambda: np.zeros(0, np.uint8))

    def look(self, samples: Array) -> None:
        """The next packets (rows of layout.SAMPLE, in the file's order)."""
        whole = samples["headers"][samples["header_bytes"] >= 2 * MAC_BYTES]
        if not self.sender and len(whole):
            self._sender = whole[0, MAC_BYTES : 2 * MAC_BYTES].copy()
            self.sender = self._sender.tobytes()
        if self.sender:
            self.packets += int((whole[:, :MAC_BYTES] == self._sender).all(axis=1).sum())

    def notes(self, direction: str) -> Iterator[str]:
        """In words, where it matters. direction: that all packets count as."""
        if self.packets:
            yield (
                f"{self.packets:,} frames are for {self.sender.hex(':')}, which sent others: the file holds both "
                f"directions, and all of it counts as {direction}; --guest-mac MAC tells them apart"
            )
