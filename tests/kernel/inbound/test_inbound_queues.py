# SPDX-License-Identifier: Apache-2.0
"""Behind each queueing discipline, until nothing waits any more: what was sent has come to one end, and each end is the
kernel's own count of it.

Here the queues are empty at the end, so nothing has bounds: policed is what the qdisc dropped, passed and dropped what
the tap's driver took and refused. Not every kernel has every qdisc.
"""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
from inbound_kit import (
    DATA,
    IN,
    KERNEL,
    check_sums,
    guest,
    inbound,
    known,
    neighbour,
    reasons,
    statistics,
)
from probe_kit import FIRST_CPU, SYN, Watched

from vifprobe import Probe
from vifprobe.model.layout import PacketClass, Verdict
from vifprobe.model.reading import Reading
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.traffic.flood import writer

COUNT = 1_511
PASSED, POLICED, DROPPED, QUEUED = Verdict.PASSED, Verdict.POLICED, Verdict.DROPPED, Verdict.QUEUED
HTB = (
    "qdisc add dev tap0 root handle 1: htb default 1",
    # As libvirt has it (src/util/virnetdevbandwidth.c), at 0.8 Mbit/s.
    "class add dev tap0 parent 1: classid 1:1 htb rate 100kbps ceil 101kbps burst 2kb quantum 1514",
)
SLOW = "qdisc add dev tap0 root handle 1: tbf rate 800kbit burst 2kb limit 100003"


@dataclass(frozen=True)
class Queue:
    """made: `tc ...`. drops, copies: whether it does so with a flood of COUNT packets."""

    made: tuple[str, ...]
    drops: bool = False
    copies: bool = False


#: A second of delay: longer than an emulated guest is kept from reading, so that some reading sees packets wait.
QUEUES = {
    "libvirt": Queue(
        (
            *HTB,
            "qdisc add dev tap0 parent 1:1 handle 2: sfq perturb 10",
            "filter add dev tap0 parent 1:0 protocol all prio 1 handle 1 fw flowid 1",
        ),
        drops=True,
    ),
    # Two bands: what overtakes is one class, what waits and is dropped the other one.
    "prio": Queue(
        (
            SLOW,
            "qdisc add dev tap0 parent 1:1 handle 2: prio bands 2 priomap 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1",
            "qdisc add dev tap0 parent 2:1 handle 21: pfifo limit 31",
            "qdisc add dev tap0 parent 2:2 handle 22: pfifo limit 47",
            "filter add dev tap0 parent 2: protocol ip u32 match u16 40 0xffff at 2 flowid 2:1",
        ),
        drops=True,
    ),
    "netem delay": Queue(("qdisc add dev tap0 root handle 1: netem delay 1s 20ms limit 10007",)),
    "netem reorder": Queue(("qdisc add dev tap0 root handle 1: netem delay 1s reorder 25% 50% limit 10007",)),
    "netem loss": Queue(("qdisc add dev tap0 root handle 1: netem delay 1s loss 20% limit 10007",), drops=True),
    "netem full": Queue(("qdisc add dev tap0 root handle 1: netem delay 300ms limit 97",), drops=True),
    "netem duplicate": Queue(
        ("qdisc add dev tap0 root handle 1: netem delay 1s duplicate 10% limit 10007",), copies=True
    ),
    "htb pfifo": Queue((*HTB, "qdisc add dev tap0 parent 1:1 handle 2: pfifo limit 127"), drops=True),
    "tbf": Queue((SLOW.replace("100003", "50021"),), drops=True),
}


def make(queue: Queue) -> None:
    for words in queue.made:
        done = subprocess.run(["tc", *words.split()], check=False, capture_output=True, text=True)
        unknown = "unknown" in done.stderr or "No such file" in done.stderr
        # A stock kernel has them all: there it fails.
        assert done.returncode == 0 or (unknown and not KERNEL), done.stderr
        if done.returncode:
            pytest.skip(f"kernel: tc {words}: {done.stderr.strip()}")


def watch_until_empty(probe: Probe, other: Tap) -> Reading:
    """A paced flood to the tap, watched until no packet waits: by the queue's own count, then by ours; the totals."""
    found = Watched()
    looks_left = 20  # what is missed is known after some
    with (
        writer([other.fd], [SYN, DATA], count=COUNT, seconds=60, packets_per_second=5_003, cpu=FIRST_CPU) as flood,
        ThreadPoolExecutor(1) as pool,
    ):
        flood.start()
        written = pool.submit(flood.wait)
        for reading in probe.readings(0.05, 60.0):
            found.bins = np.concatenate([found.bins, probe.take_bins()])
            if reading.final:
                found.totals[reading.tap] = reading
                continue
            found.intervals.append(reading)
            if written.done() and statistics("qdisc", "tap0", "1:")["qlen"] == 0:
                waiting = reading.counts(IN, QUEUED)
                assert waiting is not None
                looks_left -= 1
                if waiting.packets == 0 or looks_left == 0:
                    probe.stop()
        assert written.result().frames == COUNT
    assert max(one.counts(IN, QUEUED).packets for one in found.intervals) > 0  # type: ignore[union-attr]
    return check_sums(found)


@pytest.mark.parametrize("name", list(QUEUES))
def test_each_packet_has_come_to_the_end_that_the_kernel_counts(tap: Tap, name: str) -> None:
    """A copy that netem makes is a packet more: the guest gets it and the qdisc counts it, though nobody sent it."""
    queue = QUEUES[name]
    make(queue)
    with neighbour(tap) as other, guest(tap) as reader:
        with Probe("tap0", bin_ns=1_000_000) as probe:
            total = watch_until_empty(probe, other)
        root, device = statistics("qdisc", "tap0", "1:"), tap.counters()
    offered, missed = total.offered(IN).packets, total.missed
    passed, policed, dropped = (inbound(total, verdict).packets for verdict in (PASSED, POLICED, DROPPED))
    copies = root["packets"] + root["drops"] - COUNT
    print(f"{KERNEL} {name}: {offered=} {passed=} {policed=} {dropped=} {missed=} {copies=} {root['drops']=}")
    assert (root["qlen"], inbound(total, QUEUED).packets) == (0, 0)
    assert missed == 0 or not KERNEL
    assert offered + missed == COUNT + copies
    assert (copies > COUNT // 20) if queue.copies else (copies == 0)
    assert total.untracked == copies
    # What the queue dropped was dropped in the sender's call chain, where nothing is hidden.
    assert policed == root["drops"]
    assert (policed > COUNT // 10) if queue.drops else (policed == 0)
    assert reasons(probe, total, POLICED).keys() <= known("QDISC_DROP", "QDISC_OVERLIMIT", "QDISC_CONGESTED")
    assert reasons(probe, total, DROPPED).keys() <= known("FULL_RING")
    assert passed + dropped + missed == root["packets"]
    assert passed <= device["tx_packets"] == reader.packets <= passed + missed
    assert dropped <= device["tx_dropped"] <= dropped + missed
    if not missed:
        assert inbound(total, PASSED).frame_bytes == reader.frame_bytes
        assert inbound(total, PASSED).charged_bytes + inbound(total, DROPPED).charged_bytes == root["bytes"]
    if name == "prio":
        # Strict priority: SYNs overtake all data, so fewer of them find their band full.
        syn, data = (
            int(total.where(IN, POLICED, packet_class=one)["packets"].sum())
            for one in (PacketClass.TCP_SYN, PacketClass.TCP_DATA)
        )
        assert syn < data
