# SPDX-License-Identifier: Apache-2.0
"""The kernel side's registers, ports and handshakes as measures of an interval and of the run."""

from __future__ import annotations

from typing import Any

import numpy as np
from flood_kit import IN, OUT

from vifprobe.analysis.flood.kernel import YOUNG_NS, KernelSide
from vifprobe.model.flood import Measure
from vifprobe.model.records import AGE_BUCKETS, HANDSHAKES, HLL_REGISTERS, PORTS, Distinct, SynMeasures

TAPS = 3


def sets(ports: int) -> Distinct:
    """On tap 1, outbound: registers of one address, and so many destination ports."""
    registers = np.zeros(HLL_REGISTERS, np.uint8)
    registers[17] = 3
    seen = np.zeros(PORTS, np.bool_)
    seen[1_024 : 1_024 + ports] = True
    own = {"sources": registers, "destinations": registers, "source_ports": np.packbits(seen & False)}
    return Distinct({(1, OUT): own | {"destination_ports": np.packbits(seen)}}, (TAPS, 2))


def told(ports: int = 0, **handshakes: int) -> SynMeasures:
    flows = np.zeros((TAPS, 2), HANDSHAKES)
    for name, value in {"every": 1, **handshakes}.items():
        flows[1, OUT][name] = value
    ages = np.zeros((TAPS, 2, AGE_BUCKETS), np.int64)
    ages[1, OUT, 11] = 101  # 1,024 to 2,048 microseconds
    return SynMeasures(0, 10**9, sets(ports), sets(2 * ports), flows, ages, ages)


def values(found: dict[str, Measure]) -> dict[str, Any]:
    return {name: one.value for name, one in found.items() if one.value}


def test_an_interval_is_what_was_added() -> None:
    side = KernelSide(1)
    side.interval(told(followed=31, started=31, completed=29))
    now = told(ports=211, followed=131, started=131, completed=30, open=101)
    found = side.interval(now)
    assert found[OUT]["handshakes_started"] == Measure(100, "handshakes")
    assert found[OUT]["handshakes_completed"] == Measure(1, "handshakes")
    assert found[OUT]["half_open"] == Measure(101, "handshakes")
    assert found[OUT]["half_open_young"] == Measure(101, "handshakes")
    assert found[OUT]["half_open_age_median"] == Measure(1_536_000.0, "ns", 512_000.0)
    assert found[OUT]["handshake_time_median"] == Measure(None, "ns")  # none in this interval
    assert found[OUT]["destination_ports"] == Measure(211, "different")
    assert found[OUT]["sources"].value == 1
    assert values(found[IN]) == {}
    total = side.total(now)
    assert total[OUT]["handshake_time_p99"] == Measure(1_536_000.0, "ns", 512_000.0)
    assert total[OUT]["handshakes_started"] == Measure(131, "handshakes")
    assert total[OUT]["destination_ports"] == Measure(422, "different")


def test_what_is_young_ends_at_a_buckets_edge() -> None:
    now = told(followed=10, started=10, open=10)
    now.open_age[1, OUT] = 0
    edge = (YOUNG_NS // 1000).bit_length()  # the bucket that begins there
    now.open_age[1, OUT, [0, edge - 1, edge, 30]] = (1, 2, 3, 4)
    assert KernelSide(1).interval(now)[OUT]["half_open_young"] == Measure(3, "handshakes")


def test_another_taps_flows_are_not_ours() -> None:
    found = KernelSide(0).interval(told(ports=7, started=11))
    assert values(found[OUT]) == {}


def test_flows_that_stand_for_others_carry_a_bound() -> None:
    """Of 8,000 flows one in 8 is followed: 1,000 draws, which are off by some 300 in 8,000 at most."""
    found = KernelSide(1).interval(told(every=8, followed=1_000, started=8_000, completed=16))[OUT]
    assert found["handshakes_started"].value == 8_000
    assert 300 < found["handshakes_started"].error < 800
    assert 0 < found["handshakes_completed"].error < 100
