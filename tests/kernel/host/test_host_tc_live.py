# SPDX-License-Identifier: Apache-2.0
"""What tc has installed, read from the kernel and compared with what `tc -s` prints of it."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack

import pytest
from host_fixtures import (
    CHARGED_BYTES,
    Printed,
    Require,
    add_program_filter,
    can,
    load_program,
    printed,
    printed_stats,
    run,
    send,
)
from host_reading import read_tc

from vifprobe.host.limits import installed
from vifprobe.host.net.events import Event, Events
from vifprobe.host.net.links import find_link
from vifprobe.host.tc.reader import TcReader, read_tc_of
from vifprobe.host.tc.records import CLSACT_EGRESS, CLSACT_INGRESS, Stats, TcAction
from vifprobe.kernel import libbpf
from vifprobe.model.layout import Direction
from vifprobe.model.units import parse_rate_bps, parse_size_bytes
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.net.taps import Tap, create_tap


def as_printed(stats: Stats) -> Printed:
    assert None not in (stats.bytes, stats.packets, stats.drops, stats.overlimits)
    return Printed(stats.bytes or 0, stats.packets or 0, stats.drops or 0, stats.overlimits or 0)


def test_an_interface_without_anything_and_one_that_is_not_there(tap: Tap) -> None:
    state = read_tc(tap.ifindex)
    assert (state.ingress, state.filters, state.problems) == (None, (), ())
    assert state.root is not None
    gone = read_tc(4711)
    assert (gone.qdiscs, gone.filters, gone.problems) == ((), (), ())


# Rates and bursts as a user writes them, beside what libvirt, OVS and Neutron write.
@pytest.mark.parametrize(
    ("rate", "ceil", "burst"),
    [
        ("12500kbps", "20000kbps", "3125kb"),  # libvirt's
        ("1mbit", "1mbit", "1600"),
        ("7mbit", "977mbit", "10000"),
        ("123456kbit", "3gbit", "64kb"),
        ("50gbit", "80gbit", "10mb"),  # beyond 32 bits of byte/s
    ],
)
def test_htb_class_agrees_with_what_was_asked_for_and_with_tc(tap: Tap, rate: str, ceil: str, burst: str) -> None:
    run("tc qdisc add dev tap0 root handle 1: htb default 1")
    run(f"tc class add dev tap0 parent 1: classid 1:1 htb rate {rate} ceil {ceil} burst {burst} quantum 1514")
    state = read_tc(tap.ifindex)
    (found,) = state.classes
    shaper = found.shaper
    assert shaper is not None
    assert shaper.rate_bps == parse_rate_bps(rate)
    assert shaper.ceil_bps == parse_rate_bps(ceil)
    shown = run("tc class show dev tap0")
    assert parse_rate_bps(printed(shown, "rate")) == shaper.rate_bps
    # The kernel keeps the time that a burst takes; tc 6.1 cuts this to whole microseconds when it prints it.
    microsecond = shaper.rate_bps // 8_000_000 + 1
    asked = parse_size_bytes(burst)
    assert asked - microsecond <= shaper.burst_bytes <= asked
    assert 0 <= shaper.burst_bytes - parse_size_bytes(printed(shown, "burst")) <= microsecond
    assert state.root is not None
    assert state.root.default_class == "1:1"


def test_tbf_agrees_with_tc(tap: Tap) -> None:
    run("tc qdisc add dev tap0 root handle 7: tbf rate 7mbit burst 10000 limit 53777 peakrate 9mbit mtu 1514")
    root = read_tc(tap.ifindex).root
    assert root is not None
    shaper = root.shaper
    assert shaper is not None
    shown = run("tc qdisc show dev tap0 root")
    assert (shaper.rate_bps, shaper.ceil_bps, shaper.limit_bytes) == (7_000_000, 9_000_000, 53777)
    assert parse_size_bytes(printed(shown, "burst")) == shaper.burst_bytes == 9_999
    (limit,) = installed(find_link("tap0")).of(Direction.INBOUND)
    assert (limit.source, limit.kind, limit.where, limit.rate_bps) == ("tc", "tbf", "root tbf 7:", 7_000_000)


def test_a_root_class_is_held_to_its_rate_and_a_child_to_its_ceil(tap: Tap) -> None:
    """A class without a parent has nobody to borrow from; its ceil is never reached."""
    run("tc qdisc add dev tap0 root handle 1: htb default 11")
    run("tc class add dev tap0 parent 1: classid 1:1 htb rate 100mbit ceil 200mbit quantum 1514")
    run("tc class add dev tap0 parent 1:1 classid 1:11 htb rate 10mbit ceil 50mbit quantum 1514")
    limits = {limit.where: limit for limit in installed(find_link("tap0")).limits}
    assert limits["root htb 1:1"].rate_bps == 100_000_000
    assert limits["root htb 1:11"].rate_bps == 50_000_000
    main = installed(find_link("tap0")).main(Direction.INBOUND)
    assert main is not None
    assert main.where == "root htb 1:11"
    assert installed(find_link("tap0")).main(Direction.OUTBOUND) is None


def test_filters_of_a_class_tree_and_a_leaf_qdisc(tap: Tap) -> None:
    run("tc qdisc add dev tap0 root handle 1: htb default 1")
    run("tc class add dev tap0 parent 1: classid 1:1 htb rate 12500kbps quantum 1514")
    run("tc qdisc add dev tap0 parent 1:1 handle 2: pfifo limit 17")
    run("tc filter add dev tap0 parent 1: protocol ip prio 3 u32 match ip dst 10.0.0.1/32 flowid 1:1")
    run("tc filter add dev tap0 parent 1:1 protocol arp prio 4 u32 match u32 0 0 flowid 1:1")
    state = read_tc(tap.ifindex)
    assert [(found.handle, found.leaf) for found in state.classes] == [("1:1", "2:")]
    assert [(found.handle, found.parent) for found in state.qdiscs] == [("1:", "root"), ("2:", "1:1")]
    assert [(found.parent, found.pref, found.protocol, found.matches_all) for found in state.filters] == [
        ("1:", 3, "ip", False), ("1:1", 4, "arp", True),
    ]  # fmt: skip
    assert {found.hook for found in state.filters} == {"root"}


def test_ingress_filters_in_the_order_in_which_they_run(tap: Tap) -> None:
    run("tc qdisc add dev tap0 ingress")
    run("tc filter add dev tap0 parent ffff: protocol all u32 match u32 0 0 flowid :1")
    run("tc filter add dev tap0 parent ffff: protocol 802.1Q prio 7 u32 match u32 0 0xff flowid :1")
    run("tc filter add dev tap0 parent ffff: protocol ipv6 prio 9 chain 3 u32 match u8 6 0xff at 9 flowid :1")
    state = read_tc(tap.ifindex)
    assert state.ingress is not None
    assert (state.ingress.kind, state.ingress.handle) == ("ingress", "ffff:")
    assert [(one.pref, one.protocol, one.chain, one.matches_all) for one in state.filters] == [
        (7, "802.1Q", 0, False), (49152, "all", 0, True), (9, "ipv6", 3, False),
    ]  # fmt: skip
    assert state.filters[2].where == "ingress chain 3 pref 9 u32 802::800"
    shown = run("tc filter show dev tap0 ingress")
    assert all(f"fh {one.handle} " in shown for one in state.filters)


def test_ingress_statistics_are_those_that_tc_prints(tap: Tap) -> None:
    run("tc qdisc add dev tap0 ingress")
    run("tc filter add dev tap0 parent ffff: protocol all u32 match u32 0 0 flowid :1")
    send(tap, 1009)
    ingress = read_tc(tap.ifindex).ingress
    assert ingress is not None
    assert as_printed(ingress.stats) == Printed(1009 * CHARGED_BYTES, 1009, 0, 0)
    assert as_printed(ingress.stats) in printed_stats(run("tc -s qdisc show dev tap0"))


def test_clsact_holds_filters_of_both_hooks_and_actions_with_their_statistics(tap: Tap, require: Require) -> None:
    with create_tap("tap1"):
        run("tc qdisc add dev tap0 clsact")
        mirror = "protocol all u32 match u32 0 0 action mirred egress redirect dev tap1"
        require("kernel", can(f"tc filter add dev tap0 ingress prio 5 {mirror}"), "act_mirred (CONFIG_NET_ACT_MIRRED)")
        run(f"tc filter add dev tap0 egress prio 6 {mirror}")
        send(tap, 503)
        state = read_tc(tap.ifindex)
    assert [(one.hook, one.pref) for one in state.filters] == [("egress", 6), ("ingress", 5)]
    (action,) = state.filters[1].actions
    assert (action.kind, action.control, action.index) == ("mirred", "stolen", 1)
    # tap1 is down, so each redirected frame is an overlimit; bytes as charged at ingress.
    assert (action.stats.bytes, action.stats.packets) == (503 * CHARGED_BYTES, 503)


def test_action_statistics_are_those_that_tc_prints(tap: Tap, require: Require) -> None:
    run("tc qdisc add dev tap0 clsact")
    command = "tc filter add dev tap0 ingress protocol all prio 5 u32 match u32 0 0 action gact drop"
    require("police", can(command), "act_gact (CONFIG_NET_ACT_GACT)")
    send(tap, 307)
    (found,) = read_tc(tap.ifindex).filters
    assert found.actions == (TcAction("gact", 1, "drop", None, found.actions[0].stats),)
    assert as_printed(found.actions[0].stats) == Printed(307 * CHARGED_BYTES, 307, 307, 0)
    assert printed_stats(run("tc -s filter show dev tap0 ingress")) == [as_printed(found.actions[0].stats)]


@pytest.mark.parametrize("hook", ["ingress", "egress"])
def test_a_shared_block_is_told_by_its_number_on_each_interface(tap: Tap, hook: str) -> None:
    with create_tap("tap1") as other:
        for name in ("tap0", "tap1"):
            run(f"tc qdisc add dev {name} {hook}_block 22 clsact")
        run("tc filter add block 22 protocol ipv6 prio 7 u32 match u32 0 0 flowid :1")
        for ifindex, state in read_tc_of([tap.ifindex, other.ifindex]).items():
            (found,) = state.filters
            assert (found.ifindex, found.hook, found.block, found.parent) == (ifindex, hook, 22, "block 22")
            assert (found.pref, found.protocol) == (7, "ipv6")


def test_programs_with_id_tag_and_direct_action(tap: Tap) -> None:
    run("tc qdisc add dev tap0 clsact")
    fd = load_program()
    try:
        add_program_filter(tap.ifindex, CLSACT_INGRESS, 977, fd, "first.o:[tc]")
        add_program_filter(tap.ifindex, CLSACT_EGRESS, 983, fd, "second")
    finally:
        os.close(fd)
    state = read_tc(tap.ifindex)
    egress, ingress = state.filters
    assert ingress.bpf is not None
    shown = run("tc filter show dev tap0 ingress")
    assert (ingress.pref, ingress.kind, ingress.matches_all) == (977, "bpf", None)
    assert ingress.bpf.name == "first.o:[tc]"
    assert str(ingress.bpf.id) == printed(shown, "id")
    assert ingress.bpf.tag == printed(shown, "tag")
    assert ingress.bpf.direct_action is ("direct-action" in shown) is True
    assert egress.bpf is not None
    assert (egress.bpf.name, egress.bpf.tag) == ("second", ingress.bpf.tag)


def test_a_filter_that_went_to_the_head_of_its_pref_is_no_unchanged_one(tap: Tap) -> None:
    """The same rows in another order: cls_bpf puts what is added again in front."""
    run("tc qdisc add dev tap0 clsact")
    fd, reader = load_program(), TcReader()

    def attach(handle: int) -> None:
        libbpf.attach_filter(fd, tap.ifindex, ingress=True, pref=7, handle=handle, qdisc="clsact")

    def handles() -> list[str]:
        return [one.handle for one in reader.read([tap.ifindex])[tap.ifindex].filters]

    try:
        attach(1)
        attach(2)
        assert handles() == ["0x2", "0x1"]
        libbpf.detach_filter(tap.ifindex, True, 7, 1)
        attach(1)
        assert handles() == ["0x1", "0x2"]
    finally:
        os.close(fd)


def test_two_hundred_taps_are_read_in_one_go(netns: Netns) -> None:
    with ExitStack() as stack:
        taps = [stack.enter_context(create_tap(f"tap{number}")) for number in range(199)]
        for made in taps[::7]:
            run(f"tc qdisc add dev {made.name} ingress")
            run(f"tc filter add dev {made.name} parent ffff: protocol all u32 match u32 0 0 flowid :1")
        start = time.monotonic()
        states = read_tc_of([made.ifindex for made in taps])
        seconds = time.monotonic() - start
    assert [len(states[made.ifindex].filters) for made in taps] == [int(not place % 7) for place in range(199)]
    assert seconds < 2  # some 20 ms on an idle machine


def test_reading_disturbs_nobody_who_listens(tap: Tap) -> None:
    """A plain get of a qdisc would be a notification to all listeners, and no change was made."""
    run("tc qdisc add dev tap0 root handle 1: htb default 1")
    run("tc class add dev tap0 parent 1: classid 1:1 htb rate 12500kbps quantum 1514")
    run("tc qdisc add dev tap0 ingress")
    with Events([tap.ifindex]) as events:
        for _ in range(3):
            installed(find_link("tap0"))
        run("ip link set tap0 txqueuelen 977")  # a mark: what came before it would have been seen
        seen: list[Event] = []
        deadline = time.monotonic() + 5
        while not any("qlen" in event.detail for event in seen):
            assert time.monotonic() < deadline
            seen += events.read()
    assert [event.kind for event in seen] == ["link_change"]
