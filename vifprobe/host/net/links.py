# SPDX-License-Identifier: Apache-2.0
"""Network interfaces as the kernel lists them, and their counters.

Source: RTM_GETLINK, include/uapi/linux/if_link.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from vifprobe.errors import TapError
from vifprobe.host.net import names
from vifprobe.host.net.netlink import Message, Netlink, NetlinkError, encoded, reading

RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18

ARPHRD_ETHER = 1
ARPHRD_LOOPBACK = 772
ARPHRD_NONE = 65534

IFF_UP = 0x1

IFLA_STATS64 = 23
IFLA_XDP = 43
_TUN_TYPE_TUN = 1  # IFF_TUN
_XDP_MODES = {"IFLA_XDP_DRV_PROG_ID": "native", "IFLA_XDP_SKB_PROG_ID": "generic", "IFLA_XDP_HW_PROG_ID": "offloaded"}

_SIOCGIFHWADDR = 0x8927
_IFREQ = struct.Struct("=16sH22x")  # struct ifreq: name, sa_family (hardware type)
_RTEXT_FILTER_SKIP_STATS = 1 << 3


class XdpProgram(NamedTuple):
    """A program at a device's XDP hook. mode: native (in the driver), generic (in the stack), offloaded."""

    mode: str
    id: int


@dataclass(frozen=True)
class Link:
    """One interface.

    - kind: `tap`, `tun` (layer 3), else the driver's rtnetlink kind (`veth`, `bridge`, `openvswitch`, ...); `ethernet`
      for an Ethernet device whose driver names none, `loopback`, or "" where unknown.
    - mac: lower case with colons; "" where there is none.
    - mtu: in bytes.
    - up: administratively (IFF_UP).
    - carrier: None where the kernel does not report it; False for a tap that no process holds open.
    - master_ifindex, master_name: bridge, bond, or OVS datapath (`ovs-system`) that it is a port of; 0 and "" for none.
    - arp_type: ARPHRD_*, 1 is Ethernet.
    - promiscuity: number of users of promiscuous mode.
    - qdisc: kind of the root qdisc.
    - tx_queues: maximum number of transmit queues.
    - xdp: programs that run on received packets, before tc.
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
    attributes: list[tuple[str, object]] = [("IFLA_IFNAME", name)] if name else []
    if not with_stats:
        attributes.append(("IFLA_EXT_MASK", _RTEXT_FILTER_SKIP_STATS))
    return encoded(RTM_GETLINK, {"family": socket.AF_UNSPEC, "index": ifindex}, attributes)


def parse(message: Message, link_names: dict[int, str] | None = None) -> Link:
    """An RTM_NEWLINK or RTM_DELLINK message; the master's name is taken from `link_names` (ifindex -> name).

    Raises NetlinkError where the message can't be taken apart.
    """
    with reading():
        return _link(message.decoded(RTM_NEWLINK), link_names or {})


def _link(found: Any, link_names: dict[int, str]) -> Link:
    value_of = found.get_attr
    master, carrier = value_of("IFLA_MASTER", 0), value_of("IFLA_CARRIER")
    return Link(
        name=value_of("IFLA_IFNAME", ""),
        ifindex=found["index"],
        kind=_kind(found["ifi_type"], value_of("IFLA_LINKINFO")),
        mac=value_of("IFLA_ADDRESS", b"").hex(":"),
        mtu=value_of("IFLA_MTU", 0),
        up=bool(found["flags"] & IFF_UP),
        master_ifindex=master,
        master_name=link_names.get(master, ""),
        arp_type=found["ifi_type"],
        carrier=None if carrier is None else bool(carrier),
        flags=found["flags"],
        promiscuity=value_of("IFLA_PROMISCUITY", 0),
        tx_queue_length=value_of("IFLA_TXQLEN", 0),
        qdisc=value_of("IFLA_QDISC", ""),
        alias=value_of("IFLA_IFALIAS", ""),
        tx_queues=value_of("IFLA_NUM_TX_QUEUES", 1) or 1,
        xdp=_xdp(value_of("IFLA_XDP")),
    )


def _xdp(found: Any) -> tuple[XdpProgram, ...]:
    ids = {mode: found.get_attr(name) for name, mode in _XDP_MODES.items()} if found is not None else {}
    return tuple(XdpProgram(mode, number) for mode, number in ids.items() if number)


def _kind(arp_type: int, info: Any) -> str:
    kind: str = info.get_attr("IFLA_INFO_KIND", "") if info is not None else ""
    if kind == "tun":
        data = info.get_attr("IFLA_INFO_DATA")
        is_tun = data is not None and data.get_attr("IFLA_TUN_TYPE") == _TUN_TYPE_TUN
        return "tun" if is_tun or arp_type == ARPHRD_NONE else "tap"
    if kind:
        return kind
    return {ARPHRD_ETHER: "ethernet", ARPHRD_LOOPBACK: "loopback"}.get(arp_type, "")


def parse_counters(message: Message) -> LinkCounters | None:
    """The counters of a link message; None where it carries none."""
    with reading():
        return _counters(message.decoded(RTM_NEWLINK))


def _counters(found: Any) -> LinkCounters | None:
    stats = found.get_attr("IFLA_STATS64")
    return None if stats is None else LinkCounters(**{one.name: stats[one.name] for one in fields(LinkCounters)})


def list_links() -> tuple[Link, ...]:
    """Return all interfaces of this network namespace, by ifindex. Raises HostError."""
    return tuple(link for link, _ in _dump(with_stats=False))


def list_links_and_counters() -> tuple[tuple[Link, LinkCounters | None], ...]:
    """Return all interfaces of this network namespace with their counters, from one dump. Raises HostError."""
    return _dump(with_stats=True)


def _dump(with_stats: bool) -> tuple[tuple[Link, LinkCounters | None], ...]:
    with Netlink() as netlink, reading():
        rows = netlink.dump(RTM_GETLINK, request(with_stats=with_stats))
        found = [_row(row, with_stats) for row in rows if row.type == RTM_NEWLINK]
    link_names = {link.ifindex: link.name for link, _ in found}
    return tuple(
        (replace(link, master_name=link_names.get(link.master_ifindex, "")) if link.master_ifindex else link, counters)
        for link, counters in found
    )


def _row(row: Message, with_stats: bool) -> tuple[Link, LinkCounters | None]:
    """One at a time: decoded, thousands of them take megabytes."""
    found = row.decoded(RTM_NEWLINK)
    return _link(found, {}), _counters(found) if with_stats else None


class QuickLook(NamedTuple):
    """Data of a device from an ioctl.

    - ifindex: of the device.
    - has_ethernet: its packets have an Ethernet header.
    """

    ifindex: int
    has_ethernet: bool


def quick_look(name: str) -> QuickLook | None:
    """Return a device by its name without netlink, which needs pyroute2's import; None where there is none."""
    try:
        ifindex = socket.if_nametoindex(name)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
            found = fcntl.ioctl(control, _SIOCGIFHWADDR, _IFREQ.pack(os.fsencode(name), 0))
    except (OSError, ValueError, struct.error):
        return None
    return QuickLook(ifindex, _IFREQ.unpack(found)[1] == ARPHRD_ETHER)


def find_link(name: str) -> Link:
    """Return the device of this name in the calling thread's network namespace: a tap, or a veth, bridge port, tun, ...

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
    """Return True if the interface still exists in the calling thread's network namespace, under any name."""
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
