# SPDX-License-Identifier: Apache-2.0
"""What the dearest frame that a guest can send costs, beside a plain one: in the programs alone, as bpf_stats has it.

Every frame of the packet table and of a fuzzed corpus, and some that are made to be dear, are written to a tap that
has an nft limit, beside a chain of the IP stack. All in turn, over and over; then the plain frame and the dearest ones
again, more often.
"""

from __future__ import annotations

import os
import statistics
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import cycle, islice

from bench_stats import median_interval
from bench_variant import EXIT

from vifprobe.kernel.attach import attach, load_empty
from vifprobe.kernel.build import Programs
from vifprobe.kernel.counters import Counters
from vifprobe.kernel.features import read_features, read_trace_fields
from vifprobe.kernel.libbpf import attach_typed_tracepoint, library, load_typed_tracepoint, object_info
from vifprobe.kernel.settings import Settings, possible_cpus
from vifprobe.layout import EXTENSION_HEADERS_MAX, Bucket, Direction, TapTrait
from vifprobe.testing import extensions, frames, syns
from vifprobe.testing.case import Run
from vifprobe.testing.frames import EtherType
from vifprobe.testing.fuzz import corpus
from vifprobe.testing.links import nft_chain, nft_ingress_limit
from vifprobe.testing.table import CASES
from vifprobe.testing.taps import Tap, private_netns, tap

NUMBER = 50  # the tap's: what tc charges for a frame of 64 bytes
FRAME_BYTES = NUMBER + frames.ETH_HEADER_BYTES
LONGEST_BYTES = 9_000  # of the frames that are tried out: longer ones cost more to write, not to watch
WRITES, FIRST_WRITES = 64, 4  # of a frame in a round, and before them, with cold caches
CORPUS = 400
SEED = 1
DEAREST = 24  # are measured again ...
AGAIN = 5  # ... with so many times the rounds
PAGE_BYTES = 4096
LIMIT = Bucket(100_000, 110_000)
_OUT = Direction.OUTBOUND
# struct bpf_prog_info: run_time_ns, run_cnt (include/uapi/linux/bpf.h)
_RUNS = struct.Struct("=QQ")
_RUNS_OFFSET = 192


@dataclass
class Sent:
    """What is written in turn, and the nanoseconds a frame that it cost in each round."""

    name: str
    packets: Sequence[bytes]
    ns: list[float] = field(default_factory=list)

    @property
    def median_ns(self) -> float:
        """Of all rounds."""
        return statistics.median(self.ns)


@dataclass(frozen=True)
class Way:
    """A way of watching: what the programs are made for, and what they are told of the tap."""

    name: str
    settings: Settings
    traits: TapTrait


def measure(rounds: int) -> None:
    """Print a line for each way of watching."""
    stats = library().bpf_enable_stats(0)  # BPF_STATS_RUN_TIME, as long as the fd is open
    if stats < 0:
        raise SystemExit("The kernel does not count the time of BPF programs (before 5.8, or not permitted).")
    print(f"the programs alone, of frames behind an nft limit, with an IP chain behind it ({rounds} rounds)")
    print(f"{'watching':12s} {'plain ns':>8s} {'dearest':>8s} {'95 %':>13s} {'ratio':>6s}  dearest frame")
    try:
        for way in _ways():
            with _scene() as on:
                _print(way.name, _measure(on, way, rounds))
    finally:
        os.close(stats)


def _print(name: str, found: list[Sent]) -> None:
    plain, others = found[0], sorted(found[1:], key=lambda sent: sent.median_ns, reverse=True)
    low, middle, high = median_interval(others[0].ns)
    ratio = middle / plain.median_ns
    print(f"{name:12s} {plain.median_ns:8.0f} {middle:8.0f} {low:6.0f} {high:6.0f} {ratio:5.1f}x  {others[0].name}")
    for sent in others[1:14]:
        print(f"{'':12s} {'':8s} {sent.median_ns:8.0f} {'':13s} {sent.median_ns / plain.median_ns:5.1f}x  {sent.name}")


def _ways() -> Iterator[Way]:
    counts = Settings(cpus=possible_cpus())
    shared = TapTrait.NFT_POLICER | TapTrait.NFT_SHARED
    deep = replace(counts, bin_ns=10_000_000, samples=True, syn=True)
    yield Way("watch", counts, shared)
    yield Way("all", deep, shared | TapTrait.LIMIT_OUTBOUND)
    trace = read_trace_fields()
    yield Way("tracepoint", replace(counts, trace=trace), TapTrait.NFT_POLICER | TapTrait.TRACED_OUTBOUND)
    every = TapTrait.NFT_POLICER | TapTrait.TRACED_OUTBOUND | TapTrait.LIMIT_OUTBOUND
    yield Way("the same, all", replace(deep, trace=trace), every)


@contextmanager
def _scene() -> Iterator[Tap]:
    with (
        private_netns(),
        tap("tap0", vnet_hdr=True, ifindex=NUMBER) as on,
        nft_chain("inet", "prerouting"),
        nft_ingress_limit(on.name, rate_bytes_per_second=10_000, burst_bytes=10_000),
    ):
        yield on


def _measure(on: Tap, way: Way, rounds: int) -> list[Sent]:
    """The plain frame first."""
    table = list(_table(on))
    with _empty(on, way) as fds:
        for _ in range(rounds):
            _round(on, table[:1], fds, 0)
    empty_ns = table[0].median_ns / len(fds)
    table[0].ns.clear()
    with _attached(on, way) as fds:
        for _ in range(rounds):
            _round(on, table, fds, empty_ns)
        dearest = sorted(table[1:], key=lambda sent: sent.median_ns)[-DEAREST:]
        again = [Sent(sent.name, sent.packets) for sent in (table[0], *dearest)]
        for _ in range(rounds * AGAIN):
            _round(on, again, fds, empty_ns)
    return again


def _round(on: Tap, table: Sequence[Sent], fds: Sequence[int], empty_ns: float) -> None:
    """empty_ns: what a run of an empty program is said to take."""
    for sent in table:
        packets = cycle(sent.packets)
        _write(on, islice(packets, FIRST_WRITES))
        ns, runs = _spent(fds)
        _write(on, islice(packets, WRITES))
        later_ns, later_runs = _spent(fds)
        sent.ns.append((later_ns - ns - (later_runs - runs) * empty_ns) / WRITES)


def _write(on: Tap, packets: Iterator[bytes]) -> None:
    write, fd = os.write, on.fd
    for packet in packets:
        write(fd, packet)


def _spent(fds: Sequence[int]) -> tuple[int, int]:
    """Nanoseconds and runs of all programs, ever."""
    each = [_RUNS.unpack_from(object_info(fd), _RUNS_OFFSET) for fd in fds]
    return sum(ns for ns, _ in each), sum(runs for _, runs in each)


@contextmanager
def _empty(on: Tap, way: Way) -> Iterator[tuple[int, ...]]:
    """Empty programs where those of the way hang."""
    points = [("kfree_skb", read_features().kfree_skb_btf_id)]
    if way.settings.trace is not None:
        points.append(("netif_receive_skb", way.settings.trace.btf_ids["netif_receive_skb"]))
    with ExitStack() as stack:
        fds = []
        for _, point in points:
            fds.append(load_typed_tracepoint("vifprobe_empty", EXIT, point))
            stack.callback(os.close, attach_typed_tracepoint(fds[-1]))
        if way.settings.trace is None:
            fds.append(load_empty())
            stack.callback(attach(fds[-1], on.name, on.ifindex, _OUT, None).detach)
        yield tuple(fds)
        for fd in fds:
            stack.callback(os.close, fd)


@contextmanager
def _attached(on: Tap, way: Way) -> Iterator[tuple[int, ...]]:
    """The programs as `watch` attaches them outbound."""
    programs = Programs(way.settings, read_features())
    with ExitStack() as stack:
        stack.callback(programs.close)
        if way.traits & TapTrait.LIMIT_OUTBOUND:
            programs.set_bucket(0, _OUT, LIMIT)
        Counters(programs).watch(on.ifindex, 0, int(way.traits))
        programs.attach_verdicts()
        if way.settings.trace is not None:
            programs.attach_tracepoints()
        else:
            stack.callback(attach(programs.tc_program_fd(_OUT), on.name, on.ifindex, _OUT, None).detach)
        yield tuple(fd for name, fd in programs.named() if name != "trace_inbound")


def _table(on: Tap) -> Iterator[Sent]:
    yield Sent("a UDP packet of 60 bytes", [on.packet(_udp(60))])
    yield Sent(f"the tap's number is what is charged, IPv4, {FRAME_BYTES} bytes", [on.packet(_udp(FRAME_BYTES))])
    six = frames.pad(frames.eth(frames.ipv6(frames.udp()), EtherType.IPV6), FRAME_BYTES)[:FRAME_BYTES]
    yield Sent("the same, IPv6", [on.packet(six)])
    yield Sent("SYNs, each from another address", [on.packet(frames.pad(one)) for one in syns.spoofed(2 * WRITES)])
    yield Sent("SYNs over IPv6, each from another address", [on.packet(one) for one in syns.spoofed_v6(2 * WRITES)])
    yield Sent("another size each time", [on.packet(_udp(size)) for size in range(60, 1500, 23)])
    yield Sent("a tag that ends with the frame", [on.packet(_udp(60)[:12] + bytes.fromhex("81000007"))])
    yield from _scattered(on)
    for case in CASES:
        if case.runs(Run.TAP) and len(case.frame) <= LONGEST_BYTES:
            yield Sent(f"table: {case.name}", [case.packet(on)])
    made = [on.packet(frame) for frame in corpus(SEED, CORPUS)]
    yield Sent("the fuzzed corpus in turn", made)
    for number, packet in enumerate(made):
        yield Sent(f"corpus: {number}", [packet])


def _scattered(on: Tap) -> Iterator[Sent]:
    """Headers outside the skb's linear part."""
    long = bytes(2 * PAGE_BYTES)
    chain = frames.udp(long)
    for _ in range(EXTENSION_HEADERS_MAX):
        chain = extensions.destination_options(chain)
    for name, frame in (
        ("UDP", frames.eth(frames.ipv4(frames.udp(long)), EtherType.IPV4)),
        ("TCP over IPv6", frames.eth(frames.ipv6(frames.tcp(frames.TcpFlag.SYN, long)), EtherType.IPV6)),
        ("extension headers up to the bound", frames.eth(frames.ipv6(chain), EtherType.IPV6)),
    ):
        yield Sent(f"headers outside the linear part: {name}", [on.packet(frame, linear_bytes=14)])


def _udp(size: int) -> bytes:
    return frames.eth(frames.ipv4(frames.udp(bytes(size - 42))), EtherType.IPV4)
