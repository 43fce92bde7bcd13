# SPDX-License-Identifier: Apache-2.0
"""Exact: what is written is what is counted, and nft's own counter is the number of policed packets.

A million frames and three against an nft limit, through the API and through the commands. Every sum is taken twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from probe_kit import (
    FIRST_CPU,
    FLOOD,
    FLOOD_SECONDS,
    LAST_CPU,
    LIMIT,
    OUT,
    SYN,
    Watched,
    as_counts,
    capturing,
    check_policed,
    final_of,
    watch_flood,
    watching,
)

from vifprobe import Probe, load
from vifprobe.capture.rows import ReconcileRow
from vifprobe.model.layout import PacketClass, Verdict
from vifprobe.model.reading import Counts, count
from vifprobe.testing.net.links import NftLimit, nft_ingress_limit
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.traffic.flood import writer

BIN_NS = 1_000_000
PASSED, POLICED, DROPPED = Verdict.PASSED, Verdict.POLICED, Verdict.DROPPED


def check_flood(found: Watched, tap: Tap, number: int, limit: NftLimit, written: int) -> None:
    """All of a SYN flood of one tap, as told by counts, by bins, and by nft."""
    offered = found.total(tap=tap.name)
    assert offered[:3] == (written, written * len(SYN), written * (len(SYN) - 14))
    check_policed(found.total(POLICED, tap.name), limit.read())
    # Nobody takes what the limit lets pass: the stack drops it.
    assert found.total(DROPPED, tap.name).packets == limit.read_passed().packets
    assert found.total(PASSED, tap.name) == Counts()
    for verdict in (PASSED, POLICED, DROPPED):
        packets, frame_bytes, _, _ = found.total(verdict, tap.name)
        assert found.binned(verdict, number) == (packets, frame_bytes, packets)
    assert found.totals[tap.name].offered(OUT, PacketClass.TCP_SYN) == offered


def test_a_million_frames_and_three(tap: Tap) -> None:
    """Offered = written, policed = nft's counter, and the 1 ms bins hold each packet once and lie within the run."""
    with (
        nft_ingress_limit(tap.name, **LIMIT) as limit,
        writer([tap.fd], [SYN], count=FLOOD, seconds=FLOOD_SECONDS, cpu=FIRST_CPU) as flood,
        Probe(tap.name, bin_ns=BIN_NS) as probe,
    ):
        found = watch_flood(probe, [flood])
        assert probe.lost_bins == 0
        check_flood(found, tap, 0, limit, FLOOD)
        assert (found.bins["start_ns"] % BIN_NS == 0).all()
        assert (found.bins["start_ns"] > probe.start_ns - BIN_NS).all()
        assert len(np.unique(found.bins["start_ns"])) > 100  # it took more than a tenth of a second


def test_two_taps_fed_in_turn_from_one_cpu(tap: Tap) -> None:
    """Each packet's neighbour is the other tap's: none is counted for the wrong one."""
    with ExitStack() as stack:
        other = stack.enter_context(make_tap("tap1"))
        limits = [stack.enter_context(nft_ingress_limit(each.name, **LIMIT)) for each in (tap, other)]
        fds = [tap.fd, other.fd]
        flood = stack.enter_context(writer(fds, [SYN], count=FLOOD, seconds=FLOOD_SECONDS, cpu=LAST_CPU))
        probe = stack.enter_context(Probe(tap.name, other.name, bin_ns=10 * BIN_NS))
        found = watch_flood(probe, [flood])
        for number, (each, limit) in enumerate(zip((tap, other), limits, strict=True)):
            check_flood(found, each, number, limit, found.written[0].by_fd[number])


@pytest.mark.skipif(FIRST_CPU == LAST_CPU, reason="kernel: one CPU only")
def test_writers_on_two_cpus_at_once(tap: Tap) -> None:
    """Two writers feed both taps in turn; each CPU counts for itself, and the sum is exact."""
    with ExitStack() as stack:
        other = stack.enter_context(make_tap("tap1"))
        limits = [stack.enter_context(nft_ingress_limit(each.name, **LIMIT)) for each in (tap, other)]
        floods = [
            stack.enter_context(writer(fds, [SYN], count=500_009, seconds=FLOOD_SECONDS, cpu=cpu))
            for fds, cpu in (([tap.fd, other.fd], FIRST_CPU), ([other.fd, tap.fd, other.fd], LAST_CPU))
        ]
        probe = stack.enter_context(Probe(tap.name, other.name, bin_ns=BIN_NS))
        found = watch_flood(probe, floods)
        one, two = (done.by_fd for done in found.written)
        check_flood(found, tap, 0, limits[0], one[0] + two[1])
        check_flood(found, other, 1, limits[1], one[1] + two[0] + two[2])


def test_through_the_commands(tap: Tap, tmp_path: Path) -> None:
    """`capture` and `watch --json` at the same time: every file and every object adds up to the same numbers."""
    with (
        nft_ingress_limit(tap.name, **LIMIT) as limit,
        writer([tap.fd], [SYN], count=FLOOD, seconds=FLOOD_SECONDS, cpu=FIRST_CPU) as flood,
        watching(tmp_path, "--interval", "100ms") as watch,
        capturing(tmp_path) as capture,
    ):
        flood.start()
        assert flood.wait().frames == FLOOD
        capture.end()
        final = final_of(watch.end())
        nft, nft_passed = limit.read(), limit.read_passed()
    found = load(tmp_path / "capture")
    assert found.manifest.complete
    assert found.warnings == ()
    totals = {verdict: count(found.reading().where(OUT, verdict)) for verdict in (PASSED, POLICED, DROPPED)}
    check_policed(totals[POLICED], nft)
    assert totals[DROPPED].packets == nft_passed.packets
    offered = found.reading().offered(OUT)
    assert offered[:2] == (FLOOD, FLOOD * len(SYN))
    assert as_counts(final["outbound"]["offered"]) == offered
    for verdict, counts in totals.items():
        assert as_counts(final["outbound"][verdict.name.lower()]) == counts
        rows = found.bins[(found.bins["verdict"] == verdict) & (found.bins["direction"] == OUT)]
        assert tuple(int(rows[name].sum()) for name in ("packets", "frame_bytes")) == counts[:2]
    lost = [(row.packets, row.frame_bytes) for row in found.drops]
    assert tuple(map(sum, zip(*lost, strict=True))) == (totals[POLICED] + totals[DROPPED])[:2]
    check_reconciled(found.reconcile, offered, totals[POLICED])


def check_reconciled(rows: Sequence[ReconcileRow], offered: Counts, policed: Counts) -> None:
    """The counters that the kernel keeps anyway have grown by exactly what the probe counted."""
    assert not [row for row in rows if row.agrees is False]
    agreed = {row.counter: (row.delta, row.vifprobe_low, row.vifprobe_high) for row in rows if row.agrees}
    for counter, value in (
        ("device rx_packets", offered.packets),
        ("device rx_bytes", offered.frame_bytes),
        ("nft drops packets: ingress", policed.packets),
        ("nft drops bytes: ingress", policed.charged_bytes),
    ):
        assert agreed[counter] == (value, value, value), counter
