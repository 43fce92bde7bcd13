# SPDX-License-Identifier: Apache-2.0
"""The incident as scripts/incident tells it: each step shows what it says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from vifprobe import load

pytestmark = [
    pytest.mark.usefixtures("stock_kernel"),
    pytest.mark.kernels("6.1", "6.12"),
    pytest.mark.timeout(2400),
]

SCRIPT = Path(__file__).parents[2] / "scripts" / "lab" / "incident.py"


def test_the_incident(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("incident", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    incident = importlib.util.module_from_spec(spec)
    sys.modules["incident"] = incident
    spec.loader.exec_module(incident)
    steps = []
    for number, step in enumerate(incident.play(tmp_path / "capture"), start=1):
        incident.tell(number, step, print)
        steps.append(step)
    limited, wiped, alone, policed = steps
    one, two = incident.TAPS
    limit = incident.AVERAGE * 1000 / incident.CHARGED_SYN  # packets a second

    for name in (one, two):
        # The counter shows several times what passed, which is the limit. (Spans are not the same to the millisecond:
        # test_gaps.py holds the two against each other to the packet.)
        assert limited.taps[name].passed == pytest.approx(limit, rel=0.2)
        assert limited.taps[name].device > 1.5 * limit
        assert limited.taps[name].offered > 1.5 * limit
        # Then nothing is policed, and all that is counted leaves.
        assert wiped.taps[name].policed == 0
        assert wiped.taps[name].passed > 1.5 * limit
    assert wiped.uplink == pytest.approx(sum(seen.device for seen in wiped.taps.values()), rel=0.1)
    assert {event.by_comm for _, event in wiped.events if event.kind == "qdisc_del"} == {"ovs-vswitchd"}
    assert "P2" in wiped.patterns

    # Read alone, a capture tells what happened: who flooded, that the limit went away, and by whom. (What passed since
    # is counted from when the capture heard of it, which beside two floods on one emulated processor is late.)
    capture = load(tmp_path / "capture")
    incident.tell_findings(capture, print)
    assert capture.manifest.complete
    for name in (one, two):
        found = {finding.pattern: finding for tap, finding in capture.findings if tap == name}
        assert {"S1", "P2"} <= found.keys()
        assert found["P2"].title.startswith("ovs-vswitchd removed the ingress policer")
        assert found["P2"].evidence["passed_since_bytes"] is not None

    assert alone.taps[two].device == 0
    assert alone.taps[one].policed == 0
    assert alone.rise > 1.3

    # The counter rises further, and what leaves is the limit: Open vSwitch's charges no packet less than a shortest
    # Ethernet frame (lib/netdev-linux.c: mpu ETH_TOTAL_MIN), libvirt's does.
    limit *= incident.CHARGED_SYN / incident.OVS_CHARGED_SYN
    assert policed.taps[one].passed == pytest.approx(limit, rel=0.2)
    assert policed.uplink == pytest.approx(limit, rel=0.2)
    assert policed.rise > 1.05
    assert "P8" in policed.patterns
