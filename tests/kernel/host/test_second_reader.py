# SPDX-License-Identifier: Apache-2.0
"""A second opinion on netlink: pyroute2 reads the same objects of the same kernel, and agrees wherever it decodes them.

What it does not decode (see vifprobe/host/net/netlink.py) is held against what `tc` prints, in test_host_*_live.py.
"""

from __future__ import annotations

from typing import Any

import pytest
from host_fixtures import CHARGED_BYTES, Require, can, run, send
from host_reading import read_tc

from vifprobe.host.net.links import list_links_and_counters
from vifprobe.host.tc.records import INGRESS_HANDLE, handle_text
from vifprobe.testing.net.taps import Tap

pyroute2 = pytest.importorskip("pyroute2")
POLICE = "police rate 12500kbps burst 3125kb mtu 64kb drop flowid :1"


@pytest.fixture
def other(tap: Tap) -> Any:
    """pyroute2, in the same namespace."""
    with pyroute2.IPRoute() as route:
        yield route


def attributes(found: Any, *path: str) -> Any:
    for name in path:
        found = found.get_attr(name)
    return found


def test_links_and_their_counters(tap: Tap, other: Any) -> None:
    run("ip link add br0 type bridge")
    run("ip link set tap0 master br0")
    run("ip link set tap0 promisc on mtu 1409")
    send(tap, 101)
    ours = {link.name: (link, counters) for link, counters in list_links_and_counters()}
    theirs = {attributes(link, "IFLA_IFNAME"): link for link in other.get_links()}
    assert ours.keys() == theirs.keys()
    for name, (link, counters) in ours.items():
        told = theirs[name]
        assert (link.ifindex, link.mtu, link.tx_queue_length) == (
            told["index"], attributes(told, "IFLA_MTU"), attributes(told, "IFLA_TXQLEN"),
        )  # fmt: skip
        assert link.promiscuity == attributes(told, "IFLA_PROMISCUITY")
        assert (link.master_ifindex or None) == attributes(told, "IFLA_MASTER")
        assert link.qdisc == attributes(told, "IFLA_QDISC")
        assert counters is not None
        stats = attributes(told, "IFLA_STATS64")
        assert (counters.rx_packets, counters.rx_bytes) == (stats["rx_packets"], stats["rx_bytes"]), name
    assert ours["tap0"][1].rx_packets == 101  # type: ignore[union-attr]


def test_an_htb_tree(tap: Tap, other: Any) -> None:
    run("tc qdisc add dev tap0 root handle 1: htb default 1")
    run("tc class add dev tap0 parent 1: classid 1:1 htb rate 12500kbps ceil 20000kbps burst 3125kb quantum 1514")
    (ours,) = read_tc(tap.ifindex).classes
    (theirs,) = other.get_classes(tap.ifindex)
    assert ours.handle == handle_text(theirs["handle"])
    told = attributes(theirs, "TCA_OPTIONS", "TCA_HTB_PARMS")
    assert ours.shaper is not None
    assert (ours.shaper.rate_bps, ours.shaper.ceil_bps) == (8 * told["rate"], 8 * (told["ceil"]))
    # It leaves the burst as the time that the kernel keeps: psched ticks of 64 ns.
    assert ours.shaper.burst_bytes == told["rate"] * told["buffer"] * 64 // 10**9


def test_a_tbf(tap: Tap, other: Any) -> None:
    run("tc qdisc add dev tap0 root handle 7: tbf rate 7mbit burst 10000 limit 53777")
    ours = read_tc(tap.ifindex).root
    (theirs,) = [one for one in other.get_qdiscs(tap.ifindex) if attributes(one, "TCA_KIND") == "tbf"]
    told = attributes(theirs, "TCA_OPTIONS", "TCA_TBF_PARMS")
    assert ours is not None
    assert ours.shaper is not None
    assert (ours.handle, ours.shaper.rate_bps, ours.shaper.limit_bytes) == (
        handle_text(theirs["handle"]), 8 * told["rate"], told["limit"],
    )  # fmt: skip


def test_filters_at_ingress(tap: Tap, other: Any) -> None:
    run("tc qdisc add dev tap0 ingress")
    run("tc filter add dev tap0 parent ffff: protocol all prio 5 u32 match u32 0 0 flowid :1")
    run("tc filter add dev tap0 parent ffff: protocol ipv6 prio 9 u32 match u8 6 0xff at 9 flowid :1")
    send(tap, 503)
    ours = [(one.pref, one.kind) for one in read_tc(tap.ifindex).filters]
    theirs = [one for one in other.get_filters(tap.ifindex, parent=INGRESS_HANDLE) if one["handle"] & 0xFFF]
    assert ours == [(one["info"] >> 16, attributes(one, "TCA_KIND")) for one in theirs] == [(5, "u32"), (9, "u32")]
    ingress = read_tc(tap.ifindex).ingress
    (qdisc,) = [one for one in other.get_qdiscs(tap.ifindex) if attributes(one, "TCA_KIND") == "ingress"]
    told = attributes(qdisc, "TCA_STATS2", "TCA_STATS_BASIC")
    assert ingress is not None
    assert (ingress.stats.bytes, ingress.stats.packets) == (told["bytes"], told["packets"])
    assert told["bytes"] == 503 * CHARGED_BYTES


def test_libvirts_policer(tap: Tap, other: Any, require: Require) -> None:
    run("tc qdisc add dev tap0 ingress")
    added = can(f"tc filter add dev tap0 parent ffff: protocol all u32 match u32 0 0 {POLICE}")
    require("police", added, "act_police (CONFIG_NET_ACT_POLICE)")
    ((_, action),) = read_tc(tap.ifindex).police()
    (theirs,) = [one for one in other.get_filters(tap.ifindex, parent=INGRESS_HANDLE) if one["handle"] & 0xFFF]
    told = attributes(theirs, "TCA_OPTIONS", "TCA_U32_POLICE", "TCA_POLICE_TBF")
    assert action.policer is not None
    assert (action.policer.rate_bps, action.policer.mtu_bytes) == (8 * told["rate"], told["mtu"])
    assert action.policer.burst_bytes == told["rate"] * told["burst"] * 64 // 10**9
