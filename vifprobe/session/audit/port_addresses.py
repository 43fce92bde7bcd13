# SPDX-License-Identifier: Apache-2.0
"""Addresses that the host knows to be those of a tap's guest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import Any

from vifprobe.analysis.flood.addresses import OwnAddresses, mac_number
from vifprobe.errors import HostError
from vifprobe.host.declared import Declared
from vifprobe.host.net.neighbours import Neighbour, neighbours


def host_neighbours() -> list[Neighbour]:
    """The host's neighbour table; nothing where it can't be read: a help, and no more."""
    try:
        return neighbours()
    except HostError:
        return []


def own_addresses(declared: Declared, seen: Sequence[Neighbour], ifindex: int) -> OwnAddresses:
    """Return what the host knows of a port: its MAC, addresses it may use, addresses that this MAC has answered for.
    Without a MAC, whoever answers on the tap itself is taken for it: nobody else is behind it.
    """
    given = {mac.lower() for mac, _ in declared.macs}
    sources = list(dict.fromkeys([who for _, who in (*declared.macs, *declared.ips)]))
    ips = {found for text, _ in declared.ips if (found := _ip(text)) is not None}
    answered = [one for one in seen if (one.mac in given if given else one.ifindex == ifindex)]
    answered = [one for one in answered if not one.ip.is_multicast]
    if answered:
        sources.append("the host's neighbour table")
    known, answering = _numbers(given), _numbers({one.mac for one in answered})
    return OwnAddresses(known, answering - known, frozenset(ips | {one.ip for one in answered}), tuple(sources))


def _numbers(macs: Iterable[str]) -> frozenset[int]:
    return frozenset(number for mac in macs if (number := mac_number(mac)) is not None)


def _ip(text: str) -> Any:
    try:
        return ip_address(text)
    except ValueError:
        return None
