# SPDX-License-Identifier: Apache-2.0
"""Which addresses a port is known to have: from what the host was told, and from what its packets show."""

from __future__ import annotations

from ipaddress import ip_address

import numpy as np
from flood_kit import IN, OUT, samples

from vifprobe.analysis.flood.addresses import Knowledge, OwnAddresses, address, address_keys, halves, mac_number
from vifprobe.analysis.flood.headers import packets_of
from vifprobe.host.declared import Declared
from vifprobe.host.net.neighbours import Neighbour
from vifprobe.model.layout import PacketClass
from vifprobe.session.audit.port_addresses import own_addresses
from vifprobe.testing.packets import frames as f
from vifprobe.testing.packets import syns
from vifprobe.testing.packets.frames import EtherType, TcpFlag

MAC = "fa:16:3e:00:00:07"


def test_mac_from_libvirt_address_from_the_neighbour_table() -> None:
    declared = Declared(macs=((MAC.upper(), "libvirt"),), ips=(("192.0.2.9", "libvirt's nwfilter"), ("nonsense", "x")))
    seen = [Neighbour(7, ip_address("192.0.2.8"), MAC), Neighbour(7, ip_address("192.0.2.1"), "fa:16:3e:00:00:01")]
    found = own_addresses(declared, seen, 7)
    assert found.macs == {mac_number(MAC)}
    assert found.ips == {ip_address("192.0.2.8"), ip_address("192.0.2.9")}
    assert found.seen_macs == frozenset()
    assert found.sources[-1] == "the host's neighbour table"


def test_who_answers_on_the_tap_itself_where_no_mac_was_given() -> None:
    seen = [Neighbour(7, ip_address("192.0.2.8"), MAC), Neighbour(8, ip_address("192.0.2.1"), "fa:16:3e:00:00:01")]
    seen.append(Neighbour(7, ip_address("ff02::16"), "33:33:00:00:00:16"))
    found = own_addresses(Declared(), seen, 7)
    assert not found.macs
    assert found.seen_macs == {mac_number(MAC)}
    assert found.ips == {ip_address("192.0.2.8")}


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
    syns_v6 = packets_of(samples(syns.spoofed_v6(1)))
    assert not learned(back).can_judge(syns_v6).any()
    six = samples([f.eth(f.ipv6(f.tcp(TcpFlag.ACK)), EtherType.IPV6)], PacketClass.TCP_ACK, IN)
    assert learned(six).can_judge(syns_v6).all()


def test_addresses_are_learned_from_neighbour_discovery_and_no_other_icmpv6() -> None:
    told = [f.eth(f.ipv6(f.icmpv6(kind=135), hop_limit=limit), EtherType.IPV6) for limit in (64, 255)]
    ping, solicitation = (samples([frame], PacketClass.ICMPV6) for frame in told)
    assert learned(ping).ips == frozenset()
    assert learned(solicitation).ips == {ip_address(f.SOURCE_IPV6)}
    assert learned(solicitation).sources == ("its neighbour discovery",)
    nobody = f.eth(f.ipv6(f.icmpv6(kind=135), hop_limit=255, source=bytes(16)), EtherType.IPV6)
    assert learned(samples([nobody], PacketClass.ICMPV6)).ips == frozenset()


def test_a_link_local_address_says_nothing_of_others() -> None:
    """Each version of both: known by its link-local address alone, a guest's other ones are not strange."""
    local, other = ip_address("fe80::7"), ip_address("2001:db8::7")
    told = f.eth(f.ipv6(f.icmpv6(kind=136), hop_limit=255, source=local.packed), EtherType.IPV6)
    found = learned(samples([told], PacketClass.ICMPV6))
    rows = packets_of(samples([syns.syn(source=ip, destination=syns.TARGET_V6) for ip in (local, other)]))
    assert found.can_judge(rows).tolist() == [True, False]
    self_made, given = ip_address("169.254.7.7"), syns.GUEST
    claim = samples([f.pad(f.eth(f.arp(source=self_made.packed), EtherType.ARP))], PacketClass.ARP)
    rows = packets_of(samples([syns.syn(source=self_made), syns.syn(source=given)]))
    assert learned(claim).can_judge(rows).tolist() == [True, False]


def test_macs_are_learned_where_none_was_given() -> None:
    arp = samples([f.pad(f.eth(f.arp(), EtherType.ARP))], PacketClass.ARP)
    other = b"\x02\0\0\0\0\x07"
    rows = packets_of(samples([syns.syn(), syns.syn(source_mac=other)]))
    assert Knowledge().is_own_mac(rows) is None
    own = learned(arp).is_own_mac(rows)
    assert own is not None
    assert own.tolist() == [True, False]
    given = Knowledge(OwnAddresses(macs=frozenset({int.from_bytes(other, "big")})))
    given.learn(packets_of(arp))
    own = given.is_own_mac(rows)
    assert own is not None
    assert own.tolist() == [False, True]
    assert given.ips == frozenset()  # said by a MAC that is not the port's


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
    rows = packets_of(samples(syns.hping(3)))
    assert not found.can_judge(rows).any()
    macs = found.is_own_mac(rows)  # it has one
    assert macs is not None
    assert not macs.any()


def test_own_sources_are_told_from_others() -> None:
    found = learned(samples([f.pad(f.eth(f.arp(), EtherType.ARP))], PacketClass.ARP))
    rows = packets_of(samples([*syns.hping(3), *syns.spoofed(5)]))
    assert found.is_own_ip(rows).tolist() == [True] * 3 + [False] * 5
    six = packets_of(samples([f.eth(f.ipv6(f.tcp(TcpFlag.SYN)), EtherType.IPV6)]))
    assert found.is_own_ip(six).tolist() == [False]


def test_a_guest_cannot_choose_addresses_whose_hashes_are_the_same() -> None:
    """Numbers that differ by a multiple of 2**61 - 1 have one hash in Python, and so have tuples of them."""
    modulus = 2**61 - 1
    halves_of = [(0xFE80 + a * modulus, 1 + b * modulus) for a in range(8) for b in range(8)]
    assert len({hash(pair) for pair in halves_of}) == 1
    high, low = (np.array(column, np.uint64) for column in zip(*halves_of, strict=True))
    keys = address_keys(high, low)
    assert len({hash(key) for key in keys}) == len(halves_of)
    assert keys[-1] == halves_of[-1][0].to_bytes(8, "big") + halves_of[-1][1].to_bytes(8, "big")
