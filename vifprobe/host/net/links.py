# SPDX-License-Identifier: Apache-2.0
"""Network interfaces as the kernel lists them, and their counters.

Source: RTM_GETLINK, include/uapi/linux/if_link.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass, replace
from typing import NamedTuple

from vifprobe.errors import TapError
from vifprobe.host.net import names
from vifprobe.host.net.netlink import Message, Netlink, NetlinkError, attribute, attributes, text, u8, u32

RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18

ARPHRD_ETHER = 1
ARPHRD_LOOPBACK = 772
ARPHRD_NONE = 65534

IFF_UP = 0x1

IFLA_ADDRESS = 1
IFLA_IFNAME = 3
IFLA_MTU = 4
IFLA_QDISC = 6
IFLA_MASTER = 10
IFLA_TXQLEN = 13
IFLA_LINKINFO = 18
IFLA_IFALIAS = 20
IFLA_STATS64 = 23
IFLA_EXT_MASK = 29
IFLA_PROMISCUITY = 30
IFLA_NUM_TX_QUEUES = 31
IFLA_CARRIER = 33
IFLA_XDP = 43
_IFLA_INFO_KIND = 1
_IFLA_INFO_DATA = 2
_IFLA_TUN_TYPE = 3
_TUN_TYPE_TUN = 1  # IFF_TUN
#: IFLA_XDP_DRV_PROG_ID, IFLA_XDP_SKB_PROG_ID, IFLA_XDP_HW_PROG_ID
_XDP_MODES = {5: "native", 6: "generic", 7: "offloaded"}

_RTEXT_FILTER_SKIP_STATS = 1 << 3

_IFINFO = struct.Struct("=BxHiII")
_STATS64 = struct.Struct("=8Q")  # the head of struct rtnl_link_stats64


class XdpProgram(NamedTuple):
    """A program at a device's XDP hook. mode: native (in the driver), generic (in the stack), offloaded."""

    mode: str
    id: int


@dataclass(frozen=True)
class Link:
    """One interface.

    kind: `tap`, `tun` (layer 3), else the driver's rtnetlink kind (`veth`, `bridge`, `openvswitch`, ...); `ethernet`
    for an Ethernet device whose driver names none, `loopback`, or "" where nothing is known.
    mac: lower case with colons, "" where there is none. mtu: bytes. up: administratively (IFF_UP). carrier: None where
    the kernel does not say; a tap that no process holds open has none. master_*: the bridge, bond, or OVS datapath
    (`ovs-system`) that it is a port of; 0 and "" where there is none. arp_type: ARPHRD_*, 1 is Ethernet.
    promiscuity: how many users asked for promiscuous mode. qdisc: kind of the root qdisc.
    tx_queues: that it can have. xdp: programs that run on what it receives before there is a tc hook.
    """

    name: str
    ifindex: int
    kind: str
    mac: str
    mtu: int
    up: bool
    master_ifindex: int
    master_name: str
    arp_type: int
    carrier: bool | None = None
    flags: int = 0
    promiscuity: int = 0
    tx_queue_length: int = 0
    qdisc: str = ""
    alias: str = ""
    tx_queues: int = 1
    xdp: tuple[XdpProgram, ...] = ()


@dataclass(frozen=True)
class LinkCounters:
    """The kernel's 64-bit counters of one interface (IFLA_STATS64), since it was made; they only grow.

    As the host sees the device: a tap's rx is what its guest sent, counted after the hand-over and so with what a
    policer dropped. Bytes hold the L2 header and no FCS.
    """

    rx_packets: int
    tx_packets: int
    rx_bytes: int
    tx_bytes: int
    rx_errors: int
    tx_errors: int
    rx_dropped: int
    tx_dropped: int


def request(ifindex: int = 0, with_stats: bool = False, name: str = "") -> bytes:
    """Body of an RTM_GETLINK: by ifindex, by name, or with neither for a dump."""
    body = _IFINFO.pack(socket.AF_UNSPEC, 0, ifindex, 0, 0)
    if name:
        body += attribute(IFLA_IFNAME, name.encode("utf-8", "surrogateescape") + b"\0")
    if not with_stats:
        body += attribute(IFLA_EXT_MASK, struct.pack("=I", _RTEXT_FILTER_SKIP_STATS))
    return body


def parse(message: Message, link_names: dict[int, str] | None = None) -> Link:
    """An RTM_NEWLINK or RTM_DELLINK message; the master's name is taken from `link_names` (ifindex -> name).

    Raises NetlinkError where the message can't be taken apart.
    """
    if len(message.body) < _IFINFO.size:
        raise NetlinkError("netlink: a link message without a header.")
    _, arp_type, ifindex, flags, _ = _IFINFO.unpack_from(message.body)
    found = attributes(message.body, _IFINFO.size)
    master = u32(found.get(IFLA_MASTER)) or 0
    carrier = u8(found.get(IFLA_CARRIER))
    return Link(
        name=text(found.get(IFLA_IFNAME)) or "",
        ifindex=ifindex,
        kind=_kind(arp_type, found.get(IFLA_LINKINFO)),
        mac=found.get(IFLA_ADDRESS, b"").hex(":"),
        mtu=u32(found.get(IFLA_MTU)) or 0,
        up=bool(flags & IFF_UP),
        master_ifindex=master,
        master_name=(link_names or {}).get(master, ""),
        arp_type=arp_type,
        carrier=None if carrier is None else bool(carrier),
        flags=flags,
        promiscuity=u32(found.get(IFLA_PROMISCUITY)) or 0,
        tx_queue_length=u32(found.get(IFLA_TXQLEN)) or 0,
        qdisc=text(found.get(IFLA_QDISC)) or "",
        alias=text(found.get(IFLA_IFALIAS)) or "",
        tx_queues=u32(found.get(IFLA_NUM_TX_QUEUES)) or 1,
        xdp=_xdp(found.get(IFLA_XDP, b"")),
    )


def _xdp(data: bytes) -> tuple[XdpProgram, ...]:
    found = attributes(data)
    ids = {mode: u32(found.get(kind)) for kind, mode in _XDP_MODES.items()}
    return tuple(XdpProgram(mode, number) for mode, number in ids.items() if number)


def _kind(arp_type: int, link_info: bytes | None) -> str:
    info = attributes(link_info) if link_info else {}
    kind = text(info.get(_IFLA_INFO_KIND)) or ""
    if kind == "tun":
        data = attributes(info.get(_IFLA_INFO_DATA, b""))
        is_layer_3 = u8(data.get(_IFLA_TUN_TYPE)) == _TUN_TYPE_TUN or arp_type == ARPHRD_NONE
        return "tun" if is_layer_3 else "tap"
    if kind:
        return kind
    return {ARPHRD_ETHER: "ethernet", ARPHRD_LOOPBACK: "loopback"}.get(arp_type, "")


def parse_counters(message: Message) -> LinkCounters | None:
    """The counters of a link message; None where it carries none."""
    stats = attributes(message.body, _IFINFO.size).get(IFLA_STATS64, b"")
    return LinkCounters(*_STATS64.unpack_from(stats)) if len(stats) >= _STATS64.size else None


def list_links() -> tuple[Link, ...]:
    """All interfaces of this network namespace, by ifindex. Raises HostError."""
    return tuple(link for link, _ in _dump(with_stats=False))


def list_links_and_counters() -> tuple[tuple[Link, LinkCounters | None], ...]:
    """All interfaces of this network namespace with their counters, from one dump. Raises HostError."""
    return _dump(with_stats=True)


def _dump(with_stats: bool) -> tuple[tuple[Link, LinkCounters | None], ...]:
    with Netlink() as netlink:
        rows = [row for row in netlink.dump(RTM_GETLINK, request(with_stats=with_stats)) if row.type == RTM_NEWLINK]
    link_names = {link.ifindex: link.name for link in map(parse, rows)}
    return tuple((parse(row, link_names), parse_counters(row) if with_stats else None) for row in rows)


def find_link(name: str) -> Link:
    """The device of this name in the calling thread's network namespace: a tap, or a veth, bridge port, tun, ...

    Raises TapError where there is none (with the closest name, or the namespace that has it), where the name can't be
    one, and for devices without Ethernet headers that are no tun; HostError where netlink fails.
    """
    names.check(name)
    with Netlink() as netlink:
        try:
            link = parse(netlink.get(RTM_GETLINK, request(name=name)))
            if link.master_ifindex:
                link = replace(link, master_name=_name_of(netlink, link.master_ifindex))
        except NetlinkError as error:
            if error.errno != errno.ENODEV:
                raise
            raise _not_found(name) from None
    if link.arp_type != ARPHRD_ETHER and link.kind != "tun":
        raise _no_ethernet(link)
    return link


def _name_of(netlink: Netlink, ifindex: int) -> str:
    try:
        return parse(netlink.get(RTM_GETLINK, request(ifindex))).name
    except NetlinkError:  # gone meanwhile, or the number belongs to another namespace
        return ""


def is_there(link: Link) -> bool:
    """Whether the interface still exists in the calling thread's network namespace, under whatever name."""
    try:  # asked of the kernel, not of /sys, which shows the namespace that it was mounted in
        return socket.if_indextoname(link.ifindex) != ""
    except OSError:
        return False


def _not_found(name: str) -> TapError:
    from vifprobe.host.net.netns import find_elsewhere  # only on the way to this error

    known = [link.name for link in list_links()]
    count = "1 interface" if len(known) == 1 else f"{len(known)} interfaces"
    looked = f"Looked at {count}"
    near = names.closest(name, known)
    looked += f"; the closest name is {names.shown(near)}." if near else "; no name is close to it."
    elsewhere = find_elsewhere(name)
    if not elsewhere:
        advice = "List the taps with `vifprobe taps`, or name a namespace with --netns."
    else:
        spaces = ", ".join(f"that of process {space}" if space.isdigit() else space for space in elsewhere[:5])
        more = f" and {len(elsewhere) - 5} more" if len(elsewhere) > 5 else ""
        advice = f"It is in another one ({spaces}{more}): add `--netns {elsewhere[0]}`."
    return TapError(f"{names.shown(name)}: no such interface in this network namespace.", looked, advice)


def _no_ethernet(link: Link) -> TapError:
    name = names.shown(link.name)
    kind = f"a {link.kind} device" if link.kind else "not an Ethernet device"
    return TapError(
        f"{name}: {kind}: its packets have no Ethernet header (hardware type {link.arp_type}, not {ARPHRD_ETHER}).",
        "vifprobe watches Ethernet devices (a VM's tap, or a veth, bridge port, and the like) and tuns.",
    )
