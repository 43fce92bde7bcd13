# SPDX-License-Identifier: Apache-2.0
"""Link messages without a change: recognized without parsing, and not received at all where there are too many.

A guest's driver that switches its offloads on and off (TUNSETOFFLOAD) has the kernel send one each time: 100,000 in a
second where nothing else slows it down. Nothing here parses more than it must, and work is bounded whatever comes.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Collection
from typing import NamedTuple

from vifprobe.host.net.links import IFLA_STATS64, IFLA_XDP, RTM_NEWLINK

_HEAD = struct.Struct("=IHHIIBxHi")  # struct nlmsghdr, then family, type and index of struct ifinfomsg
_CHANGE_AT, _ATTRIBUTES_AT = 28, 32
_ATTRIBUTE = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_KNOWN_MAX = 4096
#: An interface is muted where so many messages without news came of it in a window, and so many of all interfaces.
WINDOW_NS = 100_000_000
WINDOW_REPEATS, WINDOW_REPEATS_OF_ALL = 32, 400
#: It is looked at again when so much time has passed.
MUTED_NS = 400_000_000
MUTED_MAX = 128

_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27  # include/uapi/asm-generic/socket.h
_FILTER = struct.Struct("=HBBI")  # struct sock_filter
_LOAD_HALF, _LOAD_WORD, _JUMP_EQUAL, _RETURN = 0x28, 0x20, 0x15, 0x06  # include/uapi/linux/bpf_common.h


class _Known(NamedTuple):
    """Content of an interface's last link message: the part before the counters, their offset, and the XDP part."""

    flags: bytes
    attributes: bytes
    counters_at: int
    xdp: bytes
    xdp_at: int


class LinkStorms:
    """Knows the last message of each interface, and which interfaces are muted."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}
        self._window_ns = 0
        self._repeats: dict[int, int] = {}
        self._of_all = 0
        self._muted_until_ns: dict[int, int] = {}

    @property
    def muted(self) -> Collection[int]:
        """Return the interfaces whose link messages are not received now."""
        return self._muted_until_ns.keys()

    def repeated(self, data: bytes, at_ns: int) -> int | None:
        """Return the interface whose last link message this one repeats; None for all other messages.

        Only of what the kernel sends by itself: who asked for a change is worth knowing.
        """
        if len(data) < _ATTRIBUTES_AT:
            return None
        _, kind, _, _, port, family, _, ifindex = _HEAD.unpack_from(data)
        if kind != RTM_NEWLINK or port or family:
            return None
        known, flags = self._known.get(ifindex), data[_HEAD.size : _CHANGE_AT]
        if known is not None and known.flags == flags:
            head = data[known.counters_at : known.counters_at + 4]
            is_same = data[_ATTRIBUTES_AT : known.counters_at] == known.attributes
            is_same = is_same and data[known.xdp_at : known.xdp_at + len(known.xdp)] == known.xdp
            if is_same and _is_counters(head):
                self._count(ifindex, at_ns)
                return int(ifindex)
        self._know(ifindex, flags, data)
        return None

    def to_mute(self, at_ns: int) -> bool:
        """Mute the interfaces that send too many messages; return True if there are new ones."""
        if self._of_all < WINDOW_REPEATS_OF_ALL or len(self._muted_until_ns) >= MUTED_MAX:
            return False
        loud = [ifindex for ifindex, number in self._repeats.items() if number >= WINDOW_REPEATS]
        new = [ifindex for ifindex in loud if ifindex not in self._muted_until_ns]
        self._muted_until_ns.update(dict.fromkeys(new[: MUTED_MAX - len(self._muted_until_ns)], at_ns + MUTED_NS))
        return bool(new)

    def to_unmute(self, at_ns: int) -> list[int]:
        """Unmute and return the interfaces that have been muted long enough."""
        over = [ifindex for ifindex, until_ns in self._muted_until_ns.items() if until_ns <= at_ns]
        for ifindex in over:
            del self._muted_until_ns[ifindex]
            for of_interface in (self._repeats, self._known):
                of_interface.pop(ifindex, None)
        return over

    def forget(self) -> None:
        """Forget the last messages: messages were lost."""
        self._known.clear()

    def _count(self, ifindex: int, at_ns: int) -> None:
        if at_ns - self._window_ns > WINDOW_NS:
            self._window_ns, self._of_all = at_ns, 0
            self._repeats.clear()
        self._of_all += 1
        self._repeats[ifindex] = self._repeats.get(ifindex, 0) + 1

    def _know(self, ifindex: int, flags: bytes, data: bytes) -> None:
        self._known.pop(ifindex, None)
        at = _ATTRIBUTES_AT
        while at + _ATTRIBUTE.size <= len(data):
            head = data[at : at + 4]
            if _is_counters(head):
                if len(self._known) >= _KNOWN_MAX:
                    self._known.clear()
                xdp_at = _place_of(IFLA_XDP, data, at)
                length = _ATTRIBUTE.unpack_from(data, xdp_at)[0] if xdp_at < len(data) else 0
                xdp = data[xdp_at : xdp_at + length]
                self._known[ifindex] = _Known(flags, data[_ATTRIBUTES_AT:at], at, xdp, xdp_at)
                return
            length = _ATTRIBUTE.unpack(head)[0]
            at += max(4, (length + 3) & ~3)


def _place_of(kind: int, data: bytes, at: int) -> int:
    """Return the offset of an attribute, searched from `at` on; the end where there is none.

    Counters have the same length each time.
    """
    while at + _ATTRIBUTE.size <= len(data):
        length, found = _ATTRIBUTE.unpack_from(data, at)
        if found & _TYPE_MASK == kind:
            return at
        at += max(4, (length + 3) & ~3)
    return len(data)


def _is_counters(head: bytes) -> bool:
    """Return True at the counters: rtnl_fill_ifinfo (net/core/rtnetlink.c) puts only XDP and kind after them."""
    return len(head) == 4 and _ATTRIBUTE.unpack(head)[1] == IFLA_STATS64


def mute(source: socket.socket, ifindexes: Collection[int]) -> None:
    """Let the kernel drop link messages of these interfaces before they come to a socket; none: drop nothing.

    A classic BPF filter. Messages of tc, and those that an interface is gone, are received as ever.
    """
    if not ifindexes:
        source.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
        return
    many = len(ifindexes)
    # Loads take the bytes as in network order. nlmsg_type is at 4, ifi_index at 20.
    code = [(_LOAD_HALF, 0, 0, 4), (_JUMP_EQUAL, 0, many + 1, socket.htons(RTM_NEWLINK)), (_LOAD_WORD, 0, 0, 20)]
    code += [(_JUMP_EQUAL, many - place, 0, socket.htonl(one)) for place, one in enumerate(ifindexes)]
    code += [(_RETURN, 0, 0, 0xFFFFFFFF), (_RETURN, 0, 0, 0)]
    text = ctypes.create_string_buffer(b"".join(_FILTER.pack(*one) for one in code))
    program = struct.pack("@HP", len(code), ctypes.addressof(text))  # struct sock_fprog
    source.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
