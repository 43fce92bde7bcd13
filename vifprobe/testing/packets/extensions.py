# SPDX-License-Identifier: Apache-2.0
"""IPv6 extension headers and other headers between IP and what it carries."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

from vifprobe.testing.packets.frames import Part, Protocol


def hop_by_hop(part: Part, *, units: int = 0) -> Part:
    """Hop-by-hop options (RFC 8200, 4.3), 8 + 8 * `units` bytes of padding options."""
    return _options(Protocol.HOP_BY_HOP, part, units)


def destination_options(part: Part, *, units: int = 0) -> Part:
    """Destination options (RFC 8200, 4.6), 8 + 8 * `units` bytes of padding options."""
    return _options(Protocol.DESTINATION_OPTIONS, part, units)


def routing(part: Part, *, units: int = 0) -> Part:
    """A routing header (RFC 8200, 4.4) of an experimental type (RFC 4727) with no segments left."""
    header = struct.pack("!BBBB", part.protocol, units, 253, 0) + bytes(4 + 8 * units)
    return part.behind(Protocol.ROUTING, header)


def fragment(part: Part, *, offset: int = 0, more: bool = False) -> Part:
    """A fragment header (RFC 8200, 4.5), `offset` in units of 8 bytes; by default an atomic fragment (RFC 6946)."""
    return part.behind(Protocol.FRAGMENT, struct.pack("!BBHI", part.protocol, 0, offset << 3 | more, 4099))


def ah(part: Part, *, icv_bytes: int = 12, payload_len: int | None = None) -> Part:
    """An authentication header (RFC 4302), its length in words of 4 bytes less 2; 12 bytes and the check value."""
    length = (12 + icv_bytes) // 4 - 2 if payload_len is None else payload_len
    header = struct.pack("!BBHII", part.protocol, length, 0, 0x1001, 1) + b"\xa5" * icv_bytes
    return part.behind(Protocol.AH, header)


def esp(data: bytes = b"\x5a" * 32) -> Part:
    """An ESP packet (RFC 4303): what it carries can't be read."""
    return Part(Protocol.ESP, struct.pack("!II", 0x1001, 1) + data)


def gre(packet: bytes, ethertype: int) -> Part:
    """A GRE packet (RFC 2784) without key or checksum."""
    return Part(Protocol.GRE, struct.pack("!HH", 0, ethertype) + packet)


def sctp(chunk: bytes = bytes.fromhex("0a000004")) -> Part:
    """An SCTP packet (RFC 9260) with a COOKIE ECHO; its CRC32c is left 0."""
    return Part(Protocol.SCTP, struct.pack("!HHII", 40_001, 50_021, 1, 0) + chunk)


def mpls(packet: bytes, *, label: int = 1009) -> bytes:
    """A packet behind one label (RFC 3032), bottom of stack."""
    return struct.pack("!I", label << 12 | 1 << 8 | 64) + packet


def pppoe(packet: bytes, *, ppp_protocol: int = 0x0021) -> bytes:
    """A packet in a PPPoE session (RFC 2516)."""
    return struct.pack("!BBHHH", 0x11, 0, 1009, len(packet) + 2, ppp_protocol) + packet


def lldp() -> bytes:
    """The shortest LLDP data unit (IEEE 802.1AB): chassis, port, time to live, end."""
    chassis = bytes.fromhex("0207 04 020000000001")
    port = bytes.fromhex("0404 07 706f31")
    return chassis + port + bytes.fromhex("0602 0078 0000")


def chain(part: Part, protocols: Iterable[int]) -> Part:
    """The part behind these headers, the first of them outermost, each of its shortest form."""
    builders: dict[int, Callable[[Part], Part]] = {
        Protocol.HOP_BY_HOP: hop_by_hop,
        Protocol.ROUTING: routing,
        Protocol.FRAGMENT: fragment,
        Protocol.AH: ah,
        Protocol.DESTINATION_OPTIONS: destination_options,
    }
    for protocol in reversed(list(protocols)):
        part = builders[protocol](part)
    return part


def _options(protocol: int, part: Part, units: int) -> Part:
    left = 6 + 8 * units
    options = b""
    while left > 1:
        padded = min(left, 257)  # PadN (RFC 8200, 4.2): type 1, a length of at most 255
        if left - padded == 1:
            padded -= 1
        options += struct.pack("!BB", 1, padded - 2) + bytes(padded - 2)
        left -= padded
    return part.behind(protocol, struct.pack("!BB", part.protocol, units) + options)
