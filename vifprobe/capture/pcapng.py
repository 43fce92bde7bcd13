# SPDX-License-Identifier: Apache-2.0
"""Blocks of a pcapng file: section header, interface, packet. Source: draft-ietf-opsawg-pcapng.

Little-endian whatever the host; times in nanoseconds since 1970.
"""

from __future__ import annotations

import struct

SECTION_HEADER, INTERFACE, ENHANCED_PACKET = 0x0A0D0D0A, 1, 6
LINKTYPE_ETHERNET = 1
LINKTYPE_RAW = 101  # begins with the IPv4 or IPv6 header
_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_UNKNOWN_LENGTH = 0xFFFFFFFFFFFFFFFF  # of the section: it may end anywhere
# Option codes; 1 is the same in all blocks.
_COMMENT = 1
_SHB_OS, _SHB_USERAPPL = 3, 4
_IF_NAME, _IF_DESCRIPTION, _IF_TSRESOL = 2, 3, 9
_EPB_FLAGS, _EPB_VERDICT = 2, 7
_TEN_TO_MINUS_9 = 9
_VERDICT_LINUX_TC = 1
_OPTION_BYTES_MAX = 4096  # of a text; the format takes 65,535
#: include/uapi/linux/pkt_cls.h
TC_ACT_OK, TC_ACT_SHOT = 0, 2
#: Bits 0 and 1 of epb_flags.
FLAG_INBOUND, FLAG_OUTBOUND = 1, 2


def _text(code: int, text: str) -> bytes:
    """An option of UTF-8. Names of files and devices can be other bytes, which Python holds as lone surrogates."""
    value = text.encode("utf-8", "backslashreplace")
    return _option(code, value[:_OPTION_BYTES_MAX].decode("utf-8", "ignore").encode())


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def _block(kind: int, body: bytes, options: bytes) -> bytes:
    if options:
        options += bytes(4)  # opt_endofopt
    length = struct.pack("<I", 12 + len(body) + len(options))
    return struct.pack("<I", kind) + length + body + options + length


def section_header(system: str, application: str) -> bytes:
    """The block that a file begins with."""
    options = _text(_SHB_OS, system) + _text(_SHB_USERAPPL, application)
    return _block(SECTION_HEADER, struct.pack("<IHHQ", _BYTE_ORDER_MAGIC, 1, 0, _UNKNOWN_LENGTH), options)


def interface(name: str, description: str, snap_bytes: int, link_type: int = LINKTYPE_ETHERNET) -> bytes:
    """An interface; the first one in a section is number 0. snap_bytes: the most that is kept of a packet."""
    options = _text(_IF_NAME, name) + _text(_IF_DESCRIPTION, description)
    options += _option(_IF_TSRESOL, bytes([_TEN_TO_MINUS_9]))
    return _block(INTERFACE, struct.pack("<HHI", link_type, 0, snap_bytes), options)


def packet(
    number: int, at_ns: int, kept: bytes, frame_bytes: int, flags: int, tc_verdict: int | None, comment: str
) -> bytes:
    """A packet of interface `number`. kept: its first bytes; frame_bytes: how many it had. tc_verdict: TC_ACT_*, None
    where nothing is known.
    """
    options = _text(_COMMENT, comment) + _option(_EPB_FLAGS, struct.pack("<I", flags))
    if tc_verdict is not None:
        options += _option(_EPB_VERDICT, struct.pack("<Bq", _VERDICT_LINUX_TC, tc_verdict))
    body = struct.pack("<IIIII", number, at_ns >> 32, at_ns & 0xFFFFFFFF, len(kept), frame_bytes)
    return _block(ENHANCED_PACKET, body + kept + bytes(-len(kept) % 4), options)
