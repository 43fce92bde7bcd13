# SPDX-License-Identifier: Apache-2.0
"""The audit beside libvirt's word and the kernel's own act_police, on kernels that have it."""

from __future__ import annotations

import functools
import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from host_fixtures import can, run
from probe_kit import acting_while_counted

from vifprobe.host.declared import declared_of
from vifprobe.kernel import libbpf
from vifprobe.model.layout import Direction
from vifprobe.model.limits import LimitState
from vifprobe.model.reading import Finding, Limit
from vifprobe.session.audit import auditor
from vifprobe.session.audit.snapshot import PolicerReport, audit_tap
from vifprobe.session.probe import Probe
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.net.taps import Tap, gso_packet
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.packets import frames as f
from vifprobe.testing.packets.frames import EtherType, TcpFlag
from vifprobe.testing.traffic.flood import writer

Require = Callable[[str, object, str], None]
OUT = Direction.OUTBOUND
#: For a thousand packets and more to come: an emulated guest sends fewer than it is told to.
LONG = 9.0 if os.environ.get("VIFPROBE_VM") else 3.0
POLICE = "police rate 12500kbps burst 3125kb mtu 64kb drop flowid :1"
XML = (
    "<domstatus><domain><name>instance-0000001a</name><devices><interface type='bridge'><target dev='vm0'/>"
    "<bandwidth><inbound average='12500' burst='3125'/><outbound average='12500' burst='3125'/></bandwidth>"
    "</interface></devices></domain></domstatus>"
)
UDP4 = f.eth(f.ipv4(f.udp(bytes(958))), EtherType.IPV4)
UDP6 = f.eth(f.ipv6(f.udp(bytes(938))), EtherType.IPV6)


@pytest.fixture(autouse=True)
def libvirt_declares(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "vm.xml").write_text(XML)
    told = functools.partial(declared_of, libvirt_directory=tmp_path, ovs_sockets=(tmp_path / "no",))
    monkeypatch.setattr(auditor, "declared_of", told)


@pytest.fixture
def vm(netns: Netns, require: Require) -> Iterator[Tap]:
    """A tap that takes a virtio-net header, with libvirt's shaper towards the guest and an ingress qdisc."""
    with make_tap("vm0", vnet_hdr=True, mtu=65521) as made:
        run("tc qdisc add dev vm0 ingress")
        require(
            "police", can(f"tc filter add dev vm0 parent ffff: protocol all u32 match u32 0 0 {POLICE}"), "act_police"
        )
        run("tc filter del dev vm0 parent ffff:")
        require("police", can("tc qdisc add dev vm0 root handle 1: htb default 1"), "sch_htb")
        run("tc class add dev vm0 parent 1: classid 1:1 htb rate 12500kbps ceil 12500kbps burst 3125kb quantum 1514")
        yield made


def police(what: str = POLICE, protocol: str = "all") -> None:
    run(f"tc filter add dev vm0 parent ffff: protocol {protocol} u32 match u32 0 0 {what}")


def audit(seconds: float = 1.5, packets: bool = True, limits: dict[Direction, Limit] | None = None) -> PolicerReport:
    return audit_tap("vm0", limits or {}, (OUT, Direction.INBOUND), seconds, packets=packets)


def patterns(found: PolicerReport) -> set[str]:
    return {finding.pattern for finding in found.findings}


def only(found: PolicerReport, pattern: str) -> Finding:
    (finding,) = [finding for finding in found.findings if finding.pattern == pattern]
    return finding


@contextmanager
def sending(tap: Tap, *frames: bytes, packets_per_second: float = 2_000) -> Iterator[None]:
    packets = [tap.packet(frame) for frame in frames]
    with writer(tap.fds, packets, count=10**9, seconds=600, packets_per_second=packets_per_second) as started:
        started.start()
        yield


@pytest.mark.parametrize("packets", [True, False])
def test_libvirts_own_set_up_raises_nothing(vm: Tap, packets: bool) -> None:
    police()
    with sending(vm, UDP4, UDP6):
        found = audit(packets=packets)
    assert patterns(found) == set(), found.findings
    assert found.domain == "instance-0000001a"
    for direction in Direction:
        assert found.limit_states[direction].state is LimitState.THERE
    assert [(row.source, row.kind, row.rate_bps, row.burst_bytes, row.matches_declared) for row in found.rows] == [
        ("libvirt", "bandwidth", 100_000_000, 3_200_000, True),
        ("tc", "police", 100_000_000, 3_200_000, True),
        ("libvirt", "bandwidth", 100_000_000, 3_200_000, True),
        ("tc", "htb", 100_000_000, 3_200_000, True),
    ]


def test_p1_domiftunes_word_and_nothing_behind_it(vm: Tap) -> None:
    with sending(vm, UDP4):
        found = audit()
    assert patterns(found) == {"P1"}
    assert only(found, "P1").title.startswith("libvirt declares 100 Mbit/s outbound")
    assert patterns(audit(packets=False)) == {"P1"}


def test_p4_a_filter_of_libvirt_before_2015(vm: Tap) -> None:
    police(protocol="ip")
    with sending(vm, UDP4, UDP6, UDP6):
        found = audit()
    assert patterns(found) == {"P4"}, found.findings
    finding = only(found, "P4")
    assert finding.severity == "critical"
    assert finding.evidence["share_of_passed"] == pytest.approx(2 / 3, abs=0.02)
    quiet = audit()
    assert only(quiet, "P4").severity == "warning"


@pytest.mark.parametrize(("verdict", "shadowed"), [(-1, False), (0, True)])
def test_p5_a_program_in_a_filter_ahead(vm: Tap, verdict: int, shadowed: bool) -> None:
    """TC_ACT_OK ends the classification; TC_ACT_UNSPEC goes on."""
    police()
    code = struct.pack("=BBhi", 0xB7, 0, 0, verdict) + struct.pack("=BBhi", 0x95, 0, 0, 0)
    program = libbpf.load_tc_program("accelerator", code)
    try:
        libbpf.attach_filter(program, vm.ifindex, True, 7, 1, "ingress")
    finally:
        os.close(program)
    with sending(vm, UDP4):
        found = audit(LONG)
    assert patterns(found) == ({"P5"} if shadowed else set()), found.findings
    assert "accelerator" in found.set_up.earlier[0]
    if shadowed:
        assert only(found, "P5").evidence["seen"] == 0
        with sending(vm, UDP4):
            assert patterns(audit(LONG, packets=False)) == {"P5"}


def test_p10_tso_frames_longer_than_the_burst(vm: Tap) -> None:
    police("police rate 12500kbps burst 20kb mtu 64kb drop flowid :1")
    frame = f.eth(f.ipv4(f.tcp(TcpFlag.ACK, bytes(30_000))), EtherType.IPV4)
    long = gso_packet(frame, gso_size=1448, transport_offset=34)
    with writer(vm.fds, [long, vm.packet(UDP4)], count=10**9, seconds=600, packets_per_second=200) as started:
        started.start()
        found = audit(2.0, limits={OUT: Limit(100_000_000, burst_bytes=20_480)})
    finding = only(found, "P10")
    assert 20_400 < finding.evidence["bucket_bytes"] <= 20_480  # the kernel keeps it in ticks
    assert finding.evidence["mean_charged_bytes"] == len(frame) - 14


def test_p11_bits_for_bytes(vm: Tap) -> None:
    police("police rate 12500kbit burst 3125kb mtu 64kb drop flowid :1")
    found = audit()
    assert patterns(found) == {"P11"}
    assert only(found, "P11").evidence["unit_mistake"] == "bits were taken for bytes"


def test_p3_a_gap_while_the_limit_is_set_anew(vm: Tap) -> None:
    police("police rate 125kbps burst 16kb mtu 64kb drop flowid :1")

    def anew(_: Probe) -> None:
        threading.Event().wait(0.5)  # the limit holds at first
        run("tc qdisc del dev vm0 ingress")
        threading.Event().wait(0.5)
        run("tc qdisc add dev vm0 ingress")
        police("police rate 125kbps burst 16kb mtu 64kb drop flowid :1")

    limit = {OUT: Limit(1_000_000, burst_bytes=16_384)}
    # From the first reading on, whatever the machine takes to get there.
    with sending(vm, UDP4), acting_while_counted(anew):
        found = audit_tap("vm0", limit, (OUT,), 8.0)
    finding = only(found, "P3")
    assert finding.severity == "warning"
    assert finding.evidence["passed_charged_bytes"] > finding.evidence["limit_would_have_passed_bytes"] > 16_384
    assert finding.evidence["gap_ns"] > 500_000_000
    assert "P2" not in patterns(found)


@pytest.mark.parametrize("faster", [False, True])
def test_p9_more_is_offered_since_the_policer_came(vm: Tap, faster: bool) -> None:
    with ExitStack() as stack:
        probe = stack.enter_context(Probe("vm0", directions=(OUT,), limits={OUT: Limit(1_000_000, burst_bytes=16_384)}))
        stack.enter_context(sending(vm, UDP4, packets_per_second=600))
        packets = [vm.packet(UDP4)]
        more = writer(vm.fds, packets, count=10**9, seconds=600, packets_per_second=900)
        started = stack.enter_context(more)
        policed = 0
        for number, reading in enumerate(probe.readings(0.5, 60.0)):
            if number == 5:
                police("police rate 125kbps burst 16kb mtu 64kb drop flowid :1")
                if faster:
                    started.start()
            policed += reading.limits[OUT].installed_bps is not None
            if policed == 7:
                probe.stop()
    found = {finding.pattern: finding for finding in reading.findings}
    assert ("P9" in found) is faster, reading.findings
    if faster:
        evidence = found["P9"].evidence
        assert evidence["offered_after_pps"] > 1.3 * evidence["offered_before_pps"]
