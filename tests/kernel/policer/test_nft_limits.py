# SPDX-License-Identifier: Apache-2.0
"""Nft rules with a limit, on the tap and past it: which of them limit, and what is said of each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from host_fixtures import run

from vifprobe.host.declared import declared_of
from vifprobe.model.layout import Direction
from vifprobe.model.limits import LimitState
from vifprobe.model.reading import Limit
from vifprobe.session.audit import auditor
from vifprobe.session.audit.snapshot import PolicerReport, audit_tap
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


def audit(declared: int | None = None, name: str = "tap0") -> PolicerReport:
    limits = {} if declared is None else {OUT: Limit(declared_bps=declared)}
    return audit_tap(name, limits, tuple(Direction), 0.0, packets=False)


def table(text: str) -> None:
    run("nft -f -", text=text)


def on_device(rules: str, policy: str = "accept", devices: str = 'device "tap0"', head: str = "") -> None:
    chain = f"type filter hook ingress {devices} priority 0; policy {policy};"
    table(f"table netdev t {{\n{head}\nchain c {{\n{chain}\n{rules}\n}}\n}}\n")


@pytest.mark.parametrize(
    ("rules", "policy"),
    [
        (f"{OVER} drop", "accept"),
        (f"{OVER} counter drop\naccept", "accept"),
        (f"{UNDER} accept\ndrop", "accept"),
        (f"{UNDER} accept", "drop"),
        (f"{UNDER} return\ncounter drop", "accept"),
        (f"{OVER} jump out", "accept"),
        (f"{OVER} goto out", "accept"),
        (f"{UNDER} jump in\ndrop", "accept"),
        (f"jump limited\n{UNDER} accept", "accept"),
        (f"ether type arp drop\n{OVER} drop", "accept"),
        (f"limit rate over 1000/second drop\n{OVER} drop", "accept"),
    ],
)
def test_a_limit_that_drops_what_exceeds_it(tap: Tap, rules: str, policy: str) -> None:
    chains = f"chain out {{\ncounter drop\n}}\nchain in {{\naccept\n}}\nchain limited {{\n{UNDER} return\ndrop\n}}"
    on_device(rules, policy, head=chains)
    found = audit()
    assert found.limit_states[OUT].state is LimitState.UNDECLARED
    assert audit(RATE).limit_states[OUT].state is LimitState.THERE
    assert "P4" not in {one.pattern for one in found.findings}


@pytest.mark.parametrize(
    "rules",
    [
        f"{OVER}",
        f"{OVER} counter",
        f"{OVER} accept",
        f"{OVER} log",
        f"{UNDER} accept",
        f"{UNDER} counter accept\naccept",
        f"{UNDER} drop\ndrop",
        f"{OVER} jump in",
        f"accept\n{OVER} drop",
        f"goto in\n{OVER} drop",
        f"jump in\n{OVER} drop",
        f'iifname "tap0" accept\n{OVER} drop',
    ],
)
def test_a_limit_that_limits_nothing_is_listed_and_not_taken_for_one(tap: Tap, rules: str) -> None:
    on_device(rules, head="chain in {\naccept\n}")
    found = audit()
    assert [(row.kind, row.rate_bps) for row in found.rows] == [("limit", RATE)]
    assert found.limit_states[OUT].state is LimitState.NONE
    asked = audit(RATE)
    assert asked.limit_states[OUT].state is LimitState.ABSENT
    assert [one.pattern for one in asked.findings] == ["P1"]


@pytest.mark.parametrize(
    "rules",
    [
        f"ip protocol tcp {OVER} drop",
        f"ether type ip accept\n{OVER} drop",
        f"tcp dport 80 return\n{OVER} drop",
        f"meta mark 7 jump in\n{OVER} drop",
    ],
)
def test_a_limit_that_some_packets_do_not_meet_leaves_them_out(tap: Tap, rules: str) -> None:
    on_device(rules, head="chain in {\naccept\n}")
    found = audit(RATE)
    assert found.limit_states[OUT].state is LimitState.HOLES
    (finding,) = found.findings
    assert finding.pattern == "P4"


@pytest.mark.parametrize(
    "rule",
    [
        f'iifname "tap0" {OVER} drop',
        f'iifname "tap*" {OVER} drop',
        f"iif tap0 {OVER} drop",
        f'iifname {{ "tap0", "tap7" }} {OVER} drop',
        f'iifname {{ "ta*" }} {OVER} drop',
        f'iifname != "tap1" {OVER} drop',
        "iifname vmap { tap0 : jump mine, tap1 : jump theirs }\n",
        'limit name iifname map { "tap0" : "mine", "tap1" : "theirs" } drop',
    ],
)
def test_a_condition_that_names_the_tap_leaves_nothing_out(tap: Tap, rule: str) -> None:
    """In a chain on two devices each packet of this one meets the rule; the other one has a limit of its own."""
    other = "limit rate over 3000000 bytes/second"
    head = f"chain mine {{\n{OVER} drop\n}}\nchain theirs {{\n{other} drop\n}}\n"
    head += "limit mine { rate over 1000000 bytes/second; }\nlimit theirs { rate over 3000000 bytes/second; }"
    with make_tap("tap1"):
        on_device(f'{rule}\niifname "tap1" {other} drop', devices="devices = { tap0, tap1 }", head=head)
        found = audit(RATE)
        assert [row.rate_bps for row in found.rows if row.source == "nft"] == [RATE]
        assert found.limit_states[OUT].state is LimitState.THERE
        assert found.findings == ()
        assert audit(RATE, "tap1").limit_states[OUT].state is not LimitState.ABSENT


def test_arp_passes_a_chain_of_family_inet(tap: Tap) -> None:
    chain = f'type filter hook ingress device "tap0" priority 0;\n{OVER} drop'
    table(f"table inet t {{\nchain c {{\n{chain}\n}}\n}}\n")
    found = audit(RATE)
    assert found.limit_states[OUT].state is LimitState.HOLES
    (finding,) = found.findings
    assert (finding.pattern, finding.title) == ("P4", "the outbound limit leaves out all but ip, ipv6")


@pytest.mark.parametrize(
    "rule",
    [
        f"add @m {{ ether saddr {OVER} }} drop",
        "quota over 25 mbytes drop",
        "quota name q drop",
        f"{OVER} meta mark set 7",
    ],
)
def test_what_is_no_rate_for_the_tap_is_said(tap: Tap, rule: str) -> None:
    sets = "set m {\ntype ether_addr\nsize 4096\nflags dynamic\n}\nquota q { over 25 mbytes }"
    on_device(rule, head=sets)
    found = audit(RATE)
    assert found.limit_states[OUT].state is LimitState.UNKNOWN
    assert "P1" not in {one.pattern for one in found.findings}
    ((direction, words),) = found.set_up.unread
    assert direction is OUT
    assert "nft -a list chain netdev t c" in words
