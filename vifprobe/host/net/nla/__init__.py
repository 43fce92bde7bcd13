# SPDX-License-Identifier: Apache-2.0
"""The nla classes by which netlink messages are decoded: which class is whose, registered here.

Importing this imports pyroute2 (0.1 s, 22 MiB): only vifprobe.host.net.netlink does, when there is a message.
"""

from __future__ import annotations

from pyroute2.netlink.exceptions import NetlinkDecodeError
from pyroute2.netlink.rtnl import (
    RTM_DELLINK,
    RTM_DELQDISC,
    RTM_DELTCLASS,
    RTM_DELTFILTER,
    RTM_GETLINK,
    RTM_GETNEIGH,
    RTM_GETQDISC,
    RTM_GETTCLASS,
    RTM_GETTFILTER,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWQDISC,
    RTM_NEWTCLASS,
    RTM_NEWTFILTER,
)

from vifprobe.host.net.nla.link import ifinfmsg, ndmsg
from vifprobe.host.net.nla.nft import NFT_MESSAGES
from vifprobe.host.net.nla.tc import tcmsg

__all__ = ["MESSAGES", "NetlinkDecodeError"]

#: nlmsg_type -> class, as pyroute2's Marshal.msg_map and register_policy have it.
MESSAGES: dict[int, type] = {
    **dict.fromkeys((RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK), ifinfmsg),
    **dict.fromkeys((RTM_NEWNEIGH, RTM_GETNEIGH), ndmsg),
    **dict.fromkeys((RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC), tcmsg),
    **dict.fromkeys((RTM_NEWTCLASS, RTM_DELTCLASS, RTM_GETTCLASS), tcmsg),
    **dict.fromkeys((RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER), tcmsg),
    **NFT_MESSAGES,
}
