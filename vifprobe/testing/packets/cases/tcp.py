# SPDX-License-Identifier: Apache-2.0
"""TCP: every flag combination, data offsets, payload against padding, headers cut short, first fragments."""

from __future__ import annotations

from collections.abc import Iterator

from vifprobe.model.layout import Ethertype, PacketClass
from vifprobe.testing.packets import extensions
from vifprobe.testing.packets.case import Case
from vifprobe.testing.packets.frames import EtherType, TcpFlag, eth, ipv4, ipv6, pad, tcp
from vifprobe.testing.packets.rules import tcp_class

SYN, ACK, PSH = TcpFlag.SYN, TcpFlag.ACK, TcpFlag.PSH
MALFORMED = PacketClass.MALFORMED


def cases() -> Iterator[Case]:
    """Rows of this layer."""
    yield from _flags()
    yield from _noise()
    yield from _data_offsets()
    yield from _payload()
    yield from _cut()
    yield from _first_fragments()


def _v4(name: str, packet: bytes, packet_class: PacketClass) -> Case:
    return Case(f"tcp: {name}", eth(packet, EtherType.IPV4), packet_class, Ethertype.IPV4)


def _v6(name: str, packet: bytes, packet_class: PacketClass) -> Case:
    return Case(f"tcp6: {name}", eth(packet, EtherType.IPV6), packet_class, Ethertype.IPV6)


def _flags() -> Iterator[Case]:
    for flags in range(256):
        for payload in (b"", b"x"):
            name = f"flags {flags:#04x}{' with payload' * len(payload)}"
            packet_class = tcp_class(flags, len(payload))
            yield _v4(name, ipv4(tcp(flags, payload)), packet_class)
            yield _v6(name, ipv6(tcp(flags, payload)), packet_class)


def _noise() -> Iterator[Case]:
    """The bits beside the flags: AE (RFC 9768) is the lowest of byte 12, the three above it are reserved."""
    for reserved in range(1, 16):
        yield _v4(f"syn, reserved bits {reserved:#x}", ipv4(tcp(SYN, reserved=reserved)), PacketClass.TCP_SYN)
        yield _v4(f"ack, reserved bits {reserved:#x}", ipv4(tcp(ACK, reserved=reserved)), PacketClass.TCP_ACK)
        yield _v4(f"null, reserved bits {reserved:#x}", ipv4(tcp(0, reserved=reserved)), PacketClass.TCP_ODD)
    yield _v4("fast open", ipv4(tcp(SYN, b"GET /", options=b"\x22\x02\x01\x01")), PacketClass.TCP_SYN)
    ports = ipv4(tcp(SYN, source_port=0, destination_port=0))
    yield _v4("ports 0", ports, PacketClass.TCP_SYN)


def _data_offsets() -> Iterator[Case]:
    no_operation = b"\x01"
    for words in range(6, 16):
        options = no_operation * (words - 5) * 4
        yield _v4(f"syn, data offset {words}", ipv4(tcp(SYN, options=options)), PacketClass.TCP_SYN)
        yield _v6(f"syn, data offset {words}", ipv6(tcp(SYN, options=options)), PacketClass.TCP_SYN)
        yield _v4(f"ack, data offset {words}", ipv4(tcp(ACK, options=options)), PacketClass.TCP_ACK)
        yield _v4(f"data, data offset {words}", ipv4(tcp(ACK | PSH, b"x", options=options)), PacketClass.TCP_DATA)
        beyond = ipv4(tcp(SYN, options=options[:-1], data_offset=words))
        yield _v4(f"data offset {words}, one byte beyond the end", beyond, MALFORMED)
        in_padding = pad(eth(beyond, EtherType.IPV4), 90, no_operation)
        yield Case(f"tcp: data offset {words}, one byte in the padding", in_padding, MALFORMED, Ethertype.IPV4)
    for words in range(5):
        yield _v4(f"data offset {words}", ipv4(tcp(SYN, bytes(40), data_offset=words)), MALFORMED)
        yield _v6(f"data offset {words}", ipv6(tcp(SYN, bytes(40), data_offset=words)), MALFORMED)
    yield _v4("data offset 15 in 20 bytes", ipv4(tcp(SYN, data_offset=15)), MALFORMED)


def _payload() -> Iterator[Case]:
    """Payload is what the IP header says and the bytes hold; padding is none."""
    for to_bytes, filler in ((55, b"\0"), (60, b"\0"), (60, b"\xff"), (1514, b"\x11")):
        name = f"padded to {to_bytes} with {filler.hex()}"
        ack4, ack6 = (eth(ipv4(tcp(ACK)), EtherType.IPV4), eth(ipv6(tcp(ACK)), EtherType.IPV6))
        yield Case(f"tcp: ack {name}", pad(ack4, to_bytes, filler), PacketClass.TCP_ACK, Ethertype.IPV4)
        yield Case(f"tcp6: ack {name}", pad(ack6, to_bytes + 20, filler), PacketClass.TCP_ACK, Ethertype.IPV6)
        data = eth(ipv4(tcp(ACK, b"x")), EtherType.IPV4)
        yield Case(f"tcp: data {name}", pad(data, to_bytes, filler), PacketClass.TCP_DATA, Ethertype.IPV4)
    whole4, whole6 = ipv4(tcp(ACK, bytes(1000))), ipv6(tcp(ACK, bytes(1000)))
    yield _v4("payload cut off", whole4[:40], PacketClass.TCP_ACK)
    yield _v4("one byte of payload left", whole4[:41], PacketClass.TCP_DATA)
    yield _v6("payload cut off", whole6[:60], PacketClass.TCP_ACK)
    yield _v6("one byte of payload left", whole6[:61], PacketClass.TCP_DATA)
    yield _v4("total length leaves the payload out", ipv4(tcp(ACK, bytes(20)), total_length=40), PacketClass.TCP_ACK)
    yield _v4("total length 65535", ipv4(tcp(ACK), total_length=65535), PacketClass.TCP_ACK)
    yield _v6("payload length 65535", ipv6(tcp(ACK), payload_length=65535), PacketClass.TCP_ACK)
    yield _v6("payload length leaves it out", ipv6(tcp(ACK, bytes(20)), payload_length=20), PacketClass.TCP_ACK)
    yield _v4("full segment", ipv4(tcp(ACK, bytes(1460))), PacketClass.TCP_DATA)


def _cut() -> Iterator[Case]:
    """Headers that end early: by the bytes, or by what the IP header says is there."""
    for there in range(20):
        for flags, name in ((SYN, "syn"), (ACK, "ack")):
            whole4, whole6 = ipv4(tcp(flags)), ipv6(tcp(flags))
            yield _v4(f"{name} cut after {there} bytes", whole4[: 20 + there], MALFORMED)
            yield _v6(f"{name} cut after {there} bytes", whole6[: 40 + there], MALFORMED)
        yield _v4(f"total length ends after {there}", ipv4(tcp(SYN), total_length=20 + there), MALFORMED)
        yield _v6(f"payload length ends after {there}", ipv6(tcp(SYN), payload_length=there), MALFORMED)


def _first_fragments() -> Iterator[Case]:
    """RFC 1858 and RFC 3128: flags that aren't in the first fragment must not be guessed."""
    segment = tcp(SYN, bytes(100))
    for there in (0, 1, 8, 12, 13, 14, 16, 19):
        take = slice(there)
        yield _v4(f"first fragment of {there}", ipv4(segment, more_fragments=True, take=take), MALFORMED)
        yield _v6(
            f"first fragment of {there}", ipv6(extensions.fragment(segment, more=True), take=_behind(there)), MALFORMED
        )
    for there in (20, 24, 80):
        take = slice(there)
        yield _v4(f"first fragment of {there}", ipv4(segment, more_fragments=True, take=take), PacketClass.TCP_SYN)
        packet = ipv6(extensions.fragment(segment, more=True), take=_behind(there))
        yield _v6(f"first fragment of {there}", packet, PacketClass.TCP_SYN)
    with_options = tcp(SYN, options=b"\x01" * 12)
    yield _v4("first fragment, options cut", ipv4(with_options, more_fragments=True, take=slice(24)), MALFORMED)
    yield _v4(
        "first fragment, options whole", ipv4(with_options, more_fragments=True, take=slice(32)), PacketClass.TCP_SYN
    )
    acknowledgement = tcp(ACK, bytes(100))
    yield _v4(
        "first fragment, no payload in it",
        ipv4(acknowledgement, more_fragments=True, take=slice(20)),
        PacketClass.TCP_ACK,
    )
    yield _v4(
        "first fragment with payload", ipv4(acknowledgement, more_fragments=True, take=slice(24)), PacketClass.TCP_DATA
    )


def _behind(there: int) -> slice:
    """The first `there` bytes behind a fragment header."""
    return slice(8 + there)
