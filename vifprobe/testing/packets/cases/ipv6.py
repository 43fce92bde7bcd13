# SPDX-License-Identifier: Apache-2.0
"""IPv6: extension header chains up to and above the bound, fragments, lengths, every other next header."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from vifprobe.model.layout import EXTENSION_HEADERS_MAX, EXTENSION_REACH_BYTES, Ethertype, PacketClass
from vifprobe.testing.packets import extensions
from vifprobe.testing.packets.case import Case
from vifprobe.testing.packets.extensions import ah, chain, destination_options, fragment, hop_by_hop, routing
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
    raw,
    tcp,
    udp,
)

MALFORMED, FRAGMENT, IP_OTHER = PacketClass.MALFORMED, PacketClass.FRAGMENT, PacketClass.IP_OTHER
TCP_SYN, UDP, ICMPV6 = PacketClass.TCP_SYN, PacketClass.UDP, PacketClass.ICMPV6
#: The headers that are followed.
FOLLOWED = (
    Protocol.HOP_BY_HOP,
    Protocol.ROUTING,
    Protocol.FRAGMENT,
    Protocol.AH,
    Protocol.DESTINATION_OPTIONS,
)


def cases() -> Iterator[Case]:
    """Rows of this layer."""
    yield from _headers()
    yield from _transports()
    yield from _next_headers()
    yield from _single_extensions()
    yield from _chains()
    yield from _fragments()


def _case(name: str, packet: bytes, packet_class: PacketClass) -> Case:
    return Case(f"ipv6: {name}", eth(packet, EtherType.IPV6), packet_class, Ethertype.IPV6)


def _syn() -> Part:
    return tcp(TcpFlag.SYN)


def _headers() -> Iterator[Case]:
    for version in (*range(6), *range(7, 16)):
        yield _case(f"version {version}", ipv6(_syn(), version=version), MALFORMED)
    yield _case("an ipv4 packet", ipv4(_syn(), options=bytes(40)), MALFORMED)
    for there in range(40):
        yield _case(f"header cut after {there} bytes", ipv6(_syn())[:there], MALFORMED)
    yield _case("header alone, tcp", ipv6(_syn())[:40], MALFORMED)
    yield _case("header alone, no next header", ipv6(raw(Protocol.NO_NEXT_HEADER)), IP_OTHER)
    yield _case("no next header, bytes behind", ipv6(raw(Protocol.NO_NEXT_HEADER, bytes(20))), IP_OTHER)
    # Payload length 0 is a jumbogram's (RFC 2675) or, without one, says that there is nothing: what isn't GSO is taken
    # at its word.
    for part, name in ((_syn(), "tcp"), (udp(b"x"), "udp"), (icmpv6(), "icmpv6"), (hop_by_hop(_syn()), "hop-by-hop")):
        yield _case(f"payload length 0, {name}", ipv6(part, payload_length=0), MALFORMED)
    yield _case("payload length 0, esp", ipv6(extensions.esp(), payload_length=0), IP_OTHER)
    yield _case("payload length 19", ipv6(_syn(), payload_length=19), MALFORMED)
    yield _case("payload length 21, beyond the bytes", ipv6(_syn(), payload_length=21), TCP_SYN)
    yield _case("payload length 65535, beyond the bytes", ipv6(_syn(), payload_length=65535), TCP_SYN)


def _transports() -> Iterator[Case]:
    yield _case("udp", ipv6(udp(bytes(100))), UDP)
    yield _case("udp, no payload", ipv6(udp()), UDP)
    for length in (0, 7):
        yield _case(f"udp, length {length}", ipv6(udp(bytes(100), length=length)), MALFORMED)
    yield _case("udp, length beyond the end", ipv6(udp(bytes(100), length=65535)), UDP)
    yield _case("icmpv6 echo", ipv6(icmpv6(bytes(56))), ICMPV6)
    yield _case("icmpv6, neighbour solicitation", ipv6(icmpv6(bytes(16), kind=135)), ICMPV6)
    for there in range(8):
        yield _case(f"udp cut after {there} bytes", ipv6(udp())[: 40 + there], MALFORMED)
        yield _case(f"icmpv6 cut after {there} bytes", ipv6(icmpv6())[: 40 + there], MALFORMED)


def _next_headers() -> Iterator[Case]:
    found = {
        "icmp": icmp(),
        "gre": extensions.gre(ipv6(_syn()), EtherType.IPV6),
        "ipv6 in ipv6": raw(Protocol.IPV6, ipv6(_syn())),
        "sctp": extensions.sctp(),
        "esp": extensions.esp(),
        "esp, no bytes": raw(Protocol.ESP),
    }
    for name, part in found.items():
        yield _case(name, ipv6(part), IP_OTHER)
    known = {Protocol.TCP, Protocol.UDP, Protocol.ICMPV6, *FOLLOWED}
    for protocol in sorted(set(range(256)) - known):
        yield _case(f"next header {protocol}", ipv6(raw(protocol, _syn().data)), IP_OTHER)


def _single_extensions() -> Iterator[Case]:
    for build in (hop_by_hop, routing, destination_options):
        name = build.__name__.replace("_", " ")
        for units in (0, 1, 2, 7, 31, 127, 255):
            bytes_of_header = 8 + 8 * units
            packet_class = TCP_SYN if bytes_of_header <= EXTENSION_REACH_BYTES else IP_OTHER
            yield _case(f"{name} of {bytes_of_header} bytes", ipv6(build(_syn(), units=units)), packet_class)
            cut = ipv6(build(_syn(), units=units))[: 40 + bytes_of_header - 1]
            yield _case(f"{name} of {bytes_of_header} bytes, cut by 1", cut, MALFORMED)
            short = ipv6(build(_syn(), units=units), payload_length=bytes_of_header - 1)
            yield _case(f"{name} of {bytes_of_header} bytes, payload length short by 1", short, MALFORMED)
        for there in (0, 1, 2, 7):
            yield _case(f"{name} cut after {there} bytes", ipv6(build(_syn()))[: 40 + there], MALFORMED)
        beyond = ipv6(raw(build(_syn()).protocol, b"\x06\xff" + build(_syn()).data[2:]))
        yield _case(f"{name} beyond the end", beyond, MALFORMED)
        # What needs no bytes of its own must not make up for a header that isn't whole.
        for last in (Protocol.NO_NEXT_HEADER, Protocol.ESP):
            cut = ipv6(build(raw(last), units=1))[:-1]
            yield _case(f"{name} cut by 1, then {last.name.lower()}", cut, MALFORMED)
        yield _case(f"{name}, then nothing", ipv6(build(raw(Protocol.TCP))), MALFORMED)
        yield _case(f"{name}, then no next header", ipv6(build(raw(Protocol.NO_NEXT_HEADER))), IP_OTHER)
        yield _case(f"{name}, then esp", ipv6(build(extensions.esp())), IP_OTHER)
        yield _case(f"{name}, then icmp", ipv6(build(icmp())), IP_OTHER)
        yield _case(f"{name}, then mobility", ipv6(build(raw(Protocol.MOBILITY, bytes(8)))), IP_OTHER)
    for icv_bytes in (0, 12, 1012):
        yield _case(f"ah, check value of {icv_bytes}", ipv6(ah(_syn(), icv_bytes=icv_bytes)), TCP_SYN)
    yield _case("ah, length 0", ipv6(ah(_syn(), payload_len=0)), MALFORMED)
    yield _case("ah cut by 1, then esp", ipv6(ah(raw(Protocol.ESP)))[:-1], MALFORMED)
    yield _case("ah, beyond the end", ipv6(ah(_syn(), payload_len=255)), MALFORMED)
    for there in (0, 2, 11, 12, 23):
        yield _case(f"ah cut after {there} bytes", ipv6(ah(_syn()))[: 40 + there], MALFORMED)


def _chains() -> Iterator[Case]:
    for pair in product(FOLLOWED, repeat=2):
        name = " then ".join(header.name.lower() for header in pair)
        yield _case(f"{name}, syn", ipv6(chain(_syn(), pair)), TCP_SYN)
        yield _case(f"{name}, ack", ipv6(chain(tcp(TcpFlag.ACK), pair)), PacketClass.TCP_ACK)
        yield _case(f"{name}, data", ipv6(chain(tcp(TcpFlag.ACK, b"x"), pair)), PacketClass.TCP_DATA)
        yield _case(f"{name}, udp", ipv6(chain(udp(), pair)), UDP)
        yield _case(f"{name}, icmpv6", ipv6(chain(icmpv6(), pair)), ICMPV6)
    # RFC 8200's recommended order, each header once.
    order = (0, 60, 43, 44, 51, 60)
    yield _case("recommended order", ipv6(chain(_syn(), order)), TCP_SYN)
    for header in FOLLOWED:
        for count in range(3, EXTENSION_HEADERS_MAX + 3):
            name = f"{count} times {header.name.lower()}"
            packet_class = TCP_SYN if count <= EXTENSION_HEADERS_MAX else IP_OTHER
            yield _case(name, ipv6(chain(_syn(), [header] * count)), packet_class)
    mixed = [FOLLOWED[index % len(FOLLOWED)] for index in range(EXTENSION_HEADERS_MAX + 1)]
    yield _case("mixed, up to the bound", ipv6(chain(_syn(), mixed[:-1])), TCP_SYN)
    yield _case("mixed, above the bound", ipv6(chain(_syn(), mixed)), IP_OTHER)
    yield _case("at the bound, tcp cut", ipv6(chain(_syn(), mixed[:-1]))[:-1], MALFORMED)
    long = _syn()
    for _ in range(EXTENSION_HEADERS_MAX):
        long = destination_options(long, units=EXTENSION_REACH_BYTES // EXTENSION_HEADERS_MAX // 8 - 1)
    yield _case("headers up to both bounds", ipv6(long), TCP_SYN)
    yield _case("headers up to both bounds, tcp cut", ipv6(long)[:-1], MALFORMED)
    for name, build in (("options", destination_options), ("fragment header", fragment), ("ah", ah)):
        last = build(_syn())
        units = (EXTENSION_REACH_BYTES - len(last.data) + len(_syn().data)) // 8 - 1
        for more, packet_class in ((-1, TCP_SYN), (0, TCP_SYN), (1, IP_OTHER)):
            packet = ipv6(destination_options(last, units=units + more))
            place = f"{name} that ends {8 * more} bytes behind the bound"
            yield _case(place, packet, packet_class)
            yield _case(f"{place}, tcp cut", packet[:-1], MALFORMED if more <= 0 else IP_OTHER)
            yield _case(f"{place}, cut", packet[: len(packet) - len(_syn().data) - 1], MALFORMED)
        behind = ipv6(destination_options(last, units=EXTENSION_REACH_BYTES // 8))
        yield _case(f"{name} behind the bound, cut", behind[: len(behind) - len(_syn().data) - 1], IP_OTHER)
    yield _case(
        "ah that ends 4 bytes before the bound", ipv6(ah(_syn(), icv_bytes=EXTENSION_REACH_BYTES - 16)), TCP_SYN
    )
    yield _case(
        "ah that ends 4 bytes behind the bound", ipv6(ah(_syn(), icv_bytes=EXTENSION_REACH_BYTES - 8)), IP_OTHER
    )


def _fragments() -> Iterator[Case]:
    for part, name in ((tcp(TcpFlag.ACK, bytes(64)), "tcp"), (udp(bytes(64)), "udp"), (icmpv6(bytes(64)), "icmpv6")):
        for offset in (1, 2, 181, 8191):
            yield _case(f"{name} fragment at {offset}", ipv6(fragment(part, offset=offset)), FRAGMENT)
        yield _case(f"{name} fragment, more to come", ipv6(fragment(part, offset=3, more=True)), FRAGMENT)
        nothing = ipv6(fragment(part, offset=3), take=slice(8))
        yield _case(f"{name} fragment of 0 bytes", nothing, FRAGMENT)
        for header in (hop_by_hop, routing, destination_options):
            name_of_header = header.__name__.replace("_", " ")
            yield _case(f"{name} fragment behind {name_of_header}", ipv6(header(fragment(part, offset=3))), FRAGMENT)
    yield _case("atomic fragment, syn", ipv6(fragment(_syn())), TCP_SYN)
    yield _case("atomic fragment, udp", ipv6(fragment(udp())), UDP)
    yield _case("atomic fragment, tcp cut", ipv6(fragment(_syn()), take=slice(8 + 19)), MALFORMED)
    yield _case("atomic fragment, udp cut", ipv6(fragment(udp()), take=slice(8 + 7)), MALFORMED)
    yield _case("atomic fragment, esp", ipv6(fragment(extensions.esp())), IP_OTHER)
    # The two bits between offset and M are reserved (RFC 8200, 4.5).
    plain = fragment(_syn())
    with_reserved = replace(plain, data=b"\x06\xff\x00\x06" + plain.data[4:])
    yield _case("atomic fragment, reserved bits", ipv6(with_reserved), TCP_SYN)
    for there in (0, 1, 3, 4, 7):
        yield _case(
            f"fragment header cut after {there} bytes", ipv6(fragment(udp(), offset=3))[: 40 + there], MALFORMED
        )
    yield _case("fragment header, payload length short", ipv6(fragment(udp(), offset=3), payload_length=7), MALFORMED)
    yield _case("first fragment, options header", ipv6(fragment(destination_options(_syn()), more=True)), TCP_SYN)
    yield _case("fragment of a header chain", ipv6(fragment(destination_options(_syn()), offset=1)), FRAGMENT)
    yield _case("esp fragment", ipv6(fragment(extensions.esp(), offset=3)), FRAGMENT)
    before = [Protocol.DESTINATION_OPTIONS] * (EXTENSION_HEADERS_MAX - 1)
    yield _case("fragment as the last header of the bound", ipv6(chain(fragment(udp(), offset=3), before)), FRAGMENT)
    before.append(Protocol.DESTINATION_OPTIONS)
    yield _case("fragment above the bound", ipv6(chain(fragment(udp(), offset=3), before)), IP_OTHER)
    for there, packet_class in ((7, MALFORMED), (8, UDP)):
        packet = ipv6(fragment(udp(bytes(64)), more=True), take=slice(8 + there))
        yield _case(f"udp first fragment of {there}", packet, packet_class)
