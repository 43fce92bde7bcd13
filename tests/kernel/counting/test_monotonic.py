# SPDX-License-Identifier: Apache-2.0
"""Counts only grow: whenever they are read, each packet is in at most once, and no verdict is taken back."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
from probe_kit import (
    FIRST_CPU,
    FLOOD_SECONDS,
    LAST_CPU,
    LIMIT,
    OUT,
    SYN,
    forwarding,
    kernel_side,
    on_cpu,
    watch_flood,
)

from vifprobe import Probe
from vifprobe.model.layout import TapTrait, Verdict
from vifprobe.model.reading import count, subtract
from vifprobe.testing.net.links import bridge_with, nft_ingress_limit
from vifprobe.testing.net.taps import Tap, create_tap, set_link_up
from vifprobe.testing.traffic.flood import flood, writer

COUNT = 200_003
SNAPSHOTS = 307


def test_no_interval_takes_anything_back(tap: Tap) -> None:
    """Read every 10 ms while two CPUs flood a tap: each packet has one fate in each interval, and no cell shrinks."""
    with ExitStack() as stack:
        stack.enter_context(forwarding(tap))
        limit = stack.enter_context(nft_ingress_limit(tap.name, **LIMIT))
        floods = [
            stack.enter_context(writer([tap.fd], [SYN], count=COUNT, seconds=FLOOD_SECONDS, cpu=cpu))
            for cpu in (FIRST_CPU, LAST_CPU)
        ]
        probe = stack.enter_context(Probe(tap.name))
        found = watch_flood(probe, floods, interval_seconds=0.01)  # checks each interval
        assert found.total().packets == 2 * COUNT
        assert found.total(Verdict.POLICED).packets == limit.read().packets
        assert found.total(Verdict.PASSED).packets == limit.read_passed().packets
    assert len(found.intervals) > 20


def test_snapshots_of_slow_traffic(tap: Tap) -> None:
    """Where most packets wait for the reader to settle them: one every 3 ms, and snapshots as fast as they go."""
    with ExitStack() as stack:
        stack.enter_context(forwarding(tap))
        writing = stack.enter_context(
            writer([tap.fd], [SYN], count=499, seconds=FLOOD_SECONDS, cpu=LAST_CPU, packets_per_second=331)
        )
        kernel = stack.enter_context(kernel_side(tap))
        writing.start()
        before = kernel.counters.snapshot()
        for _ in range(SNAPSHOTS):
            after = kernel.counters.snapshot()
            assert (subtract(after.cells, before.cells)["packets"] > 0).all()
            before = after
        assert writing.wait().frames == 499
        assert kernel.counts() == {Verdict.PASSED: 499, Verdict.POLICED: 0, Verdict.DROPPED: 0}


def test_a_drop_after_the_count_was_read_changes_nothing(tap: Tap) -> None:
    """Frames wait in another tap's ring and are freed with it, on the same CPU: they had passed, and stay passed."""
    with ExitStack() as stack, on_cpu(FIRST_CPU):
        stack.enter_context(on_cpu(FIRST_CPU))
        ring = ExitStack()
        other = stack.enter_context(ring).enter_context(create_tap("tap1"))
        set_link_up(other.name)
        stack.enter_context(bridge_with(tap, other))
        kernel = stack.enter_context(kernel_side(tap))
        flood([tap.fd], [SYN], count=7, seconds=5)
        passed = {Verdict.PASSED: 7, Verdict.POLICED: 0, Verdict.DROPPED: 0}
        assert kernel.counts() == passed
        ring.close()
        after = kernel.counters.snapshot()
        assert after.late_verdicts == 1  # the last one: it was still pending
        assert kernel.counts() == passed
        flood([tap.fd], [SYN], count=11, seconds=5)  # the next packet counts as usual
        assert kernel.counts() == {Verdict.PASSED: 7, Verdict.POLICED: 0, Verdict.DROPPED: 11}


def test_epochs_wrap_around(tap: Tap) -> None:
    """The reader's epoch is 32 bits wide: nothing happens when it starts over."""
    with forwarding(tap), kernel_side(tap) as kernel:
        kernel.programs.table("cpu_states", writable=True)["now"] = np.iinfo(np.uint32).max - 3
        for number in range(1, 8):
            os.write(tap.fd, SYN)
            assert kernel.counts()[Verdict.PASSED] == number


def test_a_chain_that_takes_long_is_waited_for(tap: Tap) -> None:
    """A hundred thousand steps of nft before the verdict, read all the time: policed is nft's count, none is late."""
    jumps = {depth: "\n".join(50 * [f"jump steps{depth + 1}"]) for depth in (1, 2)}
    rules = f"""
        table netdev slow {{
            chain steps3 {{
                {chr(10).join(50 * ["meta length 7 drop"])}
            }}
            chain steps2 {{
                {jumps[2]}
            }}
            chain steps1 {{
                {jumps[1]}
            }}
            chain ingress {{
                type filter hook ingress device "{tap.name}" priority 0; policy accept;
                jump steps1
                drop
            }}
        }}
    """
    with kernel_side(tap) as kernel, writer([tap.fd], [SYN], count=211, seconds=20, cpu=LAST_CPU) as slow:
        kernel.counters.watch(tap.ifindex, 0, TapTrait.NFT_POLICER)
        subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
        slow.start()
        with ThreadPoolExecutor(1) as pool:
            ending = pool.submit(slow.wait)
            while not ending.done():
                kernel.counters.snapshot()
        done = ending.result()
        assert done.seconds > done.frames * 0.001
        assert kernel.counts() == {Verdict.PASSED: 0, Verdict.POLICED: done.frames, Verdict.DROPPED: 0}
        assert kernel.counters.snapshot().late_verdicts == 0


def test_a_grace_period_that_takes_long_holds_nobody_up(tap: Tap, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readings keep their pace; a packet that can't be settled yet comes with a later one, and the totals are whole."""
    over = threading.Event()

    def wait_long() -> bool:
        return over.wait(20)

    monkeypatch.setattr("vifprobe.kernel.barrier.wait_for_call_chains", wait_long)
    with forwarding(tap), Probe(tap.name) as probe:
        flood([tap.fd], [SYN], count=7, seconds=5)
        readings = iter(probe.readings(0.02, 20))
        begun = time.monotonic()
        seen = [next(readings).offered(OUT).packets for _ in range(7)]
        assert time.monotonic() - begun < 0.4
        assert sum(seen) in (6, 7)
        over.set()
        while sum(seen) < 7:
            seen.append(next(readings).offered(OUT).packets)
        flood([tap.fd], [SYN], count=11, seconds=5)
        probe.stop()
        *rest, final = readings
    assert sum(seen) + sum(one.offered(OUT).packets for one in rest) == 18
    assert final.offered(OUT).packets == 18 == count(final.where(OUT, Verdict.PASSED)).packets
