# SPDX-License-Identifier: Apache-2.0
"""Which netfilter chains past a device its packets come to, and which interfaces they show there.

Source: net/bridge/br_input.c, br_forward.c (NFPROTO_BRIDGE hooks: the ports themselves); net/bridge/
br_netfilter_hooks.c (br_nf_pre_routing, br_nf_forward_ip: chains of the IP stack see the bridge as both interfaces, the
ports as physindev and physoutdev).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vifprobe.host.net.links import RTM_GETLINK, RTM_NEWLINK, Link, request
from vifprobe.host.net.netlink import Netlink, reading
from vifprobe.host.nft.matches import name_bytes
from vifprobe.host.nft.walk import Packets
from vifprobe.model.layout import Direction
from vifprobe.model.ports import is_swapped

_OUT, _IN = Direction.OUTBOUND, Direction.INBOUND
_INPUT, _OUTPUT = ("iif", "iifname", "ibrname", "physin"), ("oif", "oifname", "obrname", "physout")
#: Hooks that packets of each direction come to; those in the last group, only packets from or to the host itself.
_HOOKS = {
    _OUT: ("prerouting", "input", "forward", "postrouting"),
    _IN: ("forward", "output", "postrouting"),
}
_OWN_PACKETS = ("input", "output")


@dataclass(frozen=True)
class Place:
    """Where a device is.

    - bridge, bridge_ifindex: of which it is a port; "" and 0 for none.
    - calls: families of the IP stack whose chains see bridged packets: `ip`, `ip6`.
    - is_hidden: packets go past netfilter: to Open vSwitch, to a macvtap's lower device.
    """

    name: str
    ifindex: int
    bridge: str = ""
    bridge_ifindex: int = 0
    calls: frozenset[str] = frozenset()
    is_hidden: bool = False


class Way(NamedTuple):
    """How packets of one direction come to a chain.

    - protocol: of packets that come to it, as in InstalledLimit.protocol.
    - whose: packets that come to it, in words; "" for all of the direction and protocol.
    - must_name: only rules that name the interface concern them.
    """

    direction: Direction
    packets: Packets
    protocol: str
    whose: str = ""
    must_name: bool = False


def place_of(netlink: Netlink, link: Link) -> Place:
    """Return where a device is now. Raises HostError."""
    with reading():
        found = netlink.get(RTM_GETLINK, request(link.ifindex)).decoded(RTM_NEWLINK)
        master = found.get_attr("IFLA_MASTER", 0)
        if not master or is_swapped(link.kind):
            return Place(link.name, link.ifindex, is_hidden=is_swapped(link.kind))
        found = netlink.get(RTM_GETLINK, request(master)).decoded(RTM_NEWLINK)
        info = found.get_attr("IFLA_LINKINFO")
        if info is None or info.get_attr("IFLA_INFO_KIND", "") != "bridge":
            return Place(link.name, link.ifindex, is_hidden=True)
        calls = _calls(info.get_attr("IFLA_INFO_DATA"))
        return Place(link.name, link.ifindex, found.get_attr("IFLA_IFNAME", ""), master, calls)


def _calls(bridge: Any) -> frozenset[str]:
    """Return the families that br_netfilter hands bridged packets to: by the bridge's setting, or the namespace's."""
    found = set()
    for family, tables in (("ip", "iptables"), ("ip6", "ip6tables")):
        try:
            if Path(f"/proc/sys/net/bridge/bridge-nf-call-{tables}").read_text().strip() == "1":
                found.add(family)
                continue
        except OSError:  # br_netfilter is not loaded: the bridge's own setting has no effect
            continue
        if bridge is not None and bridge.get_attr(f"IFLA_BR_NF_CALL_{tables.upper()}"):
            found.add(family)
    return frozenset(found)


def ways(place: Place, family: str, hook: str, priority: int = 0) -> Iterator[Way]:
    """Yield how packets of a device come to a base chain."""
    if place.is_hidden or (family == "bridge" and not place.bridge):
        return
    for direction, hooks in _HOOKS.items():
        if hook not in hooks and not (family == "bridge" and hook == "prerouting"):
            continue
        protocol, is_named = _protocol(place, family)
        values = _values(place, family, direction, hook)
        foreign = frozenset(_OUTPUT if direction is _OUT else _INPUT) - _shared_keys(place, family)
        whose = "packets to or from the host itself" if hook in _OWN_PACKETS else ""
        if is_named:
            whose = "packets that the host routes for the bridge"
        elif (family, hook, priority) == ("bridge", "forward", 0) and place.calls and _takes_ip_past_priority_0():
            whose = "packets other than IP, which br_netfilter takes past a chain of priority 0"
        yield Way(direction, Packets(values, foreign), protocol, whose, is_named)


@functools.cache
def _takes_ip_past_priority_0() -> bool:
    """Return True if br_netfilter hooks IP at priority -1, and goes on behind priority 0.

    net/bridge/br_netfilter_hooks.c: br_nf_forward_ip (NF_BR_PRI_BRNF - 1), br_nf_hook_thresh. Later kernels have one
    function, br_nf_forward, at priority 0.
    """
    try:
        with Path("/proc/kallsyms").open("rb") as symbols:
            names = {line.split()[2] for line in symbols if b"br_nf_forward" in line}
        return b"br_nf_forward" not in names
    except OSError:
        return True


def _protocol(place: Place, family: str) -> tuple[str, bool]:
    """Return which protocols' packets a chain sees; True if it sees only those that the host routes for its bridge."""
    if family == "bridge":
        return "all", False
    families = ("ip", "ip6") if family == "inet" else (family,)
    if not place.bridge:
        return _PROTOCOLS[families], False
    called = tuple(one for one in families if one in place.calls)
    return (_PROTOCOLS[called], False) if called else (_PROTOCOLS[families], True)


_PROTOCOLS = {("ip",): "ip", ("ip6",): "ipv6", ("ip", "ip6"): "ip+ipv6"}


def _shared_keys(place: Place, family: str) -> frozenset[str]:
    """Return keys that say nothing about the other end: the bridge is both in chains that br_netfilter calls."""
    is_bridged = family != "bridge" and place.bridge
    return frozenset(("iif", "iifname", "oif", "oifname")) if is_bridged else frozenset()


def _values(place: Place, family: str, direction: Direction, hook: str) -> dict[str, bytes | None]:
    """Return key -> value, None where it is not known."""
    own, other = (_INPUT, _OUTPUT) if direction is _OUT else (_OUTPUT, _INPUT)
    values: dict[str, bytes | None] = dict.fromkeys((*own, *other))
    number, name, bridge = place.ifindex, place.name, place.bridge
    if family != "bridge" and bridge:
        values[own[3]] = name_bytes(name)
        number, name = place.bridge_ifindex, bridge
    values[own[0]], values[own[1]] = number.to_bytes(4, sys.byteorder), name_bytes(name)
    if family == "bridge":
        values[own[2]] = name_bytes(bridge)
    elif hook == "forward" and not _protocol(place, family)[1] and bridge:  # the bridge on both sides
        values[other[0]], values[other[1]] = values[own[0]], values[own[1]]
    if hook == "prerouting":
        values = {key: value for key, value in values.items() if key not in _OUTPUT}
    return values
