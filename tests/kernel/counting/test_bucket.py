# SPDX-License-Identifier: Apache-2.0
"""The ideal bucket in the kernel is the one in Python, packet by packet."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from itertools import accumulate

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vifprobe.kernel import libbpf
from vifprobe.kernel.features import read_features
from vifprobe.kernel.load import Programs
from vifprobe.kernel.settings import Settings, possible_cpus
from vifprobe.kernel.tables.counters import Counters
from vifprobe.model.layout import Bucket, Charge, Direction, Expected, TapTrait, Verdict
from vifprobe.model.reading import Limit
from vifprobe.session.probe import Probe
from vifprobe.testing.net.netns import private_netns
from vifprobe.testing.net.taps import tap
from vifprobe.testing.packets.rules import expected_wire_bytes
from vifprobe.testing.token_bucket import judge
from vifprobe.testing.traffic.flood import flood

# struct __sk_buff, include/uapi/linux/bpf.h
SKB_BYTES, TSTAMP_OFFSET = 192, 152
LLDP = b"\xff" * 12 + b"\x88\xcc"
#: A gap before a packet (ns), and its length.
PACKETS = st.lists(
    st.tuples(st.one_of(st.sampled_from([0, 1, 997, 40_000]), st.integers(0, 5_000_000)), st.integers(60, 1514)),
    min_size=1,
    max_size=211,
)
LIMITS = st.builds(Bucket, st.integers(1_000, 12_500_000_000), st.integers(61, 4_000_000))


@pytest.fixture(scope="module", params=[False, True], ids=["cmpxchg", "no_cmpxchg"])
def kernel_side(request: pytest.FixtureRequest) -> Iterator[tuple[Programs, Counters]]:
    """Programs whose clock is the packet's own time stamp, watching loopback: TEST_RUN's device."""
    programs = Programs(Settings(cpus=possible_cpus(), tstamp_clock=True, no_cmpxchg=request.param), read_features())
    counters = Counters(programs)
    counters.watch(socket.if_nametoindex("lo"), 0, int(TapTrait.LIMIT_INBOUND))
    yield programs, counters
    programs.close()


def says(programs: Programs, counters: Counters, direction: Direction, at_ns: int, frame: bytes) -> Expected:
    """What the kernel's bucket says of one packet: the cell that grew."""
    context = bytearray(SKB_BYTES)
    struct.pack_into("=Q", context, TSTAMP_OFFSET, at_ns)
    before = by_expected(counters, direction)
    libbpf.test_run(programs.tc_program_fd(direction), frame, bytes(context))
    grown = {code: packets - before[code] for code, packets in by_expected(counters, direction).items()}
    assert sorted(grown.values()) == [0, 0, 1]
    return next(code for code, packets in grown.items() if packets)


def by_expected(counters: Counters, direction: Direction) -> dict[Expected, int]:
    cells = counters.cells_now()
    cells = cells[cells["direction"] == direction]
    return {code: int(cells["packets"][cells["expected"] == code].sum()) for code in Expected}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limit=LIMITS, packets=PACKETS)
def test_kernel_and_model_agree_on_each_packet(
    kernel_side: tuple[Programs, Counters], limit: Bucket, packets: list[tuple[int, int]]
) -> None:
    """Random arrivals, lengths, rates and bursts; inbound, where a packet is counted at once."""
    programs, counters = kernel_side
    programs.set_bucket(0, Direction.INBOUND, limit)
    times = list(accumulate((gap for gap, _ in packets), initial=1_000_000_007))[1:]
    sizes = [size for _, size in packets]
    model = judge(limit, times, sizes)
    for at_ns, size, conforms in zip(times, sizes, model, strict=True):
        wanted = Expected.CONFORM if conforms else Expected.EXCEED
        assert says(programs, counters, Direction.INBOUND, at_ns, LLDP + bytes(size - len(LLDP))) is wanted


@pytest.mark.parametrize(
    ("charge", "cost"),
    [(Charge.L2, 101), (Charge.L3, 101 - 14), (Charge.WIRE, expected_wire_bytes(101)), (Charge.PACKET, 1)],
)
def test_a_bucket_of_just_that_cost_takes_one_packet(
    kernel_side: tuple[Programs, Counters], charge: Charge, cost: int
) -> None:
    """Each way to charge: a burst of exactly its cost takes one packet, and nothing is left of it for a second one."""
    programs, counters = kernel_side
    frame = LLDP + bytes(101 - len(LLDP))
    programs.set_bucket(0, Direction.INBOUND, Bucket(1, cost, charge))
    assert says(programs, counters, Direction.INBOUND, 1_000_000_007, frame) is Expected.CONFORM
    assert says(programs, counters, Direction.INBOUND, 1_000_000_007, frame) is Expected.EXCEED
    if cost > 1:
        programs.set_bucket(0, Direction.INBOUND, Bucket(1, cost - 1, charge))
        assert says(programs, counters, Direction.INBOUND, 1_000_000_007, frame) is Expected.EXCEED


def test_a_tap_without_a_limit_has_no_expectation(kernel_side: tuple[Programs, Counters]) -> None:
    """No bucket, no word: neither conform nor exceed is made up."""
    programs, counters = kernel_side
    libbpf.test_run(programs.tc_program_fd(Direction.OUTBOUND), LLDP + bytes(50))
    cells = counters.snapshot().cells
    cells = cells[cells["direction"] == Direction.OUTBOUND]
    assert [(row["expected"], row["packets"]) for row in cells] == [(Expected.NONE, 1)]


def test_a_real_tap_is_held_to_the_limit_that_was_given() -> None:
    """1,009 frames of 101 bytes at once, through a bucket of 499 frames that hardly fills: the rest is bypass."""
    charged = 101 - 14
    limits = {Direction.OUTBOUND: Limit(declared_bps=8, burst_bytes=499 * charged)}
    with private_netns(), tap("tap0") as made, Probe("tap0", limits=limits) as probe:
        flood([made.fd], [LLDP + bytes(101 - len(LLDP))], count=1009, seconds=5)
        final = list(probe.readings(0.05, 0.05))[-1]
    assert final.offered(Direction.OUTBOUND).packets == 1009
    conform = final.where(Direction.OUTBOUND, expected=Expected.CONFORM)
    assert int(conform["packets"].sum()) == 499
    bypass = final.bypass(Direction.OUTBOUND)
    passed = final.counts(Direction.OUTBOUND, Verdict.PASSED)
    dropped = final.counts(Direction.OUTBOUND, Verdict.DROPPED)
    assert bypass is not None
    assert passed is not None
    assert dropped is not None
    assert passed.packets + dropped.packets == 1009
    assert bypass.packets <= 1009 - 499
