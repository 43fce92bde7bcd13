# SPDX-License-Identifier: Apache-2.0
"""A guest's driver that switches offloads without end: what that costs is bounded, and what matters is told."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from host_fixtures import run

from vifprobe.host.net.events import Event, Events
from vifprobe.model.layout import Direction
from vifprobe.session.probe import Probe
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.net.taps import Tap, switch_offload
from vifprobe.testing.net.taps import tap as make_tap

SECONDS = 30.0
STORM_SECONDS = 2.0
TBF = "tc qdisc add dev tap0 root tbf rate 8mbit burst 16kb latency 50ms"


@contextmanager
def storm(*taps: Tap) -> Iterator[None]:
    """Another process switches as fast as it can, until the block ends."""
    child = os.fork()
    if not child:
        while True:
            for tap in taps:
                switch_offload(tap, 2)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def read_until(events: Events, wanted: Callable[[list[Event]], bool]) -> list[Event]:
    seen: list[Event] = []
    deadline = time.monotonic() + SECONDS
    while not wanted(seen):
        assert time.monotonic() < deadline, f"not seen in {SECONDS} s; seen: {seen[-20:]}"
        select.select([events], [], [], 0.1)
        seen += events.read()
    return seen


def _are_all(number: int, seen: list[Event]) -> bool:
    return sum(event.times for event in seen) >= number


def test_messages_that_tell_of_no_change_are_counted_to_the_last_one(tap: Tap) -> None:
    with Events([tap.ifindex]) as events:
        for number in (2, 98, 150, 2, 128, 150):
            switch_offload(tap, number)
            seen = read_until(events, partial(_are_all, number))
            assert sum(one.times for one in seen) == number
            assert len(seen) <= 4
            assert all(one.says_nothing and one.ifindex == tap.ifindex for one in seen)


def test_what_pours_in_costs_little_and_hides_nothing(netns: Netns) -> None:
    """100,000 messages a second of two taps: limits that change are told one by one, and so is how the link is."""
    with (
        make_tap("tap0") as first,
        make_tap("tap1") as second,
        Events([first.ifindex]) as events,
        storm(first, second),
    ):
        seen = read_until(events, bool)
        begun, before = time.monotonic(), time.process_time()
        while time.monotonic() - begun < STORM_SECONDS:
            select.select([events], [], [], 0.1)
            seen += events.read()
        spent = time.process_time() - before
        for number in range(7):
            run("tc qdisc add dev tap0 ingress")
            run("tc qdisc del dev tap0 ingress")
            run(f"ip link set tap0 mtu {1300 + number}")
        seen += read_until(events, lambda seen: any("-> 1306" in event.detail for event in seen))
    assert spent < 0.25 * STORM_SECONDS, f"{spent:.2f} s of CPU time in {STORM_SECONDS} s"
    assert not {"overflow", "unreadable"} & {event.kind for event in seen}
    qdiscs = [event for event in seen if event.kind.startswith("qdisc")]
    assert [event.kind for event in qdiscs if "ingress" in event.detail] == ["qdisc_new", "qdisc_del"] * 7
    assert {event.by_comm for event in qdiscs} <= {"tc", None}
    said = [event for event in seen if not event.says_nothing]
    assert len(said) <= 14 + 14 + 7  # each change of mtu may be seen twice at most: as told, and as looked at
    assert len(seen) - len(said) < 40 * (time.monotonic() - begun)


def test_a_run_keeps_two_events_of_a_storm_and_knows_what_it_led_to(netns: Netns) -> None:
    """And a limit that goes in the middle of it is told with who took it, and as the answer to a link change."""
    with make_tap("tap0") as tap:
        run(TBF)
        with Probe("tap0", directions=(Direction.INBOUND,)) as probe:
            readings = probe.readings(0.1, SECONDS)
            next(readings)
            with storm(tap):
                time_over = time.monotonic() + STORM_SECONDS
                while time.monotonic() < time_over:
                    next(readings)
                run("tc qdisc del dev tap0 root")
                found = next(p2 for one in readings for p2 in one.findings if p2.pattern == "P2")
            seen = [event for _, event in probe.take_events()]
            while not any("more link messages" in event.detail for event in seen):
                next(readings)
                seen += [event for _, event in probe.take_events()]
    assert str(found.evidence["by_comm"] or "tc").startswith("tc")
    assert 0 <= found.evidence["after_link_change_ns"] < 1_000_000_000
    links = [event for event in seen if event.kind == "link_change" and "qdisc" not in event.detail]
    assert [event.says_nothing for event in links] == [True, False]
    assert links[1].times > 100
    assert threading.active_count() < 20
