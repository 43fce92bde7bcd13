# SPDX-License-Identifier: Apache-2.0
"""What a notification is said to mean, from messages as the kernel sends them."""

from __future__ import annotations

import struct
from dataclasses import replace

from vifprobe.host.net import links
from vifprobe.host.net.changes import LinkChange, Watched
from vifprobe.host.net.links import Link
from vifprobe.host.net.netlink import Message
from vifprobe.host.tc import reader
from vifprobe.host.tc.objects import TCMSG
from vifprobe.host.tc.records import TcQdisc
from vifprobe.testing.net.netlink_bytes import attribute

# include/uapi/linux/if_link.h
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_QDISC, IFLA_MASTER = 1, 3, 4, 6, 10
IFLA_TXQLEN, IFLA_LINKINFO, IFLA_PROMISCUITY, IFLA_CARRIER = 13, 18, 30, 33

TAP = Link("tap0", 5, "tap", "02:00:00:00:00:05", 1500, True, 0, "", 1, True, 0x1003, 0, 1000, "pfifo_fast", "")
BRIDGE = Link("br0", 9, "bridge", "02:00:00:00:00:09", 1500, True, 0, "", 1, True, 0x1003, 0, 1000, "noqueue", "")


def link_message(link: Link, kind: int = links.RTM_NEWLINK, family: int = 0, more: bytes = b"") -> Message:
    flags = link.flags & ~1 | link.up
    body = struct.pack("=BxHiII", family, link.arp_type, link.ifindex, flags, 0)
    body += attribute(IFLA_IFNAME, link.name.encode() + b"\0")
    body += attribute(IFLA_ADDRESS, bytes.fromhex(link.mac.replace(":", "")))
    for number, value in (
        (IFLA_MTU, link.mtu),
        (IFLA_MASTER, link.master_ifindex),
        (IFLA_TXQLEN, link.tx_queue_length),
        (IFLA_PROMISCUITY, link.promiscuity),
    ):
        body += attribute(number, struct.pack("=I", value))
    body += attribute(IFLA_CARRIER, bytes([bool(link.carrier)]))
    body += attribute(IFLA_QDISC, link.qdisc.encode() + b"\0")
    if link.kind == "tap":
        info = attribute(1, b"tun\0") + attribute(2, attribute(3, b"\2"))
    else:
        info = attribute(1, link.kind.encode() + b"\0")
    return Message(kind, 0, 0, 0, body + attribute(IFLA_LINKINFO, info) + more)


def tc_message(kind: int, ifindex: int, handle: int, parent: int, name: str = "ingress", info: int = 0) -> Message:
    body = TCMSG.pack(0, ifindex, handle, parent, info) + attribute(1, name.encode() + b"\0")
    return Message(kind, 0, 0, 4711, body)


def watched(*links: Link, qdiscs: tuple[TcQdisc, ...] = ()) -> Watched:
    return Watched([5], links or (TAP, BRIDGE), qdiscs)


def said(changes: list[LinkChange]) -> list[tuple[int, str, str]]:
    return [(change.ifindex, change.kind, change.detail) for change in changes]


def test_each_attribute_that_changed_is_told_with_both_values() -> None:
    seen = watched()
    now = replace(TAP, mtu=1400, promiscuity=1, tx_queue_length=77, master_ifindex=9, name="tap1")
    (change,) = seen.changes(link_message(now))
    assert change.kind == "link_change"
    assert (
        change.detail == "name tap0 -> tap1, mtu 1500 -> 1400, promiscuity 0 -> 1, qlen 1000 -> 77, master none -> br0"
    )
    assert change.record == replace(now, master_name="br0", flags=0x1003)


def test_up_and_down_are_kinds_of_their_own() -> None:
    seen = watched()
    assert said(seen.changes(link_message(replace(TAP, up=False)))) == [(5, "link_down", "down")]
    assert said(seen.changes(link_message(TAP))) == [(5, "link_up", "up")]


def test_a_message_without_a_visible_change_is_an_event_too() -> None:
    """Open vSwitch removes a policer after any RTM_NEWLINK, a change of features included, which shows nowhere."""
    assert said(watched().changes(link_message(TAP))) == [
        (5, "link_change", "nothing that a link message tells has changed")
    ]


def test_a_deleted_link_and_one_that_moved_to_another_namespace() -> None:
    assert said(watched().changes(link_message(TAP, links.RTM_DELLINK))) == [(5, "link_del", "deleted")]
    moved = link_message(TAP, links.RTM_DELLINK, more=attribute(45, struct.pack("=i", 3)))
    assert said(watched().changes(moved)) == [(5, "link_del", "moved to another namespace")]


def test_leaving_a_bridge_is_no_deletion() -> None:
    """The bridge then sends an RTM_DELLINK of family AF_BRIDGE for its former port."""
    assert watched().changes(link_message(TAP, links.RTM_DELLINK, family=7)) == []


def test_an_interface_that_comes_back_under_its_name_is_new_and_watched_from_then_on() -> None:
    seen = watched()
    seen.changes(link_message(TAP, links.RTM_DELLINK))
    again = replace(TAP, ifindex=31)
    assert said(seen.changes(link_message(again))) == [(31, "link_new", "tap0 is there, ifindex 31")]
    assert said(seen.changes(link_message(replace(again, mtu=900)))) == [(31, "link_change", "mtu 1500 -> 900")]
    assert said(seen.changes(tc_message(reader.RTM_DELQDISC, 31, 0xFFFF0000, 0xFFFFFFF1))) != []


def test_an_interface_renamed_to_a_watched_name_is_new() -> None:
    other = replace(TAP, name="tap9", ifindex=8)
    seen = watched(TAP, other)
    assert said(seen.changes(link_message(replace(other, name="tap0")))) == [(8, "link_new", "tap9 was renamed tap0")]


def test_other_interfaces_are_not_told_of() -> None:
    seen = watched()
    assert seen.changes(link_message(replace(BRIDGE, mtu=9000))) == []
    assert seen.changes(tc_message(reader.RTM_NEWQDISC, 9, 0x10000, 0xFFFFFFFF, "htb")) == []
    assert seen.changes(Message(24, 0, 0, 0, b"\0" * 20)) == []  # RTM_NEWROUTE


def test_qdiscs_filters_and_classes_come_and_go() -> None:
    seen = watched()
    assert said(seen.changes(tc_message(reader.RTM_DELQDISC, 5, 0xFFFF0000, 0xFFFFFFF1))) == [
        (5, "qdisc_del", "ingress qdisc ffff: at ingress")
    ]
    assert said(seen.changes(tc_message(reader.RTM_NEWTCLASS, 5, 0x1000A, 0x10000, "htb"))) == [
        (5, "class_new", "htb class 1:a")
    ]
    gone = tc_message(reader.RTM_DELTFILTER, 5, 0, 0xFFFF0000, "u32", 49 << 16 | 0x0300)
    assert said(seen.changes(gone)) == [(5, "filter_del", "u32 filters of pref 49 at ingress")]


def test_a_filter_of_a_shared_block_is_told_of_each_watched_interface_in_it() -> None:
    ingress = TcQdisc(5, "ingress", "clsact", "ffff:", "ingress", ingress_block=22, egress_block=23)
    others = TcQdisc(9, "ingress", "ingress", "ffff:", "ingress", ingress_block=22)
    seen = watched(qdiscs=(ingress, others))
    gone = tc_message(reader.RTM_DELTFILTER, -1, 0, 22, "u32", 49 << 16)
    assert said(seen.changes(gone)) == [(5, "filter_del", "u32 filters of pref 49 at ingress")]
    gone = tc_message(reader.RTM_DELTFILTER, -1, 0, 23, "u32", 49 << 16)
    assert said(seen.changes(gone)) == [(5, "filter_del", "u32 filters of pref 49 at egress")]
    assert seen.changes(tc_message(reader.RTM_DELTFILTER, -1, 0, 24, "u32", 49 << 16)) == []


def test_after_a_loss_the_difference_to_a_fresh_list_is_told() -> None:
    seen = watched()
    assert said(seen.resync([replace(TAP, mtu=1300), BRIDGE])) == [(5, "link_change", "mtu 1500 -> 1300")]
    assert said(seen.resync([BRIDGE, replace(TAP, ifindex=44)])) == [
        (5, "link_del", "gone"),
        (44, "link_new", "tap0 is there, ifindex 44"),
    ]
    assert seen.resync([BRIDGE, replace(TAP, ifindex=44)]) == []
