# SPDX-License-Identifier: Apache-2.0
"""ARP, VLAN tags, and what is neither IP nor ARP."""

from __future__ import annotations

from collections.abc import Iterator

from vifprobe.model.layout import Ethertype, PacketClass
from vifprobe.testing.packets import extensions, frames
from vifprobe.testing.packets.case import Case
from vifprobe.testing.packets.frames import EtherType, TcpFlag, eth, ipv4, ipv6, pad, qinq, tcp, udp, vlan

SYN4 = eth(ipv4(tcp(TcpFlag.SYN)), EtherType.IPV4)
SYN6 = eth(ipv6(tcp(TcpFlag.SYN)), EtherType.IPV6)
ARP = eth(frames.arp(), EtherType.ARP)
LLDP = eth(extensions.lldp(), EtherType.LLDP)


def cases() -> Iterator[Case]:
    """Rows of this layer."""
    yield from _arp()
    yield from _other()
    yield from _tags()
    yield from _cut_tags()


def _arp() -> Iterator[Case]:
    whole, cut = PacketClass.ARP, PacketClass.MALFORMED
    packets = {
        "request": (frames.arp(), whole),
        "reply": (frames.arp(operation=2), whole),
        "long addresses": (frames.arp(hardware_bytes=20, protocol_bytes=16), whole),
        "longest addresses": (frames.arp(hardware_bytes=255, protocol_bytes=255), whole),
        "no addresses": (frames.arp(hardware_bytes=0, protocol_bytes=0), whole),
        "empty": (b"", cut),
        "fixed part cut": (frames.arp()[:7], cut),
        "fixed part alone": (frames.arp()[:8], cut),
        "last byte missing": (frames.arp()[:-1], cut),
        "long addresses, last byte missing": (frames.arp(hardware_bytes=20, protocol_bytes=16)[:-1], cut),
        "longest addresses, last byte missing": (frames.arp(hardware_bytes=255, protocol_bytes=255)[:-1], cut),
    }
    for name, (packet, packet_class) in packets.items():
        yield Case(f"arp: {name}", eth(packet, EtherType.ARP), packet_class, Ethertype.ARP)
        yield Case(f"arp: {name}, tagged", vlan(eth(packet, EtherType.ARP)), packet_class, Ethertype.VLAN)
    yield Case("arp: padded", pad(ARP), whole, Ethertype.ARP)
    broadcast = eth(frames.arp(), EtherType.ARP, destination=b"\xff" * 6)
    yield Case("arp: broadcast", broadcast, whole, Ethertype.ARP)


def _other() -> Iterator[Case]:
    packet = ipv4(tcp(TcpFlag.SYN))
    found = {
        "lldp": LLDP,
        "mpls with ipv4 inside": eth(extensions.mpls(packet), EtherType.MPLS),
        "pppoe with ipv4 inside": eth(extensions.pppoe(packet), EtherType.PPPOE),
        "rarp": eth(frames.arp(operation=3), EtherType.RARP),
        "802.3 length": frames.eth_length(bytes.fromhex("424203") + bytes(35)),
        "802.3 length 0": frames.eth_length(bytes(46), length=0),
        "802.3 longest length": frames.eth_length(bytes(1500)),
        "802.3 with ipx": frames.eth_length(b"\xff\xff" + bytes(44)),
        "802.3 with ipv4 bytes": frames.eth_length(packet),
        "type 0x0600": eth(bytes(46), 0x0600),
        "type 0xffff": eth(bytes(46), 0xFFFF),
        "experimental type": eth(bytes(46), EtherType.EXPERIMENTAL),
        "nothing behind the type": eth(b"", EtherType.EXPERIMENTAL),
        "one byte behind the type": eth(b"\0", EtherType.EXPERIMENTAL),
        "0x9100 is no tag": vlan(SYN4, tpid=EtherType.OLD_QINQ),
    }
    for name, frame in found.items():
        yield Case(f"other: {name}", frame, PacketClass.OTHER, Ethertype.OTHER)
        yield Case(f"other: {name}, tagged", vlan(frame), PacketClass.OTHER, Ethertype.VLAN)
        yield Case(f"other: {name}, two tags", qinq(frame), PacketClass.OTHER, Ethertype.VLAN)


def _tags() -> Iterator[Case]:
    syn, other = PacketClass.TCP_SYN, PacketClass.OTHER
    service = EtherType.QINQ
    found = {
        "ipv4": (vlan(SYN4), syn),
        "ipv6": (vlan(SYN6), syn),
        "udp": (vlan(eth(ipv4(udp(b"x")), EtherType.IPV4)), PacketClass.UDP),
        "padded to 60": (pad(vlan(SYN4)), syn),
        "pad is no payload": (pad(vlan(eth(ipv4(tcp(TcpFlag.ACK)), EtherType.IPV4)), 64, b"\x11"), PacketClass.TCP_ACK),
        "priority tag": (vlan(SYN4, vid=0, pcp=7), syn),
        "vid 1, pcp 0": (vlan(SYN4, vid=1), syn),
        "vid 4095, pcp 7": (vlan(SYN4, vid=4095, pcp=7), syn),
        "802.1ad alone": (vlan(SYN4, tpid=service), syn),
        "802.1ad then 802.1Q": (qinq(SYN4), syn),
        "802.1ad then 802.1Q, ipv6": (qinq(SYN6), syn),
        "802.1ad then 802.1Q, arp": (qinq(ARP), PacketClass.ARP),
        "802.1Q twice": (vlan(vlan(SYN4)), syn),
        "802.1ad twice": (vlan(vlan(SYN4, tpid=service), tpid=service), syn),
        "802.1Q then 802.1ad": (vlan(vlan(SYN4, tpid=service)), syn),
        "802.1Q then 0x9100": (vlan(vlan(SYN4, tpid=EtherType.OLD_QINQ)), other),
        "three": (vlan(vlan(vlan(SYN4))), other),
        "three, service tag outside": (vlan(qinq(SYN4), tpid=service), other),
        "three, arp": (vlan(qinq(ARP)), other),
        "four": (qinq(qinq(SYN4)), other),
        "two, ipv4 header cut": (qinq(SYN4)[: 22 + 19], PacketClass.MALFORMED),
        "two, tcp header cut": (qinq(SYN4)[: 22 + 39], PacketClass.MALFORMED),
        "one, version wrong": (vlan(eth(ipv6(tcp(TcpFlag.SYN)), EtherType.IPV4)), PacketClass.MALFORMED),
        "one, fragment": (vlan(eth(ipv4(udp(bytes(64)), offset=3), EtherType.IPV4)), PacketClass.FRAGMENT),
    }
    for name, (frame, packet_class) in found.items():
        yield Case(f"tags: {name}", frame, packet_class, Ethertype.VLAN)


def _cut_tags() -> Iterator[Case]:
    """Frames that end within or just behind a tag. Those without an EtherType behind the outer tag die before tc."""
    cut = PacketClass.MALFORMED
    for length in range(14, 18):
        yield Case(f"cut tags: one, {length} bytes", vlan(LLDP)[:length], cut, Ethertype.VLAN)
    yield Case("cut tags: one, nothing behind, lldp", vlan(LLDP)[:18], PacketClass.OTHER, Ethertype.VLAN)
    yield Case("cut tags: one, nothing behind, ipv4", vlan(SYN4)[:18], cut, Ethertype.VLAN)
    yield Case("cut tags: one, nothing behind, ipv6", vlan(SYN6)[:18], cut, Ethertype.VLAN)
    for length in range(18, 22):
        yield Case(f"cut tags: two, {length} bytes", qinq(LLDP)[:length], cut, Ethertype.VLAN)
    yield Case("cut tags: two, nothing behind, lldp", qinq(LLDP)[:22], PacketClass.OTHER, Ethertype.VLAN)
    yield Case("cut tags: two, nothing behind, ipv4", qinq(SYN4)[:22], cut, Ethertype.VLAN)
    # A third tag isn't looked into, so it can't be cut short either.
    for length in range(22, 27):
        yield Case(f"cut tags: three, {length} bytes", vlan(qinq(LLDP))[:length], PacketClass.OTHER, Ethertype.VLAN)
