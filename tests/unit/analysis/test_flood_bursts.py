# SPDX-License-Identifier: Apache-2.0
"""S6 and the peaks that it rests on: a guest that saves up its burst, and those that don't."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vifprobe.analysis.findings.raised import findings
from vifprobe.analysis.findings.situation import Situation
from vifprobe.analysis.flood.bursts import BurstBucket, Bursts
from vifprobe.analysis.policer import SetUp
from vifprobe.model.layout import BIN, Direction, Verdict
from vifprobe.model.limits import InstalledLimit
from vifprobe.model.reading import Finding

OUT = Direction.OUTBOUND
MS = 1_000_000
RATE_BPS, BURST_BYTES = 100_000_000, 3_200_000
BUCKET = BurstBucket(RATE_BPS / 8, BURST_BYTES)
POLICE = InstalledLimit(OUT, "tc", "police", "ingress pref 7", "tap0", RATE_BPS, BURST_BYTES, None, "all", True)


def bins(
    packets: npt.NDArray[np.int64], bin_ms: int, frame: int = 1_014, verdict: Verdict = Verdict.PASSED
) -> npt.NDArray[np.void]:
    """One bin after the other from second 17 on; those of no packets are not there."""
    rows = np.zeros(len(packets), BIN)
    rows["start_ns"] = 17_000_000_000 + np.arange(len(packets)) * bin_ms * MS
    rows["packets"], rows["frame_bytes"], rows["verdict"] = packets, packets * frame, verdict
    return rows[rows["packets"] > 0]


def seen(packets: npt.NDArray[np.int64], bin_ms: int = 10, parts: int = 7, syns: bool = False) -> Bursts:
    found, rows = Bursts(OUT, bin_ms * MS), bins(packets, bin_ms)
    rows["syn_packets"] = rows["packets"] * syns
    for number, part in enumerate(np.array_split(rows, parts), 1):
        found.add(part, BUCKET, final=number == parts)
    return found


def raised(found: Bursts) -> list[Finding]:
    return list(findings(Situation(SetUp("tap0", enforced=(POLICE,)), bursts={OUT: found})))


def on_and_off(bin_ms: int = 10, times: int = 5) -> npt.NDArray[np.int64]:
    """3,200 kB within 50 ms, then 950 ms of silence, in which the bucket gets full again."""
    one = np.zeros(1_000 // bin_ms, np.int64)
    one[: 50 // bin_ms] = 3_700 // (50 // bin_ms)
    return np.tile(one, times)


def test_a_guest_that_saves_up_its_burst_each_second() -> None:
    for bin_ms in (1, 10):
        found = seen(on_and_off(bin_ms), bin_ms)
        (told,) = raised(found)
        assert (told.pattern, told.severity) == ("S6", "info")
        assert told.evidence["bursts"] == 5
        assert told.evidence["worst_over_rate"] >= 5
        assert told.evidence["passed_peak_100ms_bps"] == 8 * 3_700 * 1_000 * 10
        assert found.late_packets == 0
    assert raised(seen(on_and_off(), syns=True))[0].severity == "warning"


def test_peaks_of_windows_are_those_of_a_plain_sum() -> None:
    packets = np.random.default_rng(3).integers(0, 211, 3_001) * (np.random.default_rng(4).random(3_001) < 0.3)
    found = seen(packets, 1, parts=53)
    for window in (1, 10, 100):
        wanted = max(int(packets[at : at + window].sum()) for at in range(len(packets)))
        assert found.peak_bytes[window * MS] == wanted * 1_000


def test_steady_traffic_at_the_limit_raises_nothing() -> None:
    assert raised(seen(np.full(1_003, 125))) == []


def test_tcp_at_the_limit_raises_nothing() -> None:
    """A start that takes the whole bucket, then a sawtooth around the rate."""
    sawtooth = np.tile(np.linspace(80, 170, 97).astype(np.int64), 17)
    assert raised(seen(np.concatenate([np.full(5, 700), sawtooth]))) == []


def test_two_bursts_are_chance() -> None:
    assert raised(seen(on_and_off(times=2))) == []


def test_bins_of_two_cpus_come_out_of_order() -> None:
    whole, found = bins(on_and_off(), 10), Bursts(OUT, 10 * MS)
    half = whole.copy()
    half["packets"], half["frame_bytes"] = whole["packets"] // 2, whole["frame_bytes"] // 2
    for part in np.array_split(np.arange(len(half)), 5):
        found.add(half[part], BUCKET)
        found.add(half[part][::-1], BUCKET)
    found.add(half[:0], BUCKET, final=True)
    assert found.burst_count == 5
    assert found.late_packets == 0


def test_a_bin_that_comes_too_late_is_counted_as_such() -> None:
    found = seen(on_and_off())
    found.add(bins(np.array([13]), 10), BUCKET)
    assert found.late_packets == 13


def test_policed_packets_pass_in_no_window_and_unknown_ones_prove_nothing() -> None:
    found = Bursts(OUT, 10 * MS)
    found.add(bins(on_and_off(), 10, verdict=Verdict.POLICED), BUCKET, final=True)
    assert max(found.peak_bytes.values()) == 0
    found.add(bins(on_and_off(), 10, verdict=Verdict.UNKNOWN), BUCKET, final=True)
    assert raised(found) == []
    assert dict(found.measures())["bucket_emptied"].value is None


def test_a_silent_hour_takes_no_memory() -> None:
    found = Bursts(OUT, MS)
    first, last = bins(np.array([7]), 1), bins(np.array([11]), 1)
    last["start_ns"] += 3_600 * 1_000 * MS
    found.add(np.concatenate([first, last]), BUCKET, final=True)
    assert found.peak_bytes[100 * MS] == 11_000
