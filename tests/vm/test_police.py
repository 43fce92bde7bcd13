# SPDX-License-Identifier: Apache-2.0
"""Counts against act_police itself, in every form in which it is installed: equal, to the packet and to the byte."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from vm_kit import KERNEL, OUT, SECONDS, add_policer, delete_policer, policed, run, watch

from vifprobe import Probe
from vifprobe.model.layout import Direction, Verdict
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.traffic.flood import writer
from vifprobe.testing.traffic.scenario import forwarded, ordinary_packets, syn_flood_packets

pytestmark = pytest.mark.usefixtures("stock_kernel")

COUNT = 3_001  # 1.2 MB
#: kB/s and KiB: too slow for any sender; a big bucket first; one that some frames never fit into, whatever the rate.
LIMITS = [(53, 7), (41, 313), (1250, 3)]
# Which hook counts, by kernel and by what is there already.
HOOKS = {"6.12": "tcx", "6.1": "ingress", "5.10": "ingress"}


@pytest.fixture
def guest_tap(netns: Netns) -> Iterator[Tap]:
    """What its policer lets through is forwarded, and not dropped by anybody."""
    with make_tap("tap0", vnet_hdr=True) as tap, forwarded(tap):
        yield tap


@pytest.mark.parametrize(
    ("form", "limit"),
    [("libvirt", LIMITS[0]), ("libvirt", LIMITS[2]), ("ovs matchall", LIMITS[1]), ("ovs basic", LIMITS[2])],
)
def test_policed_is_what_the_policer_dropped(guest_tap: Tap, form: str, limit: tuple[int, int]) -> None:
    packets = [*ordinary_packets(guest_tap), *syn_flood_packets(guest_tap, ports=31)]
    add_policer("tap0", form, *limit)
    with (
        writer(guest_tap.fds, packets, count=COUNT, seconds=SECONDS) as flood,
        Probe("tap0", directions=(OUT,)) as probe,
    ):
        hook = probe.hooks["tap0"][OUT]
        seen = watch(probe, [flood])
        found = policed("tap0")
    # pref 1 is where our own filter would go: with Open vSwitch's there, the tracepoints count.
    assert hook == ("tracepoint" if form == "ovs matchall" and KERNEL != "6.12" else HOOKS[KERNEL])
    assert seen.readings["tap0"].verdicts == ("inferred" if KERNEL == "5.10" else "reason")
    assert seen.packets() == COUNT
    assert seen.packets(Verdict.POLICED) == found.dropped > 0
    assert seen.packets(Verdict.PASSED) == COUNT - found.dropped
    assert seen.charged() == found.bytes
    print(f"{KERNEL} {form} {limit} by {hook}: policed {found.dropped} of {COUNT}, {found.bytes} bytes charged")


def test_qdiscs_and_filters_are_left_as_they_were(guest_tap: Tap) -> None:
    add_policer("tap0", "libvirt", *LIMITS[0])

    def state() -> str:
        return run("tc qdisc show dev tap0") + run("tc filter show dev tap0 parent ffff:") + run("ip link show tap0")

    before = state()
    with Probe("tap0") as probe:
        # libvirt's `ingress` leaves no place for a filter on the way to the guest.
        assert probe.hooks["tap0"][Direction.INBOUND] == ("tcx" if KERNEL == "6.12" else "tracepoint")
        list(probe.readings(0.1, 0.3))
    assert state() == before


#: The bucket holds 2,483 SYNs of 40 bytes and gains 10 a second: what passes hardly depends on when packets come, which
#: nobody can repeat.
RATE, BURST = 0.4, 97
PACED_COUNT, PACED_PPS = 7_919, 2_650
SYN_BYTES = 40
#: How much longer than from its first packet to its last a flood may seem to take.
JITTER_SECONDS = 0.25


@pytest.mark.parametrize("form", ["libvirt", "ovs matchall"])
def test_the_policer_does_what_it_does_without_us(guest_tap: Tap, form: str) -> None:
    """It sees every packet, and passes as many, watched or not."""
    (alone, alone_seconds), (watched, watched_seconds) = (paced_flood(guest_tap, form, by) for by in (False, True))
    per_second = RATE * 1000 / SYN_BYTES
    assert abs(watched - alone - (watched_seconds - alone_seconds) * per_second) <= 1 + JITTER_SECONDS * per_second
    assert alone >= BURST * 1024 // SYN_BYTES
    print(f"{KERNEL} {form}: passed {alone} in {alone_seconds:.3f} s, watched {watched} in {watched_seconds:.3f} s")


def paced_flood(tap: Tap, form: str, is_watched: bool) -> tuple[int, float]:
    """Packets that the policer let pass, and how long the flood took."""
    add_policer("tap0", form, RATE, BURST)
    packets = syn_flood_packets(tap)
    with writer(tap.fds, packets, count=PACED_COUNT, seconds=SECONDS, packets_per_second=PACED_PPS) as flood:
        if is_watched:
            with Probe("tap0", directions=(OUT,)) as probe:
                seen = watch(probe, [flood])
                found = policed("tap0")
            written = seen.written[0]
            assert seen.packets(Verdict.POLICED) == found.dropped
        else:
            flood.start()
            written = flood.wait()
            found = policed("tap0")
    delete_policer("tap0")
    assert (written.frames, found.packets, found.bytes) == (PACED_COUNT, PACED_COUNT, SYN_BYTES * PACED_COUNT)
    return PACED_COUNT - found.dropped, written.seconds
