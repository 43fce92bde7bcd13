# SPDX-License-Identifier: Apache-2.0
"""What if: each limit that is tried out counts what a bucket of its own says, class by class, whatever is installed."""

from __future__ import annotations

import csv
import json
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inbound_kit import guest, neighbour, senders
from probe_kit import FIRST_CPU, OUT, SYN, capturing, forwarding, watch_flood, watching

from vifprobe.capture.reader import load
from vifprobe.commands.options import parse_what_if
from vifprobe.kernel import libbpf
from vifprobe.kernel.attach import NoHookError, has_tcx
from vifprobe.kernel.features import read_features
from vifprobe.kernel.load import Programs
from vifprobe.kernel.settings import Settings, possible_cpus
from vifprobe.kernel.tables.counters import Counters
from vifprobe.model.layout import WHAT_IFS_MAX, Bucket, Charge, Direction, PacketClass
from vifprobe.model.reading import Limit
from vifprobe.model.whatif import WhatIf, rows_of, total
from vifprobe.session.probe import Probe
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.packets import frames as f
from vifprobe.testing.packets.rules import expected_wire_bytes
from vifprobe.testing.token_bucket import TokenBucket
from vifprobe.testing.traffic.flood import flood

SKB_BYTES, TSTAMP_OFFSET = 192, 152  # struct __sk_buff, include/uapi/linux/bpf.h
KINDS = {
    PacketClass.TCP_SYN: SYN,
    PacketClass.UDP: f.eth(f.ipv4(f.udp(b"")), f.EtherType.IPV4),
    PacketClass.OTHER: b"\xff" * 12 + b"\x88\xcc",
}
#: A gap before a packet (ns), its class, and its length.
PACKETS = st.lists(
    st.tuples(
        st.one_of(st.sampled_from([0, 1, 997, 40_000]), st.integers(0, 5_000_000)),
        st.sampled_from(list(KINDS)),
        st.integers(60, 1514),
    ),
    min_size=1,
    max_size=101,
)
BUCKETS = st.lists(
    st.builds(Bucket, st.integers(1_000, 12_500_000_000), st.integers(1, 400_000), st.sampled_from(Charge)),
    min_size=WHAT_IFS_MAX,
    max_size=WHAT_IFS_MAX,
)
#: In the order of KINDS, without padding: a bridge with netfilter cuts that off.
FRAMES = [
    f.eth(f.ipv4(f.tcp(f.TcpFlag.SYN, bytes(47))), f.EtherType.IPV4),
    f.eth(f.ipv4(f.udp(bytes(59))), f.EtherType.IPV4),
    b"\xff" * 6 + b"\x02\0\0\0\0\x09" + b"\x88\xcc" + bytes(87),
]
COUNT = 3019
#: What a packet of FRAMES costs: as installed, a policer at tc ingress charges what follows the L2 header.
COSTS = {
    Direction.OUTBOUND: {Charge.INSTALLED: 87, Charge.L2: 101, Charge.L3: 87, Charge.WIRE: 125, Charge.PACKET: 1},
    Direction.INBOUND: {Charge.INSTALLED: 101, Charge.L2: 101, Charge.L3: 87, Charge.WIRE: 125, Charge.PACKET: 1},
}
#: A byte a second adds no packet within a minute: time does not matter. The last two stop none, and all.
EIGHT = [
    *(f"rate=8bit,burst={packets * cost},charge={charge}" for packets, cost, charge in (
        (1, 101, "l2"), (499, 101, "l2"), (997, 87, "l3"), (1499, 125, "wire"), (2003, 87, "installed"),
        (3011, 125, "wire"),
    )),
    f"pps=1,burst={COUNT}",
    "rate=8bit,burst=86",
]  # fmt: skip


@pytest.fixture(scope="module")
def kernel_side() -> Iterator[tuple[Programs, Counters]]:
    """Programs whose clock is the packet's own time stamp, watching loopback: TEST_RUN's device."""
    own = Settings(cpus=possible_cpus(), tstamp_clock=True, what_ifs=WHAT_IFS_MAX)
    programs = Programs(own, read_features())
    counters = Counters(programs)
    counters.watch(socket.if_nametoindex("lo"), 0, 0)
    yield programs, counters
    programs.close()


def cost(charge: Charge, size: int) -> int:
    """What a frame is charged; as installed: with the L2 header, which TEST_RUN counts in both directions."""
    by_charge = {Charge.L3: size - 14, Charge.WIRE: expected_wire_bytes(size), Charge.PACKET: 1}
    return by_charge.get(charge, size)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(buckets=BUCKETS, packets=PACKETS, direction=st.sampled_from(Direction))
def test_eight_limits_are_eight_models(
    kernel_side: tuple[Programs, Counters],
    buckets: list[Bucket],
    packets: list[tuple[int, PacketClass, int]],
    direction: Direction,
) -> None:
    """Random arrivals, classes, lengths and limits: packets and bytes that each passed and stopped."""
    programs, counters = kernel_side
    limits = [WhatIf(f"limit {number}", bucket) for number, bucket in enumerate(buckets)]
    for number, bucket in enumerate(buckets):
        programs.set_what_if(0, direction, number, bucket)
    before = counters.snapshot().what_ifs
    assert before is not None
    models = [TokenBucket(bucket) for bucket in buckets]
    wanted: Counter[tuple[int, PacketClass, str]] = Counter()
    times = list(accumulate((gap for gap, _, _ in packets), initial=1_000_000_007))[1:]
    for at_ns, (_, kind, size) in zip(times, packets, strict=True):
        context = bytearray(SKB_BYTES)
        struct.pack_into("=Q", context, TSTAMP_OFFSET, at_ns)
        frame = KINDS[kind] + bytes(size - len(KINDS[kind]))
        libbpf.test_run(programs.tc_program_fd(direction), frame, bytes(context))
        for number, (bucket, model) in enumerate(zip(buckets, models, strict=True)):
            word = "passed" if model.conforms(at_ns, cost(bucket.charge, size)) else "stopped"
            wanted[number, kind, f"{word}_packets"] += 1
            wanted[number, kind, f"{word}_frame_bytes"] += size
    after = counters.snapshot().what_ifs
    assert after is not None
    found: Counter[tuple[int, PacketClass, str]] = Counter()
    for row in rows_of(after[0], before[0], "lo", limits):
        assert row.direction is direction
        found.update({(int(row.limit[6:]), row.packet_class, name): getattr(row, name) for name in row._fields[4:]})
    assert +found == +wanted


def test_each_packet_is_passed_or_stopped_by_each_limit(tap: Tap) -> None:
    """On a real tap: sums are what was offered, interval by interval and in the totals."""
    limits = [parse_what_if(text) for text in ("pps=499,burst=499", "rate=1gbit", "rate=8kbit,burst=97,charge=wire")]
    with forwarding(tap), Probe("tap0", directions=(OUT,), what_ifs=limits) as probe:
        flood([tap.fd], FRAMES, count=COUNT, seconds=20)
        *intervals, final = probe.readings(0.05, 0.15)
    assert [total(row for row in final.what_ifs if row.limit == limit.text).packets for limit in limits] == [COUNT] * 3
    for row in final.what_ifs:
        assert row.passed_packets + row.stopped_packets == final.offered(OUT, row.packet_class).packets
        assert row.passed_frame_bytes + row.stopped_frame_bytes == 101 * (row.passed_packets + row.stopped_packets)
        parts = [part for reading in intervals for part in reading.what_ifs if part[:4] == row[:4]]
        assert total(parts) == total([row])
    # A burst of 499 packets, and at most what a second brings; a gigabit is never reached by one writer's 101 bytes.
    by_packets, roomy, tight = ([row for row in final.what_ifs if row.limit == limit.text] for limit in limits)
    assert 499 <= total(by_packets).passed_packets <= 499 * (1 + final.duration_ns / 1e9) + 1
    assert total(roomy).stopped_packets == 0
    assert total(tight).passed_packets == 0  # 125 bytes on the wire are more than its burst


@pytest.fixture(params=["tc", "tracepoint"])
def way(request: pytest.FixtureRequest, tap: Tap, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a tap's packets are seen. Without tcx, a tap that has no qdisc is seen by the tracepoints anyway."""
    if request.param == "tc":
        return "tcx" if has_tcx(tap.ifindex) else "tracepoint"

    def no_hook(*_: object) -> None:
        raise NoHookError("as on a kernel without tcx")

    monkeypatch.setattr("vifprobe.session.components.has_tcx", lambda _: False)
    monkeypatch.setattr("vifprobe.session.tap_hooks.attach", no_hook)
    return "tracepoint"


@pytest.mark.parametrize("direction", Direction)
def test_eight_limits_beside_all_that_capture_asks_for(tap: Tap, way: str, direction: Direction) -> None:
    """With timeline, samples, SYN measures and a declared limit: the largest programs, and each packet as modelled."""
    limits = [parse_what_if(text) for text in EIGHT]
    declared = dict.fromkeys(Direction, Limit(8_000_000))
    with (
        neighbour(tap) as other,
        guest(tap),
        senders((tap if direction is OUT else other, COUNT, FIRST_CPU), frames=FRAMES) as writers,
        Probe("tap0", bin_ns=1_000_000, samples=20_011, limits=declared, what_ifs=limits) as probe,
    ):
        assert set(probe.hooks["tap0"].values()) == {way}
        final = watch_flood(probe, writers, checked=False).totals["tap0"]
        assert probe.take_samples().size > 0
    assert final.offered(direction).packets + final.missed == COUNT
    assert {len(frame) for frame in FRAMES} == {101}
    wanted: Counter[tuple[str, PacketClass, str]] = Counter()
    models = [(limit, TokenBucket(limit.bucket), COSTS[direction][limit.bucket.charge]) for limit in limits]
    for number in range(COUNT):
        kind = list(KINDS)[number % len(KINDS)]
        for limit, model, packet_cost in models:
            word = "passed" if model.conforms(0, packet_cost) else "stopped"
            wanted[limit.text, kind, f"{word}_packets"] += 1
            wanted[limit.text, kind, f"{word}_frame_bytes"] += 101
    found: Counter[tuple[str, PacketClass, str]] = Counter()
    for row in final.what_ifs:
        assert row.direction is direction
        found.update({(row.limit, row.packet_class, name): getattr(row, name) for name in row._fields[4:]})
    assert +found == +wanted


def test_capture_and_watch_tell_it(tap: Tap, tmp_path: Path) -> None:
    """whatif.csv, the summary, the loaded capture and JSON say the same of the same packets."""
    limit = "rate=8kbit,burst=997,charge=l2"
    with capturing(tmp_path, "--what-if", limit, "--direction", "outbound") as run:
        flood([tap.fd], [SYN + bytes(101 - len(SYN))], count=1009, seconds=20)
        summary = run.end()
    [row] = csv.DictReader((tmp_path / "capture" / "whatif.csv").open())
    assert (row["tap"], row["direction"], row["limit"], row["packet_class"]) == ("tap0", "outbound", limit, "tcp_syn")
    assert int(row["passed_packets"]) + int(row["stopped_packets"]) == 1009
    assert 9 <= int(row["passed_packets"]) < 200
    assert f"what if  {limit} stops " in summary
    [loaded] = load(tmp_path / "capture").reading().what_ifs
    assert [str(value) for value in loaded[4:]] == list(row.values())[4:]
    with watching(tmp_path, "--what-if", limit, "--direction", "outbound") as run:
        flood([tap.fd], [SYN + bytes(101 - len(SYN))], count=1009, seconds=20)
        lines = [json.loads(line) for line in run.end().splitlines()]
    [told] = lines[-1]["outbound"]["what_if"]
    assert told["limit"] == limit
    assert told["passed"]["packets"] + told["stopped"]["packets"] == 1009
    assert told["classes"]["tcp_syn"]["stopped"] == told["stopped"]
    assert lines[-1]["inbound"]["what_if"] == []
