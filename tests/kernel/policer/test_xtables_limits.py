# SPDX-License-Identifier: Apache-2.0
"""Limits of iptables past the tap: by way of nf_tables (iptables-nft) and of its own tables (iptables-legacy)."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from host_fixtures import can, run

from vifprobe.host.declared import declared_of
from vifprobe.host.limits import installed
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
RATE = 8_000_000
HASHLIMIT = "-m hashlimit --hashlimit-above 101/sec --hashlimit-name probe"


@pytest.fixture(autouse=True)
def nobody_else_declares(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a libvirt nor an Open vSwitch of this host has a say."""
    away = functools.partial(declared_of, libvirt_directory=tmp_path / "no", ovs_sockets=(tmp_path / "no",))
    monkeypatch.setattr(auditor, "declared_of", away)


@pytest.fixture
def bridged(tap: Tap, require: Require) -> Iterator[None]:
    """Two taps on a bridge whose packets the IP stack's chains see."""
    with make_tap("tap1") as other, bridge_with(tap, other):
        call_iptables(require, True)
        yield


def call_iptables(require: Require, calls: bool) -> None:
    for name in ("iptables", "ip6tables"):
        setting = Path(f"/proc/sys/net/bridge/bridge-nf-call-{name}")
        require("kernel", setting.exists() or can("modprobe br_netfilter"), "br_netfilter")
        setting.write_text("1" if calls else "0")


@pytest.fixture(params=["nft", "legacy"])
def iptables(request: pytest.FixtureRequest, bridged: None, require: Require) -> str:
    """The command of one of the two; both take the same rules."""
    tool = f"iptables-{request.param}"
    require("tools", shutil.which(tool), tool)
    require("kernel", can(f"{tool} -A FORWARD -m physdev --physdev-in tap9 {HASHLIMIT} -j DROP"), f"{tool}, hashlimit")
    run(f"{tool} -F FORWARD")
    return tool


def audit() -> PolicerReport:
    return audit_tap("tap0", {OUT: Limit(declared_bps=RATE)}, tuple(Direction), 0.0, packets=False)


def unread() -> dict[Direction, list[str]]:
    found = installed(find_link("tap0")).unread
    return {direction: [words for one, words in found if one is direction] for direction in Direction}


@pytest.mark.parametrize(
    ("rule", "direction"),
    [
        (f"-m physdev --physdev-in tap0 {HASHLIMIT} -j DROP", OUT),
        (f"-m physdev --physdev-in tap+ {HASHLIMIT} -j DROP", OUT),
        (f"-m physdev --physdev-out tap0 {HASHLIMIT} -j DROP", IN),
        ("-m physdev --physdev-in tap0 -m connlimit --connlimit-above 11 -j REJECT", OUT),
        ("-m physdev --physdev-in tap0 -m quota --quota 1009 -j ACCEPT", OUT),
    ],
)
def test_a_limit_of_the_tap_is_named(iptables: str, rule: str, direction: Direction) -> None:
    run(f"{iptables} -A FORWARD {rule}")
    run(f"{iptables} -A FORWARD -m physdev --physdev-in tap0 -p udp --dport 7 -j DROP")
    found = unread()
    (words,) = found[direction]
    assert found[IN if direction is OUT else OUT] == []
    assert next(name for name in ("hashlimit", "connlimit", "quota") if name in rule) in words
    assert ("iptables-save -t filter" if iptables.endswith("legacy") else "nft -a list chain ip filter") in words
    if direction is OUT:
        report = audit()
        assert report.limit_states[OUT].state is LimitState.UNKNOWN
        assert "P1" not in {one.pattern for one in report.findings}


@pytest.mark.parametrize(
    "rule",
    [
        "-m physdev --physdev-in tap0 -p tcp -j DROP",
        f"-m physdev --physdev-in tap1 {HASHLIMIT} -j DROP",
        f"-m physdev --physdev-in tap0 {HASHLIMIT} -j LOG",
        f"-i tap0 {HASHLIMIT} -j DROP",
        f"-i eth9 {HASHLIMIT} -j DROP",
        f"-o eth9 {HASHLIMIT} -j DROP",
    ],
)
def test_what_does_not_limit_the_tap_hides_nothing(iptables: str, rule: str) -> None:
    run(f"{iptables} -A FORWARD {rule}")
    assert unread() == {OUT: [], IN: []}
    report = audit()
    assert report.limit_states[OUT].state is LimitState.ABSENT
    assert {one.pattern for one in report.findings} == {"P1"}


def test_a_bridge_that_does_not_call_iptables(iptables: str, require: Require) -> None:
    run(f"{iptables} -A FORWARD {HASHLIMIT} -j DROP")
    assert unread()[OUT]
    call_iptables(require, False)
    assert unread() == {OUT: [], IN: []}


def test_a_plain_limit_of_iptables_nft_is_read(bridged: None, require: Require) -> None:
    require("tools", shutil.which("iptables-nft"), "iptables-nft")
    run("iptables-nft -A FORWARD -m physdev --physdev-in tap0 -m limit --limit 101/sec --limit-burst 7 -j ACCEPT")
    run("iptables-nft -A FORWARD -m physdev --physdev-in tap0 -j DROP")
    report = audit_tap("tap0", {}, tuple(Direction), 0.0, packets=False)
    assert report.limit_states[OUT].state is LimitState.ELSEWHERE
    assert [(row.rate_pps, row.protocol, row.source) for row in report.rows] == [(101, "ip", "nft ip filter FORWARD")]
