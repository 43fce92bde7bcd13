# SPDX-License-Identifier: Apache-2.0
"""Taps in other namespaces, and several vifprobes at the same tap."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import pytest
from command_kit import run, start

from vifprobe.testing.net.netns import Netns, private_netns
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.packets import frames as f
from vifprobe.testing.traffic.flood import flood

SYN = f.eth(f.ipv4(f.tcp(f.TcpFlag.SYN)), f.EtherType.IPV4)
FRAMES = 3001


@contextmanager
def by_path(other: Netns) -> Iterator[str]:
    """The namespace as a path."""
    yield other.path


@contextmanager
def by_pid(other: Netns) -> Iterator[str]:
    """The namespace as a process in it."""
    with other.entered():
        process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    with process:
        yield str(process.pid)


@contextmanager
def by_name(other: Netns) -> Iterator[str]:
    """The namespace as a name that ip(8) knows."""
    name = f"vifprobe-test-{os.getpid()}"
    with by_pid(other) as pid:
        subprocess.run(["ip", "netns", "attach", name, pid], check=True)
        try:
            yield name
        finally:
            subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.fixture
def elsewhere(netns: Netns) -> Iterator[tuple[Netns, Tap]]:
    """A tap in a namespace that the test is not in."""
    with ExitStack() as stack:
        other = stack.enter_context(private_netns(enter=False))
        with other.entered():
            made = stack.enter_context(make_tap("tap7"))
        yield other, made


@pytest.mark.parametrize("called", [by_path, by_pid, by_name], ids=["path", "pid", "name"])
def test_a_tap_in_a_namespace_that_is_named(
    called: Callable[[Netns], AbstractContextManager[str]], elsewhere: tuple[Netns, Tap]
) -> None:
    other, tap = elsewhere
    with called(other) as name:
        with start("watch", "tap7", "--netns", name, "--json", "--interval", "100ms") as running:
            running.wait_for_lines(1)
            flood([tap.fd], [SYN], count=FRAMES, seconds=20)
            running.tell(signal.SIGTERM)
            ended = running.end()
        listed = run("taps", "--netns", name, "--json")
    assert (ended.code, ended.err) == (0, "")
    assert ended.objects[-1]["outbound"]["offered"]["packets"] == FRAMES
    assert [found["name"] for found in listed.objects] == ["tap7"]
    assert listed.objects[0]["outbound_packets"] == FRAMES


def test_the_same_name_in_two_namespaces_is_two_taps(elsewhere: tuple[Netns, Tap]) -> None:
    _, tap = elsewhere
    with make_tap("tap7") as own, start("watch", "tap7", "--json", "--interval", "100ms") as running:
        running.wait_for_lines(1)
        flood([tap.fd], [SYN], count=FRAMES, seconds=20)
        flood([own.fd], [SYN], count=53, seconds=20)
        running.tell(signal.SIGTERM)
        ended = running.end()
    assert ended.objects[-1]["outbound"]["offered"]["packets"] == 53


def test_two_vifprobes_on_one_tap_count_the_same(tap: Tap) -> None:
    """And the one that stays does not notice that the other ends."""
    options = ("watch", tap.name, "--json", "--interval", "100ms")
    with start(*options) as first, start(*options) as second:
        first.wait_for_lines(1)
        second.wait_for_lines(1)
        flood([tap.fd], [SYN], count=FRAMES, seconds=20)
        first.tell(signal.SIGTERM)
        one = first.end()
        flood([tap.fd], [SYN], count=FRAMES, seconds=20)
        second.tell(signal.SIGTERM)
        other = second.end()
    for ended, frames in ((one, FRAMES), (other, 2 * FRAMES)):
        assert (ended.code, ended.err) == (0, "")
        assert ended.objects[-1]["outbound"]["offered"]["packets"] == frames
        assert ended.objects[-1]["outbound"]["classes"]["tcp_syn"]["offered"]["packets"] == frames


def test_one_that_is_killed_leaves_the_tap_as_it_was(tap: Tap) -> None:
    before = state_of(tap)
    with start("watch", tap.name, "--json", "--interval", "100ms") as running:
        running.wait_for_lines(1)
        running.tell(signal.SIGKILL)
        assert running.end().code == -signal.SIGKILL
    assert state_of(tap) == before
    assert run("cleanup").code == 0
    assert run("watch", tap.name, "--duration", "50ms").code == 0


def state_of(tap: Tap) -> list[str]:
    """What tc, ip and nft show of it."""
    commands = (
        f"tc qdisc show dev {tap.name}",
        f"tc filter show dev {tap.name} ingress",
        f"ip -j -d link show {tap.name}",
        "nft -j list ruleset",
    )
    shown = [subprocess.run(command.split(), capture_output=True, text=True, check=True).stdout for command in commands]
    assert json.loads(shown[2])[0]["ifname"] == tap.name
    return shown
