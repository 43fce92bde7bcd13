# SPDX-License-Identifier: Apache-2.0
"""The host's lines: on a screen, in a line of `watch`, as JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import render_kit as kit

from vifprobe.model.host_cost import HostCost, HostCostSum
from vifprobe.model.records import HostScope
from vifprobe.render.export.jsonlines import dumps, reading_object
from vifprobe.render.text.host import host_fields, host_lines, share_line
from vifprobe.render.text.lines import interval_line
from vifprobe.render.text.screen import Screen
from vifprobe.render.units import ASCII, BLOCKS

PID = 3191


def cost(share: float = 1.0, pid: int | None = PID) -> HostCost:
    """A guest that floods with one vCPU and its vhost thread, on a host of two CPUs."""
    total = HostCostSum()
    for scope, name, own, voluntary, involuntary, cpu_ns in (
        (HostScope.TOTAL, "host", None, 61_003, 2_003, 1_923_000_000),
        (HostScope.IDLE, "swapper", None, 0, 307, 0),
        (HostScope.QEMU_VCPU, "CPU 0/KVM", PID, 211, 97, 981_000_000),
        (HostScope.QEMU_VHOST, f"vhost-{PID}", PID, 52_009, 1_201, 702_000_000),
        (HostScope.QEMU_EMULATOR, "qemu-system-x86", PID, 43, 1, 1_300_000),
        (HostScope.KSOFTIRQD, "ksoftirqd/1", 22, 17, 5, 4_100_000),
        (HostScope.OTHER, "qemu-system-x86", 4242, 1_009, 503, 211_000_000),
        (HostScope.SOFTIRQ_NET_RX, "cpu1", None, 0, 0, 31_000_000),
        (HostScope.SOFTIRQ_NET_TX, "cpu0", None, 0, 0, 700_000),
    ):
        total.add(scope, name, own, (round(one * share) for one in (voluntary, involuntary, cpu_ns)))
    return HostCost(0, kit.SECOND_NS, total.rows(), 270_013, pid)


READING = replace(kit.BASE, host=cost())


def test_golden() -> None:
    text = kit.text_of(Screen([READING], {kit.TAP: kit.CONTEXT}).lines(80, 24, BLOCKS))
    kit.check_golden("host-80x24", text)
    whole = Screen([READING, replace(READING, tap="tap1", host=cost(0.3))], {kit.TAP: kit.CONTEXT})
    kit.check_golden("host-many-80x50", kit.text_of(whole.lines(80, 50, BLOCKS)))


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_lines_fit(width: int) -> None:
    for row in [*host_lines(cost(), width, ASCII), *share_line([READING] * 9, width, ASCII)]:
        assert len(row.plain) <= width
        assert row.plain.isascii()


def test_what_is_not_known_is_not_a_number() -> None:
    unknown = [row.plain for row in host_lines(cost(pid=None))]
    assert "not known" in unknown[0]
    assert host_lines(None) == []
    assert share_line([kit.BASE], 80) == []
    assert "ns/packet vcpu     ? vhost     ?" in host_fields(cost(pid=None))
    assert len(host_fields(None).split()) == len(host_fields(cost()).split())


def test_a_line_of_watch() -> None:
    fields = interval_line(READING).split(" host ")[1].split()
    assert fields[:2] == [f"{1_684_300_000 / 270_013:.0f}", "ns/packet"]
    assert fields[2:6] == ["vcpu", "0.98", "vhost", "0.70"]


def test_doubts_are_told() -> None:
    doubtful = replace(cost(), missed_switches=10_007, unnamed_switches=11, bound_ns=100_000_000)
    said = kit.text_of(host_lines(doubtful))
    for words in ("10,007 context switches", "11 context switches", "to within 100 ms"):
        assert words in said
    assert len(host_lines(cost())) == 3


def test_json() -> None:
    found = json.loads(dumps(reading_object(READING)))["host"]
    assert found["guest"]["vhost"] == {"cpu_ns": 702_000_000, "voluntary": 52_009, "involuntary": 1_201}
    assert found["guest"]["cpu_ns"] == 981_000_000 + 702_000_000 + 1_300_000
    assert found["guest_ns_per_packet"] == pytest.approx(found["guest"]["cpu_ns"] / 270_013)
    assert found["total"]["voluntary"] == 61_003
    assert found["softirq_net_rx_ns"] == 31_000_000
    assert found["others"] == [
        {"name": "qemu-system-x86", "pid": 4242, "cpu_ns": 211_000_000, "voluntary": 1_009, "involuntary": 503}
    ]
    assert json.loads(dumps(reading_object(replace(kit.BASE, host=cost(pid=None)))))["host"]["guest"] is None
    assert json.loads(dumps(reading_object(kit.BASE)))["host"] is None
