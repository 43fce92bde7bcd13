# SPDX-License-Identifier: Apache-2.0
"""The audit against a real kernel: correct limits raise nothing, and each way to get it wrong is told apart."""

from __future__ import annotations

import functools
import json
import os
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from host_fixtures import run

from vifprobe.host.declared import declared_of
from vifprobe.kernel import libbpf
from vifprobe.kernel.tcx import tcx_programs
from vifprobe.model.layout import Direction
from vifprobe.model.limits import LimitState
from vifprobe.model.reading import Finding, Limit, Reading
from vifprobe.session.audit import auditor
from vifprobe.session.audit.snapshot import PolicerReport, audit_tap
from vifprobe.session.probe import Probe
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.traffic.flood import writer
from vifprobe.testing.traffic.scenario import guest, ordinary_packets, syn_flood_packets

Require = Callable[[str, object, str], None]
OUT, IN = Direction.OUTBOUND, Direction.INBOUND
TBF = "tc qdisc add dev tap0 root tbf rate 100mbit burst 3125kb latency 50ms"
LIMIT = Limit(declared_bps=100_000_000, burst_bytes=3_200_000)
_BPF_MOV_R0, _BPF_EXIT = 0xB7, 0x95


@pytest.fixture(autouse=True)
def nobody_else_declares(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a libvirt nor an Open vSwitch of this host has a say."""
    away = functools.partial(declared_of, libvirt_directory=tmp_path / "no", ovs_sockets=(tmp_path / "no",))
    monkeypatch.setattr(auditor, "declared_of", away)


def audit(name: str = "tap0", seconds: float = 1.3, packets: bool = True, **limits: Limit) -> PolicerReport:
    given = {Direction[direction.upper()]: limit for direction, limit in limits.items()}
    directions = tuple(given) or tuple(Direction)
    return audit_tap(name, given, directions, seconds, packets=packets)


def patterns(found: PolicerReport | Reading) -> set[str]:
    return {finding.pattern for finding in found.findings}


def only(found: PolicerReport | Reading, pattern: str) -> Finding:
    (finding,) = [finding for finding in found.findings if finding.pattern == pattern]
    json.dumps(dict(finding.evidence))
    return finding


@contextmanager
def sending(tap: Tap, frames: list[bytes], packets_per_second: float | None = None) -> Iterator[None]:
    with writer(tap.fds, frames, count=10**9, seconds=600, packets_per_second=packets_per_second) as started:
        started.start()
        yield


@contextmanager
def tcx_program(tap: Tap, verdict: int, require: Require) -> Iterator[None]:
    """A program of somebody else's that says the same of each packet."""
    code = struct.pack("=BBhi", _BPF_MOV_R0, 0, 0, verdict) + struct.pack("=BBhi", _BPF_EXIT, 0, 0, 0)
    program = libbpf.load_tc_program("accelerator", code)
    try:
        try:
            link = libbpf.attach_tcx(program, tap.ifindex, ingress=True)
        except OSError:
            require("kernel", False, "tcx (Linux 6.6)")
            raise
        try:
            yield
        finally:
            os.close(link)
    finally:
        os.close(program)


def test_a_guest_within_its_limit_raises_nothing(tap: Tap) -> None:
    with guest() as vm, sending(vm.tap, ordinary_packets(vm.tap), 4_000):
        found = audit(vm.tap.name, outbound=LIMIT)
    assert patterns(found) == set(), found.findings
    assert found.limit_states[OUT].state is LimitState.THERE
    assert [row.matches_declared for row in found.rows] == [True, True]


def test_a_guest_at_its_limit_with_ordinary_packets_loses_some_and_raises_no_alarm(tap: Tap) -> None:
    """P8 says that the tap's counters show more than passes: true, and no more than a remark."""
    with guest(average=500, burst=500) as vm, sending(vm.tap, ordinary_packets(vm.tap), 3_000):
        found = audit(vm.tap.name, 3.3, outbound=Limit(declared_bps=4_000_000, burst_bytes=512_000))
    assert patterns(found) <= {"P8"}, found.findings


def test_a_syn_flood_under_a_limit_that_holds(tap: Tap) -> None:
    with guest(average=125, burst=32) as vm, sending(vm.tap, syn_flood_packets(vm.tap), 20_000):
        found = audit(vm.tap.name, 2.3, outbound=Limit(declared_bps=1_000_000, burst_bytes=32_768))
    assert patterns(found) == {"P6", "P8"}, found.findings
    assert only(found, "P6").evidence["mean_charged_bytes"] == 40
    assert only(found, "P8").evidence["policed_packets"] > 10_000


def test_shapers_towards_the_guest(tap: Tap) -> None:
    run(TBF)
    found = audit(inbound=LIMIT)
    assert patterns(found) == set(), found.findings
    run("tc qdisc del dev tap0 root")
    run("tc qdisc add dev tap0 root handle 1: htb default 1")
    run("tc class add dev tap0 parent 1: classid 1:1 htb rate 12500kbps ceil 12500kbps burst 3125kb quantum 1514")
    assert patterns(audit(inbound=LIMIT)) == set()
    wrong = audit(inbound=Limit(declared_bps=12_500_000))
    assert only(wrong, "P11").evidence["unit_mistake"] == "bytes were taken for bits"
    assert only(audit(inbound=Limit(100_000_000, burst_bytes=64_000)), "P11").severity == "warning"


def test_a_limit_on_the_wrong_side(tap: Tap) -> None:
    run(TBF)
    found = audit(outbound=LIMIT)
    assert patterns(found) == {"P12"}
    assert found.limit_states[OUT].state is LimitState.ABSENT


def test_no_limit_at_all(tap: Tap) -> None:
    assert patterns(audit()) == set()
    for packets in (True, False):
        found = audit(outbound=LIMIT, packets=packets)
        assert patterns(found) == {"P1"}
    assert "not requested" in found.notes[0]


def test_one_rate_is_meant_for_what_the_guest_sends(tap: Tap) -> None:
    with guest() as vm:
        assert patterns(audit(vm.tap.name, outbound=LIMIT, inbound=LIMIT)) == set()


def nft(rule: str) -> None:
    script = f"table netdev t {{ chain c {{ type filter hook ingress device tap0 priority 0;\n{rule}\n}}\n}}\n"
    subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True)


def test_a_limit_of_some_packets_only(tap: Tap) -> None:
    """P4: an nft rule with a condition."""
    nft("meta protocol ip limit rate over 12500000 bytes/second burst 3200000 bytes counter drop")
    found = audit(outbound=LIMIT)
    assert patterns(found) == {"P4"}
    assert found.limit_states[OUT].state is LimitState.HOLES


@pytest.mark.parametrize(("verdict", "shadowed"), [(-1, False), (2, True)])
def test_a_program_ahead_of_the_policer(tap: Tap, require: Require, verdict: int, shadowed: bool) -> None:
    """P5: one that lets the next decide (TCX_NEXT) is harmless, one that decides (TCX_DROP) is not."""
    nft("counter limit rate over 12500000 bytes/second burst 3200000 bytes counter drop")
    with tcx_program(tap, verdict, require), sending(tap, syn_flood_packets(tap), 5_000):
        (program,) = tcx_programs(tap.ifindex, ingress=True)
        assert (program.name, program.own) == ("accelerator", False)
        found = audit(seconds=2.3, outbound=LIMIT)
    assert ("P5" in patterns(found)) is shadowed, found.findings
    assert found.set_up.earlier == (f"the tcx program accelerator (id {program.id})",)
    if shadowed:
        assert only(found, "P5").evidence["seen"] == 0
        assert found.limit_states[OUT].state is LimitState.BYPASSED


def test_a_program_in_a_filter_is_named(tap: Tap) -> None:
    code = struct.pack("=BBhi", _BPF_MOV_R0, 0, 0, -1) + struct.pack("=BBhi", _BPF_EXIT, 0, 0, 0)
    run("tc qdisc add dev tap0 clsact")
    program = libbpf.load_tc_program("accelerator", code)
    try:
        libbpf.attach_filter(program, tap.ifindex, True, 7, 1, "clsact")
    finally:
        os.close(program)
    found = audit()
    (words,) = found.set_up.earlier
    assert words.startswith("the filter ingress pref 7 bpf 0x1 (accelerator, id ")
    assert found.set_up.ingress_qdisc == "clsact"


def test_a_removal_is_shown_within_200_ms_with_who_and_after_what(tap: Tap) -> None:
    run(TBF)
    removed_ns: list[int] = []

    def remove() -> None:
        run("ip link set tap0 mtu 1400")
        removed_ns.append(time.monotonic_ns())
        run("tc qdisc del dev tap0 root")

    with Probe("tap0", directions=(IN,), limits={IN: LIMIT}) as probe:
        timer = threading.Timer(0.5, remove)
        timer.start()
        for reading in probe.readings(3.0, 6.0):
            if reading.limits[IN].installed_bps is None:
                break
        shown_ms = (time.monotonic_ns() - removed_ns[0]) / 1e6
        timer.join()
    assert patterns(reading) == {"P1", "P2"}
    told = only(reading, "P2")
    assert told.title.startswith("tc (started by")
    assert "after a link change (mtu 65521 -> 1400)" in told.title
    assert shown_ms < 200 + 1000 * (os.getloadavg()[0] > 8)


def test_a_limit_that_is_set_anew_at_once_raises_nothing(tap: Tap) -> None:
    run(TBF)
    with Probe("tap0", directions=(IN,), limits={IN: LIMIT}) as probe:
        script = f"tc qdisc del dev tap0 root; {TBF}"
        timer = threading.Timer(0.3, lambda: subprocess.run(["sh", "-c", script], check=True))
        timer.start()
        *_, last = probe.readings(0.2, 1.5)
        timer.join()
    assert patterns(last) == set(), last.findings


def test_intervals_that_end_early_add_up(tap: Tap) -> None:
    with Probe("tap0") as probe, sending(tap, syn_flood_packets(tap), 5_000):
        timer = threading.Timer(0.45, lambda: run(TBF))
        timer.start()
        readings: list[Reading] = []
        for reading in probe.readings(0.4, 60):
            readings.append(reading)
            if len(readings) >= 4 and not timer.is_alive():
                probe.stop()
        timer.join()
    last = readings.pop()
    assert last.final
    assert sum(reading.duration_ns for reading in readings) == last.duration_ns
    assert sum(reading.offered(OUT).packets for reading in readings) == last.offered(OUT).packets


def test_a_tap_that_is_deleted_raises_no_false_alarm(tap: Tap) -> None:
    run("ip link add d0 type veth peer name d1")
    run("ip link set d0 up")
    run("tc qdisc add dev d0 root tbf rate 100mbit burst 3125kb latency 50ms")
    with Probe("d0", limits={IN: LIMIT}) as probe:
        timer = threading.Timer(0.3, lambda: run("ip link del d0"))
        timer.start()
        *_, last = probe.readings(0.2, 2.0)
        timer.join()
    assert patterns(last) == set(), last.findings
