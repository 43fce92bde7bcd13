# SPDX-License-Identifier: Apache-2.0
"""A real libvirtd and a real domain (paused) with an interface of each kind."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_gaps import captured, lasted_ns, told
from vm_kit import ROOM, has_policer, run

from vifprobe import load
from vifprobe.testing.waiting import wait_until

pytestmark = pytest.mark.kernels("6.1")

LAB = Path(__file__).parents[2] / "scripts" / "lab"
DOMAIN = "instance-0000001a"
ETHERNET, BRIDGED, SWITCHED = "tap11111111-11", "tap22222222-22", "tap33333333-33"
LINUX_BRIDGE = "brq-vm"
LIMIT_BPS = 100_000_000  # 12500 kB/s, quota:vif_outbound_average of the incident

INTERFACES = {
    ETHERNET: ("ethernet", ""),
    BRIDGED: ("bridge", f"<source bridge='{LINUX_BRIDGE}'/>"),
    SWITCHED: ("bridge", "<source bridge='br-int'/><virtualport type='openvswitch'/>"),
}
BANDWIDTH = "<bandwidth>{}</bandwidth>".format(
    "".join(f"<{way} average='12500' peak='12500' burst='3125'/>" for way in ("inbound", "outbound"))
)


def xml() -> str:
    interfaces = "".join(
        f"<interface type='{kind}'>{source}<target dev='{name}'/><model type='virtio'/>{BANDWIDTH}</interface>"
        for name, (kind, source) in INTERFACES.items()
    )
    return f"""
        <domain type='qemu'>
          <name>{DOMAIN}</name> <memory unit='MiB'>64</memory> <vcpu>1</vcpu>
          <os><type arch='x86_64' machine='q35'>hvm</type></os>
          <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{interfaces}<memballoon model='none'/></devices>
        </domain>"""


@pytest.fixture(scope="module")
def domain(ovs: str) -> Iterator[int]:
    """The process id of its QEMU."""
    subprocess.run([LAB / "start-libvirt"], check=True)
    run(f"ip link add {LINUX_BRIDGE} type bridge")
    run(f"ip link set {LINUX_BRIDGE} up")
    subprocess.run(["virsh", "-q", "define", "/dev/stdin"], input=xml(), text=True, check=True)
    run(f"virsh -q start --paused {DOMAIN}")
    yield int(Path(f"/run/libvirt/qemu/{DOMAIN}.pid").read_text())
    run(f"virsh -q destroy {DOMAIN}")
    run(f"virsh -q undefine {DOMAIN}")
    run(f"ip link delete {LINUX_BRIDGE}")


def vifprobe(*arguments: str) -> list[dict[str, Any]]:
    done = subprocess.run([sys.executable, "-m", "vifprobe", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_taps_names_domain_bridge_and_qemu(domain: int) -> None:
    rows = {row["name"]: row for row in vifprobe("taps", "--json")}
    assert rows.keys() >= INTERFACES.keys()
    for name in INTERFACES:
        assert (rows[name]["domain"], rows[name]["qemu_pid"]) == (DOMAIN, domain)
        assert rows[name]["declared_bps"] == LIMIT_BPS
        assert rows[name]["installed_bps"] == LIMIT_BPS
    # A port of Open vSwitch has the datapath as its master.
    assert [rows[name]["bridge"] for name in INTERFACES] == [None, LINUX_BRIDGE, "ovs-system"]


@pytest.mark.parametrize("name", INTERFACES)
def test_the_audit_finds_nothing_wrong(domain: int, name: str) -> None:
    """Libvirt's tc on two of them, and Open vSwitch's policer, which libvirt asked it for, on the third."""
    [found] = vifprobe("policer", name, "--json", "-d", "1500ms")
    assert found["findings"] == []
    assert (found["outbound"]["state"], found["outbound"]["installed_bps"]) == ("there", LIMIT_BPS)


@pytest.mark.parametrize("name", [ETHERNET, BRIDGED])
def test_domiftune_in_a_capture(domain: int, name: str, tmp_path: Path) -> None:
    """It deletes both qdiscs and adds them anew: told with the length, as tc's doing that libvirtd started.

    On a busy processor tc can have ended before anybody sees its name.
    """
    with captured(name, tmp_path) as folder:
        run(f"virsh -q domiftune {DOMAIN} {name} --outbound 6250,6250,1563 --live")
        wait_until(lambda: "50Mbit" in run(f"tc filter show dev {name} parent ffff:"), ROOM)
    ended_ns = time.monotonic_ns()
    capture = load(folder)
    # The limit of what comes to the guest goes and comes back as well.
    rows = [row for kind in ("gap", "limit_gap") for row in told(capture, kind) if row.detail.startswith("outbound")]
    assert [row.kind for row in rows] == ["gap", "limit_gap"], capture.events
    for row in rows:
        removed, _, _ = row.detail.partition("; limited again by ")
        assert (row.by_comm, "libvirt" in removed) in (("tc", True), ("", False)), row
        assert 0 < lasted_ns(row) < ended_ns - row.at_ns
    print([row.detail for row in rows])


def test_domiftune_answers_from_memory(domain: int) -> None:
    """P1: the kernel's policer is gone, libvirt says as before, and the audit tells."""
    run(f"tc qdisc del dev {ETHERNET} ingress")
    assert not has_policer(ETHERNET)
    told_by_libvirt = run(f"virsh domiftune {DOMAIN} {ETHERNET}")
    assert any(line.split() == ["outbound.average:", "6250"] for line in told_by_libvirt.splitlines()), told_by_libvirt
    [found] = vifprobe("policer", ETHERNET, "--json", "-d", "1500ms")
    assert "P1" in {one["pattern"] for one in found["findings"]}
    assert found["outbound"]["state"] == "absent"
