# SPDX-License-Identifier: Apache-2.0
"""Common parts of the formats: a packet's place, remarks, and the link types that are Ethernet."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from vifprobe.errors import CaptureError

#: A packet: its time (ns since 1970), where in the window's memory its bytes begin, how many of them are there, and how
#: many it had.
Packet = tuple[int, int, int, int]

#: No frame is longer: BIG TCP ends at 512 KiB (GSO_MAX_SIZE, include/linux/netdevice.h). More is a damaged length.
FRAME_MAX_BYTES = 1 << 20

#: No packet is later: the year 2116. A pcap file's seconds end in 2106; twice as much fits into 64 bits.
TIME_MAX_NS = (1 << 62) - 1
_KINDS_MAX = 64

ETHERNET = 1
#: Link types that recordings for this tool are likely to come in by mistake; https://www.tcpdump.org/linktypes.html.
LINK_TYPES = {
    0: "BSD loopback",
    12: "raw IP",
    14: "raw IP",
    101: "raw IP",
    105: "802.11",
    113: "Linux cooked: recorded with `-i any`",
    127: "802.11 with radiotap",
    228: "raw IPv4",
    229: "raw IPv6",
    253: "netlink",
    276: "Linux cooked v2: recorded with `-i any`",
}


@dataclass
class Remarks:
    """Remarks on the file for a reader of the counts.

    cut_bytes: of a packet within which the file ends. lost_packets: that the recorder itself says it lost.
    without_time: packets that have none, and were given that of the one before.
    """

    cut_bytes: int = 0
    lost_packets: int = 0
    without_time: int = 0
    skipped_blocks: Counter[int] = field(default_factory=Counter)

    def skip_block(self, kind: int) -> None:
        """Count a block that is not read; of the kinds beyond _KINDS_MAX nothing is kept."""
        if kind in self.skipped_blocks or len(self.skipped_blocks) < _KINDS_MAX:
            self.skipped_blocks[kind] += 1


def check_link_type(link_type: int, where: str) -> None:
    """Raise CaptureError for what is no Ethernet."""
    if link_type == ETHERNET:
        return
    name = f" ({LINK_TYPES[link_type]})" if link_type in LINK_TYPES else ""
    raise CaptureError(
        f"{where} has link type {link_type}{name}; only Ethernet ({ETHERNET}) can be replayed.",
        "Record at the tap itself, which is Ethernet: tcpdump -i TAP -w FILE.",
    )


def without_fcs(captured: int, length: int, fcs_bytes: int) -> tuple[int, int]:
    """Both sizes of a frame without the frame check sequence behind it; none is recorded with more than it had."""
    length = max(0, max(length, captured) - fcs_bytes)
    return min(captured, length), length


def damaged(position: int, what: str) -> CaptureError:
    """The error for a length or a number that can't be."""
    return CaptureError(f"damaged at byte {position}: {what}.", "What came before it was read.")
