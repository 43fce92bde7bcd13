# SPDX-License-Identifier: Apache-2.0
"""What the most expensive frame that a guest can send costs, beside a plain one.

Every frame of the packet table and of a fuzzed corpus, and some that are made to be dear, are written to a tap that
has an nft limit, beside a chain of the IP stack. All in turn, over and over; then the plain frame and the dearest ones
again, more often. A frame's cost is what empty programs in the same places add to a plain one, in CPU time, and what
the programs take beyond empty ones, as bpf_stats has it.

Inbound, one guest sends the same frames through a bridge to another guest that is watched and does not read: its ring
is full, and the driver drops them, which costs most.
"""

from __future__ import annotations

import os
import statistics
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import cycle, islice

from bench_stats import median_interval
from bench_variant import EXIT

from vifprobe.kernel.attach import attach, load_empty
from vifprobe.kernel.features import read_features, read_trace_fields
from vifprobe.kernel.libbpf import attach_typed_tracepoint, library, load_typed_tracepoint, object_info
from vifprobe.kernel.load import Programs
from vifprobe.kernel.settings import Settings, possible_cpus
from vifprobe.kernel.tables.counters import Counters
from vifprobe.model.layout import EXTENSION_HEADERS_MAX, EXTENSION_REACH_BYTES, Bucket, Direction, TapTrait
from vifprobe.testing.net.links import bridge_with, nft_chain, nft_ingress_limit
from vifprobe.testing.net.taps import Tap, private_netns, tap
from vifprobe.testing.packets import extensions, frames, syns
from vifprobe.testing.packets.case import Run
from vifprobe.testing.packets.frames import EtherType
from vifprobe.testing.packets.fuzz import corpus
from vifprobe.testing.packets.table import CASES
from vifprobe.testing.traffic.scenario import forwarded

NUMBER = 50  # the tap's: what tc charges for a frame of 64 bytes
FRAME_BYTES = NUMBER + frames.ETH_HEADER_BYTES
LONGEST_BYTES = 9_000  # of the frames that are tried out: longer ones cost more to write, not to watch
PLAIN_WRITES = 2_000
WRITES, FIRST_WRITES = 64, 4  # of a frame in a round, and before them, with cold caches
CORPUS = 400
SEED = 1
MOST_EXPENSIVE = 24  # of each kind are measured again ...
AGAIN = 5  # ... with so many times the rounds
PAGE_BYTES = 4096
LIMIT = Bucket(100_000, 110_000)
# struct bpf_prog_info: run_time_ns, run_cnt (include/uapi/linux/bpf.h)
_RUNS = struct.Struct("=QQ")
_RUNS_OFFSET = 192


@dataclass
class Sent:
    """What is written in turn, and the nanoseconds a frame that it cost in each round."""

    name: str
    packets: Sequence[bytes]
    scattered: bool = False  # headers outside the skb's linear part
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
    passes: bool = False
    full: bool = False  # no cell is left; others' handshakes and packets in flight have all places
    direction: Direction = Direction.OUTBOUND

    @property
    def points(self) -> list[tuple[str, int]]:
        """Tracepoints of its programs, and their BTF ids."""
        points = [("kfree_skb", read_features().kfree_skb_btf_id)]
        if self.settings.trace is not None:
            points.append(("netif_receive_skb", self.settings.trace.btf_ids["netif_receive_skb"]))
        if self.settings.follow is not None:
            points += [(name, self.settings.follow.btf_ids[name]) for name in ("net_dev_start_xmit", "net_dev_xmit")]
        return points


@dataclass(frozen=True)
class Scene:
    """The tap that frames are written to, and the watched one: the same, or behind a bridge."""

    sender: Tap
    watched: Tap


def measure(rounds: int) -> None:
    """Print a line for each way of watching."""
    print(f"frames of a guest, {rounds} rounds: nanoseconds that watching adds to each")
    print(f"{'watching':22s} {'plain':>5s} {'most':>5s} {'95 %':>9s} {'ratio':>6s}  the most expensive frame")
    for way in _ways():
        with _scene(way) as scene:
            _print(way.name, _measure(scene, way, rounds))


@contextmanager
def _counted_time() -> Iterator[None]:
    """The kernel counts its programs' time, which makes each run slower."""
    stats = library().bpf_enable_stats(0)  # BPF_STATS_RUN_TIME, as long as the fd is open
    if stats < 0:
        raise SystemExit("The kernel does not count the time of BPF programs (before 5.8, or not permitted).")
    try:
        yield
    finally:
        os.close(stats)


def _print(name: str, found: tuple[float, list[Sent]]) -> None:
    empty_ns, (plain, *others) = found
    plain_ns = empty_ns + plain.median_ns
    for scattered in (False, True):
        most = max((sent for sent in others if sent.scattered == scattered), key=lambda sent: sent.median_ns)
        low, middle, high = (empty_ns + ns for ns in median_interval(most.ns))
        line = f"{middle:5.0f} {low:4.0f} {high:4.0f} {middle / plain_ns:5.1f}x  {most.name}"
        print(f"{'':22s} {'':5s} {line}" if scattered else f"{name:22s} {plain_ns:5.0f} {line}")


def _ways() -> Iterator[Way]:
    counts, trace = Settings(cpus=possible_cpus()), read_trace_fields()
    deep = replace(counts, bin_ns=10_000_000, samples=True, syn=True)
    policed = TapTrait.NFT_POLICER | TapTrait.NFT_SHARED
    traced = TapTrait.NFT_POLICER | TapTrait.TRACED_OUTBOUND
    yield Way("watch, policed", counts, policed)
    yield Way("watch, passed", counts, TapTrait(0), passes=True)
    yield Way("watch 200 taps, policed", replace(counts, taps=200), policed)
    yield Way("all, policed", deep, policed | TapTrait.LIMIT_OUTBOUND)
    yield Way("all, passed", deep, TapTrait.LIMIT_OUTBOUND, passes=True)
    yield Way("8 what-ifs, policed", replace(counts, what_ifs=8), policed)
    yield Way("all, tables full", replace(deep, what_ifs=8), policed | TapTrait.LIMIT_OUTBOUND, full=True)
    yield Way("tracepoint, policed", replace(counts, trace=trace), traced)
    yield Way("tracepoint, all", replace(deep, trace=trace), traced | TapTrait.LIMIT_OUTBOUND)
    followed, limited = replace(deep, follow=trace, what_ifs=8), TapTrait.INBOUND | TapTrait.LIMIT_INBOUND
    yield Way("inbound", replace(counts, follow=trace), TapTrait.INBOUND, direction=Direction.INBOUND)
    yield Way("inbound, all", replace(deep, follow=trace), limited, direction=Direction.INBOUND)
    yield Way("inbound, tables full", followed, limited, full=True, direction=Direction.INBOUND)


@contextmanager
def _scene(way: Way) -> Iterator[Scene]:
    with private_netns(), tap("tap0", vnet_hdr=True, ifindex=NUMBER) as on, ExitStack() as stack:
        if way.direction is Direction.INBOUND:
            sender = stack.enter_context(tap("tap9", vnet_hdr=True))
            stack.enter_context(bridge_with(on, sender))
            yield Scene(sender, on)
            return
        if way.passes:
            stack.enter_context(forwarded(on))
        else:
            stack.enter_context(nft_chain("inet", "prerouting"))
            stack.enter_context(nft_ingress_limit(on.name, rate_bytes_per_second=10_000, burst_bytes=10_000))
        yield Scene(on, on)


def _measure(scene: Scene, way: Way, rounds: int) -> tuple[float, list[Sent]]:
    """What empty programs add to a plain frame; the plain frame and the most expensive ones."""
    table = list(_table(scene.sender))
    added_ns = []
    for _ in range(rounds * AGAIN):
        before = _written_ns(scene.sender, table[0])
        with _empty(scene.watched, way):
            inside = _written_ns(scene.sender, table[0])
        added_ns.append(inside - (before + _written_ns(scene.sender, table[0])) / 2)
    with _empty(scene.watched, way) as fds, _counted_time():
        ran_ns = []
        for _ in range(rounds * AGAIN):
            spent = _spent(fds)
            _write(scene.sender, islice(cycle(table[0].packets), WRITES))
            ns, runs = _since(spent, _spent(fds))
            ran_ns.append(sum(ns) / sum(runs))
    empty_ns = statistics.median(ran_ns)
    with _attached(scene.watched, way) as fds, _counted_time():
        for _ in range(rounds):
            _round(scene.sender, table, fds, empty_ns)
        again = [Sent(sent.name, sent.packets, sent.scattered) for sent in (table[0], *_most_expensive(table[1:]))]
        for _ in range(rounds * AGAIN):
            _round(scene.sender, again, fds, empty_ns)
    return statistics.median(added_ns), again


def _most_expensive(table: list[Sent]) -> Iterator[Sent]:
    for scattered in (False, True):
        of_kind = [sent for sent in table if sent.scattered == scattered]
        yield from sorted(of_kind, key=lambda sent: sent.median_ns)[-MOST_EXPENSIVE:]


def _written_ns(on: Tap, sent: Sent) -> float:
    """Nanoseconds of this thread a frame, the programs' and the kernel's."""
    packets = cycle(sent.packets)
    _write(on, islice(packets, PLAIN_WRITES // 4))
    begun = time.thread_time_ns()
    _write(on, islice(packets, PLAIN_WRITES))
    return (time.thread_time_ns() - begun) / PLAIN_WRITES


def _round(on: Tap, table: Sequence[Sent], fds: Sequence[int], empty_ns: float) -> None:
    """empty_ns: what a run of an empty program is said to take."""
    for sent in table:
        packets = cycle(sent.packets)
        _write(on, islice(packets, FIRST_WRITES))
        before = _spent(fds)
        _write(on, islice(packets, WRITES))
        ns, runs = _since(before, _spent(fds))
        # The kernel splits some frames on their way: each part is a packet. One program or two run for the whole frame.
        split = max(WRITES, statistics.median(runs))
        sent.ns.append((sum(ns) - sum(runs) * empty_ns) / split)


def _write(on: Tap, packets: Iterator[bytes]) -> None:
    write, fd = os.write, on.fd
    for packet in packets:
        write(fd, packet)


_Spent = list[tuple[int, int]]


def _spent(fds: Sequence[int]) -> _Spent:
    """Nanoseconds and runs of each program, ever."""
    return [_RUNS.unpack_from(object_info(fd), _RUNS_OFFSET) for fd in fds]


def _since(before: _Spent, after: _Spent) -> tuple[list[int], list[int]]:
    """Nanoseconds, and runs, of each program in between."""
    ns = [late - early for (early, _), (late, _) in zip(before, after, strict=True)]
    return ns, [late - early for (_, early), (_, late) in zip(before, after, strict=True)]


@contextmanager
def _empty(on: Tap, way: Way) -> Iterator[tuple[int, ...]]:
    """Empty programs where those of the way hang."""
    with ExitStack() as stack:
        fds = []
        for _, point in way.points:
            fds.append(load_typed_tracepoint("vifprobe_empty", EXIT, point))
            stack.callback(os.close, attach_typed_tracepoint(fds[-1]))
        if way.settings.trace is None:
            fds.append(load_empty())
            stack.callback(attach(fds[-1], on.name, on.ifindex, way.direction, None).detach)
        yield tuple(fds)
        for fd in fds:
            stack.callback(os.close, fd)


@contextmanager
def _attached(on: Tap, way: Way) -> Iterator[tuple[int, ...]]:
    """The programs as `watch` attaches them for one direction."""
    programs = Programs(way.settings, read_features())
    with ExitStack() as stack:
        stack.callback(programs.close)
        if way.traits & (TapTrait.LIMIT_OUTBOUND | TapTrait.LIMIT_INBOUND):
            programs.set_bucket(0, way.direction, LIMIT)
        for number in range(way.settings.what_ifs):
            programs.set_what_if(0, way.direction, number, LIMIT)
        if way.full:
            programs.table("cells", writable=True)["key"] = programs.table("flows", writable=True)["way"]["key"] = 1
            if way.settings.follow is not None:
                programs.table("inflight_index", writable=True)["skb"] = 1
        Counters(programs).watch(on.ifindex, 0, int(way.traits))
        programs.attach_verdicts()
        if way.settings.follow is not None:
            programs.attach_followers()
        if way.settings.trace is not None:
            programs.attach_tracepoints()
        else:
            fd = programs.tc_program_fd(way.direction)
            stack.callback(attach(fd, on.name, on.ifindex, way.direction, None).detach)
        yield tuple(fd for name, fd in programs.named() if name != "trace_inbound")


def _table(on: Tap) -> Iterator[Sent]:
    yield Sent("a UDP packet of 60 bytes", [on.packet(_udp(60))])
    yield Sent(f"the tap's number is what is charged, IPv4, {FRAME_BYTES} bytes", [on.packet(_udp(FRAME_BYTES))])
    six = frames.pad(frames.eth(frames.ipv6(frames.udp()), EtherType.IPV6), FRAME_BYTES)[:FRAME_BYTES]
    yield Sent("the same, IPv6", [on.packet(six)])
    yield Sent("SYNs, each from another address", [on.packet(frames.pad(one)) for one in syns.spoofed(2 * WRITES)])
    yield Sent("SYNs over IPv6, each from another address", [on.packet(one) for one in syns.spoofed_v6(2 * WRITES)])
    yield Sent("another size each time", [on.packet(_udp(size)) for size in range(60, 1500, 23)])
    yield Sent("another kind each time", [on.packet(frame) for frame in _kinds()])
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
    bound = [frames.Protocol.DESTINATION_OPTIONS] * EXTENSION_HEADERS_MAX
    chain = extensions.chain(frames.udp(long), bound)
    chain_syn = extensions.chain(frames.tcp(frames.TcpFlag.SYN, long), bound)
    units = EXTENSION_REACH_BYTES // EXTENSION_HEADERS_MAX // 8 - 1
    spread = frames.tcp(frames.TcpFlag.SYN, long)
    for _ in range(EXTENSION_HEADERS_MAX):
        spread = extensions.destination_options(spread, units=units)
    for name, frame in (
        ("UDP", frames.eth(frames.ipv4(frames.udp(long)), EtherType.IPV4)),
        ("TCP over IPv6", frames.eth(frames.ipv6(frames.tcp(frames.TcpFlag.SYN, long)), EtherType.IPV6)),
        ("extension headers up to the bound", frames.eth(frames.ipv6(chain), EtherType.IPV6)),
        ("the same, a SYN, tagged twice", frames.vlan(frames.vlan(frames.eth(frames.ipv6(chain_syn), EtherType.IPV6)))),
        ("the same, as long as they can be", frames.vlan(frames.vlan(frames.eth(frames.ipv6(spread), EtherType.IPV6)))),
    ):
        yield Sent(f"headers outside the linear part: {name}", [on.packet(frame, linear_bytes=14)], scattered=True)


def _kinds() -> Iterator[bytes]:
    """As many keys of counters as a guest finds: lengths, classes, EtherTypes."""
    for size in range(80, 1600, 40):
        for flags in (0, 1, 2, 4, 16, 17, 18):
            for options in (0, 1):
                part = frames.tcp(frames.TcpFlag(flags), bytes(size - 54 - 4 * options), options=bytes(4 * options))
                frame = frames.eth(frames.ipv4(part), EtherType.IPV4)
                yield from (frame, frames.vlan(frame))
        yield from (_udp(size), frames.vlan(_udp(size)), frames.eth(bytes(size - 14), EtherType.EXPERIMENTAL))


def _udp(size: int) -> bytes:
    return frames.eth(frames.ipv4(frames.udp(bytes(size - 42))), EtherType.IPV4)
