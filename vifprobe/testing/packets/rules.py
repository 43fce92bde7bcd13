# SPDX-License-Identifier: Apache-2.0
"""An independent model of what a probe must say: class of TCP flags, bytes on the wire.

Written from the rules' text, not from the code that is tested with it.
"""

from __future__ import annotations

from vifprobe.model.layout import PacketClass
from vifprobe.testing.packets.frames import ETH_HEADER_BYTES, TcpFlag

SHORTEST_FRAME_BYTES = 60  # IEEE 802.3, 3.2.8: 64 with FCS
FCS_BYTES = 4
PREAMBLE_BYTES = 8  # with the start frame delimiter
GAP_BYTES = 12

#: Class by the flags that decide it. Two outcomes stand for "with payload" and "without".
_FLAG_CLASSES: dict[str, PacketClass | tuple[PacketClass, PacketClass]] = {
    "": PacketClass.TCP_ODD,
    "SYN": PacketClass.TCP_SYN,
    "ACK": (PacketClass.TCP_DATA, PacketClass.TCP_ACK),
    "FIN": PacketClass.TCP_ODD,
    "RST": PacketClass.TCP_RST,
    "SYN ACK": PacketClass.TCP_SYNACK,
    "SYN FIN": PacketClass.TCP_ODD,
    "SYN RST": PacketClass.TCP_ODD,
    "ACK FIN": PacketClass.TCP_FIN,
    "ACK RST": PacketClass.TCP_RST,
    "FIN RST": PacketClass.TCP_ODD,
    "SYN ACK FIN": PacketClass.TCP_ODD,
    "SYN ACK RST": PacketClass.TCP_ODD,
    "SYN FIN RST": PacketClass.TCP_ODD,
    "ACK FIN RST": PacketClass.TCP_ODD,
    "SYN ACK FIN RST": PacketClass.TCP_ODD,
}


def tcp_class(flags: int, payload_bytes: int) -> PacketClass:
    """Packet class of a whole TCP header with these flags (byte 13); PSH, URG, ECE and CWR don't matter."""
    names = [flag.name for flag in (TcpFlag.SYN, TcpFlag.ACK, TcpFlag.FIN, TcpFlag.RST) if flags & flag]
    found = _FLAG_CLASSES[" ".join(str(name) for name in names)]
    if isinstance(found, tuple):
        with_payload, without = found
        return with_payload if payload_bytes else without
    return found


def expected_wire_bytes(
    frame_bytes: int, *, gso_size: int = 0, header_bytes: int = 0, stripped_tag_bytes: int = 0
) -> int:
    """What Ethernet carries for one skb: every segment's frame padded to 60, with FCS, preamble and gap.

    `frame_bytes` is skb->len. With a `gso_size` above 0 the headers of `header_bytes` are repeated before every
    `gso_size` bytes of payload. A tag that the kernel has stripped is on the wire again, in every segment, and counts
    before padding: a sender pads the frame as it leaves.
    """
    lengths = [frame_bytes]
    if gso_size:
        payload_bytes = frame_bytes - header_bytes
        starts = range(0, max(payload_bytes, 1), gso_size)
        lengths = [header_bytes + min(gso_size, payload_bytes - start) for start in starts]
    overhead = FCS_BYTES + PREAMBLE_BYTES + GAP_BYTES
    return sum(max(length + stripped_tag_bytes, SHORTEST_FRAME_BYTES) + overhead for length in lengths)


def expected_charged_bytes(frame_bytes: int, *, stripped_tag_bytes: int = 0) -> int:
    """What tc and nft charge at a tap's ingress for what was written: no L2 header, and no outer tag.

    `frame_bytes` is the length written, tag included.
    """
    return frame_bytes - ETH_HEADER_BYTES - stripped_tag_bytes
