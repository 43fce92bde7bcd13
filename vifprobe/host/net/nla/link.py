# SPDX-License-Identifier: Apache-2.0
"""Links and neighbours: the attributes of pyroute2's ifinfmsg and ndmsg that are used here.

pyroute2's ifinfmsg takes each address of another length than a MAC's for a MAC, and ndmsg logs such a one.

Source: include/uapi/linux/if_link.h, if_tun.h, neighbour.h; net/core/rtnetlink.c (rtnl_fill_ifinfo).
"""

from __future__ import annotations

from typing import Any

from pyroute2.netlink import nlmsg_atoms
from pyroute2.netlink.rtnl.ifinfmsg import ifinfbase
from pyroute2.netlink.rtnl.ndmsg import ndmsg as pyroute2_ndmsg

from vifprobe.host.net.nla.base import nla, nlmsg


class stats64(nla):
    """The head of struct rtnl_link_stats64, which has had it since 2.6.35."""

    __slots__ = ()
    fields = (
        ("rx_packets", "Q"),
        ("tx_packets", "Q"),
        ("rx_bytes", "Q"),
        ("tx_bytes", "Q"),
        ("rx_errors", "Q"),
        ("tx_errors", "Q"),
        ("rx_dropped", "Q"),
        ("tx_dropped", "Q"),
    )


class ifinfmsg(nlmsg):
    """RTM_NEWLINK, RTM_DELLINK; encoded, RTM_GETLINK."""

    __slots__ = ()
    fields = ifinfbase.fields
    nla_map = (
        (1, "IFLA_ADDRESS", "cdata"),
        (3, "IFLA_IFNAME", "asciiz"),
        (4, "IFLA_MTU", "uint32"),
        (6, "IFLA_QDISC", "asciiz"),
        (10, "IFLA_MASTER", "uint32"),
        (13, "IFLA_TXQLEN", "uint32"),
        (18, "IFLA_LINKINFO", "linkinfo"),
        (20, "IFLA_IFALIAS", "asciiz"),
        (23, "IFLA_STATS64", "stats64"),
        (29, "IFLA_EXT_MASK", "uint32"),
        (30, "IFLA_PROMISCUITY", "uint32"),
        (31, "IFLA_NUM_TX_QUEUES", "uint32"),
        (33, "IFLA_CARRIER", "uint8"),
        (43, "IFLA_XDP", "xdp"),
        (45, "IFLA_NEW_NETNSID", "cdata"),
        (49, "IFLA_NEW_IFINDEX", "cdata"),
    )
    stats64 = stats64

    class xdp(nla):
        """net/core/rtnetlink.c, rtnl_xdp_fill: the programs' ids by mode, since 4.19."""

        __slots__ = ()
        nla_map = (
            (5, "IFLA_XDP_DRV_PROG_ID", "uint32"),
            (6, "IFLA_XDP_SKB_PROG_ID", "uint32"),
            (7, "IFLA_XDP_HW_PROG_ID", "uint32"),
        )

    class linkinfo(nla):
        """IFLA_INFO_*; the data of a tun or tap alone."""

        __slots__ = ()
        nla_map = ((1, "IFLA_INFO_KIND", "asciiz"), (2, "IFLA_INFO_DATA", "get_data"))

        @staticmethod
        def get_data(self: Any, **_: object) -> type:
            """Class of IFLA_INFO_DATA by the kind, which rtnl_link_info_fill puts ahead of it."""
            return tun if self.get_attr("IFLA_INFO_KIND") == "tun" else nlmsg_atoms.none


class tun(nla):
    """drivers/net/tun.c, tun_fill_info."""

    __slots__ = ()
    nla_map = ((3, "IFLA_TUN_TYPE", "uint8"),)


class ndmsg(nlmsg):
    """RTM_NEWNEIGH; encoded, RTM_GETNEIGH."""

    __slots__ = ()
    fields = pyroute2_ndmsg.fields
    nla_map = ((1, "NDA_DST", "cdata"), (2, "NDA_LLADDR", "cdata"))
