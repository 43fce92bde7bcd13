# SPDX-License-Identifier: Apache-2.0
"""Which addresses a port is known to have: from what the host was told, and from what its packets show."""

from __future__ import annotations

from ipaddress import ip_address

import numpy as np
from flood_kit import IN, OUT, samples

from vifprobe.analysis.flood.addresses import Knowledge, address, halves, mac_number
from vifprobe.analysis.flood.headers import packets_of
from vifprobe.forensics import own_addresses
from vifprobe.host.declared import Declared
from vifprobe.host.neighbours import Neighbour
from vifprobe.layout import PacketClass
from vifprobe.testing import frames as f
from vifprobe.testing import syns
from vifprobe.testing.frames import EtherType, TcpFlag

MAC = "fa:16:3e:00:00:07"


def test_mac_from_libvirt_address_from_the_neighbour_table() -> None:
    declared = Declared(macs=((MAC.upper(), "libvirt"),), ips=(("192.0.2.9", "libvirt's nwfilter"), ("nonsense", "x")))
    seen = [Neighbour(7, ip_address("192.0.2.8"), MAC), Neighbour(7, ip_address("192.0.2.1"), "fa:16:3e:00:00:01")]
    found = own_addresses(declared, seen)
    assert found.macs == {mac_number(MAC)}
    assert found.ips == {ip_address("192.0.2.8"), ip_address("192.0.2.9")}
    assert found.sources[-1] == "the host's neighbour table"


def test_halves_and_back() -> None:
    for text in ("0.0.0.1", "255.255.255.255", "2001:db8::1", "::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"):
        assert address(*halves(ip_address(text))) == ip_address(text)


def learned(*parts: np.ndarray) -> Knowledge:
    found = Knowledge()
    for part in parts:
        found.learn(packets_of(part))
    return found


def test_addresses_are_learned_from_arp_and_from_what_is_delivered() -> None:
    arp = samples([f.pad(f.eth(f.arp(), EtherType.ARP))], PacketClass.ARP)
    answer = f.eth(f.ipv4(f.tcp(TcpFlag.ACK)), EtherType.IPV4)
    back = samples([answer], PacketClass.TCP_ACK, IN)
    assert learned(arp).ips == {ip_address(f.SOURCE_IPV4)}
    assert learned(back).ips == {ip_address(f.DESTINATION_IPV4)}
    assert not learned(back).knows(6)
    six = samples([f.eth(f.ipv6(f.tcp(TcpFlag.ACK)), EtherType.IPV6)], PacketClass.TCP_ACK, IN)
    assert learned(six).knows(6)


def test_nothing_is_learned_from_what_the_guest_claims_or_what_is_for_a_group() -> None:
    claimed = samples([f.eth(f.ipv4(f.tcp(TcpFlag.ACK)), EtherType.IPV4)], PacketClass.TCP_ACK, OUT)
    group = f.eth(f.ipv4(f.udp()), EtherType.IPV4, destination=bytes.fromhex("01005e000001"))
    assert learned(claimed, samples([group], PacketClass.UDP, IN)).ips == frozenset()


def test_a_router_is_not_judged_by_addresses() -> None:
    many = [
        f.eth(f.ipv4(f.tcp(TcpFlag.ACK), destination=ip_address(0x0A000000 + number).packed), EtherType.IPV4)
        for number in range(4_099)
    ]
    found = learned(samples(many, PacketClass.TCP_ACK, IN))
    assert found.is_full
    assert not found.knows(4)


def test_own_sources_are_told_from_others() -> None:
    found = learned(samples([f.pad(f.eth(f.arp(), EtherType.ARP))], PacketClass.ARP))
    rows = packets_of(samples([*syns.hping(3), *syns.spoofed(5)]))
    assert found.is_own_ip(rows).tolist() == [True] * 3 + [False] * 5
    six = packets_of(samples([f.eth(f.ipv6(f.tcp(TcpFlag.SYN)), EtherType.IPV6)]))
    assert found.is_own_ip(six).tolist() == [False]
