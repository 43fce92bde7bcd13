# SPDX-License-Identifier: Apache-2.0
"""Estimates hold what they promise: exact where nothing was left out, else within their bound as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from flood_kit import samples, seeded

from vifprobe.analysis.flood.estimates import Spread, collisions, evenness, group, share
from vifprobe.analysis.flood.gaps import GapHistogram
from vifprobe.analysis.flood.headers import PACKET, packets_of
from vifprobe.analysis.flood.kernel import distinct
from vifprobe.analysis.flood.reservoir import Reservoir
from vifprobe.testing.packets import syns

TRIALS = 300


def packets(ports: np.ndarray, weight: int = 1) -> np.ndarray:
    rows = np.zeros(len(ports), PACKET)
    rows["destination_port"], rows["weight"] = ports, weight
    return rows


def test_a_reservoir_that_is_not_full_is_exact() -> None:
    reservoir = Reservoir(1_009, PACKET)
    for start in range(0, 1_000, 250):
        reservoir.add(packets(np.arange(start, start + 250)))
    assert reservoir.spread().is_exact
    assert reservoir.weights().tolist() == [1.0] * 1_000
    found = share(reservoir.rows["destination_port"] < 137, reservoir.weights(), reservoir.spread())
    assert found == (0.137, 0.0)


@pytest.mark.parametrize("heavy", [0.003, 0.2, 0.97])
def test_shares_of_a_full_reservoir_are_unbiased_and_within_their_bound(heavy: float) -> None:
    """Twofold sampling: the kernel's one in 7, after 16 that stand for themselves, then a reservoir of 512."""
    random = np.random.default_rng(11)
    values, outside, bounds = [], 0, []
    for _ in range(TRIALS):
        truth = random.random(40_009) < heavy
        drawn = np.flatnonzero(random.random(len(truth)) < 1 / 7)
        rows = np.concatenate([packets(truth[:16]), packets(truth[drawn[drawn >= 16]], 7)])
        reservoir = Reservoir(512, PACKET, lambda length: 1.0 - random.random(length))
        for part in np.array_split(rows, 5):
            reservoir.add(part)
        found = share(reservoir.rows["destination_port"] == 1, reservoir.weights(), reservoir.spread())
        values.append(found.value - truth.mean())
        bounds.append(found.error)
        outside += abs(values[-1]) > found.error
    assert outside <= 0.05 * TRIALS
    assert abs(float(np.mean(values))) < 4 * float(np.std(values)) / math.sqrt(TRIALS)
    assert max(bounds) < (0.075 if heavy == 0.2 else 0.065)  # Hoeffding of 512 draws alone: 0.0654


def test_memory_stays_bounded() -> None:
    reservoir = Reservoir(1_009, PACKET, seeded(5))
    for _ in range(97):
        reservoir.add(packets(np.arange(10_007) % 65_536, 13))
    assert len(reservoir.rows) == 1_009
    total = float(reservoir.weights().sum())
    assert total == pytest.approx(97 * 10_007 * 13, rel=0.15)


def test_evenness_of_one_key_of_all_different_ones_and_between() -> None:
    exact = Spread(1_024.0, 0.0)
    weights = np.ones(1_024)
    for keys, wanted in ((np.zeros(1_024), 0.0), (np.arange(1_024), 1.0), (np.arange(1_024) % 32, 0.5)):
        found = evenness(group((keys,), weights), weights, exact)
        assert found.value == pytest.approx(wanted)
        assert found.error == 0.0
    drawn = evenness(group((np.arange(1_024) % 32,), weights), weights, Spread(1_024.0, 1_024.0))
    assert 0.0 < drawn.error < 0.1


def test_collisions_tell_how_many_keys_share_the_packets() -> None:
    random = np.random.default_rng(7)
    for keys in (1, 2, 61, 4_099):
        outside = 0
        for _ in range(100):
            drawn = random.integers(0, keys, 2_003)
            found = collisions(group((drawn,), np.ones(len(drawn))))
            outside += abs(found.value - 1 / keys) > found.error + 1e-12
        assert outside <= 5
    none = collisions(group((np.arange(2_003),), np.ones(2_003)))
    assert none.value == 0.0
    assert none.error < 1e-4


@pytest.mark.parametrize("keys", [0, 1, 5, 997, 4_096, 20_011, 1_000_003])
def test_hyperloglog_over_its_whole_range(keys: int) -> None:
    """Registers as the kernel side fills them: by 12 bits of a hash, the rank of the first one in the rest."""
    random = np.random.default_rng(keys)
    outside = 0
    for _ in range(20):
        hashes = random.integers(0, 2**63, keys, dtype=np.uint64) << np.uint64(1)
        index, rest = (hashes >> np.uint64(52)).astype(np.int64), hashes << np.uint64(12)
        exponent = np.frexp(rest.astype(np.float64))[1]
        rank = np.where(rest == 0, 53, 65 - exponent)
        registers = np.zeros(4_096, np.uint8)
        np.maximum.at(registers, index, rank.astype(np.uint8))
        found = distinct(registers)
        outside += abs(found.value - keys) > found.error + 0.5
    assert outside <= 3


def test_gap_quantiles_lie_between_their_edges() -> None:
    random = np.random.default_rng(13)
    gaps = random.exponential(20_000, 50_021).astype(np.int64)
    histogram = GapHistogram()
    histogram.add(np.append(gaps, [-1] * 101), np.ones(len(gaps) + 101, np.int64))
    found = dict(histogram.measures(20_000))
    for name, part in (("gap_median", 0.5), ("gap_p99", 0.99)):
        assert abs(float(np.quantile(gaps, part)) - (found[name].value or 0)) <= found[name].error
    burst = found["burstiness"].value or 0
    assert burst == pytest.approx(1 - math.exp(-2_048 / 20_000), abs=0.01)
    shares = [one.value for name, one in found.items() if name.endswith("_ns") and "_to_" in name]
    assert sum(share or 0 for share in shares) == pytest.approx(1.0)


def test_decoding_is_quick_enough_for_a_second_of_samples() -> None:
    """20,000 samples a second are a few per cent of a CPU; here only that it is vectorised: well under a second."""
    rows = np.tile(samples(syns.spoofed(1_000)), 20)
    assert len(packets_of(rows)) == 20_000
