# SPDX-License-Identifier: Apache-2.0
"""The audit of many taps against real qdiscs and nft chains, by the kernel's own counters."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from host_fixtures import run

from vifprobe.analysis.limit_state import limit_answer
from vifprobe.cli import group
from vifprobe.errors import TapError
from vifprobe.host.declared import declared_of
from vifprobe.host.limits import installed_of
from vifprobe.host.net.selection import select_links
from vifprobe.model.layout import Direction
from vifprobe.model.limits import LimitState, Traffic
from vifprobe.model.reading import Limit
from vifprobe.session.audit import auditor
from vifprobe.session.audit.snapshot import PolicerReport, audit_node
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.net.taps import Tap, tap
from vifprobe.testing.traffic.flood import writer

OUT, IN = Direction.OUTBOUND, Direction.INBOUND
BOTH = (OUT, IN)
LIMIT = Limit(declared_bps=8_000_000, burst_bytes=1_000_000)
HTB = "tc class add dev {} parent 1: classid 1:1 htb rate 8mbit burst 1000000"
NAMES = ("tapa0", "tapa1", "tapb0")


@pytest.fixture(autouse=True)
def nobody_else_declares(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a libvirt nor an Open vSwitch of this host has a say."""
    away = functools.partial(declared_of, libvirt_directory=tmp_path / "no", ovs_sockets=(tmp_path / "no",))
    monkeypatch.setattr(auditor, "declared_of", away)


@pytest.fixture
def taps(netns: Netns) -> Iterator[list[Tap]]:
    with tap(NAMES[0]) as first, tap(NAMES[1]) as second, tap(NAMES[2]) as third:
        yield [first, second, third]


def states(found: tuple[PolicerReport, ...]) -> dict[tuple[str, Direction], LimitState]:
    return {(one.tap, direction): answer.state for one in found for direction, answer in one.limit_states.items()}


def test_taps_by_name_by_pattern_and_all(taps: list[Tap]) -> None:
    run("ip link add notap0 type veth peer name notap1")
    assert [link.name for link in select_links(())] == [*NAMES]
    assert [link.name for link in select_links(("tapb*", "tapa?", "tapb0"))] == ["tapb0", "tapa0", "tapa1"]
    assert [link.name for link in select_links(("notap0",))] == ["notap0"]
    with pytest.raises(TapError, match="matches no tap") as told:
        select_links(("notap*",))
    assert "Looked at 3 taps." in told.value.hints
    with pytest.raises(TapError, match="no such interface"):
        select_links(("tapa0", "tapx"))


def test_each_tap_and_direction_has_its_state(taps: list[Tap]) -> None:
    run("tc qdisc add dev tapa0 root handle 1: htb default 1")
    run(HTB.format("tapa0"))
    run("tc qdisc add dev tapa1 root handle 1: htb default 1")
    run(HTB.format("tapa1").replace("8mbit", "64mbit"))
    found = states(audit_node((), dict.fromkeys(BOTH, LIMIT), BOTH, 0.0))
    assert found == {
        ("tapa0", OUT): LimitState.ABSENT,
        ("tapa0", IN): LimitState.THERE,
        ("tapa1", OUT): LimitState.ABSENT,
        ("tapa1", IN): LimitState.DIFFERS,
        ("tapb0", OUT): LimitState.ABSENT,
        # One rate for both directions is held against inbound packets only where these are limited at all.
        ("tapb0", IN): LimitState.NONE,
    }


@pytest.mark.parametrize(("frames", "traffic"), [(1_009, Traffic.UNDER), (100_003, Traffic.EXCEEDS)])
def test_what_passed_by_the_kernels_own_counters(taps: list[Tap], frames: int, traffic: Traffic) -> None:
    """1,009 frames are no longer than the burst; 100,003 are above the limit for more than a minute."""
    links = select_links(("tapa*",))
    limit = {OUT: Limit(declared_bps=8_000_000, burst_bytes=2_000_000)}
    made = auditor.Auditor(links, limit, installed_of(links))
    made.look()
    frame = bytes.fromhex("02000000000202000000000188b5") + bytes(986)
    with writer(taps[0].fds, [frame], count=frames, seconds=60) as sender:
        sender.start()
        assert sender.wait().frames == frames
    made.look()
    answers = []
    for one in made.taps.values():
        looked, dropped = one.counted(OUT)
        assert dropped is None
        answers.append(limit_answer(one.set_up(), OUT, looked))
    assert [one.traffic for one in answers] == [traffic, Traffic.IDLE]
    assert {one.state for one in answers} == {LimitState.ABSENT}


def test_the_command(taps: list[Tap]) -> None:
    run("tc qdisc add dev tapa0 root handle 1: htb default 1")
    run(HTB.format("tapa0"))
    asked = ["policer", "tapa0", "tapb*", "--rate", "8mbit", "--burst", "1000000", "-d", "50ms"]
    shown = CliRunner().invoke(group, asked)
    assert shown.exit_code == 0, shown.output
    assert shown.output.startswith("2 taps")
    assert [line.split()[:2] for line in shown.output.splitlines() if line.startswith(("tapa0", "tapb0"))] == [
        ["tapa0", "outbound"],
        ["tapb0", "outbound"],
        ["tapb0", "inbound"],
        ["tapa0", "inbound"],
    ]
    objects = [json.loads(line) for line in CliRunner().invoke(group, [*asked, "--json"]).output.splitlines()]
    assert [one["tap"] for one in objects] == ["tapa0", "tapb0"]
    assert objects[0]["inbound"]["state"] == "there"
    assert objects[0]["inbound"]["dropped_packets"] == 0
    assert CliRunner().invoke(group, [*asked, "--fail-on", "critical"]).exit_code == 3
    assert CliRunner().invoke(group, ["policer", "tapa*", "--fail-on", "critical"]).exit_code == 0
    wrong = CliRunner().invoke(group, ["policer", "x*"])
    assert wrong.exit_code == 1
