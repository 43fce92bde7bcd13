# SPDX-License-Identifier: Apache-2.0
"""No false alarm: busy and harmless traffic by two real TCP stacks, through the path of a watched tap.

The guest is a namespace with a kernel's TCP of its own, and so is who it talks to; every packet between them goes
through the tap. What this machine reached of each rate is printed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from vifprobe.analysis.findings.thresholds import flood_thresholds
from vifprobe.model.layout import Direction, PacketClass
from vifprobe.model.reading import Reading
from vifprobe.session.probe import Probe
from vifprobe.testing.net.cable import GUEST_ADDRESS, HOST_ADDRESS, Wired, wired_guest
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.traffic.connections import Done, serving, working

OUT, IN = Direction.OUTBOUND, Direction.INBOUND
SECONDS = 2.3
WANTED_PER_SECOND = 5_000.0
ASKED_PER_SECOND = 5_500.0  # the first and the last moments are slower
#: Thresholds that a slow machine reaches, too: it must not be for want of packets that nothing is raised.
STRICT = flood_thresholds(["syn_packets=20", "flood_syn_pps=20", "scan_syn_pps=20", "spoofed_pps=5", "tool_pps=5"])


@pytest.fixture
def wired(netns: Netns) -> Iterator[Wired]:
    with wired_guest() as made:
        yield made


def watched(netns_of_client: str, targets: list[tuple[str, int]], **options: float) -> tuple[Reading, Done]:
    """The run's totals, while a client does its work."""
    with Probe("tap0", samples=20_000, thresholds=STRICT) as probe, ExitStack() as stack:
        work = stack.enter_context(working(netns_of_client, targets, seconds=SECONDS, **options))  # type: ignore[arg-type]

        def wait() -> Done:
            try:
                return work.wait()
            finally:
                probe.stop()

        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(wait)
            *readings, last = probe.readings(1.0, 30.0)
        raised = {one.pattern: one.title for reading in readings for one in reading.findings}
    found = {pattern: title for pattern, title in raised.items() if pattern.startswith("S")}
    assert found == {}, found
    assert [one for one in last.findings if one.pattern.startswith("S")] == []
    return last, done.result()


def syns(reading: Reading, direction: Direction) -> int:
    return reading.offered(direction, PacketClass.TCP_SYN).packets


@pytest.mark.parametrize("role", ["proxy", "web server"])
def test_thousands_of_real_connections_a_second(wired: Wired, netns: Netns, role: str) -> None:
    is_proxy = role == "proxy"
    server, client = (netns.path, wired.guest_netns) if is_proxy else (wired.guest_netns, netns.path)
    address = HOST_ADDRESS if is_proxy else GUEST_ADDRESS
    with serving(server, 8_080, 8_081, 8_082):
        targets = [(address, 8_080 + number) for number in range(3)]
        reading, done = watched(client, targets, per_second=ASKED_PER_SECOND)
    reached = done.connected / done.seconds
    print(f"{role}: {reached:,.0f} of {WANTED_PER_SECOND:,.0f} connections a second")
    if os.environ.get("VIFPROBE_TIMING") == "1":
        assert reached >= WANTED_PER_SECOND
    direction = OUT if is_proxy else IN
    assert syns(reading, direction) >= done.connected
    assert syns(reading, direction) >= STRICT.flood_syn_pps * reading.duration_ns / 1e9
    flood = reading.flood[direction]
    assert (flood.value("synack_back_packets") or 0) >= done.connected
    assert flood.high("handshakes_completed") >= done.connected
    assert flood.high("handshakes_completed_max") >= done.connected
    if is_proxy:
        assert flood.value("no_options_share") == 0
        assert flood.value("unknown_source_share") == 0  # how sure that is depends on how many the machine could send


@pytest.mark.parametrize("flows", [1, 10], ids=["backup", "iperf"])
def test_bulk(wired: Wired, netns: Netns, flows: int) -> None:
    """A backup to one server, and a throughput test with ten flows."""
    with serving(netns.path, 5_201):
        reading, done = watched(wired.guest_netns, [(HOST_ADDRESS, 5_201)], flows=flows)
    print(f"{flows} flows: {8 * done.sent_bytes / done.seconds / 1e6:,.0f} Mbit/s")
    assert syns(reading, OUT) == flows
    assert reading.offered(OUT, PacketClass.TCP_DATA).packets > 1_000


def test_a_load_balancers_health_checks(wired: Wired, netns: Netns) -> None:
    """Twenty back ends ten times a second: most answer, some refuse, some are dead."""
    alive = [(HOST_ADDRESS, 9_000 + number) for number in range(12)]
    refusing = [(HOST_ADDRESS, 9_900 + number) for number in range(4)]
    dead = [(f"10.77.9.{number}", 80) for number in range(1, 5)]
    with serving(netns.path, *(port for _, port in alive)):
        reading, done = watched(wired.guest_netns, [*alive, *refusing, *dead], per_second=200.0)
    assert done.failed > 20
    assert done.connected > 100
    assert syns(reading, OUT) >= done.connected + 20
