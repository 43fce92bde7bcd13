# SPDX-License-Identifier: Apache-2.0
"""The ideal bucket beside an installed policer: its word counts within the bounds of what can be known, no further."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import accumulate

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from probe_kit import FIRST_CPU, LAST_CPU, OUT, SYN, Require, forwarding

from vifprobe.kernel import libbpf
from vifprobe.kernel.attach import attach, has_tcx
from vifprobe.kernel.features import read_features
from vifprobe.kernel.load import Programs
from vifprobe.kernel.settings import Settings, possible_cpus
from vifprobe.kernel.tables.counters import Counters
from vifprobe.model.layout import Bucket, Expected, TapTrait, Verdict
from vifprobe.model.reading import Limit, Reading
from vifprobe.session.probe import Probe
from vifprobe.testing.net.links import nft_ingress_limit
from vifprobe.testing.net.netns import private_netns
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.token_bucket import TokenBucket
from vifprobe.testing.traffic.flood import flood, writer

LLDP = b"\xff" * 12 + b"\x88\xcc"
START_NS = 1_000_000_007
#: skb->tstamp = the 8 bytes behind the L2 header; go on. Offsets: struct __sk_buff (76 data, 80 data_end, 152 tstamp).
TAKE_TIME = bytes.fromhex(
    "61124c0000000000 6113500000000000 bf24000000000000 0704000017000000 2d34020000000000 79250e0000000000"
    "7b51980000000000 b7000000ffffffff 9500000000000000"
)
#: Drop (TC_ACT_SHOT) where the byte behind those 8 is 1; else go on.
POLICE = bytes.fromhex(
    "61124c0000000000 6113500000000000 bf24000000000000 0704000017000000 2d34040000000000 7125160000000000"
    "5505020001000000 b700000002000000 9500000000000000 b7000000ffffffff 9500000000000000"
)
#: A gap before a packet (ns), its length, and whether the policer lets it pass.
PACKETS = st.lists(
    st.tuples(
        st.one_of(st.sampled_from([0, 1, 997, 40_000]), st.integers(0, 5_000_000)),
        st.integers(60, 1514),
        st.booleans(),
    ),
    min_size=1,
    max_size=101,
)
LIMITS = st.builds(Bucket, st.integers(1_000, 12_500_000_000), st.integers(61, 4_000_000))


@pytest.fixture(scope="module", params=[False, True], ids=["cmpxchg", "no_cmpxchg"])
def scripted(request: pytest.FixtureRequest, require: Require) -> Iterator[tuple[Programs, Counters, Tap]]:
    """A tap whose frames say when they come and whether a policer behind the programs drops them."""
    require("kernel", os.geteuid() == 0, "programs at tc need root")
    with ExitStack() as stack:
        stack.enter_context(private_netns())
        tap = stack.enter_context(make_tap("tap0"))
        require("kernel", has_tcx(tap.ifindex), "tcx (6.6), for programs ahead of and behind the probe's")
        own = Settings(cpus=possible_cpus(), tstamp_clock=True, no_cmpxchg=request.param)
        programs = Programs(own, read_features())
        stack.callback(programs.close)
        counters = Counters(programs)
        counters.watch(tap.ifindex, 0, int(TapTrait.LIMIT_OUTBOUND | TapTrait.TC_POLICER))
        programs.attach_verdicts()
        # Each goes to the head.
        for fd in (
            libbpf.load_tc_program("police", POLICE),
            programs.tc_program_fd(OUT),
            libbpf.load_tc_program("take_time", TAKE_TIME),
        ):
            stack.callback(attach(fd, tap.name, tap.ifindex, OUT, None).detach)
        yield programs, counters, tap


def grown(counters: Counters, before: dict[tuple[int, int], int]) -> dict[tuple[int, int], int]:
    """Packets by (expected, verdict) that came on top of `before`, which is brought up to date."""
    more = {}
    now: dict[tuple[int, int], int] = {}
    for row in counters.cells_now():
        key = (int(row["expected"]), int(row["verdict"]))
        now[key] = now.get(key, 0) + int(row["packets"])
    for key, packets in now.items():
        if packets != before.get(key, 0):
            more[key] = packets - before.get(key, 0)
    before.update(now)
    return more


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limit=LIMITS, packets=PACKETS)
def test_kernel_and_model_settle_each_packet_alike(
    scripted: tuple[Programs, Counters, Tap], limit: Bucket, packets: list[tuple[int, int, bool]]
) -> None:
    """Random arrivals, lengths, limits, and a policer that decides at random."""
    programs, counters, tap = scripted
    programs.set_bucket(0, OUT, limit)
    model = TokenBucket(limit)
    times = list(accumulate((gap for gap, _, _ in packets), initial=START_NS))[1:]
    before: dict[tuple[int, int], int] = {}
    grown(counters, before)
    for at_ns, (_, size, passes) in zip(times, packets, strict=True):
        head = LLDP + struct.pack("=QB", at_ns, not passes)
        tap.write(head + bytes(size - len(head)))
        # The stack drops what nobody takes: its verdict is known when the write returns.
        verdict = Verdict.DROPPED if passes else Verdict.POLICED
        charged = size - 14
        conforms = model.settle(at_ns, charged, model.conforms(at_ns, charged), verdict)
        wanted = Expected.CONFORM if conforms else Expected.EXCEED
        assert grown(counters, before) == {(int(wanted), int(verdict)): 1}


def frame_of(size: int) -> bytes:
    """A SYN of that many bytes."""
    return SYN + bytes(size - len(SYN))


@contextmanager
def judged(rate: int, burst: int, declared: int, sizes: list[int], before_seconds: float) -> Iterator[Reading]:
    """A flood behind nft's limit, which has the same bucket (nft_limit_eval): one second of its rate and the burst.

    before_seconds: how long it floods unwatched first.
    """
    with private_netns(), make_tap("tap0") as made, forwarding(made):
        nft_limit = nft_ingress_limit("tap0", rate_bytes_per_second=rate, burst_bytes=burst)
        limits = {OUT: Limit(declared_bps=8 * declared, burst_bytes=declared + burst)}
        frames = [frame_of(size) for size in sizes]
        # A writer of its own, so that reading and writing share no interpreter.
        with nft_limit, writer([made.fd], frames, count=10**7, seconds=1.0, cpu=FIRST_CPU) as writing:
            flood([made.fd], frames, count=10**7, seconds=before_seconds)
            with Probe("tap0", directions=(OUT,), limits=limits) as probe:
                writing.start()
                *_, final = probe.readings(0.5, 1.2)
                writing.wait()
        yield final


def crossed(reading: Reading) -> tuple[int, int]:
    bypass, overpoliced = reading.bypass(OUT), reading.overpoliced(OUT)
    assert bypass is not None
    assert overpoliced is not None
    return bypass.packets, overpoliced.packets


@pytest.mark.parametrize(
    ("rate", "burst", "sizes"),
    [
        (100_003, 40_009, [60]),
        (125_003, 10_007, [1514, 60]),
        (625_007, 100_003, [1514, 60, 60, 590]),
    ],
)
def test_a_correct_policer_is_neither_passed_by_nor_too_strict(rate: int, burst: int, sizes: list[int]) -> None:
    """Its bucket is nearly empty when the watch begins, at a moment that nothing tells: under 0.1 % disagree."""
    with judged(rate, burst, rate, sizes, before_seconds=1.5) as final:
        policed = final.counts(OUT, Verdict.POLICED)
        offered = final.offered(OUT).packets
        assert policed is not None
        assert policed.packets > offered // 5
        assert sum(crossed(final)) < offered / 1000


def test_a_policer_that_passes_a_tenth_too_much_is_seen() -> None:
    """Its excess is bypass: a tenth of what the limit would pass in the time of the flood."""
    declared, rate, charged = 100_000, 110_000, 46
    with judged(rate, 40_009, declared, [60], before_seconds=1.5) as final:
        bypass, overpoliced = crossed(final)
        seconds = final.duration_ns / 1e9
        assert overpoliced < final.offered(OUT).packets / 1000
    # What passed over the declared rate in about a second of flood: 10,000 bytes.
    assert 0.5 * (rate - declared) / charged < bypass < 1.05 * (rate - declared) * seconds / charged


def test_two_cpus_share_one_bucket(require: Require) -> None:
    """From two CPUs at once into a bucket that hardly fills: exactly what it holds conforms."""
    require("kernel", FIRST_CPU != LAST_CPU, "two CPUs")
    charged, holds, count = 46, 30_011, 40_009
    limits = {OUT: Limit(declared_bps=8, burst_bytes=holds * charged)}
    with private_netns(), make_tap("tap0", multi_queue=True, queues=2) as made, ExitStack() as stack:
        probe = stack.enter_context(Probe("tap0", directions=(OUT,), limits=limits))
        writers = [
            stack.enter_context(writer([fd], [frame_of(60)], count=count, seconds=20, cpu=cpu))
            for fd, cpu in zip(made.fds, (FIRST_CPU, LAST_CPU), strict=True)
        ]
        for writing in writers:
            writing.start()
        assert sum(writing.wait().frames for writing in writers) == 2 * count
        *_, final = probe.readings(0.05, 0.05)
    assert final.offered(OUT).packets == 2 * count
    assert int(final.where(OUT, expected=Expected.CONFORM)["packets"].sum()) == holds


@pytest.mark.parametrize("installed", [False, True], ids=["no policer", "behind a policer"])
def test_what_a_real_tap_saw_replayed_through_the_model(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    """Every packet of a flood is sampled: time of arrival, charged bytes, verdict, and what the bucket said of it."""
    rate, burst, count = 400_009, 40_009, 7_001
    limit = Bucket(rate, rate + burst if installed else burst)
    full_at_ns = time.monotonic_ns()
    with private_netns(), make_tap("tap0") as tap, ExitStack() as stack:
        stack.enter_context(forwarding(tap))
        if installed:
            stack.enter_context(nft_ingress_limit("tap0", rate_bytes_per_second=rate, burst_bytes=burst))
            flood([tap.fd], [frame_of(590)], count=2 * (rate + burst) // 590, seconds=20)
        programs = Programs(Settings(cpus=possible_cpus(), samples=True), read_features())
        stack.callback(programs.close)
        counters = Counters(programs)
        assert counters.samples is not None
        counters.samples.take_one_in(1)
        # The one clock reading of the loader: when the bucket was full.
        monkeypatch.setattr("vifprobe.kernel.load.time.monotonic_ns", lambda: full_at_ns)
        programs.set_bucket(0, OUT, limit)
        monkeypatch.undo()
        counters.watch(tap.ifindex, 0, int(TapTrait.LIMIT_OUTBOUND | TapTrait.NFT_POLICER * installed))
        programs.attach_verdicts()
        hook = attach(programs.tc_program_fd(OUT), tap.name, tap.ifindex, OUT, None)
        os.sched_setaffinity(0, {FIRST_CPU})  # one ring holds them
        flood([tap.fd], [frame_of(size) for size in (60, 60, 590, 1514)], count=count, seconds=20)
        os.sched_setaffinity(0, {FIRST_CPU, LAST_CPU})
        hook.detach()
        seen = counters.take_samples(final=True)
    assert len(seen) == count
    model, said = TokenBucket(limit, full_at_ns), []
    for row in seen:
        at_ns, charged = int(row["at_ns"]), int(row["charged_bytes"])
        verdict = Verdict(int(row["verdict"]))
        conforms = model.conforms(at_ns, charged)
        said.append(model.settle(at_ns, charged, conforms, verdict) if installed else conforms)
    assert [Expected.CONFORM if conforms else Expected.EXCEED for conforms in said] == seen["expected"].tolist()
    assert 0 < sum(said) < count
    assert (Verdict.POLICED in seen["verdict"]) == installed
