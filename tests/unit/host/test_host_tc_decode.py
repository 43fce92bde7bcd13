# SPDX-License-Identifier: Apache-2.0
"""Filters, police actions and shapers from attributes as the kernel lays them out (linux/pkt_cls.h, pkt_sched.h).

The same decoding runs against a kernel's own act_police in tests/kernel/test_host_police_live.py.
"""

from __future__ import annotations

import socket
import struct

import pytest

from vifprobe.host.net.netlink import Message
from vifprobe.host.tc.actions import control_text, ticks_to_bytes
from vifprobe.host.tc.objects import TCMSG, protocol_text, qdisc, tc_class, tc_filter
from vifprobe.host.tc.records import BpfProgram, PoliceAction, Shaper, Stats, TcFilter, filter_handle_text, handle_text
from vifprobe.testing.net.netlink_bytes import attribute

NO_BOUND = 2**32 - 1


def rate_spec(rate_bytes: int, overhead: int = 0, linklayer: int = 1, mpu: int = 0) -> bytes:
    """A struct tc_ratespec."""
    return struct.pack("=BBHhHI", 3, linklayer, overhead, -1, mpu, min(rate_bytes, NO_BOUND))


def police(  # one argument for each field of the struct
    *,
    index: int = 7,
    action: int = 2,
    burst_ticks: int = 0,
    mtu: int = NO_BOUND,
    rate_bytes: int = 0,
    peak_bytes: int = 0,
    overhead: int = 0,
    bindings: int = 1,
    more: bytes = b"",
) -> bytes:
    """TCA_POLICE_TBF with struct tc_police, and what else is given."""
    main = struct.pack("=IiIII", index, action, 0, burst_ticks, mtu)
    main += rate_spec(rate_bytes, overhead) + rate_spec(peak_bytes) + struct.pack("=iiI", 1, bindings, 0)
    assert len(main) == 56  # sizeof(struct tc_police)
    return attribute(1, main) + more


def basic_stats(sent_bytes: int, packets: int, drops: int, overlimits: int) -> bytes:
    """TCA_STATS_BASIC and TCA_STATS_QUEUE."""
    return attribute(1, struct.pack("=QI4x", sent_bytes, packets)) + attribute(
        3, struct.pack("=5I", 0, 0, drops, 0, overlimits)
    )


def action(order: int, kind: str, options: bytes, stats: bytes = b"") -> bytes:
    """One entry of a filter's action list."""
    inner = attribute(1, kind.encode() + b"\0") + attribute(0x8000 | 2, options)
    return attribute(order, inner + (attribute(4, stats) if stats else b""))


def filter_message(
    kind: str,
    options: bytes,
    *,
    parent: int = 0xFFFF0000,
    handle: int = 1,
    pref: int = 49,
    protocol: int = 3,
    ifindex: int = 5,
    more: bytes = b"",
) -> Message:
    """RTM_NEWTFILTER."""
    info = pref << 16 | socket.htons(protocol)
    body = TCMSG.pack(0, ifindex, handle, parent, info) + attribute(1, kind.encode() + b"\0")
    return Message(44, 0, 0, 0, body + attribute(2, options) + more)


def only_filter(message: Message) -> TcFilter:
    found = tc_filter(message, "ingress", 5)
    assert found is not None
    return found


def only_policer(options: bytes) -> PoliceAction:
    found = only_filter(filter_message("matchall", attribute(2, action(1, "police", options))))
    policer = found.actions[0].policer
    assert policer is not None
    return policer


def u32_selector(*keys: tuple[int, int]) -> bytes:
    """TCA_U32_SEL: struct tc_u32_sel with (mask, value) keys."""
    head = struct.pack("=BBBxHHhhI", 1, 0, len(keys), 0, 0, 0, 0, 0)
    return attribute(5, head + b"".join(struct.pack(">IIii", mask, value, 0, 0) for mask, value in keys))


def test_libvirts_u32_policer_with_its_statistics_in_the_filter() -> None:
    """`police rate 12500kbps burst 3125kb mtu 64kb drop`: the legacy form, statistics in TCA_STATS."""
    legacy = police(action=2, burst_ticks=4_000_000, mtu=65536, rate_bytes=12_500_000)
    old_stats = struct.pack("=Q7I4x", 4646, 101, 83, 89, 0, 0, 0, 0)
    found = only_filter(
        filter_message(
            "u32",
            attribute(1, struct.pack("=I", 1)) + u32_selector((0, 0)) + attribute(0x8000 | 6, legacy),
            handle=0x80000800,
            pref=49152,
            more=attribute(3, old_stats),
        )
    )
    assert (found.where, found.protocol, found.class_id) == ("ingress pref 49152 u32 800::800", "all", ":1")
    assert found.matches_all is True
    (police_action,) = found.actions
    assert police_action.legacy
    assert police_action.stats == Stats(4646, 101, 83, 89, None, 0, 0)
    assert police_action.policer == PoliceAction(
        index=7,
        rate_bps=100_000_000,
        burst_bytes=3_200_000,
        mtu_bytes=65536,
        linklayer=1,
        exceed_action="drop",
        conform_action="pass",
    )


def test_ovs_basic_policer_has_an_empty_match_tree_and_matches_all() -> None:
    """`basic police`: the kernel sends TCA_BASIC_EMATCHES with a count of 0."""
    tree = attribute(2, attribute(1, struct.pack("=HH", 0, 0)))
    found = only_filter(filter_message("basic", tree + attribute(4, police(rate_bytes=1000, burst_ticks=15625))))
    assert found.matches_all is True
    assert found.actions[0].policer is not None
    one_match = attribute(2, attribute(1, struct.pack("=HH", 1, 0)))
    assert only_filter(filter_message("basic", one_match)).matches_all is False


def test_a_rate_beyond_32_bits_is_read_from_its_64_bit_attribute() -> None:
    more = attribute(8, struct.pack("=Q", 6_250_000_000)) + attribute(9, struct.pack("=Q", 10_000_000_000))
    found = only_policer(police(rate_bytes=6_250_000_000, peak_bytes=10_000_000_000, burst_ticks=26203, more=more))
    assert found.rate_bps == 50_000_000_000
    assert found.peak_bps == 80_000_000_000
    assert found.burst_bytes == 10_481_200  # 26203 ticks of 64 ns; tc rounds the time to 1676 us and prints 10475000


def test_a_packet_rate_policer_has_no_bit_rate() -> None:
    more = attribute(10, struct.pack("=Q", 50_021)) + attribute(11, struct.pack("=Q", 312_499_93))
    found = only_policer(police(more=more))
    assert (found.rate_bps, found.burst_bytes) == (None, None)
    assert (found.rate_pps, found.burst_packets) == (50_021, 50_021 * 31_249_993 * 64 // 10**9)
    assert found.mtu_bytes is None


def test_times_verdicts_overhead_and_sharing_of_a_policer() -> None:
    more = attribute(5, struct.pack("=i", -1)) + attribute(6, struct.pack("=4Q", 12_345, 67, 0, 12_000))
    found = only_policer(police(rate_bytes=1000, overhead=24, bindings=3, action=0x20000003, more=more))
    assert (found.age_seconds, found.idle_seconds) == (123.45, 0.67)
    assert (found.exceed_action, found.conform_action) == ("goto chain 3", "continue")
    assert (found.overhead_bytes, found.bindings) == (24, 3)


def test_a_police_struct_cut_short_is_a_policer_without_settings() -> None:
    found = only_filter(filter_message("matchall", attribute(2, action(1, "police", attribute(1, b"short")))))
    assert [(one.kind, one.policer) for one in found.actions] == [("police", None)]


def test_actions_keep_their_order_and_statistics() -> None:
    """The attribute type is the order (`action order 1: ...`), in whatever order the attributes come."""
    generic = struct.pack("=IIiii", 4, 0, 3, 1, 1)
    nested = action(2, "gact", attribute(2, generic)) + action(
        1, "police", police(rate_bytes=1000), basic_stats(2**33 + 1, 17, 5, 7)
    )
    found = only_filter(filter_message("flower", attribute(8, b"\x08\x00") + attribute(0x8000 | 3, nested)))
    assert [(one.kind, one.index, one.control) for one in found.actions] == [("police", 7, "drop"), ("gact", 4, "pipe")]
    assert found.actions[0].stats == Stats(2**33 + 1, 17, 5, 7, 0, 0, 0)
    assert found.actions[1].stats == Stats()


def test_packets_beyond_32_bits_come_in_an_attribute_of_their_own() -> None:
    stats = basic_stats(10, 4, 0, 0) + attribute(8, struct.pack("=Q", 2**32 + 4))
    found = only_filter(filter_message("matchall", attribute(2, action(1, "police", police(), stats))))
    assert found.actions[0].stats.packets == 2**32 + 4


def test_an_unknown_action_and_an_unknown_filter_kind_are_kept_without_guessing() -> None:
    found = only_filter(filter_message("matchall", attribute(2, action(1, "novel", attribute(2, b"\1" * 40)))))
    assert [(one.kind, one.index, one.control) for one in found.actions] == [("novel", 0, "")]
    strange = only_filter(filter_message("novel", attribute(2, b"\1\2\3\4")))
    assert (strange.kind, strange.matches_all, strange.actions) == ("novel", None, ())


def test_bpf_program_and_its_return_value_deciding() -> None:
    options = attribute(7, b"prog.o:[x]\0") + attribute(8, struct.pack("=I", 1))
    options += attribute(10, bytes.fromhex("0123456789abcdef")) + attribute(11, struct.pack("=I", 4711))
    found = only_filter(filter_message("bpf", options))
    assert found.bpf == BpfProgram("prog.o:[x]", 4711, "0123456789abcdef", True)
    assert only_filter(filter_message("bpf", attribute(7, b"classic\0"))).bpf == BpfProgram("classic")


def test_rows_that_are_no_filter_are_left_out() -> None:
    head = Message(44, 0, 0, 0, TCMSG.pack(0, 5, 0, 0xFFFF0000, 49 << 16) + attribute(1, b"u32\0"))
    assert tc_filter(head, "ingress", 5) is None
    table = filter_message("u32", attribute(4, struct.pack("=I", 1)), handle=0x80000000)
    assert tc_filter(table, "ingress", 5) is None


def test_a_filter_in_a_shared_block_names_the_block() -> None:
    found = only_filter(filter_message("matchall", attribute(3, b"\0\0\0\0"), ifindex=-1, parent=22))
    assert (found.ifindex, found.parent, found.block) == (5, "block 22", 22)


@pytest.mark.parametrize(
    ("keys", "matches_all"), [([(0, 0)], True), ([(0, 0), (0xFF, 6)], False), ([(0xFFFFFFFF, 1)], False), ([], True)]
)
def test_u32_matches_all_only_with_empty_masks(keys: list[tuple[int, int]], matches_all: bool) -> None:
    assert only_filter(filter_message("u32", u32_selector(*keys), handle=0x80000800)).matches_all is matches_all


@pytest.mark.parametrize(("extra", "matches_all"), [(b"", True), (attribute(9, b"\x11"), False)])
def test_flower_matches_all_only_without_keys(extra: bytes, matches_all: bool) -> None:
    options = attribute(8, b"\x08\x00") + attribute(22, b"\0\0\0\0") + extra
    assert only_filter(filter_message("flower", options, protocol=0x0800)).matches_all is matches_all


@pytest.mark.parametrize(
    ("number", "name"),
    [(3, "all"), (0x800, "ip"), (0x86DD, "ipv6"), (0x806, "arp"), (0x8100, "802.1Q"), (0x88CC, "0x88cc")],
)
def test_protocols_are_named_as_tc_names_them(number: int, name: str) -> None:
    assert protocol_text(socket.htons(number)) == name


def test_handles_are_written_as_tc_writes_them() -> None:
    assert [handle_text(one) for one in (0x10000, 0x1000A, 0xFFFF0000, 0xFFFFFFFF, 0xFFFFFFF1, 1, 0)] == [
        "1:", "1:a", "ffff:", "root", "ingress", ":1", "0:",
    ]  # fmt: skip
    assert filter_handle_text("u32", 0x80000800) == "800::800"
    assert filter_handle_text("u32", 0x8012A801) == "801:2a:801"
    assert filter_handle_text("bpf", 1) == "0x1"


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (-1, "continue"),
        (0, "pass"),
        (2, "drop"),
        (3, "pipe"),
        (0x10000002, "jump 2"),
        (0x20000003, "goto chain 3"),
        (99, "action 99"),
    ],
)
def test_verdicts_are_written_as_tc_writes_them(code: int, name: str) -> None:
    assert control_text(code) == name


def test_htb_class_of_libvirt_from_ticks() -> None:
    """`class add ... htb rate 12500kbps ceil 20000kbps burst 3125kb`."""
    main = rate_spec(12_500_000) + rate_spec(20_000_000, overhead=0)
    main += struct.pack("=5I", 4_000_000, 1250, 200_000, 3, 4)
    body = TCMSG.pack(0, 5, 0x10001, 0xFFFFFFFF, 0x20000) + attribute(1, b"htb\0") + attribute(2, attribute(1, main))
    found = tc_class(Message(40, 0, 0, 0, body + attribute(7, basic_stats(90, 1, 3, 5))))
    assert (found.handle, found.parent, found.leaf) == ("1:1", "root", "2:")
    assert found.shaper == Shaper(100_000_000, 3_200_000, 160_000_000, 1600, None, 0, 3, 4)
    assert found.stats == Stats(90, 1, 3, 5, 0, 0, 0)


def test_htb_default_class_and_the_rates_beyond_32_bits() -> None:
    init = struct.pack("=5I", 0x30011, 10, 0x1A, 0, 0)
    body = TCMSG.pack(0, 5, 0x10000, 0xFFFFFFFF, 2) + attribute(1, b"htb\0") + attribute(2, attribute(2, init))
    assert qdisc(Message(36, 0, 0, 0, body)).default_class == "1:1a"
    main = rate_spec(2**33) + rate_spec(2**34) + struct.pack("=5I", 1, 1, 0, 0, 0)
    options = attribute(1, main) + attribute(6, struct.pack("=Q", 2**33)) + attribute(7, struct.pack("=Q", 2**34))
    body = TCMSG.pack(0, 5, 0x10001, 0x10000, 0) + attribute(1, b"htb\0") + attribute(2, options)
    shaper = tc_class(Message(40, 0, 0, 0, body)).shaper
    assert shaper is not None
    assert (shaper.rate_bps, shaper.ceil_bps) == (2**36, 2**37)


@pytest.mark.parametrize(("kind", "duplicate"), [("netem", 429_496_730), ("netem", 0), ("sfq", 429_496_730)])
def test_a_netem_that_duplicates_copies(kind: str, duplicate: int) -> None:
    """As tc wrote it for `netem delay 50ms duplicate 10% limit 997`: struct tc_netem_qopt."""
    options = struct.pack("=6I", 781_250, 997, 0, 0, duplicate, 0)
    body = TCMSG.pack(0, 5, 0x10000, 0xFFFFFFFF, 2) + attribute(1, kind.encode() + b"\0") + attribute(2, options)
    assert qdisc(Message(36, 0, 0, 0, body)).copies is (kind == "netem" and duplicate > 0)


def test_tbf_with_its_peak_rate_and_blocks_of_an_ingress_qdisc() -> None:
    main = rate_spec(875_000) + rate_spec(1_125_000) + struct.pack("=3I", 53750, 178_562, 0)
    body = TCMSG.pack(0, 5, 0x20000, 0x10001, 2) + attribute(1, b"tbf\0") + attribute(2, attribute(1, main))
    found = qdisc(Message(36, 0, 0, 0, body))
    assert found.shaper == Shaper(7_000_000, 9_999, 9_000_000, None, 53750)
    assert (found.hook, found.parent) == ("root", "1:1")
    body = (
        TCMSG.pack(0, 5, 0xFFFF0000, 0xFFFFFFF1, 1) + attribute(1, b"ingress\0") + attribute(13, struct.pack("=I", 22))
    )
    found = qdisc(Message(36, 0, 0, 0, body))
    assert (found.hook, found.ingress_block, found.egress_block) == ("ingress", 22, None)


def test_a_burst_is_rounded_down_as_tc_does() -> None:
    assert ticks_to_bytes(12_500_000, 4_000_000) == 3_200_000
    assert ticks_to_bytes(875_000, 178_562) == 9_999
    assert ticks_to_bytes(0, 5) == 0
