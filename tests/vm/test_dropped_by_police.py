# SPDX-License-Identifier: Apache-2.0
"""act_police beside something else that drops at tc ingress: each has its own drops, or it is said that it's not known.

Both count for themselves. Kernels with type information of modules (5.11 and later) let the police action be watched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from vm_kit import KERNEL, OUT, SECONDS, add_policer, run, watch

from vifprobe import Probe
from vifprobe.model.layout import Verdict
from vifprobe.model.reading import Reading, count
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.packets import frames as f
from vifprobe.testing.packets.frames import EtherType
from vifprobe.testing.traffic.flood import writer
from vifprobe.testing.traffic.scenario import forwarded
from vifprobe.testing.waiting import wait_until

pytestmark = pytest.mark.usefixtures("stock_kernel")

COUNT = 5_003
RATE, BURST = 53, 7  # kB/s, KiB
UDP4 = f.eth(f.ipv4(f.udp(bytes(19))), EtherType.IPV4)
UDP6 = f.eth(f.ipv6(f.udp(bytes(19))), EtherType.IPV6)
IPV6 = COUNT // 2
#: Ahead of the policer, in whatever order they were added.
DROP_IPV6 = "tc filter add dev tap0 parent ffff: protocol ipv6 pref 7 u32 match u32 0 0 action gact drop"
CAN_WATCH = KERNEL != "5.10"


@pytest.fixture
def guest_tap(netns: Netns) -> Iterator[Tap]:
    with make_tap("tap0", vnet_hdr=True) as tap, forwarded(tap):
        yield tap


class Dropped(NamedTuple):
    """By their own counters."""

    policer: int
    action: int


def dropped() -> Dropped:
    """pref 7 is the action's, the other one the policer's."""
    text = run("tc -s filter show dev tap0 parent ffff:")
    by: dict[bool, int] = {}
    is_action = False
    for line in text.splitlines():
        if match := re.search(r"\bpref (\d+)\b", line):
            is_action = match[1] == "7"
        if match := re.search(r"\(dropped (\d+),", line):
            by[is_action] = int(match[1])
    return Dropped(by.get(False, 0), by.get(True, 0))


def packets(reading: Reading, verdict: Verdict) -> int:
    return count(reading.where(OUT, verdict)).packets


def is_watched(probe: Probe) -> bool:
    return "police link" in probe._parts.programs._fds


@pytest.mark.parametrize("form", ["libvirt", "ovs matchall"])
def test_each_drop_is_whose_it_is(guest_tap: Tap, form: str) -> None:
    if form == "ovs matchall":  # at pref 1, where nothing can be ahead of it: it lets what conforms go on
        run("tc qdisc add dev tap0 ingress")
        run(
            "tc filter add dev tap0 parent ffff: protocol all prio 49 matchall action police "
            f"rate {RATE * 8}kbit burst {BURST}kb mtu 65535 conform-exceed drop/continue"
        )
    else:
        add_policer("tap0", form, RATE, BURST)
    run(DROP_IPV6)
    frames = [guest_tap.packet(frame) for frame in (UDP4, UDP6)]
    with (
        writer(guest_tap.fds, frames, count=COUNT, seconds=SECONDS) as flood,
        Probe("tap0", directions=(OUT,)) as probe,
    ):
        assert is_watched(probe) is CAN_WATCH
        seen = watch(probe, [flood]).readings["tap0"]
        counted = dropped()
    assert counted.action == IPV6
    assert counted.policer > 0
    both = (packets(seen, Verdict.POLICED), packets(seen, Verdict.DROPPED))
    if CAN_WATCH:
        assert both == counted
        assert seen.verdicts == "reason"
        (note,) = [note for note in seen.notes if "not by a policer" in note]
        assert note.startswith(f"{IPV6:,} packets were dropped at tc ingress by the filter ingress pref 7 u32 ")
    else:
        assert both == (sum(counted), 0)
        assert seen.verdicts == "inferred"
        assert any("can be by the filter ingress pref 7 u32 " in note for note in seen.notes), seen.notes
    print(f"{KERNEL}: {counted} {both} {seen.notes}")


def test_the_police_action_is_watched_only_while_it_must_be(guest_tap: Tap) -> None:
    """Its watching costs every policed packet of the host."""
    add_policer("tap0", "libvirt", RATE, BURST)
    with Probe("tap0", directions=(OUT,)) as probe:
        assert not is_watched(probe)
        readings = probe.readings(0.05, SECONDS)
        run(DROP_IPV6)
        wait_until(lambda: next(readings) and is_watched(probe) is CAN_WATCH, SECONDS)
        run("tc filter del dev tap0 parent ffff: pref 7")
        wait_until(lambda: next(readings) and not is_watched(probe), SECONDS)
