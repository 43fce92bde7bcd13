# SPDX-License-Identifier: Apache-2.0
"""The host's neighbour table: which addresses were seen at which MAC, for interfaces that have an address of the host.

Source: RTM_GETNEIGH, include/uapi/linux/neighbour.h.
"""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from vifprobe.host.net.netlink import Netlink, attributes

RTM_GETNEIGH = 30
NDA_DST = 1
NDA_LLADDR = 2
#: NUD_NONE, NUD_INCOMPLETE, NUD_FAILED: nobody has answered.
_NO_ANSWER = (0x00, 0x01, 0x20)

_ADDRESS_BYTES = {socket.AF_INET: 4, socket.AF_INET6: 16}

_NDMSG = struct.Struct("=BxxxiHBB")


class Neighbour(NamedTuple):
    """One address and the MAC that answered for it, on an interface of the host (a bridge, for its guests)."""

    ifindex: int
    ip: IPv4Address | IPv6Address
    mac: str


def neighbours() -> list[Neighbour]:
    """Those of the calling thread's network namespace. Raises NetlinkError."""
    found = []
    with Netlink() as netlink:
        for message in netlink.dump(RTM_GETNEIGH, _NDMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
            if len(message.body) < _NDMSG.size:
                continue
            family, ifindex, state, _, _ = _NDMSG.unpack_from(message.body)
            told = attributes(message.body, _NDMSG.size)
            ip, mac = told.get(NDA_DST, b""), told.get(NDA_LLADDR, b"")
            if len(ip) == _ADDRESS_BYTES.get(family) and state not in _NO_ANSWER and len(mac) == 6:
                found.append(Neighbour(ifindex, ip_address(ip), ":".join(f"{byte:02x}" for byte in mac)))
    return found
