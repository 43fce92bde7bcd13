# SPDX-License-Identifier: Apache-2.0
"""Inbound packets followed to their end: what passed, was policed, dropped or waits is what tc and the device say."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from dataclasses import replace

import pytest
from inbound_kit import (
    DATA,
    IN,
    check_sums,
    drain,
    guest,
    inbound,
    known,
    neighbour,
    reasons,
    senders,
    sent,
    statistics,
    tc,
    watch,
)
from probe_kit import FIRST_CPU, LAST_CPU, SYN, Require, finish, watch_flood

from vifprobe import Probe
from vifprobe.kernel import libbpf
from vifprobe.kernel.attach import has_tcx
from vifprobe.kernel.features import read_features, read_trace_fields
from vifprobe.kernel.load import make_programs
from vifprobe.kernel.settings import Settings, possible_cpus
from vifprobe.model.layout import WHAT_IFS_MAX, PacketClass, Verdict
from vifprobe.model.reading import Reading
from vifprobe.testing.net.netns import private_netns
from vifprobe.testing.net.taps import Tap, write_gso
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.packets import frames as f

COUNT = 20_011
BIN_NS = 1_000_000
PASSED, POLICED, DROPPED, QUEUED = Verdict.PASSED, Verdict.POLICED, Verdict.DROPPED, Verdict.QUEUED
ROOTS = {
    "noqueue": ("noqueue",),
    "pfifo_fast": ("pfifo_fast",),
    "pfifo": ("handle", "1:", "pfifo", "limit", "1009"),
    "fq_codel": ("handle", "1:", "fq_codel", "limit", "127"),
}


def set_root(tap: Tap, *words: str) -> None:
    """`tc qdisc replace dev X root ...`; skips where the kernel has no such queueing discipline."""
    done = subprocess.run(["tc", "qdisc", "replace", "dev", tap.name, "root", *words], check=False, capture_output=True)
    if done.returncode:
        pytest.skip(f"kernel: no qdisc {' '.join(words)}")


def make_htb(tap: Tap, rate: str, limit: int) -> None:
    """HTB as libvirt makes it, but for the leaf, which not every kernel has as sfq: see test_inbound_libvirt."""
    tc("qdisc", "add", "dev", tap.name, "root", "handle", "1:", "htb", "default", "1")
    tc("class", "add", "dev", tap.name, "parent", "1:", "classid", "1:1", "htb", "rate", rate, "burst", "15kb")
    tc("qdisc", "add", "dev", tap.name, "parent", "1:1", "handle", "2:", "pfifo", "limit", str(limit))


@pytest.mark.parametrize("root", list(ROOTS))
def test_a_guest_that_does_not_read(tap: Tap, root: str) -> None:
    """The ring takes what it holds, the rest is dropped as FULL_RING: the device's own count."""
    set_root(tap, *ROOTS[root])
    with (
        neighbour(tap) as other,
        senders((other, COUNT, FIRST_CPU)) as writers,
        Probe("tap0", bin_ns=BIN_NS) as probe,
    ):
        before = tap.counters()["tx_dropped"]
        found, total = watch(probe, writers)
        lost = tap.counters()["tx_dropped"] - before
    assert total.offered(IN)[:2] == (COUNT, COUNT * len(SYN))
    assert inbound(total, DROPPED).packets == lost > COUNT // 2
    assert reasons(probe, total, DROPPED) == dict.fromkeys(known("FULL_RING"), lost)
    assert drain(tap) == inbound(total, PASSED).packets == COUNT - lost
    assert tap.counters()["tx_packets"] == COUNT - lost
    assert len(found.intervals) > 0


@pytest.mark.parametrize("root", list(ROOTS))
def test_a_guest_that_reads(tap: Tap, root: str) -> None:
    """Two classes from two CPUs: what the guest got is what passed, to the packet and to the byte."""
    set_root(tap, *ROOTS[root])
    with (
        neighbour(tap) as other,
        make_tap("tap8") as third,
        senders((other, COUNT, FIRST_CPU), frames=(SYN, DATA)) as first,
        senders((third, COUNT, LAST_CPU), frames=(DATA,)) as second,
        Probe("tap0", bin_ns=BIN_NS) as probe,
    ):
        subprocess.run(["ip", "link", "set", "tap8", "master", "br0"], check=True)
        with guest(tap) as reader:
            _, total = watch(probe, first + second)
    passed = inbound(total, PASSED)
    assert (passed.packets, passed.frame_bytes) == (reader.packets, reader.frame_bytes)
    assert total.offered(IN, PacketClass.TCP_SYN).packets == COUNT // 2 + 1
    assert total.offered(IN, PacketClass.TCP_DATA).packets == COUNT // 2 + COUNT
    assert inbound(total, DROPPED).packets == tap.counters()["tx_dropped"]
    assert passed.packets == tap.counters()["tx_packets"]
    if root == "fq_codel":
        assert inbound(total, POLICED).packets == statistics("qdisc", "tap0", "1:")["drops"]
    else:
        assert inbound(total, POLICED).packets == 0


def test_htb(tap: Tap) -> None:
    """What the class sent has passed, what it dropped is policed, what it holds is queued."""
    make_htb(tap, "100bit", 127)
    with (
        neighbour(tap) as other,
        senders((other, COUNT, FIRST_CPU)) as writers,
        Probe("tap0", bin_ns=BIN_NS) as probe,
    ):
        _, total = watch(probe, writers)
        leaf = statistics("qdisc", "tap0", "2:")
    waiting = inbound(total, QUEUED)
    assert total.offered(IN).packets + total.missed == COUNT
    assert inbound(total, POLICED)[:2] == (leaf["drops"], leaf["drops"] * len(SYN))
    assert reasons(probe, total, POLICED).keys() <= known("QDISC_DROP", "QDISC_OVERLIMIT")
    # A packet in 4 s leaves it between the reading and tc's.
    assert leaf["qlen"] <= waiting.packets <= leaf["qlen"] + 5
    assert sent(total) == COUNT - leaf["drops"] - waiting.packets
    assert inbound(total, DROPPED).packets == 0


def test_a_queue_that_empties(tap: Tap) -> None:
    """With time, what was queued has passed: in a later interval than it was offered in."""
    make_htb(tap, "100kbit", 499)  # also an emulated writer is faster
    seen: list[Reading] = []
    with neighbour(tap) as other, senders((other, 1009, FIRST_CPU)) as (writer,), guest(tap) as reader:
        with Probe("tap0", bin_ns=BIN_NS) as probe:
            writer.start()
            for reading in probe.readings(0.02, 20.0):
                seen.append(reading)
                ended = sum(sent(one) + inbound(one, POLICED).packets for one in seen)
                if ended == 1009 and not reading.final:
                    probe.stop()
        total = seen[-1]
        leaf = statistics("qdisc", "tap0", "2:")
    assert total.final
    assert inbound(total, POLICED).packets == leaf["drops"] > 0
    assert sent(total) == leaf["packets"] == 1009 - leaf["drops"] == reader.packets
    assert inbound(total, QUEUED).packets == 0
    assert max(one.counts(IN, QUEUED).packets for one in seen) > 100  # type: ignore[union-attr]
    assert min(inbound(one, QUEUED).packets for one in seen) < 0


def test_what_waited_before_the_start(tap: Tap) -> None:
    """It is counted when it ends, policed or passed, and makes no queue shorter than empty."""
    make_htb(tap, "100kbit", 997)
    with neighbour(tap) as other, senders((other, 1201, FIRST_CPU), (other, 2003, FIRST_CPU)) as (early, late):
        early.start()
        early.wait()
        held = statistics("qdisc", "tap0", "2:")
        assert held["qlen"] > 300
        with guest(tap):
            with Probe("tap0", bin_ns=BIN_NS) as probe:
                _, total = watch(probe, [late])
            leaf = statistics("qdisc", "tap0", "2:")
    assert inbound(total, POLICED).packets == leaf["drops"] - held["drops"] > 0
    # What was sent before the end, and at most what waited at the start is too much to have been offered meanwhile.
    assert 2003 <= total.offered(IN).packets + total.missed <= 2003 + held["qlen"]
    assert inbound(total, QUEUED).packets <= 997


def test_a_queue_that_is_taken_away(tap: Tap) -> None:
    """`tc qdisc replace` frees what waits there: dropped, by nobody's limit; no packet is left in the books."""
    make_htb(tap, "100bit", 499)
    with (
        neighbour(tap) as other,
        senders((other, 1009, FIRST_CPU), (other, 503, LAST_CPU)) as (first, second),
        Probe("tap0", bin_ns=BIN_NS) as probe,
    ):
        first.start()
        first.wait()
        leaf = statistics("qdisc", "tap0", "2:")
        tc("qdisc", "replace", "dev", "tap0", "root", "handle", "7:", "pfifo", "limit", "1009")
        _, total = watch(probe, [second])
    assert total.offered(IN).packets + total.missed == 1009 + 503
    assert inbound(total, POLICED).packets == leaf["drops"]
    assert inbound(total, QUEUED).packets == 0
    purged = inbound(total, DROPPED).packets
    # Some packets a second leave it meanwhile.
    assert leaf["qlen"] - 5 <= purged <= leaf["qlen"]
    assert drain(tap) == 1009 + 503 - leaf["drops"] - purged


def test_a_tap_of_the_same_number_elsewhere(tap: Tap) -> None:
    """Another namespace's tap with the same ifindex, shaped and overrun: none of it is this one's."""
    with ExitStack() as stack:
        with stack.enter_context(private_netns(enter=False)).entered():
            twin = stack.enter_context(make_tap("tap0"))
            make_htb(twin, "8kbit", 127)
            other = stack.enter_context(neighbour(twin))
        assert twin.ifindex == tap.ifindex
        own = stack.enter_context(neighbour(tap))
        writers = stack.enter_context(senders((own, 503, FIRST_CPU), (other, COUNT, LAST_CPU)))
        probe = stack.enter_context(Probe("tap0", bin_ns=BIN_NS))
        _, total = watch(probe, writers)
    assert total.offered(IN).packets == inbound(total, PASSED).packets == 503
    assert drain(tap) == 503


def test_frames_that_are_cut_for_the_guest(tap: Tap) -> None:
    """A TSO frame to a tap without TSO is counted as the segments that the guest gets."""
    long = f.eth(f.ipv4(f.tcp(f.TcpFlag.ACK, bytes(7919))), f.EtherType.IPV4)
    with (
        neighbour(tap, vnet_hdr=True) as other,
        Probe("tap0", bin_ns=BIN_NS) as probe,
        guest(tap) as reader,
    ):
        for _ in range(101):
            write_gso(other, long, gso_size=1000, transport_offset=34)
        found = finish(probe)
        total = check_sums(found)
    assert reader.packets > 101
    assert inbound(total, PASSED)[:2] == (reader.packets, reader.frame_bytes)
    assert inbound(total, QUEUED).packets == 0
    assert total.missed == 0


def test_packets_that_go_another_way_are_missed(tap: Tap, require: Require) -> None:
    """Another program redirects them: none is left in the books as one that waits, and each is told as missed."""
    with ExitStack() as stack:
        other = stack.enter_context(neighbour(tap))
        elsewhere = stack.enter_context(make_tap("tap8"))
        to = elsewhere.ifindex.to_bytes(4, "little").hex()
        # r1 = ifindex; r2 = 0; call bpf_redirect; exit
        code = bytes.fromhex(f"b7010000{to} b702000000000000 8500000017000000 9500000000000000")
        program = libbpf.load_tc_program("detour", code)
        stack.callback(os.close, program)
        try:
            stack.callback(os.close, libbpf.attach_tcx(program, tap.ifindex, ingress=False))
        except OSError:
            require("kernel", False, "tcx (Linux 6.6)")
        writers = stack.enter_context(senders((other, COUNT, FIRST_CPU)))
        probe = stack.enter_context(Probe("tap0", bin_ns=BIN_NS))
        found = watch_flood(probe, writers, checked=False)
        assert drain(elsewhere) > 500
    total = found.totals["tap0"]
    assert (total.missed, total.offered(IN).packets) == (COUNT, 0)
    assert sum(reading.missed for reading in found.intervals) == COUNT
    assert min(reading.missed for reading in found.intervals) >= 0


def test_this_kernel_takes_all_that_capture_asks_for(tap: Tap) -> None:
    """Inbound packets followed, with timeline, samples, SYN measures and limits that are tried out: the verifier's
    largest programs.
    """
    fields = read_trace_fields()
    trace = None if has_tcx(tap.ifindex) else fields
    asked = Settings(cpus=possible_cpus(), bin_ns=BIN_NS, follow=fields, trace=trace, samples=True, syn=True)
    settings = replace(asked, what_ifs=WHAT_IFS_MAX)
    programs = make_programs(settings, read_features())
    try:
        assert programs.unfollowed == ""
        programs.attach_followers()
        programs.detach_followers()
    finally:
        programs.close()


def test_packets_that_are_not_followed_are_offered_alone(tap: Tap) -> None:
    with (
        neighbour(tap) as other,
        senders((other, 1009, FIRST_CPU)) as writers,
        Probe("tap0", follow_inbound=False) as probe,
    ):
        total = watch_flood(probe, writers, checked=False).totals["tap0"]
    assert total.offered(IN).packets == 1009
    assert not total.knows_verdicts(IN)
    assert total.counts(IN, PASSED) is None
