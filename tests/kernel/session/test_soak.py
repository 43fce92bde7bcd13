# SPDX-License-Identifier: Apache-2.0
"""A long run keeps no more than a short one, whatever is done to its tap meanwhile."""

from __future__ import annotations

import gc
import os
import resource
import sys
import time
from pathlib import Path

import pytest

from vifprobe.kernel import barrier
from vifprobe.kernel.tables import counters
from vifprobe.session import host_cost
from vifprobe.session.audit import tap_audit
from vifprobe.session.probe import Probe
from vifprobe.testing.net.taps import Tap, switch_offload
from vifprobe.testing.packets import frames as f

#: VIFPROBE_SOAK=100000 for as many: some ten minutes; with `-s` figures are shown on the way.
INTERVALS = int(os.environ.get("VIFPROBE_SOAK", "6000"))
#: On a loaded machine an interval takes tens of milliseconds.
TIMEOUT_SECONDS = max(300, INTERVALS // 10)
SETTLED = 1_000
#: A list of one item an interval would be 5,000 more.
GROWN_OBJECTS, GROWN_BLOCKS = 2_000, 5_000
FRAME = f.pad(f.eth(f.ipv4(f.tcp(f.TcpFlag.SYN)), f.EtherType.IPV4))


def kept() -> tuple[int, int]:
    """Objects that the garbage collector knows, and blocks of memory."""
    gc.collect()
    return len(gc.get_objects()), sys.getallocatedblocks()


def resident_kib() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_nothing_grows_with_time(tap: Tap, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting for grace periods, which is all that most of an interval is; nobody takes events or intervals of
    the host. Now and then the guest sends a SYN, and its driver switches offloads.
    """
    monkeypatch.setattr(barrier, "wait_for_call_chains", lambda: True)
    monkeypatch.setattr(counters, "LATE_VERDICT_SECONDS", 0)
    monkeypatch.setattr(host_cost, "KEPT", 17)  # or it would be full after a minute only
    # What findings are drawn from, else of the last five seconds: how many intervals that is depends on the machine.
    monkeypatch.setattr(tap_audit, "_WINDOW_NS", 20_000_000)
    before = (0, 0)
    with Probe("tap0", samples=20_000, host=True) as probe:
        for number in range(INTERVALS):
            if not number % 1_009:
                tap.write(FRAME)
                switch_offload(tap, 2)
            probe._event_loop.wait(0)
            probe._interval(probe._maker.snapshot())
            if number == SETTLED:
                before = kept()
            if not number % max(SETTLED, INTERVALS // 20):
                print(
                    f"{number:,} intervals: {resident_kib():,} KiB resident, {time.process_time():.1f} s of CPU",
                    flush=True,
                )
        after = kept()
    print(f"{before} after {SETTLED:,} intervals, {after} after {INTERVALS:,}")
    assert after[0] - before[0] < GROWN_OBJECTS
    assert after[1] - before[1] < GROWN_BLOCKS
