# SPDX-License-Identifier: Apache-2.0
"""Frames that a guest leaves to the network to cut: one packet of its full length, many segments on the wire."""

from __future__ import annotations

from collections.abc import Iterator

from vifprobe.model.layout import Ethertype, PacketClass
from vifprobe.testing.net.taps import GsoType
from vifprobe.testing.packets.case import Case, Gso
from vifprobe.testing.packets.extensions import destination_options
from vifprobe.testing.packets.frames import EtherType, Part, TcpFlag, eth, ipv4, ipv6, qinq, tcp, udp, vlan

DATA = PacketClass.TCP_DATA
ACK = TcpFlag.ACK
TIMESTAMP = b"\x01\x01\x08\x0a" + bytes(8)
BIG_TCP_PAYLOAD_BYTES = 100_003


def cases() -> Iterator[Case]:
    """Rows of this layer."""
    yield from _tcp()
    yield from _lengths_of_zero()
    yield from _udp()


def _tcp() -> Iterator[Case]:
    for payload_bytes, size in ((1000, 100), (1001, 100), (1099, 100), (97, 1), (500, 499), (3001, 1448)):
        part = tcp(ACK, bytes(payload_bytes))
        name = f"{payload_bytes} bytes in segments of {size}"
        yield _tcp4(name, part, size)
        yield _tcp6(name, part, size)
    yield _tcp4("a single segment", tcp(ACK, bytes(100)), 1448)
    yield _tcp4("payload of exactly one segment", tcp(ACK, bytes(1448)), 1448)
    yield _tcp4("65160 bytes in segments of 1448", tcp(ACK, bytes(65160)), 1448)
    yield _tcp6("65160 bytes in segments of 1428", tcp(ACK, bytes(65160)), 1428)
    yield _tcp4("tcp options", tcp(ACK, bytes(3001), options=TIMESTAMP), 1436, tcp_bytes=32)
    yield _tcp4("with push and fin", tcp(ACK | TcpFlag.FIN | TcpFlag.PSH, bytes(3001)), 1448, PacketClass.TCP_FIN)
    frame = eth(ipv4(tcp(ACK, bytes(3001)), options=b"\x01" * 8), EtherType.IPV4)
    yield Case("gso: ip options", frame, DATA, Ethertype.IPV4, Gso(1440, 42, 62))
    for tag, tag_bytes, name in ((vlan, 4, "tagged"), (qinq, 8, "two tags")):
        frame = tag(eth(ipv4(tcp(ACK, bytes(3001))), EtherType.IPV4))
        gso = Gso(1448, 34 + tag_bytes, 54 + tag_bytes)
        yield Case(f"gso: {name}", frame, DATA, Ethertype.VLAN, gso)
    frame = eth(ipv6(destination_options(tcp(ACK, bytes(3001)))), EtherType.IPV6)
    yield Case("gso: ipv6 extension header", frame, DATA, Ethertype.IPV6, Gso(1420, 62, 82, GsoType.TCPV6))


def _lengths_of_zero() -> Iterator[Case]:
    """IP lengths of 0 mean "to the end" here: 16 bits can't hold a BIG TCP packet's."""
    for payload_bytes in (1001, BIG_TCP_PAYLOAD_BYTES):
        part = tcp(ACK, bytes(payload_bytes))
        frame = eth(ipv4(part, total_length=0), EtherType.IPV4)
        yield Case(f"gso: total length 0, {payload_bytes} bytes", frame, DATA, Ethertype.IPV4, Gso(100, 34, 54))
        frame = eth(ipv6(part, payload_length=0), EtherType.IPV6)
        gso = Gso(100, 54, 74, GsoType.TCPV6)
        yield Case(f"gso: payload length 0, {payload_bytes} bytes", frame, DATA, Ethertype.IPV6, gso)


def _udp() -> Iterator[Case]:
    for payload_bytes, size in ((1001, 100), (3001, 1472), (60_001, 1472)):
        part = udp(bytes(payload_bytes))
        name = f"gso: udp, {payload_bytes} bytes in segments of {size}"
        frame = eth(ipv4(part), EtherType.IPV4)
        yield Case(name, frame, PacketClass.UDP, Ethertype.IPV4, Gso(size, 34, 42, GsoType.UDP_L4))
        frame = eth(ipv6(part), EtherType.IPV6)
        yield Case(f"{name}, ipv6", frame, PacketClass.UDP, Ethertype.IPV6, Gso(size, 54, 62, GsoType.UDP_L4))


def _tcp4(name: str, part: Part, size: int, packet_class: PacketClass = DATA, tcp_bytes: int = 20) -> Case:
    frame = eth(ipv4(part), EtherType.IPV4)
    return Case(f"gso: {name}", frame, packet_class, Ethertype.IPV4, Gso(size, 34, 34 + tcp_bytes))


def _tcp6(name: str, part: Part, size: int) -> Case:
    frame = eth(ipv6(part), EtherType.IPV6)
    return Case(f"gso: {name}, ipv6", frame, DATA, Ethertype.IPV6, Gso(size, 54, 74, GsoType.TCPV6))
