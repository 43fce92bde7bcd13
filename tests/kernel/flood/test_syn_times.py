# SPDX-License-Identifier: Apache-2.0
"""Times at a tap, beside those of whoever wrote the packets: ages of handshakes, gaps, burstiness.

A writer reads the clock before and after each write, so each time is known within two bounds; they tell the least and
the most that can be above an edge of a histogram. A bound that a busy machine makes wide is a true one all the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from probe_kit import FIRST_CPU, OUT, SYN, kernel_side, on_cpu
from syn_kit import ACK, IN, measures, segment, two_taps
from syn_kit import SYN as SYN_FLAG

from vifprobe.analysis.flood.gaps import GapHistogram
from vifprobe.analysis.flood.kernel import KernelSide as SynSide
from vifprobe.kernel.settings import Settings, possible_cpus
from vifprobe.model.layout import Direction
from vifprobe.model.records import AGE_BUCKETS
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.net.taps import Tap

Array = npt.NDArray[Any]
MICROSECOND = 1_000


class Span(NamedTuple):
    """A moment between two readings of the clock, or a time between two such moments; in ns."""

    least: int
    most: int

    def since(self, other: Span) -> Span:
        return Span(max(self.least - other.most, 0), self.most - other.least)


def write_at(tap: Tap, frame: bytes, due_ns: int = 0) -> Span:
    """Write it at that time or as soon after it as can be."""
    while (before := time.monotonic_ns()) < due_ns:
        pass
    os.write(tap.fd, frame)
    return Span(before, time.monotonic_ns())


def assert_holds(buckets: Sequence[int] | Array, edges_ns: Sequence[int], times: Sequence[Span]) -> None:
    """buckets[n] holds times from edges_ns[n] on: as many as there must be, and no more than there may be."""
    counted = np.asarray(buckets)
    assert counted.sum() == len(times)
    for number, edge in enumerate(edges_ns):
        above = int(counted[number:].sum())
        assert sum(one.least >= edge for one in times) <= above, (edge, counted)
        assert above <= sum(one.most >= edge for one in times), (edge, counted)


AGE_EDGES = [0, *(MICROSECOND << number for number in range(AGE_BUCKETS - 1))]


@pytest.mark.parametrize("way", [OUT, IN], ids=["client", "server"])
def test_how_long_handshakes_take_and_how_old_the_others_are(netns: Netns, way: Direction) -> None:
    """Completed from some µs to a third of a second after their SYN, or still open; at either guest's tap."""
    asked: dict[int, Span] = {}
    took: list[Span] = []
    with two_taps(netns) as (client, server, side):
        start = time.monotonic_ns()
        for number in range(211):
            asked[number] = write_at(client, segment(SYN_FLAG, client=number), start + number * 500_000)
            os.write(server.fd, segment(SYN_FLAG | ACK, client=number, back=True))
            if number % 3 == 0:  # at once
                took.append(write_at(client, segment(ACK, client=number)).since(asked[number]))
        for number in range(1, 211, 3):  # after all of them were asked, one after the other
            due_ns = start + 120_000_000 + number * 900_000
            took.append(write_at(client, segment(ACK, client=number), due_ns).since(asked[number]))
        before = time.monotonic_ns()
        found = measures(side)
        now = Span(before, time.monotonic_ns())
    tap = 0 if way is OUT else 1
    assert found.handshakes[tap, way]["every"] == 1
    assert_holds(found.completed_age[tap, way], AGE_EDGES, took)
    still_open = [now.since(asked[number]) for number in range(2, 211, 3)]
    assert_holds(found.open_age[tap, way], AGE_EDGES, still_open)
    told = SynSide(tap).total(found)[way]
    for name, times in (("handshake_time", took), ("half_open_age", still_open)):
        for suffix, part in (("median", 0.5), ("p99", 0.99)):
            known, place = told[f"{name}_{suffix}"], int(np.ceil(part * len(times))) - 1
            least, most = (sorted(one)[place] for one in zip(*times, strict=True))
            assert known.value is not None
            assert known.value - known.error <= most
            assert known.value + known.error >= least


@pytest.mark.parametrize("kind", ["even", "bursts", "random"])
def test_gaps_between_packets_and_how_bursty_they_are(tap: Tap, kind: str) -> None:
    """Every packet sampled. Burstiness: the share that comes within an eighth of the mean gap, or a sixteenth: at the
    histogram's edge between them.
    """
    count = 1_009
    random = np.random.default_rng(7)
    gaps = {
        "even": np.full(count, 200_000),
        "bursts": np.where(np.arange(count) % 16, 0, 3_200_000),
        "random": random.exponential(200_000, count).astype(int),
    }[kind]
    with kernel_side(tap, Settings(cpus=possible_cpus(), samples=True)) as side, on_cpu(FIRST_CPU):
        assert side.counters.samples is not None
        side.counters.samples.take_one_in(1)
        due = time.monotonic_ns() + np.cumsum(gaps)
        written = [write_at(tap, SYN, int(at)) for at in due]
        samples = side.counters.take_samples(final=True)
    between = [later.since(earlier) for earlier, later in pairwise(written)]
    histogram = GapHistogram()
    histogram.add(samples["gap_ns"], samples["weight"])
    mean_ns = (written[-1].least - written[0].least) / len(between)
    told = dict(histogram.measures(mean_ns))
    edges, counted = [], []
    for name, measure in told.items():
        if name.startswith("gap_") and name.endswith("_ns"):
            assert measure.error == 0
            edges.append(int(name.split("_")[1]))
            counted.append(round((measure.value or 0) * len(between)))
    assert_holds(counted, edges, between)
    bursty, error = told["burstiness"].value, told["burstiness"].error
    assert bursty is not None
    assert error == 0
    assert sum(one.most < mean_ns / 16 for one in between) / len(between) <= bursty + 1e-9
    assert bursty - 1e-9 <= sum(one.least <= mean_ns / 8 for one in between) / len(between)
    if kind == "bursts":
        assert bursty > 0.5
