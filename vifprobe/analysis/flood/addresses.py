# SPDX-License-Identifier: Apache-2.0
"""Which addresses are a port's own, and which sources are not.

Known from the host: the MAC that libvirt or Open vSwitch (Neutron) gave the port, and the addresses that the host's
neighbour table has for it. Known from the tap's traffic: what its ARP says, and where the network delivers to: packets
towards the guest are for addresses that live there, while answers to a spoofed source go elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import numpy as np
import numpy.typing as npt

from vifprobe.analysis.flood.estimates import group
from vifprobe.analysis.flood.headers import MAPPED, pick
from vifprobe.layout import Direction, PacketClass

Array = npt.NDArray[Any]
Address = IPv4Address | IPv6Address

#: So many learned addresses are kept. A guest that has more forwards for others, and its sources prove nothing.
LEARNED_MAX = 4096
#: Inbound packets of these classes are part of something that the guest takes part in.
_DELIVERED = (PacketClass.TCP_SYNACK, PacketClass.TCP_DATA, PacketClass.TCP_ACK, PacketClass.TCP_FIN, PacketClass.UDP)
_GROUP_BIT = np.uint64(1 << 40)  # IEEE 802: the first bit on the wire of a MAC that is a group's


@dataclass(frozen=True)
class OwnAddresses:
    """What the host knows of a port. macs: as numbers. sources: where that was read, for people."""

    macs: frozenset[int] = frozenset()
    ips: frozenset[Address] = frozenset()
    sources: tuple[str, ...] = ()


def mac_number(mac: str) -> int | None:
    """Of `fa:16:3e:01:02:03`; None for what is none."""
    digits = mac.replace(":", "").replace("-", "")
    try:
        return int(digits, 16) if len(digits) == 12 else None
    except ValueError:
        return None


def address(high: int, low: int) -> Address:
    """The two halves of an address as `headers` keeps them."""
    if high == 0 and low >> 32 == MAPPED >> 32:
        return IPv4Address(low & 0xFFFFFFFF)
    return IPv6Address(high << 64 | low)


def halves(ip: Address) -> tuple[int, int]:
    """The other way round."""
    number = MAPPED | int(ip) if isinstance(ip, IPv4Address) else int(ip)
    return number >> 64, number & (2**64 - 1)


@dataclass
class Knowledge:
    """What is known of a port's own addresses, growing with what its packets show."""

    host: OwnAddresses = field(default_factory=OwnAddresses)
    _learned: dict[tuple[int, int], str] = field(default_factory=dict)
    is_full: bool = False

    @property
    def sources(self) -> tuple[str, ...]:
        """Where it was learned, for people."""
        return (*self.host.sources, *sorted(set(self._learned.values())))

    @property
    def ips(self) -> frozenset[Address]:
        """All known addresses of the port."""
        return self.host.ips | {address(*one) for one in self._learned}

    def learn(self, packets: Array) -> None:
        """From packets of both directions (rows of headers.PACKET)."""
        own = packets["direction"] == Direction.OUTBOUND
        arp = own & (packets["version"] == 1)
        if self.host.macs:
            arp &= np.isin(packets["arp_mac"], np.array(list(self.host.macs), np.uint64))
        self._add(pick(packets, arp), "source", "its ARP")
        to_it = ~own & np.isin(packets["packet_class"], _DELIVERED) & (packets["version"] >= 4)
        to_it &= packets["destination_mac"] & _GROUP_BIT == 0
        if self.host.macs:
            to_it &= np.isin(packets["destination_mac"], np.array(list(self.host.macs), np.uint64))
        self._add(pick(packets, to_it), "destination", "what is delivered to it")

    def _add(self, packets: Array, side: str, how: str) -> None:
        halves_of = (packets[f"{side}_high"], packets[f"{side}_low"])
        for key in set(zip(*(column.tolist() for column in halves_of), strict=True)):
            if key[1] & 0xFFFFFFFF == 0 and key[0] == 0:  # an ARP probe's 0.0.0.0 (RFC 5227)
                continue
            if len(self._learned) >= LEARNED_MAX:
                self.is_full = True
                return
            self._learned.setdefault(key, how)

    def knows(self, version: int) -> bool:
        """Whether it can be said of a source of this IP version that it is not the port's."""
        return not self.is_full and any(ip.version == version for ip in self.ips)

    def is_own_ip(self, packets: Array) -> Array:
        """Whether the source address is a known one of the port."""
        known = self._learned.keys() | {halves(ip) for ip in self.host.ips}
        high, low = packets["source_high"], packets["source_low"]
        groups = group((low, high), np.ones(len(packets)))
        pairs = zip(high[groups.first].tolist(), low[groups.first].tolist(), strict=True)
        own = np.fromiter((pair in known for pair in pairs), np.bool_, len(groups.first))
        return np.asarray(own[groups.of_row])

    def is_own_mac(self, packets: Array) -> Array | None:
        """Whether the source MAC is the port's; None where that is not known."""
        if not self.host.macs:
            return None
        return np.asarray(np.isin(packets["source_mac"], np.array(list(self.host.macs), np.uint64)))


def is_impossible(packets: Array) -> Array:
    """IPv4 sources that no host has: "this network", loopback, multicast, reserved (RFC 6890, 2.2.2; RFC 5771)."""
    first = packets["source_low"].astype(np.int64) >> 24 & 0xFF
    bad = (first == 0) | (first == 127) | (first >= 224)
    return np.asarray((packets["version"] == 4) & bad)


def words(ips: Iterable[Address], most: int = 8) -> list[str]:
    """Addresses for people and JSON, not more than `most`."""
    return [str(ip) for ip in sorted(ips, key=lambda ip: (ip.version, int(ip)))[:most]]
