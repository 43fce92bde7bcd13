# SPDX-License-Identifier: Apache-2.0
"""Recordings made by hand: pcap and pcapng of every kind that a reader must take, and of some that it must refuse."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from typing import Any

ETHERNET = 1
_NS = 1_000_000_000


class Block(IntEnum):
    """Block types of pcapng (draft-ietf-opsawg-pcapng, 4)."""

    INTERFACE = 1
    OLD_PACKET = 2
    SIMPLE_PACKET = 3
    NAME_RESOLUTION = 4
    STATISTICS = 5
    PACKET = 6
    SECTION = 0x0A0D0D0A


def pcap_bytes(packets: Iterable[tuple[int, bytes]], **options: Any) -> bytes:
    """The whole of `pcap_parts`."""
    return b"".join(pcap_parts(packets, **options))


def pcap_parts(
    packets: Iterable[tuple[int, bytes]],
    *,
    order: str = "<",
    nanoseconds: bool = False,
    link_type: int = ETHERNET,
    snaplen: int = 262_144,
    lengths: Sequence[int] | None = None,
) -> Iterator[bytes]:
    """A pcap file of (ns since 1970, bytes recorded); lengths: those that the frames had, else as recorded."""
    magic = 0xA1B23C4D if nanoseconds else 0xA1B2C3D4
    yield struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, snaplen, link_type)
    for number, (at_ns, frame) in enumerate(packets):
        seconds, ns = divmod(at_ns, _NS)
        length = len(frame) if lengths is None else lengths[number]
        yield struct.pack(order + "IIII", seconds, ns if nanoseconds else ns // 1000, len(frame), length) + frame


class PcapngWriter:
    """A pcapng file in memory, beginning with a section. content: the bytes so far."""

    def __init__(self, order: str = "<") -> None:
        self.content = bytearray()
        self.section(order)

    def section(self, order: str) -> None:
        """Begin a section of this byte order ("<" or ">"), without interfaces."""
        self.order = order
        self.interfaces: list[tuple[int, int]] = []
        self.block(Block.SECTION, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))

    def block(self, kind: int, body: bytes) -> None:
        """Any block; its body is padded to whole words."""
        body += bytes(-len(body) % 4)
        length = struct.pack(self.order + "I", 12 + len(body))
        self.content += struct.pack(self.order + "I", kind) + length + body + length

    def interface(
        self,
        *,
        resolution: int | None = None,
        offset_seconds: int = 0,
        fcs_bytes: int = 0,
        snaplen: int = 0,
        link_type: int = ETHERNET,
        name: str = "",
    ) -> None:
        """Describe an interface. resolution: if_tsresol as it is in the file; None: none, which means 6."""
        options = self._option(2, name.encode()) if name else b""
        if resolution is not None:
            options += self._option(9, bytes([resolution]))
        if fcs_bytes:
            options += self._option(13, bytes([8 * fcs_bytes]))
        if offset_seconds:
            options += self._option(14, struct.pack(self.order + "q", offset_seconds))
        options += self._option(0, b"") if options else b""
        self.block(Block.INTERFACE, struct.pack(self.order + "HHI", link_type, 0, snaplen) + options)
        code = 6 if resolution is None else resolution
        self.interfaces.append((2 ** (code & 0x7F) if code & 0x80 else 10**code, offset_seconds))

    def packet(
        self, at_ns: int, frame: bytes, *, interface: int = 0, length: int | None = None, flags: int | None = None
    ) -> None:
        """An enhanced packet. at_ns: since 1970, or since the interface's offset where that is later."""
        options = b"" if flags is None else self._option(2, struct.pack(self.order + "I", flags)) + self._option(0, b"")
        head = struct.pack(self.order + "I", interface) + self._ticks(at_ns, interface)
        sizes = struct.pack(self.order + "II", len(frame), len(frame) if length is None else length)
        self.block(Block.PACKET, head + sizes + frame + bytes(-len(frame) % 4) + options)

    def old_packet(self, at_ns: int, frame: bytes, *, interface: int = 0) -> None:
        """An obsolete packet block."""
        head = struct.pack(self.order + "HH", interface, 0) + self._ticks(at_ns, interface)
        self.block(Block.OLD_PACKET, head + struct.pack(self.order + "II", len(frame), len(frame)) + frame)

    def simple_packet(self, frame: bytes, *, snaplen: int = 0) -> None:
        """A packet without time, of the first interface."""
        self.block(Block.SIMPLE_PACKET, struct.pack(self.order + "I", len(frame)) + frame[: snaplen or None])

    def statistics(self, interface: int, *, dropped: int, os_dropped: int) -> None:
        """What an interface lost so far."""
        options = self._option(5, struct.pack(self.order + "Q", dropped))
        options += self._option(7, struct.pack(self.order + "Q", os_dropped)) + self._option(0, b"")
        self.block(Block.STATISTICS, struct.pack(self.order + "III", interface, 0, 0) + options)

    def _ticks(self, at_ns: int, interface: int) -> bytes:
        per_second, offset_seconds = self.interfaces[interface]
        since = at_ns - offset_seconds * _NS if at_ns >= offset_seconds * _NS else at_ns
        ticks = since * per_second // _NS
        return struct.pack(self.order + "II", ticks >> 32, ticks & 0xFFFFFFFF)

    def _option(self, number: int, value: bytes) -> bytes:
        return struct.pack(self.order + "HH", number, len(value)) + value + bytes(-len(value) % 4)
