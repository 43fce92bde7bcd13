# SPDX-License-Identifier: Apache-2.0
"""Kernels without tcx: a filter of the same pref that somebody adds later runs before vifprobe's."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from vifprobe import Probe
from vifprobe.kernel import libbpf
from vifprobe.kernel.attach import FILTER_PREF, has_tcx
from vifprobe.model.layout import Direction
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.packets.frames import EtherType, TcpFlag, eth, ipv4, tcp
from vifprobe.testing.traffic.flood import flood

pytestmark = pytest.mark.usefixtures("stock_kernel")

OUT = Direction.OUTBOUND
SYN = eth(ipv4(tcp(TcpFlag.SYN)), EtherType.IPV4)
COUNT = 1_009
#: r0 = TC_ACT_SHOT; exit.
SHOT = bytes.fromhex("b700000002000000 9500000000000000")


@pytest.fixture
def limited(netns: Netns) -> Iterator[Tap]:
    """A tap with an `ingress` qdisc, where filters are what vifprobe hangs on."""
    with make_tap("tap0") as made:
        if has_tcx(made.ifindex):
            pytest.skip("this kernel has tcx")
        subprocess.run(["tc", "qdisc", "add", "dev", "tap0", "ingress"], check=True)
        yield made


@contextmanager
def stranger(ifindex: int, handle: int) -> Iterator[None]:
    """A filter at our pref by another handle."""
    with ExitStack() as stack:
        program = libbpf.load_tc_program("stranger", SHOT)
        stack.callback(os.close, program)
        libbpf.attach_filter(program, ifindex, ingress=True, pref=FILTER_PREF, handle=handle, qdisc="ingress")
        try:
            yield
        finally:
            with suppress(OSError):
                libbpf.detach_filter(ifindex, True, FILTER_PREF, handle)


def test_one_that_was_there_before(limited: Tap) -> None:
    """New ones come first: nothing is missing, and nothing is said."""
    with stranger(limited.ifindex, 1), Probe("tap0", directions=(OUT,)) as probe:
        flood([limited.fd], [SYN], count=COUNT, seconds=60)
        probe.stop()
        *_, final = probe.readings(0.2, 60)
    assert final.offered(OUT).packets == COUNT
    assert "P17" not in {one.pattern for one in final.findings}


def test_one_that_comes_later(limited: Tap) -> None:
    """vifprobe goes back to the head at once, says who was there, and counts what comes from then on."""
    with Probe("tap0", directions=(OUT,)) as probe:
        readings = iter(probe.readings(0.2, 120))
        next(readings)
        with stranger(limited.ifindex, 1):
            next(reading for reading in readings if any("stranger" in note for note in reading.notes))
            flood([limited.fd], [SYN], count=COUNT, seconds=60)
            probe.stop()
            *_, final = readings
        gaps = probe.gaps
    assert final.offered(OUT).packets == COUNT
    assert [gap.direction for gap in gaps] == [OUT]
    assert gaps[0].end_ns is not None
    (found,) = [one for one in final.findings if one.pattern == "P17"]
    assert "stranger" in found.title


def test_many_that_come_later(limited: Tap) -> None:
    """At some time it gives in, and goes on saying so."""
    with ExitStack() as stack, Probe("tap0", directions=(OUT,)) as probe:
        readings = iter(probe.readings(0.2, 200))
        next(readings)
        for handle in range(1, 10):
            stack.enter_context(stranger(limited.ifindex, handle))
            next(reading for reading in readings if len(probe.gaps) == handle)
        last = next(reading for reading in readings if any(one.id == "P17-outbound-filter" for one in reading.findings))
        probe.stop()
        *_, final = readings
    assert last.findings
    assert [one.id for one in final.findings if one.pattern == "P17"] == ["P17-outbound-filter"]
    assert [gap.end_ns is None for gap in probe.gaps] == [False] * 8 + [True]
    assert "stranger" in final.findings[0].title
