# SPDX-License-Identifier: Apache-2.0
"""`vifprobe policer` and `watch` beside a real Open vSwitch and act_police: the incident, and the set-ups around it.

In a virtual machine only: it takes over the host's Open vSwitch. `scripts/vm --with ovs -- pytest tests/system/...`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from vm_kit import ROOM, has_policer, run

from vifprobe.analysis.findings import thresholds
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.packets import frames as f
from vifprobe.testing.packets.frames import EtherType
from vifprobe.testing.traffic.flood import writer
from vifprobe.testing.waiting import wait_until

# What Open vSwitch does and what is made of it does not depend on the kernel.
pytestmark = pytest.mark.kernels("6.12")

LIBVIRT_POLICER = "protocol all u32 match u32 0 0 police rate 12500kbps burst 3125kb mtu 64kb drop flowid :1"
FRAME = f.eth(f.ipv4(f.udp(bytes(958))), EtherType.IPV4)  # 1,000 bytes
Require = Callable[[str, object, str], None]
Found = dict[str, Any]


@pytest.fixture(scope="module")
def switch(require: Require) -> Iterator[str]:
    in_vm = os.environ.get("VIFPROBE_VM")
    require("vm", in_vm and shutil.which("ovs-vsctl"), "Open vSwitch in a virtual machine (scripts/vm --with ovs)")
    run(str(Path(__file__).parents[2] / "scripts/lab/start-ovs"))
    run("ovs-vsctl --may-exist add-br br-audit")
    yield "br-audit"
    run("ovs-vsctl del-br br-audit")


@pytest.fixture
def port(switch: str) -> Iterator[Tap]:
    """A tap that is a port of Open vSwitch, as Neutron's native plug makes it."""
    with make_tap("tap5eedf00d-5f") as made:
        run(f"ovs-vsctl add-port {switch} {made.name}")
        yield made
        run(f"ovs-vsctl --if-exists del-port {made.name}")


def policer(tap: Tap, *options: str) -> Found:
    done = subprocess.run(
        [sys.executable, "-m", "vifprobe", "policer", tap.name, "--json", "-d", "1500ms", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found: Found = json.loads(done.stdout)
    return found


def patterns(found: Found) -> set[str]:
    return {one["pattern"] for one in found["findings"]}


@contextmanager
def sending(tap: Tap) -> Iterator[None]:
    """A fifth of what an emulated guest can send at most: it has one processor for the switch and for us, too."""
    with writer(tap.fds, [FRAME], count=10**9, seconds=600, packets_per_second=499) as started:
        started.start()
        yield


def police(tap: Tap) -> None:
    """As libvirt 4.0 does, on whatever it finds."""
    run(f"tc qdisc add dev {tap.name} ingress")
    run(f"tc filter add dev {tap.name} parent ffff: {LIBVIRT_POLICER}")


def wait_for_policer(tap: Tap, there: bool = True) -> None:
    wait_until(lambda: has_policer(tap.name) == there, ROOM)


def test_a_limit_that_open_vswitch_set_itself_raises_nothing(port: Tap) -> None:
    run(f"ovs-vsctl set interface {port.name} ingress_policing_rate=100000 ingress_policing_burst=25600")
    wait_for_policer(port)
    with sending(port):
        found = policer(port)
    assert patterns(found) == set(), found["findings"]
    assert found["outbound"]["state"] == "there"
    assert [(row["source"], row["rate_bps"], row["burst_bytes"], row["matches_declared"]) for row in found["rows"]] == [
        ("ovs", 100_000_000, 3_276_800, True),
        ("tc", 100_000_000, 3_276_800, True),
    ]


def test_its_default_burst_and_its_shaping_of_the_other_direction(port: Tap) -> None:
    run(f"ovs-vsctl set interface {port.name} ingress_policing_rate=50000")
    run(
        f"ovs-vsctl set port {port.name} qos=@q -- --id=@q create qos type=linux-htb other-config:max-rate=70000000 "
        "queues:0=@a -- --id=@a create queue other-config:max-rate=70000000 other-config:burst=8000000"
    )
    wait_for_policer(port)
    found = policer(port)
    assert patterns(found) == set(), found["findings"]
    assert (found["outbound"]["state"], found["inbound"]["state"]) == ("there", "there")
    assert found["outbound"]["installed_burst_bytes"] == 8000 * 1024 // 8
    assert found["inbound"]["installed_bps"] == 70_000_000
    run(f"ovs-vsctl -- --all destroy qos -- --all destroy queue -- clear port {port.name} qos")


def test_packet_policing(port: Tap) -> None:
    run(f"ovs-vsctl set interface {port.name} ingress_policing_kpkts_rate=7")
    wait_for_policer(port)
    found = policer(port)
    assert patterns(found) == set(), found["findings"]
    assert found["outbound"]["installed_pps"] == 7_000


def test_a_limit_that_is_nowhere_in_the_kernel(port: Tap) -> None:
    """P1: the policer is taken away behind the switch's back."""
    run(f"ovs-vsctl set interface {port.name} ingress_policing_rate=100000")
    wait_for_policer(port)
    run(f"tc qdisc del dev {port.name} ingress")
    found = policer(port)
    assert patterns(found) == {"P1"}
    assert found["outbound"]["state"] == "absent"


def readings(tap: Tap, *options: str) -> Generator[Found, None, None]:
    """Objects of `watch --json` until the reader has enough."""
    command = [sys.executable, "-m", "vifprobe", "watch", tap.name, "--json", "--direction", "outbound", *options]
    command += ["--no-samples", "--no-host"]  # their 2 % of a processor are all of an emulated one
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        try:
            for line in watching.stdout:
                yield json.loads(line)
        finally:
            watching.terminate()


def test_the_incident(port: Tap) -> None:
    """P2, P3: ovs-vswitchd deletes libvirt's policer when any link message of its port comes."""
    police(port)
    with sending(port):
        seen = readings(port, "--rate", "8mbit", "--burst", "3125kb", "--interval", "500ms", "--duration", "60s")
        first = next(reading for reading in seen if reading["outbound"]["limit"]["installed_bps"])
        assert first["outbound"]["limit"]["installed_bps"] == 100_000_000
        run(f"ip link set {port.name} promisc on")
        bad = next(reading for reading in seen if any(one["pattern"] == "P2" for one in reading["findings"]))
        (told,) = [one for one in bad["findings"] if one["pattern"] == "P2"]
        assert told["title"].startswith("ovs-vswitchd removed the ingress policer")
        assert "after a link change (promiscuity 1 -> 2)" in told["title"]
        assert told["severity"] == "critical"
        assert bad["outbound"]["limit"]["installed_bps"] is None
        assert "P1" in {one["pattern"] for one in bad["findings"]}
        # A shorter gap, in which less passes than within the burst, is no finding.
        assert any(reading["start_ns"] > bad["start_ns"] + 2 * thresholds.GAP_NS for reading in seen)
        police(port)
        back = next(reading for reading in seen if reading["outbound"]["limit"]["installed_bps"])
        assert "P1" not in {one["pattern"] for one in back["findings"]}
        assert [one["severity"] for one in back["findings"] if one["pattern"] == "P2"] == ["warning"]
        assert "P3" in {one["pattern"] for one in back["findings"]}
        seen.close()


def test_the_same_policer_left_alone_raises_nothing(port: Tap) -> None:
    police(port)
    with sending(port):
        found = policer(port, "--rate", "100mbit", "--burst", "3125kb", "--direction", "outbound")
    assert patterns(found) == set(), found["findings"]
    assert found["outbound"]["state"] == "there"


def test_a_clsact_qdisc_keeps_the_switch_from_policing(port: Tap) -> None:
    """P13."""
    run(f"tc qdisc add dev {port.name} clsact")
    run(f"ovs-vsctl set interface {port.name} ingress_policing_rate=100000")  # waits until the switch has tried
    found = policer(port)
    assert patterns(found) == {"P13"}, found["findings"]
    run(f"tc qdisc del dev {port.name} clsact")


def test_a_limit_on_the_switch_side_of_a_hybrid_plug(switch: str) -> None:
    """P12: Neutron's limit is on qvo, beyond the Linux bridge that the tap is a port of."""
    name = "5eedf00d-5f"
    with make_tap(f"tap{name}") as tap:
        run(f"ip link add qvb{name} type veth peer name qvo{name}")
        try:
            run(f"ip link set qvo{name} up")
            run(f"ovs-vsctl add-port {switch} qvo{name} -- set interface qvo{name} ingress_policing_rate=100000")
            wait_until(lambda: has_policer(f"qvo{name}"), ROOM)
            found = policer(tap)
            assert patterns(found) == {"P12"}, found["findings"]
            assert found["outbound"]["state"] == "elsewhere"
            assert f"qvo{name}" in found["findings"][0]["title"]
        finally:
            run(f"ovs-vsctl --if-exists del-port qvo{name}")
            run(f"ip link del qvb{name}")


def test_a_meter_alone(switch: str, port: Tap) -> None:
    """P12: as Neutron limits packets a second, and bandwidth with qos_meter_bandwidth."""
    of = "ovs-ofctl -O OpenFlow13"
    run(f"{of} add-meter {switch} meter=1,kbps,burst,bands=type=drop,rate=100000,burst_size=25600")
    run(f"{of} add-flow {switch} in_port={port.name},priority=10,actions=meter:1,normal")
    try:
        found = policer(port)
        assert patterns(found) == {"P12"}, found["findings"]
        assert found["outbound"]["state"] == "elsewhere"
        assert [(row["source"], row["kind"], row["rate_bps"]) for row in found["rows"]] == [
            (f"ovs {switch}", "meter", 100_000_000)
        ]
    finally:
        run(f"{of} del-flows {switch} in_port={port.name}")
        run(f"{of} del-meter {switch} meter=1")


def test_a_switch_that_does_not_answer_is_told_and_does_not_stop_the_audit(port: Tap) -> None:
    pid = int(Path("/run/openvswitch/ovsdb-server.pid").read_text())
    os.kill(pid, 19)  # SIGSTOP
    try:
        found = policer(port)
    finally:
        os.kill(pid, 18)  # SIGCONT
    assert any("Open vSwitch" in words and "no answer" in words for words in found["not_read"])
