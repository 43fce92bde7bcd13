# SPDX-License-Identifier: Apache-2.0
"""Every size bucket's edge - 1, edge and edge + 1, and frames beyond the last edge."""

from __future__ import annotations

from collections.abc import Iterator

from vifprobe.model.layout import SIZE_EDGES_BYTES, Ethertype, PacketClass
from vifprobe.testing.packets.case import Case
from vifprobe.testing.packets.frames import ETH_HEADER_BYTES, EtherType, TcpFlag, eth, ipv4, ipv6, tcp, udp, vlan

IPV4_MAX_BYTES = 65_535
#: A tap takes longer frames than IPv4 can describe; these bytes can't be IP then.
OPEN_BUCKET_BYTES = (65_549, 65_550, 100_003)
UDP_FRAME_MIN_BYTES = 42
#: 65,536 bytes of payload behind the header (RFC 2675, 2)
IPV6_JUMBO_MIN_BYTES = 65_576


def cases() -> Iterator[Case]:
    """Rows of this layer."""
    lengths = {int(edge) + delta for edge in SIZE_EDGES_BYTES for delta in (-1, 0, 1)}
    # 14 is the shortest frame that gets to tc; 59 to 61 straddle the padding of the wire.
    lengths |= {14, 15, 59, 60, 61, 1513, 1514, 1515, *OPEN_BUCKET_BYTES}
    for length in sorted(length for length in lengths if length >= ETH_HEADER_BYTES):
        other = eth(bytes(length - ETH_HEADER_BYTES), EtherType.EXPERIMENTAL)
        yield Case(f"size: {length} bytes", other, PacketClass.OTHER, Ethertype.OTHER)
        if UDP_FRAME_MIN_BYTES <= length <= IPV4_MAX_BYTES + ETH_HEADER_BYTES:
            frame = eth(ipv4(udp(bytes(length - UDP_FRAME_MIN_BYTES))), EtherType.IPV4)
            yield Case(f"size: {length} bytes of udp", frame, PacketClass.UDP, Ethertype.IPV4)
            # Its bucket depends on the run: a tap's skb is shorter by the tag.
            yield Case(f"size: {length} bytes of udp and a tag", vlan(frame), PacketClass.UDP, Ethertype.VLAN)
    yield from _beyond_length_fields()


def _beyond_length_fields() -> Iterator[Case]:
    """Without GSO too, a length of 0 means "to the end" where 16 bits couldn't hold it, and only there."""
    ipv4_headers, ipv6_headers = 40, 60
    for packet_bytes, packet_class in ((65_535, PacketClass.MALFORMED), (65_536, PacketClass.TCP_DATA)):
        packet = ipv4(tcp(TcpFlag.ACK, bytes(packet_bytes - ipv4_headers)), total_length=0)
        frame = eth(packet, EtherType.IPV4)
        yield Case(f"size: {packet_bytes} bytes of ipv4, total length 0", frame, packet_class, Ethertype.IPV4)
    packet = ipv6(tcp(TcpFlag.ACK, bytes(IPV6_JUMBO_MIN_BYTES - ipv6_headers)), payload_length=0)
    frame = eth(packet, EtherType.IPV6)
    yield Case("size: shortest ipv6 jumbo packet", frame, PacketClass.TCP_DATA, Ethertype.IPV6)
