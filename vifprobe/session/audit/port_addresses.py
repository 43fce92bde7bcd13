# SPDX-License-Identifier: Apache-2.0
"""Known addresses of a tap's guest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import Any

from vifprobe.analysis.flood.addresses import OwnAddresses, mac_number
from vifprobe.errors import HostError
from vifprobe.host.declared import Declared
from vifprobe.host.net.neighbours import Neighbour, neighbours


def host_neighbours() -> list[Neighbour]:
    """Return the host's neighbour table; an empty list where it can't be read, because it is optional."""
    try:
        return neighbours()
    except HostError:
        return []


def own_addresses(declared: Declared, seen: Sequence[Neighbour], ifindex: int) -> OwnAddresses:
    """Return a port's MAC, the addresses that it may use, and the addresses that this MAC has answered for.

    Without a known MAC, all neighbours on the tap itself count as the guest, because only the guest is there.
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
