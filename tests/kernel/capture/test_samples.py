# SPDX-License-Identifier: Apache-2.0
"""Samples: the first of each kind, then one in M; unbiased, headers only, and what was lost is known."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from probe_kit import FIRST_CPU, OUT, SYN, KernelSide, kernel_side, on_cpu

from vifprobe.kernel import libbpf
from vifprobe.kernel.features import read_features, read_trace_fields
from vifprobe.kernel.load import Programs
from vifprobe.kernel.settings import SAMPLE_FIRST, Settings, possible_cpus
from vifprobe.kernel.tables.counters import Counters
from vifprobe.kernel.tables.samples import FIRST_MEAN, Samples
from vifprobe.model.layout import SAMPLE, SAMPLE_EAGER_LOOKS, PacketClass, SampleFlag, TapTrait, Verdict
from vifprobe.testing.net.links import nft_ingress_limit
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.packets import frames as f
from vifprobe.testing.traffic.flood import flood

Array = npt.NDArray[Any]
Kind = tuple[bytes, PacketClass, int, int]
PAYLOAD = b"secret!" * 30
OPTIONS = bytes.fromhex("020405b40402080a00000001000000000103030a")
#: Frame, its class, how many bytes of it are headers, and what is beside the bytes.
KINDS: tuple[Kind, ...] = (
    (SYN, PacketClass.TCP_SYN, 54, 0),
    (f.eth(f.ipv4(f.tcp(f.TcpFlag.SYN, options=OPTIONS)), f.EtherType.IPV4), PacketClass.TCP_SYN, 74, 0),
    (f.eth(f.ipv4(f.tcp(f.TcpFlag.ACK, PAYLOAD)), f.EtherType.IPV4), PacketClass.TCP_DATA, 54, 0),
    (f.eth(f.ipv4(f.tcp(f.TcpFlag.ACK)), f.EtherType.IPV4), PacketClass.TCP_ACK, 54, 0),
    (f.eth(f.ipv4(f.udp(PAYLOAD), options=b"\1" * 8), f.EtherType.IPV4), PacketClass.UDP, 50, 0),
    (f.eth(f.ipv6(f.udp(PAYLOAD)), f.EtherType.IPV6), PacketClass.UDP, 62, 0),
    (f.eth(f.ipv4(f.icmp(PAYLOAD)), f.EtherType.IPV4), PacketClass.ICMP, 42, 0),
    (f.eth(f.ipv6(f.icmpv6(PAYLOAD)), f.EtherType.IPV6), PacketClass.ICMPV6, 62, 0),
    (f.eth(f.ipv4(f.udp(PAYLOAD), offset=5), f.EtherType.IPV4), PacketClass.FRAGMENT, 34, 0),
    (f.eth(f.ipv4(f.raw(f.Protocol.GRE, PAYLOAD)), f.EtherType.IPV4), PacketClass.IP_OTHER, 34, 0),
    (f.pad(f.eth(f.arp(), f.EtherType.ARP), filler=b"!"), PacketClass.ARP, 42, 0),
    (f.eth(PAYLOAD, f.EtherType.LLDP), PacketClass.OTHER, 14, 0),
)
TAGGED: tuple[Kind, ...] = (
    (f.vlan(SYN, vid=2003, pcp=5), PacketClass.TCP_SYN, 54, SampleFlag.TAGGED),
    (f.qinq(SYN), PacketClass.TCP_SYN, 58, SampleFlag.TAGGED | SampleFlag.SERVICE_TAG),
)


@pytest.fixture(scope="module", params=["tc", "tracepoint"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def class_counts(rows: Array) -> dict[tuple[PacketClass, Verdict], int]:
    """How many samples there are of each class and verdict."""
    keys, counts = np.unique(rows[["packet_class", "verdict"]], return_counts=True)
    return {(PacketClass(key[0]), Verdict(key[1])): int(count) for key, count in zip(keys, counts, strict=True)}


@contextmanager
def sampling(tap: Tap, one_in: int, traits: int = 0) -> Iterator[KernelSide]:
    with kernel_side(tap, Settings(cpus=possible_cpus(), samples=True)) as side:
        side.counters.watch(tap.ifindex, 0, traits)
        reader(side).take_one_in(one_in)
        yield side


def reader(side: KernelSide) -> Samples:
    assert side.counters.samples is not None
    return side.counters.samples


@contextmanager
def observed(tap: Tap, way: str) -> Iterator[KernelSide]:
    """One in one, by the tc program or by the tracepoints."""
    if way == "tc":
        with sampling(tap, 1) as side:
            yield side
        return
    with ExitStack() as stack:
        programs = Programs(Settings(cpus=possible_cpus(), samples=True, trace=read_trace_fields()), read_features())
        stack.callback(programs.close)
        side = KernelSide(programs, Counters(programs))
        stack.callback(side.counters.close)
        side.counters.watch(tap.ifindex, 0, TapTrait.TRACED_OUTBOUND)
        reader(side).take_one_in(1)
        programs.attach_verdicts()
        programs.attach_tracepoints()
        stack.callback(programs.detach_tracepoints)
        yield side


def by_kind(cells: Array) -> dict[tuple[PacketClass, Verdict], int]:
    """Packets of each class and verdict in exact cells."""
    found: dict[tuple[PacketClass, Verdict], int] = {}
    for cell in cells:
        key = PacketClass(cell["packet_class"]), Verdict(cell["verdict"])
        found[key] = found.get(key, 0) + int(cell["packets"])
    return found


def weighted(samples: Array) -> dict[tuple[PacketClass, Verdict], int]:
    found: dict[tuple[PacketClass, Verdict], int] = {}
    for one in samples:
        key = PacketClass(one["packet_class"]), Verdict(one["verdict"])
        found[key] = found.get(key, 0) + int(one["weight"])
    return found


def test_headers_and_never_payload(tap: Tap, way: str) -> None:
    """One in one: each frame gives one record with its headers, byte for byte, and nothing of what follows them."""
    with observed(tap, way) as side, on_cpu(FIRST_CPU):
        for frame, *_ in (*KINDS, *TAGGED):
            os.write(tap.fd, frame)
        samples = side.counters.take_samples(final=True)
        assert len(samples) == len(KINDS) + len(TAGGED) == reader(side).packets().sum()
        assert (np.diff(samples["at_ns"]) > 0).all()
        assert samples["gap_ns"].tolist() == [-1, *np.diff(samples["at_ns"]).tolist()]
        assert (samples["weight"] == 1).all()
        for one, (frame, packet_class, header_bytes, flags) in zip(samples, (*KINDS, *TAGGED), strict=True):
            wanted = frame if not flags else frame[:12] + frame[16:]
            assert one["packet_class"] == packet_class
            assert one["frame_bytes"] == len(wanted)
            assert one["charged_bytes"] == len(wanted) - 14
            assert one["header_bytes"] == header_bytes
            assert one["headers"].tobytes() == wanted[:header_bytes].ljust(128, b"\0")
            assert one["flags"] == flags
            assert one["vlan_tci"] == (int.from_bytes(frame[14:16], "big") if flags else 0)


def mixed(number: int) -> Sequence[bytes]:
    """Frames in an order without a period that M could fall in step with; classes of very different shares."""
    others = len(KINDS) - 1
    order = np.random.default_rng(number).choice(len(KINDS), 10_007, p=[0.5, *[0.5 / others] * others])
    return [KINDS[place][0] for place in order]


@pytest.mark.parametrize("one_in", [7, 64])
def test_weighted_sums_are_the_exact_counts(tap: Tap, one_in: int) -> None:
    """Each class and verdict of a mixed flood behind a limit, within five standard deviations of one in M."""
    with (
        nft_ingress_limit(tap.name, rate_bytes_per_second=1_000_003, burst_bytes=40_009),
        sampling(tap, one_in, TapTrait.NFT_POLICER) as side,
    ):
        parts = []
        for number in range(8):
            flood([tap.fd], mixed(number), count=20_011, seconds=30)
            parts.append(side.counters.take_samples())
        parts.append(side.counters.take_samples(final=True))
        samples, cells = np.concatenate(parts), side.counters.snapshot().cells
        assert side.counters.lost_samples == 0
        assert reader(side).packets().sum() == 8 * 20_011
        exact, told = by_kind(cells), weighted(samples)
        assert {verdict for _, verdict in exact} >= {Verdict.POLICED, Verdict.DROPPED}
        for kind, packets in exact.items():
            # A binomial count k of n at 1/M, times M: variance n (M - 1); the first ones are exact.
            bound = 5 * np.sqrt(packets * (one_in - 1)) + 1
            assert abs(told.get(kind, 0) - packets) <= bound, (kind, told, packets)
        # The sum of all varies less than that: intervals are uniform, variance n (2M - 1)^2 / 12 M.
        total = sum(told.values()) - 8 * 20_011
        assert abs(total) <= 5 * np.sqrt(8 * 20_011 * one_in / 3) + 2 * one_in


def test_the_first_of_each_kind(tap: Tap) -> None:
    """However rare the draw is, the first 16 of each class and verdict on a CPU are there, and stand for themselves."""
    with (
        nft_ingress_limit(tap.name, rate_bytes_per_second=1_000, burst_bytes=40_009),
        sampling(tap, 1 << 20, TapTrait.NFT_POLICER) as side,
        on_cpu(FIRST_CPU),
    ):
        rounds = 500
        flood([tap.fd], [frame for frame, *_ in KINDS], count=rounds * len(KINDS), seconds=30)
        samples = side.counters.take_samples(final=True)
        counts = class_counts(samples[samples["weight"] == 1])
        exact = by_kind(side.counters.snapshot().cells)
        assert len(exact) > len({kind for _, kind, *_ in KINDS})
        # Below that many of a class, none is passed over.
        assert max(exact.values()) < SAMPLE_EAGER_LOOKS
        assert counts == {kind: min(packets, SAMPLE_FIRST) for kind, packets in exact.items()}


def test_a_verdict_that_comes_late_is_seen_all_the_same(tap: Tap) -> None:
    """Long after a class's eager looks are used up, its first policed ones are among the first of a kind."""
    with sampling(tap, 1 << 20, TapTrait.NFT_POLICER) as side, on_cpu(FIRST_CPU):
        flood([tap.fd], [SYN], count=20_011, seconds=30)
        assert set(class_counts(side.counters.take_samples())) == {(PacketClass.TCP_SYN, Verdict.DROPPED)}
        with nft_ingress_limit(tap.name, rate_bytes_per_second=1_000, burst_bytes=1_000):
            flood([tap.fd], [SYN], count=20_011, seconds=30)
            samples = side.counters.take_samples()
            first = class_counts(samples[samples["weight"] == 1])
            assert first == {(PacketClass.TCP_SYN, Verdict.POLICED): SAMPLE_FIRST}


def test_what_was_written_over_is_counted(tap: Tap) -> None:
    """Nobody reads while the ring of a CPU goes round: the newest are there, the others are counted as lost."""
    with sampling(tap, 1) as side, on_cpu(FIRST_CPU):
        places, count = side.programs.settings.samples_per_cpu, 20_011
        assert places < count
        flood([tap.fd], [SYN], count=count, seconds=30)
        samples = side.counters.take_samples(final=True)
        # The oldest place is the next one to be written to.
        assert len(samples) == places - 1
        assert side.counters.lost_samples == count - len(samples)
        assert (np.diff(samples["at_ns"]) >= 0).all()


def test_an_onset_that_nobody_reads_loses_nothing(tap: Tap) -> None:
    """A slow sender, of which each packet is taken, becomes a flood: fewer and fewer are, and sums stay right."""
    with kernel_side(tap, Settings(cpus=possible_cpus(), samples=True)) as side, on_cpu(FIRST_CPU):
        flood([tap.fd], [SYN], count=29, seconds=5, packets_per_second=300)
        side.counters.take_samples()
        assert reader(side).means()[0, OUT] == 1
        places, before = side.programs.settings.samples_per_cpu, int(reader(side).packets().sum())
        flood([tap.fd], [SYN], count=200_003, seconds=30)
        samples = side.counters.take_samples()
        assert side.counters.lost_samples == 0
        weights = samples["weight"].astype(np.int64)
        assert places / 2 < len(weights) < places
        assert set(weights) >= {1, 4, 16}
        # Intervals are uniform: variance n M / 3 of n packets drawn one in M; and up to two intervals at the end.
        told, bound = weights.sum(), 5 * np.sqrt((weights**2).sum() / 3) + 2 * weights[-1]
        assert abs(told - (reader(side).packets().sum() - before)) < bound


def test_a_mean_that_the_kernel_side_raises_leaves_sums_unbiased(netns: Netns) -> None:
    """Hundreds of onsets: what is off by chance in each is not off on average, however often it was raised."""
    with ExitStack() as stack, on_cpu(FIRST_CPU):
        programs = Programs(Settings(cpus=possible_cpus(), samples=True), read_features())
        stack.callback(programs.close)
        counters = Counters(programs)
        stack.callback(counters.close)
        counters.watch(1, 0, 0)  # the ifindex that TEST_RUN gives its packets
        fd, samplers = programs.tc_program_fd(OUT), programs.table("tap_cpu_states", writable=True)["sampler"]
        libbpf.test_run(fd, SYN, repeat=5_003)  # what is sampled first is behind us
        counters.take_samples()
        errors = []
        for number in range(300):
            samplers["raises"], samplers["mean"] = 0, 1
            count = programs.settings.samples_per_cpu + (811, 13_001, 0)[number % 3]
            libbpf.test_run(fd, SYN, repeat=count)
            assert samplers["mean"].max() > 1
            errors.append(int(counters.take_samples()["weight"].sum()) - count)
        assert counters.lost_samples == 0
        assert abs(np.mean(errors)) < 5 * np.std(errors) / np.sqrt(len(errors))
        assert np.std(errors) < 1_000


def test_the_rate_is_adapted(tap: Tap) -> None:
    """A flood raises M to what is wanted, a slow sender gets each of its packets sampled."""
    with kernel_side(tap, Settings(cpus=possible_cpus(), samples=True)) as side, on_cpu(FIRST_CPU):
        own = reader(side)
        own.per_second = 1_000
        assert own.means()[0, OUT] == FIRST_MEAN
        side.counters.take_samples()
        begun = time.monotonic()
        done = flood([tap.fd], [SYN], count=50_021, seconds=30)
        side.counters.take_samples()
        # On a loaded machine, some time passes before and after the flood.
        least = done.frames / (time.monotonic() - begun)
        assert least / 1_000 / 2 < own.means()[0, OUT] < done.frames_per_second / 1_000 * 4
        flood([tap.fd], [SYN], count=7, seconds=5, packets_per_second=100)
        side.counters.take_samples()
        assert own.means()[0, OUT] == 1
        flood([tap.fd], [SYN], count=101, seconds=30)
        assert len(side.counters.take_samples(final=True)) == 101


def test_off_is_off(tap: Tap) -> None:
    """Without it in the settings there is no ring, and nothing to take."""
    with kernel_side(tap) as side:
        os.write(tap.fd, SYN)
        assert side.counters.take_samples(final=True).dtype == SAMPLE
        assert len(side.counters.take_samples()) == side.counters.lost_samples == 0
        assert side.counters.samples is None
        with pytest.raises(StopIteration):
            side.programs.table("samples")
