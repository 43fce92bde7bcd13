# SPDX-License-Identifier: Apache-2.0
"""The host's neighbour table: which addresses were seen at which MAC, for interfaces that have an address of the host.

Source: RTM_GETNEIGH, include/uapi/linux/neighbour.h.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from vifprobe.host.net.netlink import Netlink, encoded, reading

RTM_NEWNEIGH, RTM_GETNEIGH = 28, 30
#: NUD_NONE, NUD_INCOMPLETE, NUD_FAILED: nobody has answered.
_NO_ANSWER = (0x00, 0x01, 0x20)
_ADDRESS_BYTES = {socket.AF_INET: 4, socket.AF_INET6: 16}


class Neighbour(NamedTuple):
    """One address and the MAC that answered for it, on an interface of the host (a bridge, for its guests)."""

    ifindex: int
    ip: IPv4Address | IPv6Address
    mac: str


def neighbours() -> list[Neighbour]:
    """Those of the calling thread's network namespace. Raises NetlinkError."""
    found = []
    with Netlink() as netlink, reading():
        for message in netlink.dump(RTM_GETNEIGH, encoded(RTM_GETNEIGH, {"family": socket.AF_UNSPEC})):
            if message.type != RTM_NEWNEIGH:
                continue
            one = message.decoded(RTM_NEWNEIGH)
            ip, mac = one.get_attr("NDA_DST", b""), one.get_attr("NDA_LLADDR", b"")
            is_known = len(ip) == _ADDRESS_BYTES.get(one["family"]) and one["state"] not in _NO_ANSWER
            if is_known and len(mac) == 6:
                found.append(Neighbour(one["ifindex"], ip_address(ip), mac.hex(":")))
    return found
