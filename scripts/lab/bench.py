# SPDX-License-Identifier: Apache-2.0
"""Measure what each way of watching adds to a packet of a flood. Run by scripts/bench."""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import bench_inbound
import bench_poll
import bench_program
import bench_switch
import bench_toolchain
import bench_verifier
import bench_worst
from bench_program import LIMIT as OTHER_LIMIT
from bench_stats import median_interval, own_ns, ratio_interval
from bench_tools import TOOLS, attached, refuses
from bench_variant import EXIT, Variant

from vifprobe.kernel.attach import attach, load_empty
from vifprobe.kernel.features import Features, read_features, read_trace_fields
from vifprobe.kernel.libbpf import attach_typed_tracepoint, load_typed_tracepoint
from vifprobe.kernel.load import Programs
from vifprobe.kernel.settings import Settings, possible_cpus
from vifprobe.kernel.tables.counters import Counters
from vifprobe.kernel.tables.syn import FOLLOWED_PER_SECOND
from vifprobe.model.layout import Bucket, Direction, TapTrait
from vifprobe.testing.net.links import nft_ingress_limit
from vifprobe.testing.net.taps import Tap, private_netns, tap
from vifprobe.testing.packets import frames, syns
from vifprobe.testing.traffic.flood import flood

FRAMES = 2_000  # a run of some 4 ms: short against the minutes in which a shared machine changes its speed
RUNS_INSIDE = 7  # of each variant while it is attached: starting tcpdump takes longer than a run
RUNS_BARE = 4  # before it and after it
RUNS_AFTER_CHANGE = 2  # thrown away: what was attached or detached just now has left nothing in the caches
TOOL_EVERY = 4  # rounds: a tool takes a second to start and to end
BIN_NS = 10_000_000
FLOOD_PER_SECOND = 1_000_000
COPIES = 12  # where the kernel puts code and tables makes some 10 ns either way: each variant is loaded so many times
#: What nft passes, which holds a second's worth beside the burst: see nft_ingress_limit.
RATE_BYTES, BURST_BYTES = 100_000, 10_000
LIMIT = Bucket(RATE_BYTES, RATE_BYTES + BURST_BYTES)


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser()
    options.add_argument("--rounds", type=int, default=40)
    options.add_argument("--only", default="", help="names, with commas between")
    options.add_argument("--program", action="store_true", help="the tc program alone, by BPF_PROG_TEST_RUN")
    options.add_argument("--inbound", action="store_true", help="a packet towards a guest, followed to its end")
    options.add_argument("--switch", action="store_true", help="a context switch, where the host's work is counted")
    options.add_argument("--poll", action="store_true", help="what `watch` itself costs while taps are idle")
    options.add_argument("--tree", default="", help="with --poll: another source tree, measured in turn with this one")
    options.add_argument("--verifier", action="store_true", help="what the verifier looks at in each program")
    options.add_argument("--toolchain", action="store_true", help="what each piece of vifprobe/kernel/toolchain brings")
    options.add_argument("--worst", action="store_true", help="the most expensive frame of a guest")
    chosen = options.parse_args()
    if chosen.verifier:
        bench_verifier.measure()
        return
    if chosen.poll:
        bench_poll.measure(chosen.rounds, chosen.only, chosen.tree)
        return
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpus[-1]})
    if chosen.toolchain:
        bench_toolchain.measure_start()
    if chosen.worst:
        bench_worst.measure(chosen.rounds)
        return
    frame = frames.pad(frames.eth(frames.ipv4(frames.tcp(frames.TcpFlag.SYN)), frames.EtherType.IPV4))
    if chosen.program:
        bench_program.measure(frame, chosen.rounds)
        return
    if chosen.switch:
        bench_switch.measure(cpus[-1], chosen.rounds)
        return
    if chosen.inbound:
        with bench_inbound.taps() as (guest, sender, idle):
            flooded = f"{len(frame)}-byte SYNs through a bridge to a tap whose ring is full"
            found = [Variant("nothing", nullcontext), *bench_inbound.variants(guest, idle, read_features())]
            _compare(found, sender, [frame], chosen, flooded)
        return
    with (
        private_netns(),
        tap("tap0") as on,
        nft_ingress_limit("tap0", rate_bytes_per_second=RATE_BYTES, burst_bytes=BURST_BYTES),
    ):
        flooded = f"{len(frame)}-byte SYNs, each from another address, behind an nft limit"
        # As many as a run has: what a SYN of its own address and port touches is in no cache, as in a spoofed flood.
        flood_frames = [frames.pad(one) for one in syns.spoofed(FRAMES)]
        features = read_features()
        variants = bench_toolchain.variants(partial(_everything, on, features)) if chosen.toolchain else None
        _compare(list(variants or _variants(on, features, cpus[0])), on, flood_frames, chosen, flooded)


def _compare(variants: list[Variant], on: Tap, sent: list[bytes], chosen: argparse.Namespace, flooded: str) -> None:
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        print("This process has several threads, see scripts/bench: each packet costs more.", file=sys.stderr)
    names = chosen.only.split(",") if chosen.only else [variant.name for variant in variants]
    variants = [variant for variant in variants if variant.name in names]
    _print(variants, _measure(variants, on, sent, chosen.rounds), flooded, chosen.rounds)


def _run(on: Tap, sent: list[bytes]) -> float:
    """Nanoseconds a packet of one short flood: CPU time of this thread, which is not charged with others' turns."""
    begun = time.thread_time_ns()
    flood([on.fd], sent, count=FRAMES, seconds=5)
    return (time.thread_time_ns() - begun) / FRAMES


def _runs(on: Tap, sent: list[bytes], count: int) -> float:
    for _ in range(RUNS_AFTER_CHANGE):
        _run(on, sent)
    return statistics.median(_run(on, sent) for _ in range(count))


def _measure(variants: list[Variant], on: Tap, sent: list[bytes], rounds: int) -> list[float]:
    base_ns = []
    for number in range(rounds):
        for variant in variants:
            if number % variant.every:
                continue
            before = _runs(on, sent, RUNS_BARE)
            with variant.attached():
                inside = _runs(on, sent, RUNS_INSIDE)
                if not number:
                    send = partial(flood, [on.fd], sent, count=4 * FRAMES, seconds=5)
                    variant.own_ns = own_ns(variant.own_programs(), send, 4 * FRAMES)
            after = _runs(on, sent, RUNS_BARE)
            base_ns += [before, after]
            variant.added_ns.append(inside - (before + after) / 2)
        if sys.stderr.isatty():
            print(f"\rround {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return base_ns


def _variants(on: Tap, features: Features, other_cpu: int) -> Iterator[Variant]:
    yield Variant("nothing", nullcontext)
    floor = _Floor(on, features)
    yield Variant("floor", floor.attached, lambda: floor.fds)
    yield _vifprobe("watch", on, features)
    yield _vifprobe("limit", on, features, limit=LIMIT)
    yield _vifprobe("disputed", on, features, limit=OTHER_LIMIT)
    yield _vifprobe("timeline", on, features, bin_ns=BIN_NS)
    yield _vifprobe("samples", on, features, samples=True)
    yield _vifprobe("syn", on, features, syn=True)
    yield _everything(on, features, "all")
    yield _vifprobe("followed", on, features, follows=True)
    for tool in TOOLS:
        why = refuses(tool, other_cpu)
        if why is None:
            yield Variant(tool.name, partial(attached, tool, other_cpu), every=TOOL_EVERY)
        else:
            print(f"{tool.name}: not measured: {why}", file=sys.stderr)


def _everything(on: Tap, features: Features, name: str) -> Variant:
    return _vifprobe(name, on, features, limit=LIMIT, bin_ns=BIN_NS, samples=True, syn=True)


class _Floor:
    """An empty tcx program and an empty program on kfree_skb: what any tool of this kind pays."""

    def __init__(self, on: Tap, features: Features) -> None:
        self._on = on
        drop = features.kfree_skb_btf_id
        self._copies = [(load_typed_tracepoint("vifprobe_empty", EXIT, drop), load_empty()) for _ in range(COPIES)]

    @property
    def fds(self) -> tuple[int, int]:
        """Of the copy that was attached last."""
        return self._copies[-1]

    @contextmanager
    def attached(self) -> Iterator[None]:
        self._copies.append(self._copies.pop(0))
        link = attach_typed_tracepoint(self.fds[0])
        hook = attach(self.fds[1], self._on.name, self._on.ifindex, Direction.OUTBOUND, None)
        try:
            yield
        finally:
            hook.detach()
            os.close(link)


def _vifprobe(
    name: str,
    on: Tap,
    features: Features,
    limit: Bucket | None = None,
    bin_ns: int = 0,
    samples: bool = False,
    syn: bool = False,
    follows: bool = False,
) -> Variant:
    """What `watch` attaches outbound; with the ideal bucket of a declared limit, which is the one that nft enforces or
    ("disputed") another one, whose word half of the packets are settled against; with a timeline, as `capture` does;
    with one packet in 64 sampled; with SYNs' addresses, ports and handshakes measured, one in 512 of them followed:
    both as user space sets them at a million packets a second; while inbound packets are followed, too, of which there
    are none.
    """
    fields = read_trace_fields() if follows else None
    settings = Settings(taps=1, bin_ns=bin_ns, cpus=possible_cpus(), samples=samples, syn=syn, follow=fields)
    traits = TapTrait.NFT_POLICER | (TapTrait.INBOUND if follows else 0)
    if limit is not None:
        traits |= TapTrait.LIMIT_OUTBOUND
    copies: list[Programs] = []

    def loaded() -> Programs:
        programs = Programs(settings, features)
        if limit is not None:
            programs.set_bucket(0, Direction.OUTBOUND, limit)
        Counters(programs).watch(on.ifindex, 0, int(traits))
        if syn:
            control = programs.table("syn_states", writable=True)["control"]
            control["shift"] = control["lookup_shift"] = math.ceil(math.log2(FLOOD_PER_SECOND / FOLLOWED_PER_SECOND))
        return programs

    @contextmanager
    def attached() -> Iterator[None]:
        copies.append(programs := copies.pop(0) if len(copies) == COPIES else loaded())
        programs.attach_verdicts()
        if follows:
            programs.attach_followers()
        hook = attach(programs.tc_program_fd(Direction.OUTBOUND), on.name, on.ifindex, Direction.OUTBOUND, None)
        try:
            yield
        finally:
            hook.detach()
            programs.detach_followers()
            programs.detach_verdicts()

    return Variant(name, attached, lambda: copies[-1].loaded)


def _print(variants: list[Variant], base_ns: list[float], flooded: str, rounds: int) -> None:
    floor = next((variant for variant in variants if variant.name == "floor"), None)
    print(f"flood of {flooded}: {statistics.median(base_ns):.0f} ns a packet bare")
    print(
        f"{'attached':10s} {'adds ns':>8s} {'95 %':>11s} {'of floor':>9s} {'95 %':>12s} {'programs ns':>12s}"
        f"   ({rounds} rounds)"
    )
    for variant in variants:
        low, middle, high = median_interval(variant.added_ns)
        ratio = " " * 22
        if floor is not None and variant is not floor and variant.name != "nothing":
            least, ratio_itself, most = ratio_interval(variant.added_ns, floor.added_ns)
            ratio = f"{ratio_itself:8.2f}x {least:5.2f}..{most:5.2f}"
        own = "" if math.isnan(variant.own_ns) or not variant.own_ns else f"{variant.own_ns:12.0f}"
        print(f"{variant.name:10s} {middle:8.0f} {low:5.0f} {high:5.0f} {ratio} {own}")
    print("adds: medians of differences to bare runs before and after; of floor: their ratio; programs: their own")
    print("time by bpf_stats, in which an empty program has the price of reading the clock twice")


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"took {time.monotonic() - started:.0f} s")
