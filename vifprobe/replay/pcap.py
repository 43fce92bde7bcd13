# SPDX-License-Identifier: Apache-2.0
"""The pcap format (draft-ietf-opsawg-pcap), of either byte order, with microseconds or nanoseconds."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from vifprobe.errors import CaptureError
from vifprobe.replay.packet import FRAME_MAX_BYTES, Packet, Remarks, check_link_type, damaged, without_fcs
from vifprobe.replay.window import Window

#: First four bytes -> byte order, nanoseconds in a unit of a packet's fraction of a second.
MAGIC = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
    b"\xa1\xb2\x3c\x4d": (">", 1),
}
_HEADER_BYTES, _RECORD_BYTES = 24, 16
_NS = 1_000_000_000


def packets(window: Window, remarks: Remarks) -> Iterator[Packet]:
    """Each packet in the order of the file; CaptureError for what is damaged or no Ethernet."""
    if not window.need(_HEADER_BYTES):
        raise CaptureError("the file header of 24 bytes is cut.", "A pcap file has a header at least.")
    order, unit_ns = MAGIC[bytes(window.memory[window.at : window.at + 4])]
    fcs_bytes = _checked_fcs_bytes(struct.unpack_from(order + "I", window.memory, window.at + 20)[0])
    window.at += _HEADER_BYTES
    unpack, memory = struct.Struct(order + "IIII").unpack_from, window.memory
    # What is in the window already is not asked for: a call less a packet.
    while window.end - window.at >= _RECORD_BYTES or window.need(_RECORD_BYTES):
        seconds, fraction, captured, length = unpack(memory, window.at)
        if not (seconds or length or captured or fraction):
            raise damaged(window.position, "only zeros, as in a hole of a file")
        if captured > FRAME_MAX_BYTES:
            raise damaged(window.position, f"a packet of {captured} bytes")
        whole = _RECORD_BYTES + captured
        if window.end - window.at < whole and not window.need(whole):
            break
        start = window.at + _RECORD_BYTES
        window.at += whole
        if fcs_bytes or length < captured:
            captured, length = without_fcs(captured, length, fcs_bytes)
        yield seconds * _NS + fraction * unit_ns, start, captured, length
    remarks.cut_bytes = window.left


def _checked_fcs_bytes(link: int) -> int:
    """Length of the frame check sequence behind each frame, from the header's last word (draft, 4: f and FCS len)."""
    check_link_type(link & 0xFFFF, "it")
    return (link >> 28) * 2 if link & 0x04000000 else 0
