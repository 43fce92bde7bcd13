# SPDX-License-Identifier: Apache-2.0
"""Host cost as a probe tells it: whose time it is, how several guests share the host, and that it is off when asked."""

from __future__ import annotations

import csv
import json
import os
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
from host_kit import guest
from probe_kit import LAST_CPU, SYN, Require, capturing, command

from vifprobe import Probe
from vifprobe.errors import KernelError
from vifprobe.kernel.tables import sched
from vifprobe.model.host_cost import HostCost
from vifprobe.model.layout import Direction
from vifprobe.model.reading import Reading
from vifprobe.model.records import HostScope
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.waiting import wait_until

FRAMES = 20_011
ENDLESS = 10**9
PARTS = {"total", "cpu", "softirq_net_rx", "softirq_net_tx"}


@pytest.fixture(autouse=True)
def _can_count(require: Require) -> None:
    require("kernel", os.geteuid() == 0, "BPF programs need root")
    try:
        sched.HostCounters().close()
    except KernelError as error:
        require("kernel", False, str(error))


def first_costs(probe: Probe, taps: int) -> dict[str, HostCost]:
    """The first interval of the host's in which each tap's process is known."""
    found: dict[str, HostCost] = {}
    for reading in probe.readings(0.1, 60):
        if reading.host is not None and reading.host.pid is not None and reading.host.offered_packets:
            found[reading.tap] = reading.host
        if len(found) == taps:
            return found
    raise AssertionError(f"only {found}")


def test_a_guests_flood_is_its_vhosts_time(tap: Tap) -> None:
    """The thread that writes to the tap is found, by kind, and its time is spread over the packets."""
    with guest([tap.fd], SYN, LAST_CPU) as made, Probe(tap.name, host=True) as probe:
        made.begin("vhost", f"flood {tap.fd} {ENDLESS}")
        for _ in range(3):
            first_costs(probe, 1)
        cost = probe.totals()[0].host
    assert cost is not None
    whole, vhost = cost.guest(), cost.guest(HostScope.QEMU_VHOST)
    assert cost.pid == made.pid
    assert whole is not None
    assert vhost is not None
    assert vhost.cpu_ns > 0.9 * whole.cpu_ns
    assert cost.guest(HostScope.QEMU_VCPU) == (0, 0, 0)
    per_packet = cost.per_packet_ns(vhost)
    assert per_packet is not None
    assert 100 < per_packet < 1_000_000
    assert 0 < cost.share(whole) <= 1.01 + cost.bound_ns / cost.duration_ns


def test_two_guests_share_a_cpu_and_one_takes_it_all_when_the_other_stops(netns: Netns) -> None:
    """Half each; then the one that is left has risen, in time and in packets."""
    with ExitStack() as stack:
        taps = [stack.enter_context(make_tap(f"tap{number}")) for number in range(2)]
        guests = [stack.enter_context(guest([tap.fd], SYN, LAST_CPU)) for tap in taps]
        probe = stack.enter_context(Probe(*(tap.name for tap in taps), host=True))
        for tap, made in zip(taps, guests, strict=True):
            made.begin("vhost", f"flood {tap.fd} {ENDLESS}")
        first_costs(probe, 2)
        together = used_ns(probe)
        guests[1].kill()
        alone: dict[str, float] = {}

        def has_risen() -> bool:
            """What the other one leaves goes to everybody who wants this CPU: look again while somebody else does."""
            alone.update(used_ns(probe))
            return alone["tap0"] > 1.4 * together["tap0"]

        wait_until(has_risen, 60)
    assert together["tap0"] == pytest.approx(together["tap1"], rel=0.5)
    assert together["tap0"] > 0.01e9
    assert alone["tap1"] < 0.1 * together["tap1"]


def an_interval(probe: Probe) -> list[Reading]:
    """The next readings, one a tap."""
    return [reading for _, reading in zip(probe.links, probe.readings(0.25, 600), strict=False)]


def used_ns(probe: Probe) -> dict[str, float]:
    """CPU time of each tap's guest in a second that the CPU was busy."""
    now_ns = time.monotonic_ns() - probe.start_ns  # an interval that is not over yet began before
    wait_until(lambda: all(one.host and one.host.start_ns > now_ns for one in an_interval(probe)), 60)
    before = {reading.tap: reading.host for reading in probe.totals()}
    for _ in zip(range(8), probe.readings(0.25, 600), strict=False):  # one a tap and interval
        pass
    after = {reading.tap: reading.host for reading in probe.totals()}
    return {tap: 1e9 * (guest_ns(after[tap]) - guest_ns(before[tap])) / grown(before[tap], after[tap]) for tap in after}


def guest_ns(cost: HostCost | None) -> int:
    assert cost is not None
    used = cost.guest()
    assert used is not None
    return used.cpu_ns


def grown(before: HostCost | None, after: HostCost | None) -> int:
    """Busy time of the guests' CPU."""
    return busy_ns(after) - busy_ns(before)


def busy_ns(cost: HostCost | None) -> int:
    assert cost is not None
    return next(row.cpu_ns or 0 for row in cost.rows if (row.scope, row.name) == (HostScope.CPU, f"cpu{LAST_CPU}"))


def test_rows_of_a_capture_add_up(tap: Tap, tmp_path: Path) -> None:
    """host.csv: all scopes but total, CPUs and softirqs make the total, in each interval; so do the CPUs."""
    with guest([tap.fd], SYN) as made, capturing(tmp_path) as capture:
        made.do("vhost", f"flood {tap.fd} {FRAMES}")
        wait_until(lambda: any(row["scope"] == "qemu_vhost" for row in rows_of(tmp_path)), 60)
        capture.end()
    sums: dict[str, Counter[tuple[str, str]]] = {"total": Counter(), "cpu": Counter(), "parts": Counter()}
    for row in rows_of(tmp_path):
        to = row["scope"] if row["scope"] in ("total", "cpu") else "parts"
        if to != "parts" or row["scope"] not in PARTS:
            for name in ("context_switches_voluntary", "context_switches_involuntary"):
                sums[to][row["start_ns"], name] += int(row[name])
            sums[to][row["start_ns"], "cpu_ns"] += int(row["cpu_ns"] or 0)
    assert sums["total"]
    assert sums["cpu"] == sums["total"]
    for key, whole in sums["total"].items():
        assert sums["parts"][key] == pytest.approx(whole, rel=0, abs=100_000 if key[1] == "cpu_ns" else 0)
    own = [row for row in rows_of(tmp_path) if row["scope"] == "qemu_vhost"]
    assert {(row["name"], int(row["pid"])) for row in own} == {(f"vhost-{made.pid}", made.pid)}


def rows_of(folder: Path) -> list[dict[str, str]]:
    found = sorted(folder.glob("**/host.csv"))
    return list(csv.DictReader(found[0].read_text().splitlines())) if found else []


def test_no_host_counts_nothing_of_the_host(tap: Tap, tmp_path: Path) -> None:
    """`--no-host`: null, and no program on the scheduler."""
    arguments = ("watch", tap.name, "--json", "--duration", "300ms", "--interval", "100ms", "--no-host")
    with command(*arguments, folder=tmp_path) as run:
        said = run.ended()
    assert {json.loads(line)["host"] for line in said.splitlines()} == {None}


def test_a_kernel_that_refuses_is_told_of_and_packets_are_counted(tap: Tap, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracepoint that is not there: a note, and everything else goes on."""
    monkeypatch.setattr(sched, "_TRACEPOINTS", ("sched_switch_that_is_not_there",))
    with Probe(tap.name, host=True, bin_ns=10_000_000) as probe:
        tap.write(SYN)
        probe.stop()
        final = list(probe.readings(0.1, 10))[-1]
    assert final.offered(Direction.OUTBOUND).packets == 1
    assert final.host is None
    assert any("sched_switch_that_is_not_there" in note for note in final.notes)
