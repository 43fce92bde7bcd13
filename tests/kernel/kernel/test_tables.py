# SPDX-License-Identifier: Apache-2.0
"""Tables of other sizes than the usual ones, and the table of watched taps: nothing is lost, moved or counted twice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
from probe_kit import FIRST_CPU, FLOOD_SECONDS, LAST_CPU, OUT, SYN, finish, forwarding, kernel_side, on_cpu, watch_flood

from vifprobe import Probe
from vifprobe.errors import KernelError
from vifprobe.kernel import settings
from vifprobe.kernel.settings import Settings, possible_cpus
from vifprobe.model.layout import TAP_PROBES, Direction, Verdict
from vifprobe.model.reading import count
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.packets import syns
from vifprobe.testing.packets.case import Run
from vifprobe.testing.packets.table import cases_for
from vifprobe.testing.traffic.flood import flood, writer

GO_ON = -1
MANY_TAPS = 53


def test_charged_bytes_are_those_of_the_policer(tap: Tap) -> None:
    """Its overhead is added, and no packet is charged less than its mpu; bytes of 32 and 58 without the L2 header."""
    short, longer = SYN[:46], SYN + bytes(18)
    with forwarding(tap), kernel_side(tap) as kernel:
        for overhead, mpu, charged in (
            (0, 0, 32 + 58),
            (0, 60, 60 + 60),
            (4, 0, 36 + 62),
            (4, 60, 60 + 62),
            (-8, 25, 25 + 50),
        ):
            kernel.counters.watch(tap.ifindex, 0, 0, overhead, mpu)
            before = int(kernel.counters.snapshot().cells["charged_bytes"].sum())
            flood([tap.fd], [short, longer], count=2 * 7, seconds=5)
            assert int(kernel.counters.snapshot().cells["charged_bytes"].sum()) - before == 7 * charged, (overhead, mpu)


def test_a_probe_that_misses_nothing_says_so(tap: Tap) -> None:
    """The same packets with tables of the usual size."""
    frames = [case.frame for case in cases_for(Run.TAP, gso=False)]
    with forwarding(tap), Probe(tap.name) as probe:
        flood([tap.fd], frames, count=10_007, seconds=FLOOD_SECONDS)
        found = finish(probe)
    assert found.totals[tap.name].missed == 0
    assert found.total().packets == 10_007


def test_taps_whose_numbers_collide(tap: Tap) -> None:
    """Ifindexes a table's size apart share a place: found all the same, until as many are there as are looked at."""
    with forwarding(tap), kernel_side(tap) as kernel:
        slots = len(kernel.programs.table("taps"))
        for other in range(1, TAP_PROBES):
            kernel.counters.watch(tap.ifindex + other * slots, other, 0)
        with pytest.raises(KernelError, match="no free place"):
            kernel.counters.watch(tap.ifindex + TAP_PROBES * slots, TAP_PROBES, 0)
        flood([tap.fd], [SYN], count=103, seconds=5)
        assert kernel.counts()[Verdict.PASSED] == 103


def test_a_tap_behind_others_in_the_table_is_found(tap: Tap) -> None:
    """The last of those that share a place."""
    with ExitStack() as stack:
        stack.enter_context(forwarding(tap))
        kernel = stack.enter_context(kernel_side(tap))
        taps = kernel.programs.table("taps", writable=True)
        taps[:] = 0
        for other in range(1, TAP_PROBES):
            kernel.counters.watch(tap.ifindex + other * len(taps), other, 0)
        flood([tap.fd], [SYN], count=7, seconds=5)
        assert kernel.counts()[Verdict.PASSED] == 0  # not watched: not counted
        kernel.counters.watch(tap.ifindex, 0, 0)
        flood([tap.fd], [SYN], count=101, seconds=5)
        assert kernel.counts()[Verdict.PASSED] == 101


def test_many_taps_fed_in_turn(netns: Netns) -> None:
    """Each of them has its own packets, outbound and none inbound."""
    with ExitStack() as stack:
        taps = [stack.enter_context(make_tap(f"tap{number}")) for number in range(MANY_TAPS)]
        fds = [tap.fd for tap in taps]
        flooding = stack.enter_context(writer(fds, [SYN], count=50_021, seconds=FLOOD_SECONDS, cpu=FIRST_CPU))
        probe = stack.enter_context(Probe(*(tap.name for tap in taps), bin_ns=10_000_000))
        found = watch_flood(probe, [flooding])
        for number, tap in enumerate(taps):
            assert found.total(tap=tap.name).packets == found.written[0].by_fd[number]
            assert found.binned(tap=number)[0] == found.written[0].by_fd[number]
            assert count(found.totals[tap.name].where(Direction.INBOUND)).packets == 0


def test_tables_that_are_too_large_to_be_shared(tap: Tap) -> None:
    """As on a node of many CPUs and taps: what is in tables of its own there counts the same."""
    bins = 10_000_000
    large = Settings(taps=40, cpus=max(64, possible_cpus()), bin_ns=bins, samples=True, syn=True)
    small = Settings(taps=1, cpus=possible_cpus(), bin_ns=bins, samples=True, syn=True)
    frames = syns.spoofed(1_009)
    found = []
    with forwarding(tap), on_cpu(FIRST_CPU):
        for wanted in (small, large):
            assert (wanted.tap_cpu_states > settings.TAP_CPU_STATES_SHARED) is (wanted is large)
            assert (wanted.taps > settings.SYN_STATES_SHARED) is (wanted is large)
            with kernel_side(tap, wanted) as kernel:
                flood([tap.fd], frames, count=3_001, seconds=FLOOD_SECONDS)
                cells = kernel.counters.snapshot().cells
                measured = kernel.counters.syn_measures()
                assert measured is not None
                rows = kernel.counters.take_samples(final=True)
                found.append(
                    (
                        cells.tolist(),
                        int(kernel.counters.take_bins(final=True)["packets"].sum()),
                        measured.interval.source_ports[0, OUT].tolist(),
                        (len(rows) > 16, int(rows["frame_bytes"].max())),
                    )
                )
    assert found[0][1] == 3_001
    assert sum(found[0][2]) > 900
    assert found[0] == found[1]


def test_bins_that_are_overwritten_are_said(tap: Tap, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log of 16 bins and nobody who reads it in time: lost bins are counted, counts and totals stay whole."""
    monkeypatch.setattr(settings, "BIN_LOG_ENTRIES", 16)
    with (
        forwarding(tap),
        writer([tap.fd], [SYN], count=499, seconds=20, cpu=FIRST_CPU, packets_per_second=1009) as flooding,
        Probe(tap.name, bin_ns=1_000_000) as probe,
    ):
        flooding.start()
        flooding.wait()
        found = finish(probe)
        assert found.total().packets == 499
        assert probe.lost_bins > 50
        bins = found.bins["start_ns"]
        assert 10 <= len(np.unique(bins)) <= 17  # the log but one, and the last
        assert probe.lost_bins + len(np.unique(bins)) <= 499


def test_bins_that_are_overwritten_while_they_are_read(tap: Tap, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each bin that is given is whole and given once, however fast the log turns."""
    monkeypatch.setattr(settings, "BIN_LOG_ENTRIES", 8)
    count = 200_003
    with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        stack.enter_context(forwarding(tap))
        flooding = stack.enter_context(writer([tap.fd], [SYN], count=count, seconds=FLOOD_SECONDS, cpu=LAST_CPU))
        kernel = stack.enter_context(kernel_side(tap, Settings(bin_ns=3_001, cpus=possible_cpus())))
        flooding.start()
        ending = pool.submit(flooding.wait)
        parts = []
        while not ending.done():
            parts.append(kernel.counters.take_bins())
        parts.append(kernel.counters.take_bins(final=True))
        bins = np.concatenate(parts)
        assert kernel.counts()[Verdict.PASSED] == count
    starts, times = np.unique(bins["start_ns"], return_counts=True)
    assert len(starts) > 1000
    assert (times <= 2).all()  # the last packet comes as a row of its own
    assert (times > 1).sum() <= 1
    assert int(bins["packets"].sum()) <= count
    assert (bins["frame_bytes"] == bins["packets"] * len(SYN)).all()
    assert (bins["syn_packets"] == bins["packets"]).all()
    assert kernel.counters.lost_bins > 0
