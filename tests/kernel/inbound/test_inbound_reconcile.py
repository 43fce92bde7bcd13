# SPDX-License-Identifier: Apache-2.0
"""Inbound counts beside the device's own and those of the queueing tree: each row says what it can, and agrees."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from inbound_kit import DATA, IN, guest, inbound, neighbour, senders, statistics, tc, watch
from probe_kit import FIRST_CPU, SYN, Require
from test_inbound import make_htb, set_root

from vifprobe import Probe
from vifprobe.analysis.reconcile import ReconcileRow
from vifprobe.kernel import libbpf
from vifprobe.model.layout import Verdict
from vifprobe.model.reading import Reading
from vifprobe.session.counter_check import CounterCheck
from vifprobe.testing.net.taps import Tap

COUNT = 5_003
RING = 1000 + 64  # the tap's tx queue length, and what vhost takes at once
#: r0 = TC_ACT_SHOT; exit
SHOT = bytes.fromhex("b700000002000000 9500000000000000")
ALL = "tc root packets + drops + backlog"
PASSED, POLICED, DROPPED, QUEUED = Verdict.PASSED, Verdict.POLICED, Verdict.DROPPED, Verdict.QUEUED

Rows = dict[str, ReconcileRow]


def flooded(tap: Tap, count: int = COUNT) -> tuple[Rows, Reading]:
    """A flood to the tap's guest of two classes, and what became of it; no counter disagrees."""
    counter_check = CounterCheck()
    with (
        neighbour(tap) as other,
        senders((other, count, FIRST_CPU), frames=(SYN, DATA)) as writers,
        Probe("tap0", counter_check=counter_check, bin_ns=1_000_000) as probe,
    ):
        _, total = watch(probe, writers)
        known = probe.features.reasons
    rows = {row.counter: row for row in counter_check.rows([total], reasons=known) if row.direction is IN}
    assert not [row for row in rows.values() if row.agrees is False]
    assert counter_check.problems == []
    return rows, total


def bounds(row: ReconcileRow) -> tuple[int | None, int | None]:
    return row.vifprobe_low, row.vifprobe_high


def check_queue(rows: Rows, total: Reading, *names: str) -> None:
    """Of the queueing tree: what it dropped to the packet, what it sent and holds but for what was missed."""
    policed, waiting, missed = inbound(total, POLICED).packets, inbound(total, QUEUED).packets, total.missed
    sent = inbound(total, PASSED).packets + inbound(total, DROPPED).packets
    assert policed > 0
    for name in names:
        drops = rows[f"{name} drops"]
        assert (drops.delta, *bounds(drops)) == (policed, policed, policed + missed)
        packets = rows[f"{name} packets"]
        assert bounds(packets) == (sent, sent + missed)
        assert packets.delta is not None
        assert sent <= packets.delta
        assert bounds(rows[f"{name} backlog"]) == (waiting, waiting + missed)
        if not missed:
            assert (drops.agrees, packets.agrees) == (True, True)
    came = rows[ALL]
    assert (came.delta, *bounds(came)) == (COUNT, COUNT - missed, COUNT)
    assert came.agrees is (True if not missed else None)


def test_htb_as_libvirt_makes_it(tap: Tap) -> None:
    """Root, its only class: the same numbers, and charged bytes are the kernel's own."""
    make_htb(tap, "8kbit", 127)
    rows, total = flooded(tap)
    check_queue(rows, total, "tc root", "tc class 1:1")
    if not total.missed:
        sent = inbound(total, PASSED).charged_bytes
        assert bounds(rows["tc root bytes"]) == (sent, sent)
        assert rows["tc root bytes"].agrees is True


def test_tbf(tap: Tap) -> None:
    """A queue in bytes: one bfifo inside."""
    tc("qdisc", "add", "dev", "tap0", "root", "handle", "1:", "tbf", "rate", "40kbit", "burst", "2kb", "limit", "20011")
    rows, total = flooded(tap)
    check_queue(rows, total, "tc root")
    found = statistics("qdisc", "tap0", "1:")
    assert inbound(total, POLICED).packets == found["drops"]
    assert found["qlen"] <= inbound(total, QUEUED).packets


#: What is set up for the tap, and whether it drops some of a flood. libvirt's is the second; Neutron's Linux bridge
#: agent makes a tbf. Not every kernel has all.
_HTB = ("qdisc add dev tap0 root handle 1: htb default 1", "class add dev tap0 parent 1: classid 1:1 htb rate 80kbit")
QUEUES = {
    "tbf": (("qdisc add dev tap0 root handle 1: tbf rate 80kbit burst 2kb limit 20011",), True),
    "htb sfq": ((*_HTB, "qdisc add dev tap0 parent 1:1 handle 2: sfq perturb 10"), True),
    "htb fq_codel": ((*_HTB, "qdisc add dev tap0 parent 1:1 handle 2: fq_codel limit 127 target 1ms"), True),
    "htb bfifo": ((*_HTB, "qdisc add dev tap0 parent 1:1 handle 2: bfifo limit 20011"), True),
    "netem": (("qdisc add dev tap0 root handle 1: netem delay 5ms reorder 25% limit 10007",), False),
    "prio": (("qdisc add dev tap0 root handle 1: prio",), False),
}


@pytest.mark.parametrize("queue", list(QUEUES))
def test_what_each_queue_drops_is_policed(tap: Tap, queue: str) -> None:
    """Packets wait, overtake each other, are dropped as they come or as they go: each has its one end."""
    made, drops = QUEUES[queue]
    for words in made:
        done = subprocess.run(["tc", *words.split()], check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"kernel: tc {words}: {done.stderr.strip()}")
    with guest(tap) as reader:
        rows, total = flooded(tap)
    policed = inbound(total, POLICED).packets
    assert total.offered(IN).packets + total.missed == COUNT
    assert (policed > COUNT // 2) is drops
    row = rows["tc root drops"]
    # Before 6.14, what CoDel drops when a packet's turn has come has no reason: dropped, by nobody known.
    # What the ring does not hold is the driver's: a reader that shares its CPU with the writer is slow.
    unplaced = inbound(total, DROPPED).packets - (rows["device tx_dropped"].delta or 0)
    assert bounds(row) == (policed, policed + unplaced + total.missed)
    assert row.agrees is True or total.missed or (unplaced and "codel" in queue)
    # What was queued at the end has come to the guest since, or was dropped on its way.
    assert inbound(total, PASSED).packets <= reader.packets <= COUNT - policed


def test_copies_that_wait_are_nobodys_disagreement(tap: Tap) -> None:
    """netem's duplicates are seen only as they leave it: what came to it is more, and is held against nothing."""
    set_root(tap, "handle", "1:", "netem", "delay", "60s", "duplicate", "20%", "limit", "10007")
    count = 503
    rows, total = flooded(tap, count)
    assert inbound(total, QUEUED).packets == total.offered(IN).packets == count
    came = rows[ALL]
    assert came.delta is not None
    assert came.delta > count + count // 10
    assert (*bounds(came), came.agrees) == (None, None, None)
    assert rows["tc root packets"].agrees is True


def test_an_htb_with_two_classes_is_held_against_its_root_alone(tap: Tap) -> None:
    """A class's counters are shown; that they are a part of what was counted is said by saying nothing."""
    make_htb(tap, "8kbit", 127)
    tc("class", "add", "dev", "tap0", "parent", "1:", "classid", "1:2", "htb", "rate", "8kbit")
    rows, total = flooded(tap)
    check_queue(rows, total, "tc root")
    for name in ("tc class 1:1 drops", "tc class 1:2 packets"):
        assert bounds(rows[name]) == (None, None)
        assert rows[name].agrees is None


def test_what_waited_before_widens_the_bounds(tap: Tap) -> None:
    make_htb(tap, "8kbit", 127)
    with neighbour(tap) as other, senders((other, 401, FIRST_CPU)) as (early,):
        early.start()
        early.wait()
    held = statistics("qdisc", "tap0", "2:")["qlen"]
    assert held > 80
    rows, total = flooded(tap)
    waiting = inbound(total, QUEUED).packets
    low, high = bounds(rows["tc root backlog"])
    assert (low, high) == (max(0, waiting - (rows["tc root backlog"].before or 0)), waiting + total.missed)
    assert rows["tc root drops"].delta == inbound(total, POLICED).packets


def test_a_full_ring(tap: Tap) -> None:
    """Nobody reads: what the driver refused to the packet; what was read, up to what the ring holds."""
    rows, total = flooded(tap)
    lost, passed = inbound(total, DROPPED).packets, inbound(total, PASSED).packets
    dropped = rows["device tx_dropped"]
    assert (dropped.delta, *bounds(dropped)) == (lost, lost, lost + total.missed)
    assert 0 < lost < COUNT
    read = rows["device tx_packets"]
    assert (read.delta, *bounds(read)) == (0, max(0, passed - RING), passed + total.missed + RING)
    if not total.missed:
        assert (dropped.agrees, read.agrees, rows["device tx_bytes"].agrees) == (True, True, True)


def test_a_guest_that_reads(tap: Tap) -> None:
    with guest(tap) as reader:
        rows, total = flooded(tap)
        passed = inbound(total, PASSED).packets
    assert reader.packets == passed + total.missed
    read = rows["device tx_packets"]
    assert read.agrees is (True if not total.missed else None)
    assert bounds(read) == (max(0, passed - RING), passed + total.missed + RING)


def test_what_a_program_drops_ahead_of_the_queue_is_nobody_elses(tap: Tap, require: Require) -> None:
    """A drop at egress is in neither the queue's nor the driver's counters."""
    set_root(tap, "handle", "1:", "pfifo", "limit", "1009")
    with egress_dropper(tap, require):
        rows, total = flooded(tap)
    assert inbound(total, DROPPED).packets == COUNT
    assert rows["device tx_dropped"].delta == rows[ALL].delta == 0
    assert (rows["device tx_dropped"].agrees, rows[ALL].agrees) == (True, True)


@contextmanager
def egress_dropper(tap: Tap, require: Require) -> Iterator[None]:
    """A tcx program of somebody else's that drops whatever goes to the guest, behind ours."""
    program = libbpf.load_tc_program("closed", SHOT)
    with ExitStack() as stack:
        stack.callback(os.close, program)
        try:
            stack.callback(os.close, libbpf.attach_tcx(program, tap.ifindex, ingress=False))
        except OSError:
            require("kernel", False, "tcx (Linux 6.6)")
        yield
