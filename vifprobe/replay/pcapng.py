# SPDX-License-Identifier: Apache-2.0
"""The pcapng format (draft-ietf-opsawg-pcapng): sections of either byte order, several interfaces, any resolution."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from vifprobe.replay.packet import FRAME_MAX_BYTES, TIME_MAX_NS, Packet, Remarks, check_link_type, damaged, without_fcs
from vifprobe.replay.window import WINDOW_BYTES, Window

MAGIC = b"\x0a\x0d\x0d\x0a"
_ORDERS = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}
_SECTION, _INTERFACE, _OLD_PACKET, _SIMPLE_PACKET, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 2, 3, 5, 6
#: Blocks that are read, and how much they hold at least.
_LEAST_BYTES = {_INTERFACE: 8, _OLD_PACKET: 20, _SIMPLE_PACKET: 4, _STATISTICS: 12, _PACKET: 20}
_BLOCK_BYTES = 12  # type, length, and the length again at the end
_NS = 1_000_000_000
#: A section has no more: each is kept, and 40 GiB of them would be, too.
_INTERFACES_MAX = 1 << 16
_NAME_BYTES_MAX = 256
# Options of an interface, of its statistics, and of a packet.
_IF_NAME, _IF_TSRESOL, _IF_FCSLEN, _IF_TSOFFSET = 2, 9, 13, 14
_ISB_IFDROP, _ISB_OSDROP = 5, 7
_EPB_FLAGS = 2


@dataclass
class _Interface:
    """ns of a tick: up / down. offset_ns: what to add. fcs_bytes: behind each frame. lost: what it said last."""

    name: str
    link_type: int
    snaplen: int
    up: int = 1000
    down: int = 1
    offset_ns: int = 0
    fcs_bytes: int = 0
    lost: int = 0


def packets(window: Window, remarks: Remarks) -> Iterator[Packet]:
    """Each packet in the order of the file; CaptureError for what is damaged or no Ethernet."""
    return _Reader(window, remarks).packets()


class _Reader:
    def __init__(self, window: Window, remarks: Remarks) -> None:
        self._window = window
        self._remarks = remarks
        self._order = "<"
        self._interfaces: list[_Interface] = []
        self._last_ns = 0

    def packets(self) -> Iterator[Packet]:
        window, memory = self._window, self._window.memory
        while window.need(_BLOCK_BYTES):
            if memory[window.at : window.at + 4] == MAGIC:
                self._begin_section()
            kind, length = struct.unpack_from(self._order + "II", memory, window.at)
            if length < _BLOCK_BYTES or length % 4:
                raise damaged(window.position, f"a block of {length} bytes")
            if kind not in _LEAST_BYTES:
                if kind != _SECTION:
                    self._remarks.skip_block(kind)
                left = window.left
                if not window.skip(length):
                    self._remarks.cut_bytes = left
                    return
                continue
            if length > WINDOW_BYTES:
                raise damaged(window.position, f"a block of type {kind} of {length} bytes")
            if not window.need(length):
                break
            start, window.at = window.at, window.at + length
            if struct.unpack_from(self._order + "I", memory, start + length - 4)[0] != length:
                raise damaged(window.position - length, "a block's two lengths are not the same")
            found = self._block(kind, start + 8, start + length - 4)
            if found is not None:
                yield found
        self._remarks.cut_bytes = window.left

    def _begin_section(self) -> None:
        at = self._window.at
        order = _ORDERS.get(bytes(self._window.memory[at + 8 : at + 12]))
        if order is None:
            raise damaged(self._window.position, "a section without byte order")
        self._order = order
        self._interfaces = []

    def _block(self, kind: int, start: int, end: int) -> Packet | None:
        """Read a block's content between start and end; return the packet, if it is one."""
        if end - start < _LEAST_BYTES[kind]:
            raise damaged(self._window.position, f"a block of type {kind} of {end - start + _BLOCK_BYTES} bytes")
        if kind == _PACKET:
            return self._packet(start, end)
        if kind == _OLD_PACKET:
            return self._old_packet(start, end)
        if kind == _SIMPLE_PACKET:
            return self._simple_packet(start, end)
        if kind == _INTERFACE:
            if len(self._interfaces) == _INTERFACES_MAX:
                raise damaged(self._window.position, f"more than {_INTERFACES_MAX} interfaces in one section")
            self._interfaces.append(self._interface(start, end))
        else:
            self._statistics(start, end)
        return None

    def _packet(self, start: int, end: int) -> Packet:
        number, high, low, captured, length = struct.unpack_from(self._order + "IIIII", self._window.memory, start)
        return self._made(number, high << 32 | low, start + 20, captured, length, end)

    def _old_packet(self, start: int, end: int) -> Packet:
        layout = self._order + "HHIIII"
        number, _, high, low, captured, length = struct.unpack_from(layout, self._window.memory, start)
        return self._made(number, high << 32 | low, start + 20, captured, length, end)

    def _simple_packet(self, start: int, end: int) -> Packet:
        (length,) = struct.unpack_from(self._order + "I", self._window.memory, start)
        self._remarks.without_time += 1
        captured = min(length, end - start - 4, self._known(0).snaplen or length)
        return self._made(0, None, start + 4, captured, length, end)

    def _known(self, number: int) -> _Interface:
        if number >= len(self._interfaces):
            raise damaged(self._window.position, f"a packet of interface {number}, which is not described")
        return self._interfaces[number]

    def _made(self, number: int, ticks: int | None, at: int, captured: int, length: int, end: int) -> Packet:
        interface = self._known(number)
        if interface.link_type != 1:
            named = f" ({interface.name})" if interface.name else ""
            check_link_type(interface.link_type, f"interface {number}{named}")
        if captured > FRAME_MAX_BYTES or at + captured > end:
            raise damaged(self._window.position, f"a packet of {captured} bytes")
        if ticks is not None:
            self._last_ns = self._time(ticks * interface.up // interface.down + interface.offset_ns)
        padded = captured + -captured % 4
        fcs_bytes = interface.fcs_bytes
        if at + padded < end:
            fcs_bytes = self._fcs_bytes(at + padded, end, fcs_bytes)
        if fcs_bytes or length < captured:
            captured, length = without_fcs(captured, length, fcs_bytes)
        return self._last_ns, at, captured, length

    def _time(self, at_ns: int) -> int:
        """The time; that of the packet before where it is none that a clock can have: its options are damaged."""
        if 0 <= at_ns <= TIME_MAX_NS:
            return at_ns
        self._remarks.without_time += 1
        return self._last_ns

    def _fcs_bytes(self, start: int, end: int, otherwise: int) -> int:
        """Return the length of the frame check sequence by the packet's own flags (bits 5 to 8)."""
        for option, at, size in self._options(start, end):
            if option == _EPB_FLAGS and size == 4:
                (flags,) = struct.unpack_from(self._order + "I", self._window.memory, at)
                return flags >> 5 & 0xF or otherwise
        return otherwise

    def _options(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(number, place, length) of each option."""
        while start + 4 <= end:
            number, size = struct.unpack_from(self._order + "HH", self._window.memory, start)
            if number == 0 or start + 4 + size > end:
                return
            yield number, start + 4, size
            start += 4 + size + -size % 4

    def _interface(self, start: int, end: int) -> _Interface:
        memory = self._window.memory
        link_type, _, snaplen = struct.unpack_from(self._order + "HHI", memory, start)
        found = _Interface("", link_type, snaplen)
        for option, at, size in self._options(start + 8, end):
            if option == _IF_NAME:
                found.name = bytes(memory[at : at + min(size, _NAME_BYTES_MAX)]).decode(errors="replace")
            elif option == _IF_TSRESOL and size == 1:
                found.up, found.down = _tick(memory[at])
            elif option == _IF_FCSLEN and size == 1:
                found.fcs_bytes = memory[at] // 8
            elif option == _IF_TSOFFSET and size == 8:
                found.offset_ns = struct.unpack_from(self._order + "q", memory, at)[0] * _NS
        return found

    def _statistics(self, start: int, end: int) -> None:
        """Packets that the recorder lost, counted from its start: the last word of each interface holds."""
        (number,) = struct.unpack_from(self._order + "I", self._window.memory, start)
        interface = self._known(number)
        drops = (_ISB_IFDROP, _ISB_OSDROP)
        found = [at for option, at, size in self._options(start + 12, end) if option in drops and size == 8]
        lost = sum(struct.unpack_from(self._order + "Q", self._window.memory, at)[0] for at in found)
        self._remarks.lost_packets += max(0, lost - interface.lost)
        interface.lost = lost


def _tick(resolution: int) -> tuple[int, int]:
    """A tick in ns, as a fraction: a power of 10, or of 2 where the upper bit is set."""
    per_second = 2 ** (resolution & 0x7F) if resolution & 0x80 else 10**resolution
    return (_NS // per_second, 1) if _NS % per_second == 0 else (_NS, per_second)
