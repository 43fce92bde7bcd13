# SPDX-License-Identifier: Apache-2.0
"""The ideal bucket beside act_police itself: with the declared limit installed they agree, but for a few packets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from vm_kit import KERNEL, OUT, SECONDS, add_policer, policed, watch

from vifprobe import Probe
from vifprobe.model.layout import Verdict
from vifprobe.model.reading import Limit
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.packets import frames as f
from vifprobe.testing.traffic.flood import flood, writer
from vifprobe.testing.traffic.scenario import forwarded

pytestmark = pytest.mark.usefixtures("stock_kernel")

SYN = f.eth(f.ipv4(f.tcp(f.TcpFlag.SYN)), f.EtherType.IPV4)
COUNT = 20_011


@pytest.fixture
def guest_tap(netns: Netns) -> Iterator[Tap]:
    """What its policer lets through is forwarded, and not dropped by anybody."""
    with make_tap("tap0") as tap, forwarded(tap):
        yield tap


@pytest.mark.parametrize(
    ("form", "rate", "burst", "sizes"),
    [
        ("libvirt", 53, 7, [60]),
        ("libvirt", 311, 31, [1514, 60, 60, 590]),
        ("ovs matchall", 101, 13, [60, 1514]),
    ],
)
def test_it_agrees_with_act_police(guest_tap: Tap, form: str, rate: int, burst: int, sizes: list[int]) -> None:
    """A policer that a flood has emptied before anybody watched: bypass and overpoliced stay under 0.1 %."""
    add_policer("tap0", form, rate, burst)
    packets = [SYN + bytes(size - len(SYN)) for size in sizes]
    flood(guest_tap.fds, packets, count=COUNT // 4, seconds=SECONDS)
    limits = {OUT: Limit(declared_bps=8000 * rate, burst_bytes=1024 * burst)}
    with (
        writer(guest_tap.fds, packets, count=COUNT, seconds=SECONDS) as writing,
        Probe("tap0", directions=(OUT,), limits=limits) as probe,
    ):
        before = policed("tap0")
        seen = watch(probe, [writing])
        dropped = policed("tap0").dropped - before.dropped
    reading = seen.readings["tap0"]
    bypass, overpoliced = reading.bypass(OUT), reading.overpoliced(OUT)
    assert bypass is not None
    assert overpoliced is not None
    print(f"{KERNEL} {form} {rate} kB/s {sizes}: policed {dropped}, bypass {bypass}, overpoliced {overpoliced}")
    assert seen.packets() == COUNT
    assert seen.packets(Verdict.POLICED) == dropped > COUNT // 5
    assert bypass.packets + overpoliced.packets < COUNT / 1000
