# SPDX-License-Identifier: Apache-2.0
"""IPv4: options, impossible headers, lengths, fragments, AH, and every other protocol."""

from __future__ import annotations

from collections.abc import Iterator

from vifprobe.model.layout import EXTENSION_HEADERS_MAX, EXTENSION_REACH_BYTES, Ethertype, PacketClass
from vifprobe.testing.packets import extensions
from vifprobe.testing.packets.case import Case
from vifprobe.testing.packets.extensions import ah
from vifprobe.testing.packets.frames import (
    EtherType,
    Part,
    Protocol,
    TcpFlag,
    eth,
    icmp,
    icmpv6,
    ipv4,
    ipv6,
    pad,
    raw,
    tcp,
    udp,
)

MALFORMED, FRAGMENT, IP_OTHER = PacketClass.MALFORMED, PacketClass.FRAGMENT, PacketClass.IP_OTHER
TCP_SYN, UDP, ICMP = PacketClass.TCP_SYN, PacketClass.UDP, PacketClass.ICMP


def cases() -> Iterator[Case]:
    """Rows of this layer."""
    yield from _options()
    yield from _headers()
    yield from _lengths()
    yield from _fragments()
    yield from _transports()
    yield from _protocols()
    yield from _authentication()


def _case(name: str, packet: bytes, packet_class: PacketClass) -> Case:
    return Case(f"ipv4: {name}", eth(packet, EtherType.IPV4), packet_class, Ethertype.IPV4)


def _syn() -> Part:
    return tcp(TcpFlag.SYN)


def _options() -> Iterator[Case]:
    no_operation = b"\x01"
    for ihl in range(6, 16):
        options = no_operation * (ihl - 5) * 4
        whole = ipv4(_syn(), options=options)
        header_bytes = ihl * 4
        yield _case(f"ihl {ihl}, syn", whole, TCP_SYN)
        yield _case(f"ihl {ihl}, udp", ipv4(udp(b"x"), options=options), UDP)
        yield _case(f"ihl {ihl}, icmp", ipv4(icmp(), options=options), ICMP)
        yield _case(f"ihl {ihl}, ack", ipv4(tcp(TcpFlag.ACK), options=options), PacketClass.TCP_ACK)
        yield _case(f"ihl {ihl}, options cut", whole[: header_bytes - 1], MALFORMED)
        short = ipv4(_syn(), options=options, total_length=header_bytes - 1)
        yield _case(f"ihl {ihl}, total length ends in the options", short, MALFORMED)
        yield _case(f"ihl {ihl}, fragment", ipv4(udp(bytes(64)), options=options, offset=1), FRAGMENT)


def _headers() -> Iterator[Case]:
    for ihl in range(5):
        yield _case(f"ihl {ihl}", ipv4(_syn(), ihl=ihl), MALFORMED)
    for version in (*range(4), *range(5, 16)):
        yield _case(f"version {version}", ipv4(_syn(), version=version), MALFORMED)
    yield _case("an ipv6 packet", ipv6(_syn()), MALFORMED)
    for there in range(20):
        yield _case(f"header cut after {there} bytes", ipv4(_syn())[:there], MALFORMED)
    yield _case("header alone", ipv4(_syn())[:20], MALFORMED)
    yield _case("header checksum wrong", ipv4(_syn(), header_checksum=0x1234), TCP_SYN)
    yield _case("don't fragment", ipv4(_syn(), dont_fragment=True), TCP_SYN)
    # Bit 0 of the flags is reserved (RFC 791; used in earnest only by RFC 3514) and no part of the offset.
    yield _case("reserved flag", ipv4(_syn(), offset=0x8000), TCP_SYN)


def _lengths() -> Iterator[Case]:
    for total_length in (0, 1, 19, 20, 39):
        yield _case(f"total length {total_length}", ipv4(_syn(), total_length=total_length), MALFORMED)
    yield _case("total length 40", ipv4(_syn(), total_length=40), TCP_SYN)
    yield _case("total length 41, beyond the bytes", ipv4(_syn(), total_length=41), TCP_SYN)
    yield _case("total length 65535, beyond the bytes", ipv4(_syn(), total_length=65535), TCP_SYN)
    yield _case("total length 0, udp", ipv4(udp(b"x"), total_length=0), MALFORMED)
    yield _case("total length 0, esp", ipv4(extensions.esp(), total_length=0), MALFORMED)
    yield _case("total length 0, fragment", ipv4(udp(bytes(64)), offset=1, total_length=0), MALFORMED)
    padded = pad(eth(ipv4(raw(Protocol.UDP, bytes(7))), EtherType.IPV4), 60)
    yield Case("ipv4: udp header ends in the padding", padded, MALFORMED, Ethertype.IPV4)


def _fragments() -> Iterator[Case]:
    for part, name in ((tcp(TcpFlag.ACK, bytes(64)), "tcp"), (udp(bytes(64)), "udp"), (icmp(bytes(64)), "icmp")):
        for offset in (1, 2, 185, 8191):
            yield _case(f"{name} fragment at {offset}", ipv4(part, offset=offset), FRAGMENT)
        yield _case(f"{name} fragment, more to come", ipv4(part, offset=3, more_fragments=True), FRAGMENT)
        yield _case(f"{name} fragment of 1 byte", ipv4(part, offset=3, take=slice(1)), FRAGMENT)
        yield _case(f"{name} fragment of 0 bytes", ipv4(part, offset=3, take=slice(0)), FRAGMENT)
    yield _case("esp fragment", ipv4(extensions.esp(), offset=3), FRAGMENT)
    yield _case("ah fragment", ipv4(ah(_syn()), offset=3), FRAGMENT)
    yield _case("unknown protocol, fragment", ipv4(raw(Protocol.EXPERIMENTAL, bytes(8)), offset=3), FRAGMENT)
    yield _case("fragment with don't fragment", ipv4(udp(bytes(64)), offset=3, dont_fragment=True), FRAGMENT)
    yield _case("fragment, header cut", ipv4(udp(bytes(64)), offset=3)[:19], MALFORMED)
    yield _case("fragment, ihl 4", ipv4(udp(bytes(64)), offset=3, ihl=4), MALFORMED)
    yield _case("fragment, total length 19", ipv4(udp(bytes(64)), offset=3, total_length=19), MALFORMED)
    for there, packet_class in ((0, MALFORMED), (7, MALFORMED), (8, UDP), (16, UDP)):
        packet = ipv4(udp(bytes(64)), more_fragments=True, take=slice(there))
        yield _case(f"udp first fragment of {there}", packet, packet_class)
    for there, packet_class in ((7, MALFORMED), (8, ICMP)):
        packet = ipv4(icmp(bytes(64)), more_fragments=True, take=slice(there))
        yield _case(f"icmp first fragment of {there}", packet, packet_class)
    yield _case("esp first fragment", ipv4(extensions.esp(), more_fragments=True), IP_OTHER)


def _transports() -> Iterator[Case]:
    yield _case("udp, no payload", ipv4(udp()), UDP)
    yield _case("udp", ipv4(udp(bytes(100))), UDP)
    yield _case("udp, payload cut", ipv4(udp(bytes(100)))[:28], UDP)
    for length in (0, 1, 7):
        yield _case(f"udp, length {length}", ipv4(udp(bytes(100), length=length)), MALFORMED)
    yield _case("udp, length 8 with payload", ipv4(udp(bytes(100), length=8)), UDP)
    yield _case("udp, length beyond the end", ipv4(udp(bytes(100), length=65535)), UDP)
    yield _case("icmp, no payload", ipv4(icmp()), ICMP)
    yield _case("icmp, unreachable", ipv4(icmp(ipv4(_syn())[:28], kind=3, code=3)), ICMP)
    for there in range(8):
        yield _case(f"udp cut after {there} bytes", ipv4(udp())[: 20 + there], MALFORMED)
        yield _case(f"icmp cut after {there} bytes", ipv4(icmp())[: 20 + there], MALFORMED)
        yield _case(f"udp, total length ends after {there}", ipv4(udp(), total_length=20 + there), MALFORMED)


def _protocols() -> Iterator[Case]:
    found = {
        "icmpv6": icmpv6(),
        "gre with ipv4 inside": extensions.gre(ipv4(_syn()), EtherType.IPV4),
        "ipv4 in ipv4": raw(Protocol.IPIP, ipv4(_syn())),
        "ipv6 in ipv4": raw(Protocol.IPV6, ipv6(_syn())),
        "sctp": extensions.sctp(),
        "esp": extensions.esp(),
        "esp, no bytes": raw(Protocol.ESP),
        "no bytes": raw(Protocol.EXPERIMENTAL),
    }
    for name, part in found.items():
        yield _case(name, ipv4(part), IP_OTHER)
    # The IPv6 extension headers other than AH mean nothing in IPv4 (RFC 8200, 4).
    for protocol in (0, 43, 44, 60):
        yield _case(f"extension header {protocol}", ipv4(extensions.chain(_syn(), [protocol])), IP_OTHER)
    known = {Protocol.TCP, Protocol.UDP, Protocol.ICMP, Protocol.AH}
    for protocol in sorted(set(range(256)) - known):
        yield _case(f"protocol {protocol}", ipv4(raw(protocol, _syn().data)), IP_OTHER)


def _authentication() -> Iterator[Case]:
    found = {
        "syn": (ah(_syn()), TCP_SYN),
        "data": (ah(tcp(TcpFlag.ACK, b"x")), PacketClass.TCP_DATA),
        "ack": (ah(tcp(TcpFlag.ACK)), PacketClass.TCP_ACK),
        "udp": (ah(udp(b"x")), UDP),
        "icmp": (ah(icmp()), ICMP),
        "icmpv6": (ah(icmpv6()), IP_OTHER),
        "esp": (ah(extensions.esp()), IP_OTHER),
        "destination options": (ah(extensions.destination_options(_syn())), IP_OTHER),
        "no check value": (ah(_syn(), icv_bytes=0), TCP_SYN),
        "up to the bound": (ah(_syn(), icv_bytes=EXTENSION_REACH_BYTES - 12), TCP_SYN),
        "above the bound": (ah(_syn(), icv_bytes=EXTENSION_REACH_BYTES - 8), IP_OTHER),
        "length 0": (ah(_syn(), payload_len=0), MALFORMED),
        "length beyond the end": (ah(_syn(), payload_len=255), MALFORMED),
        "length up to the end": (ah(raw(Protocol.TCP)), MALFORMED),
        "twice": (ah(ah(_syn())), TCP_SYN),
        f"{EXTENSION_HEADERS_MAX} times": (extensions.chain(_syn(), [51] * EXTENSION_HEADERS_MAX), TCP_SYN),
        f"{EXTENSION_HEADERS_MAX + 1} times": (extensions.chain(_syn(), [51] * (EXTENSION_HEADERS_MAX + 1)), IP_OTHER),
    }
    for name, (part, packet_class) in found.items():
        yield _case(f"ah, {name}", ipv4(part), packet_class)
    yield _case("ah cut by 1, then esp", ipv4(ah(raw(Protocol.ESP)))[:-1], MALFORMED)
    for there in (0, 1, 2, 11, 12, 23):
        yield _case(f"ah cut after {there} bytes", ipv4(ah(_syn()))[: 20 + there], MALFORMED)
    for there, packet_class in ((24 + 13, MALFORMED), (24 + 19, MALFORMED), (24 + 20, TCP_SYN)):
        packet = ipv4(ah(tcp(TcpFlag.SYN, bytes(100))), more_fragments=True, take=slice(there))
        yield _case(f"ah, first fragment of {there}", packet, packet_class)
