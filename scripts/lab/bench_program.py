# SPDX-License-Identifier: Apache-2.0
"""The tc program alone, by BPF_PROG_TEST_RUN: nanoseconds a packet, caches warm. What each feature adds to it."""

from __future__ import annotations

import os
import socket
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field

from bench_stats import median_interval

from vifprobe.kernel.attach import load_empty
from vifprobe.kernel.features import read_features
from vifprobe.kernel.libbpf import test_run
from vifprobe.kernel.load import Programs
from vifprobe.kernel.settings import Settings, possible_cpus
from vifprobe.kernel.tables.counters import Counters
from vifprobe.model.layout import Bucket, Direction, TapTrait

REPEAT = 20_000  # runs of the program a measurement: under a millisecond
LIMIT = Bucket(12_500_000, 3_200_000)
_OUT = Direction.OUTBOUND


@dataclass
class Program:
    """A program, and the nanoseconds that it took in each round."""

    name: str
    fd: int
    ns: list[float] = field(default_factory=list)


def measure(frame: bytes, rounds: int) -> None:
    """All in turn, over and over; print what each takes more than an empty program."""
    programs = [Program(name, fd) for name, fd in _programs()]
    for _ in range(rounds):
        for program in programs:
            program.ns.append(test_run(program.fd, frame, repeat=REPEAT)[1])
    empty = statistics.median(programs[0].ns)
    print(f"the tc program alone, {len(frame)}-byte SYN, {rounds} rounds of {REPEAT} runs; empty: {empty:.0f} ns a run")
    print(f"{'program':10s} {'takes ns':>8s} {'95 %':>11s} {'on watch':>9s}")
    watch = statistics.median(programs[1].ns)
    for program in programs[1:]:
        low, middle, high = (value - empty for value in median_interval(program.ns))
        print(f"{program.name:10s} {middle:8.0f} {low:5.0f} {high:5.0f} {middle + empty - watch:+9.0f}")


def _programs() -> Iterator[tuple[str, int]]:
    yield "empty", load_empty()
    features = read_features()
    for name, settings, limited in _variants():
        programs = Programs(settings, features)
        counters = Counters(programs)
        traits = TapTrait.NFT_POLICER
        if limited:
            programs.set_bucket(0, _OUT, LIMIT)
            traits |= TapTrait.LIMIT_OUTBOUND
        for number in range(settings.what_ifs):
            programs.set_what_if(0, _OUT, number, LIMIT)
        # TEST_RUN's device is loopback.
        counters.watch(socket.if_nametoindex("lo"), 0, int(traits))
        yield name, os.dup(programs.tc_program_fd(_OUT))


def _variants() -> Iterator[tuple[str, Settings, bool]]:
    def settings(bin_ns: int = 0, samples: bool = False, what_ifs: int = 0) -> Settings:
        return Settings(cpus=possible_cpus(), bin_ns=bin_ns, samples=samples, what_ifs=what_ifs)

    yield "watch", settings(), False
    yield "limit", settings(), True
    yield "timeline", settings(10_000_000), False
    yield "samples", settings(samples=True), False
    yield "what-if", settings(what_ifs=1), False
    yield "8 what-ifs", settings(what_ifs=8), False
    yield "all", settings(10_000_000, samples=True), True
