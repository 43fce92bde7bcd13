# SPDX-License-Identifier: Apache-2.0
"""Open vSwitch takes policers away from its ports while a capture runs: what the folder then says of it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_gaps import BURST, RATE, captured, check_counts, grows, steady_flood, taken_over, told
from vm_kit import KERNEL, OUT, ROOM, SECONDS, add_policer, has_policer, policed, run, watch

from vifprobe import Probe, load
from vifprobe.capture.reader import Capture
from vifprobe.model.layout import Verdict
from vifprobe.model.reading import count
from vifprobe.session.counter_check import CounterCheck
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.traffic.flood import writer
from vifprobe.testing.traffic.scenario import syn_flood_packets
from vifprobe.testing.waiting import wait_until

pytestmark = [pytest.mark.usefixtures("ovs"), pytest.mark.kernels("6.1", "6.12")]

NAME = "tap5eedf00d-5f"
SYNS = 2_503
PID_FILE = Path("/run/openvswitch/ovs-vswitchd.pid")


@pytest.fixture
def guest_tap(ovs: str) -> Iterator[Tap]:
    with make_tap(NAME, vnet_hdr=True) as tap:
        yield tap
        run(f"ovs-vsctl --if-exists del-port {ovs} {NAME}")


def set_policing(rate: int) -> None:
    """As Neutron's agent does: the limit is Open vSwitch's, in kbit/s, and so is the policer."""
    run(f"ovs-vsctl set interface {NAME} ingress_policing_rate={rate * 8} ingress_policing_burst={BURST * 8}")
    wait_until(lambda: has_policer(NAME) and f"{rate * 8}Kbit" in run(f"tc filter show dev {NAME} parent ffff:"), ROOM)


def check(capture: Capture, limit_gaps: int) -> None:
    """Each loss of a limit is there with its length and ovs-vswitchd as who did it."""
    assert capture.manifest.complete
    rows = told(capture, "limit_gap")
    assert [row.by_comm for row in rows] == ["ovs-vswitchd"] * limit_gaps, capture.events
    # Where there is no tcx, our filter goes with the qdisc, once: after that the tracepoints count.
    gaps = told(capture, "gap")
    assert [row.by_comm for row in gaps] == ["ovs-vswitchd"] * (0 if KERNEL == "6.12" else 1), capture.events
    check_counts(capture, NAME)
    print(f"{KERNEL}: {[row.detail for row in (*gaps, *rows)]}")


def test_add_port_and_a_changed_rate(guest_tap: Tap, ovs: str, tmp_path: Path) -> None:
    """add-port takes away what libvirt set; a change of Open vSwitch's own limit is a deletion and an addition."""
    add_policer(NAME, "libvirt", RATE, BURST)
    with captured(NAME, tmp_path) as folder, steady_flood(guest_tap):
        grows(NAME)
        assert policed(NAME).dropped
        run(f"ovs-vsctl add-port {ovs} {NAME}")
        wait_until(lambda: not has_policer(NAME), ROOM)
        taken_over(folder)
        grows(NAME)
        set_policing(RATE)
        grows(NAME)
        set_policing(2 * RATE)
        grows(NAME)
        last = policed(NAME).dropped
    capture = load(folder)
    check(capture, limit_gaps=2)
    found = count(capture.reading().where(OUT, Verdict.POLICED)).packets
    assert found > last > 0, capture.manifest.gaps
    assert [row for row in capture.events if row.kind.startswith("link")]
    assert {finding.pattern for _, finding in capture.findings} >= {"P2", "P3"}


def test_link_events_and_a_restart_of_the_switch(guest_tap: Tap, ovs: str, tmp_path: Path) -> None:
    """Whatever changes on the link, and each start of the switch, costs the port a policer that is not the switch's."""
    run(f"ovs-vsctl add-port {ovs} {NAME}")
    add_policer(NAME, "libvirt", RATE, BURST)
    with captured(NAME, tmp_path) as folder, steady_flood(guest_tap):
        grows(NAME)
        run(f"ip link set dev {NAME} txqueuelen 997")
        wait_until(lambda: not has_policer(NAME), ROOM)
        taken_over(folder)
        grows(NAME)
        add_policer(NAME, "libvirt", RATE, BURST)
        grows(NAME)
        restart_switch()
        wait_until(lambda: not has_policer(NAME), ROOM)
        grows(NAME)
    capture = load(folder)
    check(capture, limit_gaps=2)
    changed = [row for row in capture.events if row.kind == "link_change" and "qlen" in row.detail]
    assert [row.by_comm in ("ip", "") for row in changed] == [True], capture.events
    assert told(capture, "limit_gap")[-1].detail.startswith("outbound packets not limited until the end")


def test_it_charges_no_packet_less_than_a_shortest_frame(guest_tap: Tap, ovs: str) -> None:
    """lib/netdev-linux.c, tc_fill_rate: mpu ETH_TOTAL_MIN. The policer's statistics go on counting the length."""
    run(f"ovs-vsctl add-port {ovs} {NAME} -- set interface {NAME} ingress_policing_rate=8 ingress_policing_burst=80")
    wait_until(lambda: has_policer(NAME), ROOM)
    counter_check = CounterCheck()
    with (
        writer(guest_tap.fds, syn_flood_packets(guest_tap), count=SYNS, seconds=SECONDS) as flood,
        Probe(NAME, directions=(OUT,), counter_check=counter_check) as probe,
    ):
        seen = watch(probe, [flood])
        found = policed(NAME)
    assert (seen.packets(tap=NAME), seen.charged(tap=NAME)) == (SYNS, SYNS * 60)
    assert (found.bytes, found.dropped) == (SYNS * 40, seen.packets(Verdict.POLICED, NAME))
    # A full bucket at once, then 1,000 byte/s, at 60 bytes a packet. (Whoever gets it behind the switch, if anybody.)
    bucket_bytes = seen.readings[NAME].limits[OUT].burst_bytes
    assert bucket_bytes is not None
    let_pass = SYNS - found.dropped
    assert bucket_bytes // 60 <= let_pass <= (bucket_bytes + 1000 * seen.written[0].seconds) / 60 + 1
    rows = counter_check.rows([seen.readings[NAME]])
    assert [row.agrees for row in rows if row.counter.startswith("tc police bytes")] == [True]
    assert not [row for row in rows if row.agrees is False]


def restart_switch() -> None:
    """As an upgrade of the package does."""
    pid = int(PID_FILE.read_text())
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), ROOM)
    log = "/run/openvswitch/ovs-vswitchd.log"
    subprocess.run(
        ["ovs-vswitchd", "-vconsole:off", "--pidfile", "--detach", "--no-chdir", f"--log-file={log}"], check=True
    )
