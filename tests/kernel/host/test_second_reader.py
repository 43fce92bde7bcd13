# SPDX-License-Identifier: Apache-2.0
"""A second opinion on netlink: `ip`, `tc` and `nft` read the same objects of the same kernel, and print the same.

They share no code with pyroute2 and vifprobe.host. More of what tc prints is in test_host_*_live.py.
"""

from __future__ import annotations

import json
import re
from ipaddress import ip_address
from typing import Any

from host_fixtures import CHARGED_BYTES, Require, can, printed, printed_stats, run, send
from host_reading import read_nft, read_tc

from vifprobe.host.net.links import list_links_and_counters
from vifprobe.host.net.neighbours import neighbours
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.net.taps import Tap

POLICE = "police rate 12500kbps burst 3125kb mtu 64kb drop flowid :1"
TABLE = """
table netdev second {
  chain in {
    type filter hook ingress device "tap0" priority 5; policy accept;
    meta length > 97 limit rate over 500 kbytes/second burst 70000 bytes counter drop
    limit rate 977/second burst 11 packets counter accept
  }
}
"""
#: `tc` prints rates in these, with three digits behind the point at most.
_UNITS = {"bit": 1, "Kbit": 1000, "Mbit": 1000**2, "Gbit": 1000**3}
_SIZES = {"b": 1, "Kb": 1024, "Mb": 1024**2}


def printed_json(command: str) -> list[dict[str, Any]]:
    """The objects that a command with -j prints."""
    found: list[dict[str, Any]] = json.loads(run(command) or "[]")
    return [one for one in found if one]


def printed_bps(text: str, word: str) -> float:
    """The rate behind `word`."""
    number, unit = re.fullmatch(r"([0-9.]+)(\w+)", printed(text, word)).groups()  # type: ignore[union-attr]
    return float(number) * _UNITS[unit]


def printed_bytes(text: str, word: str) -> float:
    """The size behind `word`; `-d` adds cells to it."""
    number, unit = re.match(r"([0-9.]+)([A-Za-z]+)", printed(text, word)).groups()  # type: ignore[union-attr]
    return float(number) * _SIZES[unit]


def test_links_and_their_counters(tap: Tap) -> None:
    run("ip link add br0 type bridge")
    run("ip link set tap0 master br0")
    run("ip link set tap0 promisc on mtu 1409 alias seventh-guest")
    send(tap, 101)
    ours = {link.name: (link, counters) for link, counters in list_links_and_counters()}
    theirs = {one["ifname"]: one for one in printed_json("ip -j -s -d link show")}
    assert ours.keys() == theirs.keys()
    for name, (link, counters) in ours.items():
        told = theirs[name]
        assert (link.ifindex, link.mtu, link.tx_queue_length, link.qdisc) == (
            told["ifindex"], told["mtu"], told.get("txqlen", 0), told["qdisc"],
        )  # fmt: skip
        assert (link.promiscuity, link.tx_queues) == (told["promiscuity"], told["num_tx_queues"])
        assert (link.mac, link.alias) == (told["address"], told.get("ifalias", "")), name
        assert (link.master_name or None, link.up) == (told.get("master"), "UP" in told["flags"])
        assert counters is not None
        received, sent = told["stats64"]["rx"], told["stats64"]["tx"]
        assert (counters.rx_packets, counters.rx_bytes, counters.rx_errors, counters.rx_dropped) == (
            received["packets"], received["bytes"], received["errors"], received["dropped"],
        )  # fmt: skip
        assert (counters.tx_packets, counters.tx_bytes, counters.tx_errors, counters.tx_dropped) == (
            sent["packets"], sent["bytes"], sent["errors"], sent["dropped"],
        )  # fmt: skip
    assert ours["tap0"][1].rx_packets == 101  # type: ignore[union-attr]
    assert theirs["tap0"]["linkinfo"]["info_data"]["type"] == ours["tap0"][0].kind == "tap"


def test_neighbours_that_answered(netns: Netns) -> None:
    run("ip link add br0 type bridge")
    run("ip link set br0 up")
    run("ip neigh add 192.0.2.7 lladdr 02:00:00:00:00:07 dev br0 nud permanent")
    run("ip neigh add 2001:db8::9 lladdr 02:00:00:00:00:09 dev br0 nud stale")
    run("ip neigh add 192.0.2.8 dev br0 nud failed")
    indexes = {one["ifname"]: one["ifindex"] for one in printed_json("ip -j link show")}
    theirs = {
        (indexes[one["dev"]], one["dst"], one["lladdr"])
        for one in printed_json("ip -j neigh show nud all")
        if "lladdr" in one and not ip_address(one["dst"]).is_multicast  # those come and go
    }
    assert theirs == {(one.ifindex, str(one.ip), one.mac) for one in neighbours() if not one.ip.is_multicast}
    assert {ip for _, ip, _ in theirs} == {"192.0.2.7", "2001:db8::9"}


def test_an_htb_tree(tap: Tap) -> None:
    run("tc qdisc add dev tap0 root handle 1: htb default 1")
    run("tc class add dev tap0 parent 1: classid 1:1 htb rate 12500kbps ceil 20000kbps burst 3125kb quantum 1514")
    (ours,) = read_tc(tap.ifindex).classes
    told = run("tc -s -d class show dev tap0")
    assert told.startswith(f"class htb {ours.handle} {ours.parent} ")
    assert ours.shaper is not None
    assert (ours.shaper.rate_bps, ours.shaper.ceil_bps) == (printed_bps(told, "rate"), printed_bps(told, "ceil"))
    assert ours.shaper.burst_bytes == printed_bytes(told, "burst")
    assert ours.shaper.ceil_burst_bytes == printed_bytes(told, "cburst")
    assert (ours.shaper.priority, ours.shaper.level) == (int(printed(told, "prio")), int(printed(told, "level")))
    root = read_tc(tap.ifindex).root
    (qdisc,) = [one for one in printed_json("tc -j -s qdisc show dev tap0") if one["kind"] == "htb"]
    assert root is not None
    assert (root.handle, root.default_class) == (qdisc["handle"], f"1:{int(qdisc['options']['default'], 16):x}")


def test_a_tbf(tap: Tap) -> None:
    run("tc qdisc add dev tap0 root handle 7: tbf rate 7mbit burst 10000 limit 53777")
    ours = read_tc(tap.ifindex).root
    (told,) = [one for one in printed_json("tc -j -s qdisc show dev tap0") if one["kind"] == "tbf"]
    assert ours is not None
    assert ours.shaper is not None
    assert (ours.handle, ours.shaper.rate_bps, ours.shaper.burst_bytes) == (
        told["handle"], 8 * told["options"]["rate"], told["options"]["burst"],
    )  # fmt: skip
    assert ours.shaper.limit_bytes == 53777


def test_filters_at_ingress(tap: Tap) -> None:
    run("tc qdisc add dev tap0 ingress")
    run("tc filter add dev tap0 parent ffff: protocol all prio 5 u32 match u32 0 0 flowid :1")
    run("tc filter add dev tap0 parent ffff: protocol ipv6 prio 9 u32 match u8 6 0xff at 9 flowid :1")
    send(tap, 503)
    state = read_tc(tap.ifindex)
    listed = [one for one in run("tc -s -d filter show dev tap0 parent ffff:").splitlines() if " fh " in one]
    theirs = [one for one in listed if not re.search(r" ht divisor", one)]
    assert [(str(one.pref), one.protocol, one.kind, one.handle) for one in state.filters] == [
        (printed(one, "pref"), printed(one, "protocol"), "u32", printed(one, "fh")) for one in theirs
    ]
    assert [one.matches_all for one in state.filters] == [True, False]
    (told,) = [one for one in printed_json("tc -j -s qdisc show dev tap0") if one["kind"] == "ingress"]
    assert state.ingress is not None
    assert (state.ingress.stats.bytes, state.ingress.stats.packets) == (told["bytes"], told["packets"])
    assert told["bytes"] == 503 * CHARGED_BYTES


def test_verdicts_of_actions(tap: Tap, require: Require) -> None:
    """Of each kind that the kernel has: what the packet meets next."""
    run("tc qdisc add dev tap0 clsact")
    wanted = {
        "gact": "action gact goto chain 3 index 71",
        "mirred": "action mirred egress redirect dev lo index 72",
        "skbedit": "action skbedit mark 7 continue index 73",
        "vlan": "action vlan pop pass index 74",
        "csum": "action csum ip drop index 75",
        "pedit": "action pedit ex munge ip ttl set 7 drop index 76",
        "ct": "action ct drop index 77",
        "ctinfo": "action ctinfo dscp 0xfc000000 drop index 78",
        "connmark": "action connmark drop index 79",
    }
    here = {
        kind: place
        for place, (kind, words) in enumerate(wanted.items(), 1)
        if can(f"tc filter add dev tap0 ingress prio {place} protocol ip flower {words}")
    }
    require("actions", here, "act_gact, act_mirred, act_csum or any other, and cls_flower (CONFIG_NET_ACT_*)")
    ours = {one.pref: one.actions[0] for one in read_tc(tap.ifindex).filters}
    for kind, place in here.items():
        told = run(f"tc -s -d filter show dev tap0 ingress pref {place}")
        assert f"action order 1: {kind}" in " ".join(told.split()), told
        assert ours[place].kind == kind
        assert str(ours[place].index) == printed(told, "index"), told
        control = {"mirred": "stolen"}.get(kind, ours[place].control)
        assert re.search(rf"{control}\b", told), (kind, ours[place], told)
        assert ours[place].control


def test_libvirts_policer(tap: Tap, require: Require) -> None:
    run("tc qdisc add dev tap0 ingress")
    added = can(f"tc filter add dev tap0 parent ffff: protocol all u32 match u32 0 0 {POLICE}")
    require("police", added, "act_police (CONFIG_NET_ACT_POLICE)")
    send(tap, 101)
    ((_, action),) = read_tc(tap.ifindex).police()
    told = run("tc -s -d filter show dev tap0 parent ffff:")
    assert action.policer is not None
    assert action.policer.rate_bps == printed_bps(told, "rate")
    assert action.policer.burst_bytes == printed_bytes(told, "burst")
    assert action.policer.mtu_bytes == printed_bytes(told, "mtu")
    assert action.control == "drop"
    assert (action.stats.bytes, action.stats.packets, action.stats.drops, action.stats.overlimits) == printed_stats(
        told
    )[-1]


def test_nft_limits_and_their_counters(tap: Tap, require: Require) -> None:
    require("nf_tables", can("nft list ruleset"), "nf_tables (CONFIG_NF_TABLES)")
    run("nft -f -", text=TABLE)
    send(tap, 83)
    listed = json.loads(run("nft -j list table netdev second"))["nftables"]
    rules = {one["rule"]["handle"]: one["rule"]["expr"] for one in listed if "rule" in one}
    ours = {at.rule.handle: at.rule for at in read_nft("tap0").rules}
    assert list(ours) == list(rules)
    for handle, rule in ours.items():
        told = {name: value for part in rules[handle] for name, value in part.items() if name != "match"}
        assert rule.counter_after is not None
        assert (rule.counter_after.packets, rule.counter_after.bytes) == (
            told["counter"]["packets"], told["counter"]["bytes"],
        )  # fmt: skip
        assert rule.verdict in told
        assert rule.limit is not None
        assert rule.limit.over == told["limit"].get("inv", False)
        if told["limit"].get("rate_unit") == "kbytes":
            assert (rule.limit.rate_bps, rule.limit.burst_bytes) == (8 * 1024 * told["limit"]["rate"], 70_000)
        else:
            assert (rule.limit.rate_pps, rule.limit.burst_packets) == (
                told["limit"]["rate"], told["limit"]["burst"],
            )  # fmt: skip
