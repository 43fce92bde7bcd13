# SPDX-License-Identifier: Apache-2.0
"""Builders of raw Ethernet frames: right by default, every field can be set wrong.

From the inside out: a transport (`tcp`, `udp`, …), around it IPv6 extension headers if wanted (`extensions`), around it
`ipv4` or `ipv6`, around it `eth`, and tags by `vlan`:

>>> frame = vlan(eth(ipv4(tcp(TcpFlag.SYN)), EtherType.IPV4), vid=7)
>>> len(frame)
58

Addresses are those set aside for documentation (RFC 5737, RFC 3849) and locally administered MACs.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from ipaddress import IPv4Address, IPv6Address

ETH_HEADER_BYTES = 14
VLAN_TAG_BYTES = 4
IPV4_HEADER_BYTES = 20
IPV6_HEADER_BYTES = 40
TCP_HEADER_BYTES = 20
UDP_HEADER_BYTES = 8

DESTINATION_MAC = bytes.fromhex("020000000002")
SOURCE_MAC = bytes.fromhex("020000000001")
SOURCE_IPV4 = IPv4Address("192.0.2.1").packed
DESTINATION_IPV4 = IPv4Address("198.51.100.2").packed
SOURCE_IPV6 = IPv6Address("2001:db8::1").packed
DESTINATION_IPV6 = IPv6Address("2001:db8::2").packed
SOURCE_PORT = 40_001  # ports of no protocol that a dissector would go on with
DESTINATION_PORT = 50_021


class EtherType(IntEnum):
    """EtherTypes of the IEEE registry."""

    IPV4 = 0x0800
    ARP = 0x0806
    RARP = 0x8035
    VLAN = 0x8100
    IPV6 = 0x86DD
    MPLS = 0x8847
    PPPOE = 0x8864
    QINQ = 0x88A8
    EXPERIMENTAL = 0x88B5
    LLDP = 0x88CC
    OLD_QINQ = 0x9100  # used before IEEE 802.1ad; no VLAN tag to Linux (include/linux/if_vlan.h, eth_type_vlan)


class Protocol(IntEnum):
    """Protocol numbers of the IANA registry, IPv4 protocols and IPv6 next headers alike."""

    HOP_BY_HOP = 0
    ICMP = 1
    IGMP = 2
    IPIP = 4
    TCP = 6
    UDP = 17
    IPV6 = 41
    ROUTING = 43
    FRAGMENT = 44
    GRE = 47
    ESP = 50
    AH = 51
    ICMPV6 = 58
    NO_NEXT_HEADER = 59
    DESTINATION_OPTIONS = 60
    SCTP = 132
    MOBILITY = 135
    UDPLITE = 136
    HIP = 139
    SHIM6 = 140
    EXPERIMENTAL = 253


class TcpFlag(IntFlag):
    """Byte 13 of the TCP header (RFC 9293, 3.1)."""

    FIN = 0x01
    SYN = 0x02
    RST = 0x04
    PSH = 0x08
    ACK = 0x10
    URG = 0x20
    ECE = 0x40
    CWR = 0x80


@dataclass(frozen=True)
class Part:
    """What an IP header carries: its protocol number and bytes, and where a checksum is still to be put in.

    The checksum covers the bytes from `checksum_from` on and a pseudo-header with `checksum_protocol`.
    """

    protocol: int
    data: bytes
    checksum_at: int | None = None
    checksum_from: int = 0
    checksum_protocol: int = 0

    def behind(self, protocol: int, header: bytes) -> Part:
        """The same with a header in front."""
        at = None if self.checksum_at is None else self.checksum_at + len(header)
        protocol_of_sum = self.checksum_protocol
        return Part(protocol, header + self.data, at, self.checksum_from + len(header), protocol_of_sum)

    def summed(self, source: bytes, destination: bytes) -> bytes:
        """The bytes with the checksum filled in for these addresses (RFC 9293, 3.1; RFC 8200, 8.1)."""
        if self.checksum_at is None:
            return self.data
        covered = self.data[self.checksum_from :]
        pseudo = source + destination + struct.pack("!II", len(covered), self.checksum_protocol)
        value = checksum(pseudo + covered) or 0xFFFF  # RFC 768: 0 would say that there is no checksum
        return self.data[: self.checksum_at] + value.to_bytes(2, "big") + self.data[self.checksum_at + 2 :]


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071); 0 over data that carries its own right checksum."""
    # Ones' complement addition is addition modulo 0xffff, and the bytes as one number have the same remainder.
    total = int.from_bytes(data + bytes(len(data) % 2), "big")
    return 0xFFFF - (total % 0xFFFF or 0xFFFF * bool(total))


def eth(payload: bytes, ethertype: int, *, destination: bytes = DESTINATION_MAC, source: bytes = SOURCE_MAC) -> bytes:
    """An Ethernet frame without FCS; not padded."""
    return destination + source + ethertype.to_bytes(2, "big") + payload


def eth_length(payload: bytes, *, length: int | None = None) -> bytes:
    """An IEEE 802.3 frame with a length where others have an EtherType."""
    return eth(payload, len(payload) if length is None else length)


def pad(frame: bytes, to_bytes: int = 60, filler: bytes = b"\0") -> bytes:
    """The frame padded as a sender does."""
    return frame + filler * (to_bytes - len(frame))


def vlan(frame: bytes, *, vid: int = 101, pcp: int = 0, tpid: int = EtherType.VLAN) -> bytes:
    """The frame with one more tag, outside of those it has (IEEE 802.1Q, 9.3)."""
    return frame[:12] + struct.pack("!HH", tpid, pcp << 13 | vid) + frame[12:]


def qinq(frame: bytes, *, outer_vid: int = 2003, vid: int = 101) -> bytes:
    """The frame with a customer tag inside and a service tag outside (IEEE 802.1ad)."""
    return vlan(vlan(frame, vid=vid), vid=outer_vid, tpid=EtherType.QINQ)


def arp(
    *,
    operation: int = 1,
    hardware_bytes: int = 6,
    protocol_bytes: int = 4,
    protocol: int = 0x0800,
    mac: bytes = SOURCE_MAC,
    source: bytes = SOURCE_IPV4,
    target: bytes = DESTINATION_IPV4,
) -> bytes:
    """An ARP packet (RFC 826) with addresses of any length."""
    fixed = struct.pack("!HHBBH", 1, protocol, hardware_bytes, protocol_bytes, operation)
    return (
        fixed
        + _fill(mac, hardware_bytes)
        + _fill(source, protocol_bytes)
        + bytes(hardware_bytes)
        + _fill(target, protocol_bytes)
    )


def ipv4(
    part: Part,
    *,
    options: bytes = b"",
    version: int = 4,
    ihl: int | None = None,
    total_length: int | None = None,
    protocol: int | None = None,
    offset: int = 0,
    more_fragments: bool = False,
    dont_fragment: bool = False,
    take: slice = slice(None),
    header_checksum: int | None = None,
    source: bytes = SOURCE_IPV4,
    destination: bytes = DESTINATION_IPV4,
    ttl: int = 64,
    identification: int = 4099,
) -> bytes:
    """An IPv4 packet (RFC 791). `offset` in units of 8 bytes; `take` is what of the part this fragment carries."""
    carried = part.summed(source, destination)[take]
    words = 5 + len(options) // 4
    header = struct.pack(
        "!BBHHHBBH",
        version << 4 | (words if ihl is None else ihl),
        0,
        words * 4 + len(carried) if total_length is None else total_length,
        identification,
        dont_fragment << 14 | more_fragments << 13 | offset,
        ttl,
        part.protocol if protocol is None else protocol,
        header_checksum or 0,
    )
    header += source + destination + options
    if header_checksum is None:
        header = header[:10] + checksum(header).to_bytes(2, "big") + header[12:]
    return header + carried


def ipv6(
    part: Part,
    *,
    version: int = 6,
    payload_length: int | None = None,
    next_header: int | None = None,
    take: slice = slice(None),
    source: bytes = SOURCE_IPV6,
    destination: bytes = DESTINATION_IPV6,
    hop_limit: int = 64,
) -> bytes:
    """An IPv6 packet (RFC 8200); extension headers are built into the part, see `extensions`."""
    carried = part.summed(source, destination)[take]
    header = struct.pack(
        "!IHBB",
        version << 28,
        len(carried) if payload_length is None else payload_length,
        part.protocol if next_header is None else next_header,
        hop_limit,
    )
    return header + source + destination + carried


def tcp(
    flags: int,
    payload: bytes = b"",
    *,
    options: bytes = b"",
    data_offset: int | None = None,
    reserved: int = 0,
    source_port: int = SOURCE_PORT,
    destination_port: int = DESTINATION_PORT,
    sequence: int = 7001,
    window: int = 64_240,
) -> Part:
    """A TCP segment (RFC 9293). `data_offset` in words of 4 bytes; `reserved` is the low half of byte 12, AE is 1."""
    words = 5 + len(options) // 4 if data_offset is None else data_offset
    acknowledgement = 5003 if flags & TcpFlag.ACK else 0
    urgent = 1 if flags & TcpFlag.URG else 0
    header = struct.pack("!HHII", source_port, destination_port, sequence, acknowledgement)
    header += struct.pack("!BBHHH", words << 4 | reserved, flags & 0xFF, window, 0, urgent)
    return Part(Protocol.TCP, header + options + payload, 16, 0, Protocol.TCP)


def udp(
    payload: bytes = b"",
    *,
    length: int | None = None,
    source_port: int = SOURCE_PORT,
    destination_port: int = DESTINATION_PORT,
) -> Part:
    """A UDP datagram (RFC 768)."""
    length = UDP_HEADER_BYTES + len(payload) if length is None else length
    header = struct.pack("!HHHH", source_port, destination_port, length, 0)
    return Part(Protocol.UDP, header + payload, 6, 0, Protocol.UDP)


def icmp(payload: bytes = b"", *, kind: int = 8, code: int = 0) -> Part:
    """An ICMP message (RFC 792), an echo request unless told otherwise; its checksum has no pseudo-header."""
    body = struct.pack("!BBHHH", kind, code, 0, 1009, 1) + payload
    return Part(Protocol.ICMP, body[:2] + checksum(body).to_bytes(2, "big") + body[4:])


def icmpv6(payload: bytes = b"", *, kind: int = 128, code: int = 0) -> Part:
    """An ICMPv6 message (RFC 4443), an echo request unless told otherwise."""
    return Part(Protocol.ICMPV6, struct.pack("!BBHHH", kind, code, 0, 1009, 1) + payload, 2, 0, Protocol.ICMPV6)


def raw(protocol: int, data: bytes = b"") -> Part:
    """Any other protocol's bytes."""
    return Part(protocol, data)


def _fill(address: bytes, length: int) -> bytes:
    return (address * (length // len(address) + 1))[:length]
