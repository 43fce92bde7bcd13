# SPDX-License-Identifier: Apache-2.0
"""P1 to P15: each reproduced by the real thing, told apart from the others, and absent from a correct set-up.

The whole set of findings is compared each time. Where each is proved, on any kernel and on stock ones (PROOFS): a
pattern that needs what this kernel or machine may not have is reproduced where that is.
"""

from __future__ import annotations

import functools
import json
import os
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from host_fixtures import run
from inbound_kit import DATA, guest, neighbour
from probe_kit import acting_while_counted

from vifprobe.analysis.findings import thresholds
from vifprobe.host.declared import declared_of
from vifprobe.model.layout import Direction
from vifprobe.model.reading import Limit
from vifprobe.session.audit import auditor
from vifprobe.session.audit.snapshot import PolicerReport, audit_tap
from vifprobe.session.probe import Probe
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.net.taps import Tap, device_counters, gso_packet
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.packets import frames as f
from vifprobe.testing.packets.frames import EtherType, TcpFlag
from vifprobe.testing.traffic.flood import writer
from vifprobe.testing.traffic.scenario import forwarded, syn_flood_packets
from vifprobe.testing.waiting import wait_until

OUT, IN = Direction.OUTBOUND, Direction.INBOUND
TESTS = Path(__file__).parents[2]

#: Pattern -> test file, test. Those in vm/, and those with `police` in their file's name, run on stock kernels with
#: act_police, Open vSwitch, libvirt; the others on any. Negatives are beside them: the same with what makes the
#: difference taken away.
PROOFS = {
    "P1": (
        ("kernel/policer/test_policer_live.py", "test_no_limit_at_all"),
        ("kernel/policer/test_policer_police_live.py", "test_p1_domiftunes_word_and_nothing_behind_it"),
        ("vm/test_policer_ovs.py", "test_a_limit_that_is_nowhere_in_the_kernel"),
        ("vm/test_libvirt.py", "test_domiftune_answers_from_memory"),
    ),
    "P2": (
        ("kernel/policer/test_policer_live.py", "test_a_removal_is_shown_within_200_ms_with_who_and_after_what"),
        ("system/test_limit_changes_shown.py", "test_each_change_is_shown_at_once_with_who_did_it"),
        ("vm/test_policer_ovs.py", "test_the_incident"),
        ("vm/test_ovs.py", "test_add_port_and_a_changed_rate"),
    ),
    "P3": (
        ("kernel/policer/test_patterns.py", "test_p3_a_limit_that_is_away_for_a_while"),
        ("kernel/policer/test_policer_police_live.py", "test_p3_a_gap_while_the_limit_is_set_anew"),
        ("vm/test_policer_ovs.py", "test_the_incident"),
    ),
    "P4": (
        ("kernel/policer/test_policer_live.py", "test_a_limit_of_some_packets_only"),
        ("kernel/policer/test_policer_police_live.py", "test_p4_a_filter_of_libvirt_before_2015"),
    ),
    "P5": (
        ("kernel/policer/test_policer_live.py", "test_a_program_ahead_of_the_policer"),
        ("kernel/policer/test_policer_police_live.py", "test_p5_a_program_in_a_filter_ahead"),
    ),
    "P6": (("kernel/policer/test_policer_live.py", "test_a_syn_flood_under_a_limit_that_holds"),),
    "P7": (("kernel/policer/test_patterns.py", "test_p7_too_many_packets_within_the_limit"),),
    "P8": (("kernel/policer/test_policer_live.py", "test_a_syn_flood_under_a_limit_that_holds"),),
    "P9": (
        ("kernel/policer/test_patterns.py", "test_p9_the_guest_offers_more_since_the_limit_came"),
        ("kernel/policer/test_policer_police_live.py", "test_p9_more_is_offered_since_the_policer_came"),
    ),
    "P10": (
        ("kernel/policer/test_patterns.py", "test_p10_frames_longer_than_the_bucket"),
        ("kernel/policer/test_policer_police_live.py", "test_p10_tso_frames_longer_than_the_burst"),
    ),
    "P11": (
        ("kernel/policer/test_policer_live.py", "test_shapers_towards_the_guest"),
        ("kernel/policer/test_policer_police_live.py", "test_p11_bits_for_bytes"),
    ),
    "P12": (
        ("kernel/policer/test_patterns.py", "test_p12_the_limit_is_on_the_other_side_of_a_hybrid_plug"),
        ("kernel/policer/test_policer_live.py", "test_a_limit_on_the_wrong_side"),
        ("vm/test_policer_ovs.py", "test_a_limit_on_the_switch_side_of_a_hybrid_plug"),
        ("vm/test_policer_ovs.py", "test_a_meter_alone"),
    ),
    "P13": (
        ("kernel/policer/test_patterns.py", "test_p13_a_clsact_qdisc_where_the_switch_wants_its_own"),
        ("vm/test_policer_ovs.py", "test_a_clsact_qdisc_keeps_the_switch_from_policing"),
    ),
    "P14": (
        ("kernel/policer/test_patterns.py", "test_p14_the_guest_leaves_its_packets_in_the_ring"),
        ("kernel/inbound/test_inbound_limits.py", "test_p14_a_guest_that_does_not_read"),
    ),
    "P15": (
        ("unit/analysis/test_policer_findings.py", "test_p15_the_uplink_is_full"),
        ("vm/test_uplink_full.py", "test_an_uplink_that_is_full"),
    ),
}


def test_each_pattern_is_proved_where_the_table_says() -> None:
    assert list(PROOFS) == [f"P{number}" for number in range(1, 16)]
    for places in PROOFS.values():
        for file, name in places:
            assert re.search(rf"^def {name}\(", (TESTS / file).read_text(), re.MULTILINE), (file, name)


def answer(request: dict[str, Any], rows: dict[str, list[dict[str, Any]]]) -> bytes:
    """What an OVSDB server says to a transaction of selects: these rows of each table."""
    results = [{"rows": rows.get(one["table"], [])} for one in request["params"][1:]]
    return json.dumps({"id": request["id"], "error": None, "result": results}).encode()


@contextmanager
def switch(path: Path, **policing: int) -> Iterator[None]:
    """An Open vSwitch database with one bridge; its ports by name, with their policing rate in kbit/s."""
    interfaces = [
        {"_uuid": ["uuid", name], "name": name, "ingress_policing_rate": rate, "ingress_policing_burst": 25_600}
        for name, rate in policing.items()
    ]
    rows = {
        "Interface": interfaces,
        "Port": [{"_uuid": one["_uuid"], "interfaces": one["_uuid"]} for one in interfaces],
    }
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(path))
        listening.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(answer(json.loads(connection.recv(1 << 16)), rows))

        threading.Thread(target=serve, daemon=True).start()
        yield
        listening.shutdown(socket.SHUT_RDWR)


@pytest.fixture(autouse=True)
def declares(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No libvirt, and the Open vSwitch whose socket is at this path, if any."""
    sockets = (tmp_path / "db.sock",)
    told = functools.partial(declared_of, libvirt_directory=tmp_path / "no", ovs_sockets=sockets)
    monkeypatch.setattr(auditor, "declared_of", told)
    return sockets[0]


def nft(rate: int, burst: int, device: str = "tap0") -> None:
    """Bytes a second and bytes; in place of the one that is there."""
    hook = f'type filter hook ingress device "{device}" priority 0;'
    rule = f"counter limit rate over {rate} bytes/second burst {burst} bytes counter drop"
    script = f"table netdev t\ndelete table netdev t\ntable netdev t {{\nchain c {{\n{hook}\n{rule}\n}}\n}}\n"
    subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True)


def patterns(found: PolicerReport) -> set[str]:
    return {one.pattern for one in found.findings}


@contextmanager
def sending(tap: Tap, frames: list[bytes], packets_per_second: float | None) -> Iterator[None]:
    with writer(tap.fds, frames, count=10**9, seconds=600, packets_per_second=packets_per_second) as started:
        started.start()
        yield


def audit_during(act: Callable[[], None], directions: tuple[Direction, ...]) -> PolicerReport:
    """An audit of tap0 that lasts as long as what is done meanwhile."""

    def then_stop(probe: Probe) -> None:
        try:
            act()
        finally:
            probe.stop()

    with acting_while_counted(then_stop):
        return audit_tap("tap0", {}, directions, 60.0)


@pytest.mark.parametrize("away_seconds", [0.0, 1.2])
def test_p3_a_limit_that_is_away_for_a_while(tap: Tap, away_seconds: float) -> None:
    """Replaced in one transaction, it is not away at all."""
    nft(12_500_000, 3_200_000)

    def anew() -> None:
        if away_seconds:
            run("nft delete table netdev t")
            threading.Event().wait(away_seconds)
        nft(12_500_000, 3_200_000)
        threading.Event().wait(0.3)

    found = audit_during(anew, (OUT,))
    assert patterns(found) == ({"P3"} if away_seconds else set()), found.findings
    for finding in found.findings:
        assert (finding.evidence["removed_by"] or "").startswith("nft")
        assert (finding.evidence["restored_by"] or "").startswith("nft")
        assert 1.2e9 < finding.evidence["gap_ns"] < 30e9


def test_what_passed_counts_from_when_a_removal_was_heard_of(tap: Tap, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long call chains take to end, which where CPUs are scarce is seconds."""
    ended = threading.Event()
    ended.set()
    monkeypatch.setattr("vifprobe.kernel.barrier.wait_for_call_chains", lambda: ended.wait(120))
    nft(12_500_000, 3_200_000)

    def remove() -> None:
        ended.clear()
        try:
            run("nft delete table netdev t")
            before = device_counters("tap0")["rx_packets"]
            wait_until(lambda: device_counters("tap0")["rx_packets"] >= before + 5_003, 60)
        finally:
            ended.set()

    with Probe("tap0", directions=(OUT,)) as probe, sending(tap, syn_flood_packets(tap), 5_000):
        removing = threading.Thread(target=remove)
        removing.start()
        final = None
        for reading in probe.readings(0.2, 100):
            if not removing.is_alive():
                probe.stop()
            final = reading
    removing.join()
    assert final is not None
    (found,) = [one for one in final.findings if one.pattern == "P2"]
    assert 0.8 * 5_003 * 40 < found.evidence["passed_since_bytes"] <= final.offered(OUT).charged_bytes


@pytest.mark.parametrize("in_packets", [True, False])
def test_p7_too_many_packets_within_the_limit(tap: Tap, monkeypatch: pytest.MonkeyPatch, in_packets: bool) -> None:
    """A limit of packets is the cure. Scaled to what any machine can send while it does other things."""
    monkeypatch.setattr(thresholds, "OVERLOAD_PPS", 1_000)
    monkeypatch.setattr(thresholds, "OVERLOAD_CPUS", 0.01)
    nft(1_250_000_000, 1_250_000_000)
    if in_packets:
        run("nft add rule netdev t c limit rate over 100000000/second burst 5 packets counter drop")
    limits = {OUT: Limit(10_000_000_000, burst_bytes=1_250_000_000)}
    with sending(tap, syn_flood_packets(tap), 20_000):
        # What is held by the sender alone is its cost; of two that hold the tap, either may send.
        with Path(os.devnull).open() as nothing:
            os.dup2(nothing.fileno(), tap.fd)
        with Probe("tap0", directions=(OUT,), limits=limits) as probe:
            seen: set[str] = set()
            heavy = 0
            for reading in probe.readings(0.3, 60.0):
                seen = {finding.pattern for finding in reading.findings}
                load = probe.audit("tap0").situation_without_packets((OUT,), whole=False).load
                heavy += load is not None and (load.guest_cpus or 0) >= thresholds.OVERLOAD_CPUS
                if heavy and (seen or (in_packets and heavy >= 5)):
                    probe.stop()
    assert seen == (set() if in_packets else {"P7"})
    assert heavy


@pytest.mark.parametrize("more", [True, False])
def test_p9_the_guest_offers_more_since_the_limit_came(tap: Tap, more: bool) -> None:
    frame = f.eth(f.ipv4(f.udp(bytes(958))), EtherType.IPV4)
    with (
        Probe("tap0", directions=(OUT,)) as probe,
        sending(tap, [frame], 600),
        writer(tap.fds, [frame], count=10**9, seconds=600, packets_per_second=1_200) as later,
    ):
        policed = 0
        for number, reading in enumerate(probe.readings(0.3, 60.0)):
            if number == 4:
                nft(10_000, 5_000)
                if more:
                    later.start()
            policed += reading.limits[OUT].installed_bps is not None
            if policed == 5:
                probe.stop()
    found = {finding.pattern for finding in reading.findings}
    assert found - {"P8"} == ({"P9"} if more else set()), reading.findings


@pytest.mark.parametrize("payload", [30_000, 3_000])
def test_p10_frames_longer_than_the_bucket(netns: Netns, payload: int) -> None:
    """Of nft, the bucket is a second of the rate and the burst; shorter frames pass now and then."""
    with make_tap("tap0", vnet_hdr=True, mtu=65521) as tap, forwarded(tap):
        nft(10_000, 5_000)
        frame = f.eth(f.ipv4(f.tcp(TcpFlag.ACK, bytes(payload))), EtherType.IPV4)
        long = gso_packet(frame, gso_size=1448, transport_offset=34)
        with sending(tap, [long], 100):
            found = audit_tap("tap0", {}, (OUT,), 1.3)
    assert patterns(found) - {"P8"} == ({"P10"} if payload > 15_000 else set()), found.findings
    for finding in found.findings:
        assert finding.pattern != "P10" or finding.evidence["bucket_bytes"] == 15_000


@pytest.mark.parametrize("device", ["qvo5eedf00d-5f", "tap5eedf00d-5f", None])
def test_p12_the_limit_is_on_the_other_side_of_a_hybrid_plug(netns: Netns, declares: Path, device: str | None) -> None:
    """On the tap itself it is the tap's, and the switch's port has none."""
    with make_tap("tap5eedf00d-5f"):
        run("ip link add qvb5eedf00d-5f type veth peer name qvo5eedf00d-5f")
        if device is not None:
            nft(12_500_000, 25_600 * 128, device)
        with switch(declares, **{"qvo5eedf00d-5f": 100_000}):
            found = audit_tap("tap5eedf00d-5f", {}, (OUT,), 0.1, packets=False)
    assert patterns(found) == ({"P12"} if device == "qvo5eedf00d-5f" else {"P1"}), found.findings


@pytest.mark.parametrize("qdisc", ["clsact", "ingress", None])
def test_p13_a_clsact_qdisc_where_the_switch_wants_its_own(tap: Tap, declares: Path, qdisc: str | None) -> None:
    """Any other reason why the port is not policed is P1."""
    if qdisc is not None:
        run(f"tc qdisc add dev tap0 {qdisc}")
    with switch(declares, tap0=100_000):
        found = audit_tap("tap0", {}, (OUT,), 0.1, packets=False)
    assert patterns(found) == ({"P13"} if qdisc == "clsact" else {"P1"}), found.findings


@pytest.mark.parametrize("reads", [False, True])
def test_p14_the_guest_leaves_its_packets_in_the_ring(tap: Tap, reads: bool) -> None:
    """What the device itself counts as dropped, to the packet; the same packets to a guest that takes them are fine."""
    came = 3_001

    def send() -> None:
        to_guest.start()
        to_guest.wait()

    with (
        neighbour(tap) as other,
        guest(tap) if reads else nullcontext() as reader,
        writer(other.fds, [DATA], count=came, seconds=60, packets_per_second=5_003) as to_guest,
    ):
        found = audit_during(send, (IN,))
    lost = tap.counters()["tx_dropped"]
    assert patterns(found) == (set() if reads else {"P14"}), found.findings
    if reader is not None:
        assert reader.packets == came - lost
        assert lost < thresholds.RING_PACKETS
    for finding in found.findings:
        assert came // 2 < lost < came
        assert finding.evidence == {
            "full_ring_packets": lost,
            "full_ring_frame_bytes": lost * len(DATA),
            "offered_packets": came,
        }


def test_a_clsact_qdisc_alone_is_nothing(tap: Tap, declares: Path) -> None:
    run("tc qdisc add dev tap0 clsact")
    with switch(declares, tap0=0):
        assert patterns(audit_tap("tap0", {}, (OUT, IN), 0.1, packets=False)) == set()
