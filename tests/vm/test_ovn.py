# SPDX-License-Identifier: Apache-2.0
"""QoS rules of OVN: found through its logical flows, the meters of Open vSwitch that implement them, and the drops."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from vm_kit import ROOM, run

from vifprobe.testing.net.taps import Tap
from vifprobe.testing.net.taps import tap as make_tap

# What OVN does does not depend on the kernel.
pytestmark = pytest.mark.kernels("6.12")

Found = dict[str, Any]
MACS = [bytes.fromhex(f"0200000000{number:02x}") for number in (1, 2)]
NAMES = ["tap5eedf00d-01", "tap5eedf00d-02"]
PACKETS = 1_009


@pytest.fixture(scope="module")
def ports(ovn: str) -> Iterator[list[Tap]]:
    """Two guests at one logical switch."""
    run("ovn-nbctl ls-add net0")
    with ExitStack() as stack:
        taps = [stack.enter_context(make_tap(name)) for name in NAMES]
        for number, tap in enumerate(taps, 1):
            run(f"ovn-nbctl lsp-add net0 port{number}")
            run(f"ovn-nbctl lsp-set-addresses port{number} 02:00:00:00:00:0{number}")
            run(f"ovs-vsctl add-port {ovn} {tap.name} -- set interface {tap.name} external_ids:iface-id=port{number}")
        yield taps
        for tap in taps:
            run(f"ovs-vsctl --if-exists del-port {ovn} {tap.name}")
        run("ovn-nbctl ls-del net0")


@pytest.fixture(autouse=True)
def no_rules(ports: list[Tap]) -> Iterator[None]:
    yield
    run("ovn-nbctl --wait=hv qos-del net0")


def add_rule(direction: str, match: str, *options: str) -> None:
    subprocess.run(["ovn-nbctl", "--wait=hv", "qos-add", "net0", direction, "2002", match, *options], check=True)


def audited(tap: Tap, *options: str) -> Found:
    done = subprocess.run(
        [sys.executable, "-m", "vifprobe", "policer", tap.name, "--json", "-d", "500ms", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=ROOM,
    )
    assert done.returncode == 0, done.stderr
    found: Found = json.loads(done.stdout)
    return found


def rows(found: Found) -> list[tuple[Any, ...]]:
    keys = ("direction", "source", "kind", "rate_bps", "burst_bytes", "protocol", "matches_declared")
    return [tuple(row[key] for key in keys) for row in found["rows"]]


def test_rules_of_both_directions(ports: list[Tap], ovn: str) -> None:
    """Each with its direction, rate and burst, declared by OVN and installed as a meter."""
    add_rule("from-lport", 'inport == "port1"', "rate=1009", "burst=503")
    add_rule("to-lport", 'outport == "port1"', "rate=2003")
    add_rule("from-lport", 'inport == "port2" && ip4', "rate=3001")
    first, second = (audited(tap, "--no-packets") for tap in ports)
    assert rows(first) == [
        ("outbound", "ovn", "qos", 1_009_000, 62_875, "", True),
        ("outbound", f"ovs {ovn}", "meter", 1_009_000, 62_875, "all", True),
        ("inbound", "ovn", "qos", 2_003_000, None, "", True),
        ("inbound", f"ovs {ovn}", "meter", 2_003_000, None, "all", True),
    ]
    assert first["not_read"] == []
    assert (first["outbound"]["state"], first["inbound"]["state"]) == ("elsewhere", "elsewhere")
    assert rows(second) == [
        ("outbound", "ovn", "qos ip4", 3_001_000, None, "", True),
        ("outbound", f"ovs {ovn}", "meter", 3_001_000, None, "ip", True),
    ]
    assert second["inbound"]["state"] == "none"
