# SPDX-License-Identifier: Apache-2.0
"""A port's own addresses, and sources that are not among them.

Known from the host: the MAC that libvirt or Open vSwitch (Neutron) gave the port, and what the host's neighbour table
has for it. Known from the tap's traffic: what its ARP and IPv6 neighbour discovery say, and where the network delivers
to: packets towards the guest are for addresses that live there, while answers to a spoofed source go elsewhere.
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
from vifprobe.model.layout import Direction, PacketClass

Array = npt.NDArray[Any]
Address = IPv4Address | IPv6Address

#: So many learned addresses are kept. A guest that has more forwards for others, and its sources prove nothing.
LEARNED_MAX = 4096
#: Inbound packets of these classes are part of something that the guest takes part in.
_DELIVERED = (PacketClass.TCP_SYNACK, PacketClass.TCP_DATA, PacketClass.TCP_ACK, PacketClass.TCP_FIN, PacketClass.UDP)
_GROUP_BIT = np.uint64(1 << 40)  # IEEE 802: the first bit on the wire of a MAC that is a group's
#: Neighbour discovery is sent with it, and taken with it only: no router forwarded it (RFC 4861, 7.1).
_ND_HOP_LIMIT = 255
#: Where a link-local address begins: fe80::/10 (RFC 4291, 2.5.6) and 169.254.0.0/16 (RFC 3927). A guest has one beside
#: its others, and may well be known by that one alone.
_LINK_LOCAL_V6, _LINK_LOCAL_V4 = 0xFE80 >> 6, MAPPED >> 16 | 0xA9FE


@dataclass(frozen=True)
class OwnAddresses:
    """Addresses that the host knows of a port. macs: as numbers, as given. seen_macs: that have answered the host
    on the tap itself; it may have others. sources: where that was read, for people.
    """

    macs: frozenset[int] = frozenset()
    seen_macs: frozenset[int] = frozenset()
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


def address_keys(high: Array, low: Array) -> list[bytes]:
    """The halves of addresses as 16 bytes each.

    Python hashes bytes with a secret of the process, but numbers and tuples of them without: a guest could choose
    addresses whose hashes are all the same, and each look into a dict of them would take as long as the dict is.
    """
    both = np.empty((len(high), 2), ">u8")
    both[:, 0], both[:, 1] = high, low
    raw = both.tobytes()
    return [raw[at : at + 16] for at in range(0, len(raw), 16)]


def _key(ip: Address) -> bytes:
    high, low = halves(ip)
    return high.to_bytes(8, "big") + low.to_bytes(8, "big")


def _halves_of(key: bytes) -> tuple[int, int]:
    return int.from_bytes(key[:8], "big"), int.from_bytes(key[8:], "big")


@dataclass
class Knowledge:
    """Own addresses of a port, learned from the host and from its packets."""

    host: OwnAddresses = field(default_factory=OwnAddresses)
    _learned: dict[bytes, str] = field(default_factory=dict)
    _learned_macs: set[int] = field(default_factory=set)
    is_full: bool = False

    @property
    def sources(self) -> tuple[str, ...]:
        """Where it was learned, for people."""
        return (*self.host.sources, *sorted(set(self._learned.values())))

    @property
    def ips(self) -> frozenset[Address]:
        """All known addresses of the port."""
        return self.host.ips | {address(*_halves_of(key)) for key in self._learned}

    def learn(self, packets: Array) -> None:
        """From packets of both directions (rows of headers.PACKET)."""
        own = packets["direction"] == Direction.OUTBOUND
        arp = own & (packets["version"] == 1)
        self._learn(packets, arp, "source", "arp_mac", "its ARP")
        told = own & (packets["packet_class"] == PacketClass.ICMPV6) & (packets["version"] == 6)
        told &= packets["ttl"] == _ND_HOP_LIMIT
        self._learn(packets, told, "source", "source_mac", "its neighbour discovery")
        to_it = ~own & np.isin(packets["packet_class"], _DELIVERED) & (packets["version"] >= 4)
        self._learn(packets, to_it, "destination", "destination_mac", "what is delivered to it")

    def _learn(self, packets: Array, which: Array, side: str, mac: str, how: str) -> None:
        """Addresses and MACs on one side of these packets; only with a MAC of the port's, if it was given one."""
        which &= packets[mac] & _GROUP_BIT == 0
        if self.host.macs:
            which &= np.isin(packets[mac], np.array(list(self.host.macs), np.uint64))
        rows = pick(packets, which)
        self._add(rows, side, how)
        self._learned_macs |= set(rows[mac][: LEARNED_MAX - len(self._learned_macs)].tolist())

    def _add(self, packets: Array, side: str, how: str) -> None:
        for key in set(address_keys(packets[f"{side}_high"], packets[f"{side}_low"])):
            # Who has no address yet: an ARP probe's 0.0.0.0 (RFC 5227), :: (RFC 4862, 5.4.2).
            if not any(key[:8]) and not any(key[12:]):
                continue
            if len(self._learned) >= LEARNED_MAX:
                self.is_full = True
                return
            self._learned.setdefault(key, how)

    def can_judge(self, packets: Array) -> Array:
        """Of which packets it can be said that their source is the port's, or is not: an address of the same version,
        and as link-local or not, is known.
        """
        if self.is_full:
            return np.zeros(len(packets), np.bool_)
        known = {_kind(*_halves_of(key)) for key in self._learned} | {_kind(*halves(ip)) for ip in self.host.ips}
        return np.asarray(np.isin(_kinds(packets), list(known)))

    def is_own_ip(self, packets: Array) -> Array:
        """Return, for each row, True if the source address is a known one of the port."""
        known = self._learned.keys() | {_key(ip) for ip in self.host.ips}
        high, low = packets["source_high"], packets["source_low"]
        groups = group((low, high), np.ones(len(packets)))
        keys = address_keys(high[groups.first], low[groups.first])
        own = np.fromiter((key in known for key in keys), np.bool_, len(groups.first))
        return np.asarray(own[groups.of_row])

    def is_own_mac(self, packets: Array) -> Array | None:
        """Return, for each row, True if the source MAC is the port's: given, else seen; None where none is
        known.
        """
        known = self.host.macs or self.host.seen_macs | self._learned_macs
        if not known or len(self._learned_macs) >= LEARNED_MAX:
            return None
        return np.asarray(np.isin(packets["source_mac"], np.array(list(known), np.uint64)))


def _kind(high: int, low: int) -> int:
    """IP version * 2 + whether it is link-local, of the halves of an address."""
    if high == 0 and low >> 32 == MAPPED >> 32:
        return 8 + (low >> 16 == _LINK_LOCAL_V4)
    return 12 + (high >> 54 == _LINK_LOCAL_V6)


def _kinds(packets: Array) -> Array:
    """`_kind` of each source; 0 without IP."""
    local_v4 = packets["source_low"] >> np.uint64(16) == _LINK_LOCAL_V4
    local_v6 = packets["source_high"] >> np.uint64(54) == _LINK_LOCAL_V6
    version = packets["version"]
    return np.where(version == 4, 8 + local_v4, np.where(version == 6, 12 + local_v6, 0))


def is_impossible(packets: Array) -> Array:
    """IPv4 sources that no host has: "this network", loopback, multicast, reserved (RFC 6890, 2.2.2; RFC 5771)."""
    first = packets["source_low"].astype(np.int64) >> 24 & 0xFF
    bad = (first == 0) | (first == 127) | (first >= 224)
    return np.asarray((packets["version"] == 4) & bad)


def words(ips: Iterable[Address], most: int = 8) -> list[str]:
    """Addresses for people and JSON, not more than `most`."""
    return [str(ip) for ip in sorted(ips, key=lambda ip: (ip.version, int(ip)))[:most]]
