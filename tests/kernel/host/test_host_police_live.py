# SPDX-License-Identifier: Apache-2.0
"""act_police as libvirt, Open vSwitch, Neutron and people install it, decoded and compared with what `tc -s` prints.

Wherever the kernel has act_police; `VIFPROBE_REQUIRE=police` makes a kernel without it a failure.
"""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import dataclass, field

import pytest
from host_fixtures import CHARGED_BYTES, FRAME, Printed, Require, can, printed, printed_stats, run, send
from host_reading import read_counters, read_tc

from vifprobe.host.counters import CounterMeaning
from vifprobe.host.limits import installed
from vifprobe.host.net.links import find_link
from vifprobe.host.tc.records import PoliceAction, TcAction, TcFilter
from vifprobe.model.layout import Direction
from vifprobe.model.units import parse_rate_bps, parse_size_bytes
from vifprobe.testing.net.taps import Tap


@pytest.fixture(autouse=True)
def police(tap: Tap, require: Require) -> None:
    made = can("tc actions add action police rate 1mbit burst 10k conform-exceed drop")
    require("police", made, "act_police (CONFIG_NET_ACT_POLICE)")
    run("tc actions flush action police")


@dataclass(frozen=True)
class Case:
    """A command behind `tc filter add dev tap0 parent ffff:`, and what must be read of it."""

    command: str
    expected: dict[str, object] = field(default_factory=dict)
    filter_expected: dict[str, object] = field(default_factory=dict)


CASES = {
    "libvirt": Case(
        "protocol all u32 match u32 0 0 police rate 12500kbps burst 3125kb mtu 64kb drop flowid :1",
        {"rate_bps": 100_000_000, "burst_bytes": 3_200_000, "mtu_bytes": 65536, "exceed_action": "drop"},
        {"kind": "u32", "pref": 49152, "protocol": "all", "matches_all": True, "class_id": ":1"},
    ),
    "libvirt before 2015": Case(
        "protocol ip u32 match ip src 0.0.0.0/0 police rate 12500kbps burst 12500kb mtu 64kb drop flowid :1",
        {"rate_bps": 100_000_000, "burst_bytes": 12_800_000},
        {"protocol": "ip", "matches_all": True},
    ),
    "Open vSwitch 2.16": Case(
        "protocol all prio 49 basic police rate 100000kbit burst 8000kbit mtu 65535 drop",
        {"rate_bps": 100_000_000, "burst_bytes": 1_024_000, "mtu_bytes": 65535},
        {"kind": "basic", "pref": 49, "matches_all": True},
    ),
    "Open vSwitch 2.17": Case(
        "protocol all prio 1 handle 1 matchall action police rate 100000kbit burst 8000kbit mtu 65535 "
        "conform-exceed drop/continue",
        {"rate_bps": 100_000_000, "exceed_action": "drop", "conform_action": "continue"},
        {"kind": "matchall", "pref": 1, "handle": "0x1", "matches_all": True},
    ),
    "packets per second": Case(
        "protocol all prio 1 matchall action police pkts_rate 50021 pkts_burst 5003 conform-exceed drop/pipe",
        {"rate_bps": None, "burst_bytes": None, "rate_pps": 50021, "mtu_bytes": None, "conform_action": "pipe"},
    ),
    "Neutron linuxbridge": Case(
        "protocol all prio 49 u32 match u32 0 0 police rate 977kbit burst 391kbit mtu 64kb drop flowid :1",
        {"rate_bps": 977_000, "exceed_action": "drop"},
        {"pref": 49},
    ),
    "beyond 32 bits, overhead, ATM cells": Case(
        "protocol ipv6 prio 2 flower action police rate 50gbit burst 10mb peakrate 80gbit mtu 2k overhead 24 "
        "linklayer atm conform-exceed drop",
        {"rate_bps": 50_000_000_000, "peak_bps": 80_000_000_000, "overhead_bytes": 24, "linklayer": 2},
        {"kind": "flower", "protocol": "ipv6", "matches_all": True},
    ),
    "one kind of packet only": Case(
        "protocol ip prio 2 flower ip_proto udp action police rate 1mbit burst 10k conform-exceed drop/pass",
        {"rate_bps": 1_000_000, "burst_bytes": 10_240, "conform_action": "pass"},
        {"kind": "flower", "protocol": "ip", "matches_all": False},
    ),
    "exceeding goes on to a later filter": Case(
        "protocol all prio 3 basic match 'meta(priority eq 0)' "
        "action police rate 1mbit burst 5k conform-exceed continue",
        {"exceed_action": "continue"},
        {"kind": "basic", "matches_all": False},
    ),
    "a program decides what comes to it": Case(
        "protocol all prio 4 bpf bytecode '1,6 0 0 4294967295' action police rate 1mbit burst 10k conform-exceed drop",
        {"rate_bps": 1_000_000, "burst_bytes": 10_240},
        {"kind": "bpf", "matches_all": None},
    ),
    "in a chain of its own": Case(
        "protocol all chain 3 prio 2 matchall action police rate 1mbit burst 10k conform-exceed drop",
        {"rate_bps": 1_000_000},
        {"kind": "matchall", "chain": 3},
    ),
    "size alone": Case(
        "protocol all prio 3 matchall action police mtu 977 conform-exceed drop/reclassify",
        {"rate_bps": None, "rate_pps": None, "mtu_bytes": 977, "conform_action": "reclassify"},
    ),
}


def the_policer(tap: Tap) -> tuple[TcFilter, TcAction, PoliceAction]:
    state = read_tc(tap.ifindex)
    assert state.problems == ()
    ((found, action),) = state.police()
    assert action.policer is not None
    return found, action, action.policer


def add(command: str) -> None:
    done = subprocess.run(
        ["tc", "filter", "add", "dev", "tap0", "parent", "ffff:", *shlex.split(command)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", CASES)
def test_a_policer_is_read_as_it_was_asked_for_and_as_tc_prints_it(tap: Tap, name: str, require: Require) -> None:
    run("tc qdisc add dev tap0 ingress")
    add(CASES[name].command)
    if "pkts_rate" in CASES[name].command:  # an older kernel takes the command and limits nothing
        told = "pkts_rate" in run("tc filter show dev tap0 ingress")
        require("pps", told, "packet rates in act_police (Linux 5.13)")
    found, _, policer = the_policer(tap)
    assert {key: getattr(policer, key) for key in CASES[name].expected} == CASES[name].expected
    assert {key: getattr(found, key) for key in CASES[name].filter_expected} == CASES[name].filter_expected
    shown = run("tc -s filter show dev tap0 ingress")
    assert f"police {policer.index:#x} " in shown
    assert parse_rate(printed(shown, "rate")) == (policer.rate_bps or 0)
    if policer.rate_bps is not None:
        assert policer.burst_bytes is not None
        # tc 6.1 cuts the time of a burst to whole microseconds before it prints it as a size.
        assert 0 <= policer.burst_bytes - parse_size_bytes(printed(shown, "burst")) <= policer.rate_bps // 8_000_000 + 1
    if policer.rate_pps is not None:
        assert printed(shown, "pkts_rate") == str(policer.rate_pps)
        assert printed(shown, "pkts_burst") == str(policer.burst_packets)
    assert policer.bindings == int(printed(shown, "bind"))
    assert policer.age_seconds is not None
    assert policer.age_seconds < 60


def parse_rate(text: str) -> int:
    return 0 if text == "0bit" else parse_rate_bps(text)


@pytest.mark.parametrize(
    "command",
    [
        "protocol all u32 match u32 0 0 police rate 8kbit burst 4600 mtu 64kb drop flowid :1",
        "protocol all prio 1 handle 1 matchall action police rate 8kbit burst 4600 conform-exceed drop/continue",
        "protocol ip prio 49 basic police rate 8kbit burst 4600 mtu 65535 drop",
    ],
)
def test_what_it_dropped_is_what_tc_prints_and_what_was_offered_less_what_it_let_through(
    tap: Tap, command: str
) -> None:
    run("tc qdisc add dev tap0 ingress")
    add(command)
    link = find_link("tap0")
    before = read_counters(link)
    send(tap, 1009)
    found, action, _ = the_policer(tap)
    shown = printed_stats(run("tc -s filter show dev tap0 ingress"))
    stats = action.stats
    assert (stats.bytes, stats.packets) == (1009 * CHARGED_BYTES, 1009)
    assert shown == [Printed(stats.bytes or 0, stats.packets or 0, stats.drops or 0, stats.overlimits or 0)]
    # The bucket holds 100 packets at once, and 8 kbit/s lets 22 packets a second in afterwards.
    assert stats.drops is not None
    assert 1009 - 100 - 22 * 20 <= stats.drops <= 1009 - 99
    assert stats.overlimits == stats.drops
    grown = {one.counter: one.value - old.value for one, old in zip(read_counters(link, before), before, strict=True)}
    where = f"{found.where} police {action.index}"
    assert grown[f"tc police drops: {where}"] == grown["tc ingress drops"] == stats.drops
    assert grown[f"tc police bytes: {where}"] == 1009 * CHARGED_BYTES
    assert grown["device rx_packets"] == 1009
    assert grown["device rx_bytes"] == 1009 * len(FRAME)
    policed = {
        one.counter for one in before if one.counts is CounterMeaning.POLICED and one.direction is Direction.OUTBOUND
    }
    assert policed == {f"tc police drops: {where}", "tc ingress drops"}


def test_two_filters_on_one_policer_share_its_bucket_and_counters(tap: Tap) -> None:
    run("tc qdisc add dev tap0 ingress")
    add("protocol ip prio 2 flower action police rate 1mbit burst 10k index 977")
    add("protocol arp prio 3 flower action police index 977")
    limits = installed(find_link("tap0")).of(Direction.OUTBOUND)
    assert [(limit.protocol, limit.shared, limit.rate_bps) for limit in limits] == [
        ("ip", True, 1_000_000), ("arp", True, 1_000_000),
    ]  # fmt: skip
    assert not [one for one in read_counters(find_link("tap0")) if "police" in one.counter and not one.shared]


def test_the_policer_of_a_shared_block_is_shared(tap: Tap) -> None:
    run("tc qdisc add dev tap0 ingress_block 22 ingress")
    run("tc filter add block 22 protocol all prio 3 matchall action police rate 1mbit burst 5k conform-exceed drop")
    (limit,) = installed(find_link("tap0")).limits
    assert (limit.shared, limit.rate_bps, limit.where) == (True, 1_000_000, "ingress pref 3 matchall 0x1 police 1")


def test_of_several_limits_the_lowest_one_is_the_main_one(tap: Tap) -> None:
    run("tc qdisc add dev tap0 ingress")
    add("protocol all prio 3 matchall action police rate 3mbit burst 5k conform-exceed drop/pipe")
    add("protocol all prio 4 matchall action police rate 2mbit burst 5k conform-exceed drop/pipe")
    add("protocol all prio 5 matchall action police pkts_rate 977 pkts_burst 10 conform-exceed drop/pipe")
    found = installed(find_link("tap0"))
    assert [limit.rate_bps for limit in found.limits] == [3_000_000, 2_000_000, None]
    main = found.main(Direction.OUTBOUND)
    assert main is not None
    assert main.rate_bps == 2_000_000


def test_a_policer_at_egress_is_one_of_what_goes_to_the_guest(tap: Tap) -> None:
    run("tc qdisc add dev tap0 clsact")
    run("tc filter add dev tap0 egress prio 3 matchall action police rate 1mbit burst 5k conform-exceed drop")
    (limit,) = installed(find_link("tap0")).limits
    assert (limit.direction, limit.where) == (Direction.INBOUND, "egress pref 3 matchall 0x1 police 1")


def test_libvirts_commands_of_both_directions(tap: Tap, require: Require) -> None:
    for command in (
        "tc qdisc add dev tap0 root handle 1: htb default 1",
        "tc class add dev tap0 parent 1: classid 1:1 htb rate 12500kbps ceil 12500kbps burst 3125kb quantum 87",
        "tc qdisc add dev tap0 parent 1:1 handle 2: sfq perturb 10",
        "tc filter add dev tap0 parent 1:0 protocol all prio 1 handle 1 fw flowid 1",
        "tc qdisc add dev tap0 ingress",
    ):
        require("police", can(command), f"what `{command}` needs")
    add(CASES["libvirt"].command)
    found = installed(find_link("tap0"))
    for direction in Direction:
        main = found.main(direction)
        assert main is not None
        assert (main.rate_bps, main.burst_bytes) == (100_000_000, 3_200_000)
    (fw,) = [one for one in found.tc.filters if one.hook == "root"]
    assert (fw.kind, fw.pref, fw.handle, fw.protocol) == ("fw", 1, "0x1", "all")
    assert [qdisc.kind for qdisc in found.tc.qdiscs if qdisc.hook == "root"] == ["htb", "sfq"]
    assert found.problems == ()
