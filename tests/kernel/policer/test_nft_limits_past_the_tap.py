# SPDX-License-Identifier: Apache-2.0
"""Netfilter limits past the tap: in chains of the bridge and of the IP stack, by each way to name the tap's packets."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from host_fixtures import run

from vifprobe.host.declared import declared_of
from vifprobe.host.limits import LimitReader
from vifprobe.host.net.links import find_link
from vifprobe.model.layout import Direction
from vifprobe.model.limits import LimitState
from vifprobe.model.reading import Limit
from vifprobe.session.audit import auditor
from vifprobe.session.audit.snapshot import PolicerReport, audit_tap
from vifprobe.testing.net.links import bridge_with
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.net.taps import tap as make_tap

Require = Callable[[str, object, str], None]
OUT, IN = Direction.OUTBOUND, Direction.INBOUND
RATE = 8 * 1_000_000
OVER, UNDER = "limit rate over 1000000 bytes/second", "limit rate 1000000 bytes/second"


@pytest.fixture(autouse=True)
def nobody_else_declares(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a libvirt nor an Open vSwitch of this host has a say."""
    away = functools.partial(declared_of, libvirt_directory=tmp_path / "no", ovs_sockets=(tmp_path / "no",))
    monkeypatch.setattr(auditor, "declared_of", away)


@pytest.fixture
def bridged(tap: Tap, require: Require) -> Iterator[None]:
    """Two taps on a bridge whose packets the IP stack's chains do not see."""
    try:
        run("nft -f -", text="table bridge probe { }\n")
    except (AssertionError, FileNotFoundError) as error:
        require("kernel", False, f"nft tables of family bridge: {error}")
    run("nft delete table bridge probe")
    with make_tap("tap1") as other, bridge_with(tap, other):
        call_iptables(False)
        yield


def call_iptables(calls: bool) -> None:
    for name in ("iptables", "ip6tables"):
        setting = Path(f"/proc/sys/net/bridge/bridge-nf-call-{name}")
        if setting.exists():
            setting.write_text("1" if calls else "0")


def chain(family: str, hook: str, rules: str, head: str = "", policy: str = "accept") -> None:
    made = f"chain c {{\ntype filter hook {hook} priority 0; policy {policy};\n{rules}\n}}"
    run("nft -f -", text=f"table {family} t {{\n{head}\n{made}\n}}\n")


def audit(declared: int | None = RATE, name: str = "tap0") -> PolicerReport:
    limits = {} if declared is None else {OUT: Limit(declared_bps=declared)}
    return audit_tap(name, limits, tuple(Direction), 0.0, packets=False)


def states(found: PolicerReport) -> tuple[LimitState, LimitState]:
    return found.limit_states[OUT].state, found.limit_states[IN].state


def codes(found: PolicerReport) -> set[str]:
    return {one.pattern for one in found.findings}


def limits(found: PolicerReport) -> list[tuple[Direction, str, int | None]]:
    return [(row.direction, row.source, row.rate_bps) for row in found.rows if row.source.startswith("nft")]


@pytest.mark.parametrize(
    ("hook", "rules"),
    [
        ("prerouting", f'iifname "tap0" {OVER} drop'),
        ("forward", f'iifname "tap0" {OVER} drop'),
        ("forward", f'iifname "tap0" {UNDER} accept\niifname "tap0" drop'),
        ("forward", f"iif tap0 {OVER} drop"),
        ("forward", f'iifname {{ "tap0", "tap7" }} {OVER} drop'),
        ("forward", f"iifname @taps {OVER} drop"),
        ("forward", "iifname vmap { tap0 : jump mine, tap1 : jump theirs }"),
        ("forward", "iifname vmap @ways"),
        ("forward", 'limit name iifname map { "tap0" : "lim" } drop'),
        ("forward", 'iifname "tap*" jump mine'),
        ("prerouting", f'iifname "tap1" accept\n{OVER} drop'),
    ],
)
def test_a_limit_of_the_bridge_is_the_taps_limit_elsewhere(bridged: None, hook: str, rules: str) -> None:
    head = f"set taps {{\ntype ifname\nelements = {{ tap0, tap5 }}\n}}\nchain mine {{\n{OVER} drop\n}}\n"
    head += "chain theirs {\n}\nlimit lim { rate over 1000000 bytes/second; }\n"
    head += "map ways {\ntype ifname : verdict\nelements = { tap0 : jump mine }\n}"
    chain("bridge", hook, rules, head)
    found = audit()
    assert (OUT, RATE) in [(direction, rate) for direction, _, rate in limits(found)]
    assert found.limit_states[OUT].state is LimitState.ELSEWHERE
    assert codes(found) == {"P12"}
    assert audit(None).limit_states[OUT].state is LimitState.ELSEWHERE


def test_what_comes_to_the_guest_is_limited_at_its_port(bridged: None) -> None:
    chain("bridge", "forward", f'oifname "tap0" {OVER} drop')
    found = audit(None)
    assert limits(found) == [(IN, "nft bridge t c", RATE)]
    assert states(found) == (LimitState.NONE, LimitState.ELSEWHERE)
    assert states(audit(None, "tap1")) == (LimitState.NONE, LimitState.NONE)


@pytest.mark.parametrize(
    "rules",
    [
        f'iifname "tap1" {OVER} drop',
        f"iifname {{ tap1, tap2 }} {OVER} drop",
        f'iifname "tap0" accept\n{OVER} drop',
        f'iifname "tap0" {OVER} counter',
        f'iifname "tap0" {UNDER} accept',
        f'iifname "tap0" {OVER} log',
        f'oifname "tap1" {OVER} drop',
        'iifname "tap0" drop',
    ],
)
def test_what_does_not_limit_the_tap_is_not_taken_for_its_limit(bridged: None, rules: str) -> None:
    chain("bridge", "forward", rules)
    found = audit()
    assert [one for one in limits(found) if one[0] is OUT] == []
    assert found.limit_states[OUT].state is LimitState.ABSENT
    assert codes(found) == {"P1"}


@pytest.mark.parametrize(
    "rules",
    [
        f'iifname "tap0" ip protocol udp {OVER} drop',
        f'iifname "tap0" add @m {{ ether saddr {OVER} }} drop',
        f'iifname "tap0" update @m {{ ether saddr {OVER} }} drop',
        'iifname "tap0" quota over 25 mbytes drop',
        'iifname "tap0" quota name q drop',
        f"iifname . ether type {{ tap0 . ip }} {OVER} drop",
        "ip daddr vmap { 192.0.2.1 : jump mine }",
        f'iifname "tap0" {OVER} meta mark set 7',
        f'meta mark 7 accept\niifname "tap0" {OVER} drop',
    ],
)
def test_what_limits_some_of_the_packets_leaves_the_limit_unknown(bridged: None, rules: str) -> None:
    head = "set m {\ntype ether_addr\nsize 4096\nflags dynamic\n}\nquota q { over 25 mbytes }\n"
    head += f"chain mine {{\n{OVER} drop\n}}"
    chain("bridge", "forward", rules, head)
    found = audit()
    assert found.limit_states[OUT].state is LimitState.UNKNOWN
    assert "P1" not in codes(found)
    words = [words for direction, words in found.set_up.unread if direction is OUT]
    assert len(words) == 1
    assert "nft -a list chain bridge t" in words[0]


def test_an_element_that_holds_a_limit(bridged: None, require: Require) -> None:
    limit = f"{OVER} burst 1000 bytes"
    try:
        head = f"set m {{\ntype ifname\n{limit}\nelements = {{ tap0 {limit} }}\n}}"
        chain("bridge", "forward", "iifname @m drop", head)
    except AssertionError as error:
        require("elements", False, f"set elements with a limit: {error}")
    found = audit()
    assert [rate for _, _, rate in limits(found)] == [RATE]
    assert found.limit_states[OUT].state is LimitState.ELSEWHERE


@pytest.mark.parametrize("family", ["ip", "ip6", "inet"])
def test_chains_of_the_ip_stack_see_a_bridge_port_only_if_br_netfilter_calls_them(
    bridged: None, family: str, require: Require
) -> None:
    require("kernel", Path("/proc/sys/net/bridge/bridge-nf-call-iptables").exists(), "br_netfilter")
    chain(family, "forward", f"{OVER} drop")
    assert audit().limit_states[OUT].state is LimitState.ABSENT
    call_iptables(True)
    found = audit()
    assert found.limit_states[OUT].state is LimitState.ELSEWHERE
    protocol = {"ip": "ip", "ip6": "ipv6", "inet": "ip+ipv6"}[family]
    assert {row.protocol for row in found.rows if row.source.startswith("nft")} == {protocol}


def test_a_name_of_a_port_is_none_that_the_ip_stack_sees(bridged: None, require: Require) -> None:
    """For it both interfaces are the bridge (net/bridge/br_netfilter_hooks.c)."""
    require("kernel", Path("/proc/sys/net/bridge/bridge-nf-call-iptables").exists(), "br_netfilter")
    call_iptables(True)
    chain("ip", "forward", f'iifname "tap0" {OVER} drop')
    assert audit().limit_states[OUT].state is LimitState.ABSENT
    run("nft flush chain ip t c")
    run("nft -f -", text=f'add rule ip t c iifname "br0" {OVER} drop\n')
    assert audit().limit_states[OUT].state is LimitState.ELSEWHERE


def test_what_the_host_routes_for_the_bridge_may_be_the_taps(bridged: None) -> None:
    chain("inet", "forward", f'iifname "br0" {OVER} drop')
    found = audit()
    assert found.limit_states[OUT].state is LimitState.UNKNOWN
    assert codes(found) == set()


@pytest.mark.parametrize("hook", ["prerouting", "forward"])
def test_a_routed_tap_meets_the_chains_of_the_ip_stack(tap: Tap, hook: str) -> None:
    chain("inet", hook, f'iifname "tap0" {OVER} drop')
    found = audit()
    assert found.limit_states[OUT].state is LimitState.ELSEWHERE
    assert limits(found) == [(OUT, "nft inet t c", RATE)]


def test_a_set_that_changes_is_read_again(bridged: None) -> None:
    chain("bridge", "forward", f"iifname @taps {OVER} drop", "set taps {\ntype ifname\n}")
    reader, link = LimitReader(), find_link("tap0")
    reader.hear_of_nft(True)
    assert reader.read([link])[link.ifindex].elsewhere == ()
    run("nft add element bridge t taps { tap0 }")
    assert [one.rate_bps for one in reader.read([link])[link.ifindex].elsewhere] == [RATE]


def test_many_rules_are_said_not_to_be_evaluated(bridged: None) -> None:
    chain("bridge", "forward", "\n".join(f'iifname "tap{n}" {OVER} drop' for n in range(10, 5_020)))
    found = audit()
    assert found.limit_states[OUT].state is LimitState.UNKNOWN
    assert any("too many" in words for _, words in found.set_up.unread)
