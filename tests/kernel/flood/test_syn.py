# SPDX-License-Identifier: Apache-2.0
"""SYN measures of the kernel side: different addresses and ports, handshakes to their end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
from probe_kit import FIRST_CPU, OUT, KernelSide, kernel_side, on_cpu
from syn_kit import ACK, IN, RST, SYN, check_estimate, handshakes, measures, segment, two_taps, write

from vifprobe.kernel.features import read_features, read_trace_fields
from vifprobe.kernel.load import Programs
from vifprobe.kernel.settings import Settings, possible_cpus
from vifprobe.kernel.tables.counters import Counters
from vifprobe.model.layout import TapTrait
from vifprobe.model.records import AGE_BUCKETS
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.packets import frames as f
from vifprobe.testing.traffic.flood import flood
from vifprobe.testing.waiting import wait_until


@pytest.fixture(params=["tc", "tracepoint"])
def side(request: pytest.FixtureRequest, tap: Tap) -> Iterator[KernelSide]:
    """SYN measures of tap0, by the tc program or by the tracepoints; outbound only."""
    if request.param == "tc":
        with kernel_side(tap, Settings(cpus=possible_cpus(), syn=True)) as made:
            yield made
        return
    with ExitStack() as stack:
        programs = Programs(Settings(cpus=possible_cpus(), syn=True, trace=read_trace_fields()), read_features())
        stack.callback(programs.close)
        made = KernelSide(programs, Counters(programs))
        stack.callback(made.counters.close)
        made.counters.watch(tap.ifindex, 0, TapTrait.TRACED_OUTBOUND)
        programs.attach_tracepoints()
        stack.callback(programs.detach_tracepoints)
        yield made


def test_what_is_different_in_syns(side: KernelSide, tap: Tap) -> None:
    """Sources by their number, IPv4 and IPv6, ports exactly; what is no SYN adds nothing."""
    first = [segment(SYN, client=client) for client in range(3_001)]
    write(tap, [*first, *first[:1_009], *(segment(ACK, client=client, payload=b"!") for client in range(9_001))])
    one = measures(side)
    check_estimate(one.interval.sources[0, OUT], 3_001)
    check_estimate(one.interval.destinations[0, OUT], 1)
    assert np.flatnonzero(one.interval.source_ports[0, OUT]).tolist() == list(range(20_000, 23_001))
    assert np.flatnonzero(one.interval.destination_ports[0, OUT]).tolist() == [443]
    assert not one.interval.sources[0, IN].any()
    # The next interval knows nothing of it; the total knows both.
    write(tap, [f.vlan(segment(SYN, client=client, ipv6=True)) for client in range(503)])
    two = measures(side)
    check_estimate(two.interval.sources[0, OUT], 503)
    check_estimate(two.total.sources[0, OUT], 3_504)
    check_estimate(two.total.destinations[0, OUT], 2)
    assert two.total.source_ports[0, OUT].sum() == 3_001
    assert two.interval.source_ports[0, OUT].sum() == 503
    assert two.since_ns == one.at_ns
    three = measures(side)
    assert not three.interval.sources.any()
    assert not three.interval.source_ports.any()
    assert (three.total.sources == two.total.sources).all()


def test_where_the_same_cpu_was_asked_to_before(side: KernelSide, tap: Tap) -> None:
    """Each CPU remembers the last destination: it is in each interval all the same, and so is what came between."""
    to_one, to_other, to_third = (segment(SYN, client=number, back=True) for number in (11, 13, 17))
    over_ipv6 = segment(SYN, client=19, back=True, ipv6=True)
    rounds = [
        ([to_one] * 101, {20_011}),
        ([to_one] * 7, {20_011}),
        ([to_one, to_other] * 53 + [over_ipv6, to_one, over_ipv6], {20_011, 20_013, 20_019}),
        ([over_ipv6] * 3, {20_019}),
        ([over_ipv6, to_one, to_third], {20_011, 20_017, 20_019}),
        # What is no SYN is none, though it is remembered.
        ([segment(ACK, client=11, back=True), to_third, segment(RST, client=13, back=True), to_third], {20_017}),
        ([segment(RST, client=13, back=True), to_other], {20_013}),
    ]
    with on_cpu(FIRST_CPU):
        for number, (frames, ports) in enumerate(rounds):
            write(tap, frames)
            found = measures(side).interval
            assert set(np.flatnonzero(found.destination_ports[0, OUT]).tolist()) == ports, number
            check_estimate(found.destinations[0, OUT], len(ports))
            assert np.flatnonzero(found.source_ports[0, OUT]).tolist() == [443]


def test_two_taps_that_ask_the_same_server(netns: Netns) -> None:
    """On one CPU, in turn: the destination is in the sets of both, and of both directions."""
    with two_taps(netns) as (one, other, side), on_cpu(FIRST_CPU):
        for _ in range(5):
            for tap in (one, other):
                write(tap, [segment(SYN, client=1)])
        found = measures(side).interval
        for number in range(2):
            for direction in (OUT, IN):
                check_estimate(found.destinations[number, direction], 1)
                assert np.flatnonzero(found.destination_ports[number, direction]).tolist() == [443]


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
def test_handshakes_to_their_end(netns: Netns, ipv6: bool) -> None:
    """Completed by an ACK or by data, refused, never answered, answered and left; each once, however often a SYN is
    sent; for the client's tap outbound, for the server's inbound.
    """
    with two_taps(netns) as (client, server, side):

        def ask(number: int, flags: int = SYN, payload: bytes = b"") -> None:
            os.write(client.fd, segment(flags, client=number, ipv6=ipv6, payload=payload))

        def answer(number: int, flags: int = SYN | ACK) -> None:
            os.write(server.fd, segment(flags, client=number, back=True, ipv6=ipv6))

        for number in range(101):  # completed
            ask(number)
            answer(number)
            answer(number)
            ask(number, ACK, b"GET" if number % 2 else b"")
            ask(number, ACK)
            answer(number, RST)  # after the end: not its business
        for number in range(200, 223):  # refused
            ask(number)
            answer(number, RST | ACK)
        for number in range(300, 337):  # never answered, sent again
            ask(number)
            ask(number)
        for number in range(400, 413):  # answered, left half-open
            ask(number)
            answer(number)
        found = measures(side)
        want = {"every": 1, "followed": 174, "started": 174, "answered": 114, "completed": 101, "reset": 23, "open": 50}
        assert handshakes(found, 0, OUT) == want
        assert handshakes(found, 1, IN) == want
        assert handshakes(found, 0, IN) == handshakes(found, 1, OUT) == {"every": 1}


def test_the_age_of_what_is_open(tap: Tap) -> None:
    """Buckets of powers of two of microseconds, from the SYN to now."""
    with kernel_side(tap, Settings(cpus=possible_cpus(), syn=True)) as side:
        write(tap, [segment(SYN, client=client) for client in range(7)])
        early = measures(side)
        write(tap, [segment(SYN, client=100)])
        late = measures(side)
        ages = np.flatnonzero(late.open_age[0, OUT])
        assert late.open_age[0, OUT].sum() == 8
        oldest_us = (late.at_ns - early.since_ns) // 1000
        youngest_us = (late.at_ns - early.at_ns) // 1000
        assert ages[-1] <= int(oldest_us).bit_length()
        assert ages[0] <= int(youngest_us).bit_length()
        assert (late.open_age[0, OUT, int(youngest_us).bit_length() :]).sum() >= 7


def test_fewer_flows_are_followed_in_a_flood_and_all_of_them_after_it(tap: Tap) -> None:
    """The table is never too small for long; weighted sums stay those of all flows; and then it is exact again."""
    with kernel_side(tap, Settings(cpus=possible_cpus(), syn=True)) as side, on_cpu(FIRST_CPU):
        started = 100_003
        frames = [segment(SYN, client=client) for client in range(started)]
        flood([tap.fd], frames, count=started, seconds=60)
        found = handshakes(measures(side))
        assert found["every"] > 1
        assert found["followed"] < started / 2
        # Binomial: one in `every` at most, each standing for as many.
        assert abs(found["started"] - started) < 5 * np.sqrt(started * found["every"])
        assert found["open"] <= side.programs.settings.flows * found["every"]
        check_estimate(measures(side).total.sources[0, OUT], started)
        shifts = side.programs.table("syn_states")["control"]["shift"]
        wait_until(lambda: measures(side) and not shifts.any(), 10)
        before = handshakes(measures(side))
        write(tap, [segment(SYN, client=1_000_000 + client) for client in range(13)])
        after = handshakes(measures(side))
        assert after["followed"] - before["followed"] == after["started"] - before["started"] == 13


def test_off_is_off(tap: Tap) -> None:
    """Without it in the settings there are no tables, and nothing to tell."""
    with kernel_side(tap) as side:
        os.write(tap.fd, segment(SYN))
        assert side.counters.syn_measures() is None
        with pytest.raises(StopIteration):
            side.programs.table("flows")


def test_ages_have_buckets_for_all(tap: Tap) -> None:
    """The last one, open-ended, begins beyond what a handshake is followed for."""
    assert 1 << (AGE_BUCKETS - 2) > 60_000_000
