# SPDX-License-Identifier: Apache-2.0
"""Foreign drops: a tap whose packets all pass shows no drop, whoever drops on the same CPU at the same address.

The address of a freed skb is given out again at once, so the tap's packet and the foreign one share theirs each time.
Each way is shown to be a danger first: with the check taken out of the C text, what has passed counts as dropped.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from ahead_kit import dropping, xdp
from probe_kit import FIRST_CPU, FLOOD_SECONDS, KERNEL, SYN, Watched, forwarding, watch_flood

from vifprobe import Probe
from vifprobe.kernel import load
from vifprobe.kernel.attach import has_tcx
from vifprobe.kernel.toolchain.source import source_text
from vifprobe.model.layout import Verdict
from vifprobe.testing.net.links import nft_ingress_limit
from vifprobe.testing.net.netns import private_netns
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.traffic.flood import writer

COUNT = 2_003 if KERNEL else 100_003  # emulated processors take tens of times as long
#: Freed before it gets to tc: the kernel can't take out a tag that ends with the frame.
TORN_TAG = SYN[:12] + bytes.fromhex("81000007")
#: What tells foreign skbs apart in bpf/progs/kfree_skb.c, and what to put in its place to have it not looked at.
IIF = ("FIELD(u32, skb, SKB_IIF_OFFSET) != state->ifindex", "false")
NETNS = ("INUM_OFFSET) != LOADED(NETNS)", "INUM_OFFSET) == LOADED(NETNS) + 7")
TAG = ("if (unlikely(FIELD(u32, skb, SKB_LEN_OFFSET) < VLAN_TAG_LEN + 2))", "if (0)")
XDP = ("if (unlikely(is_by_xdp(reason, location, state)))", "if (0)")

Foreigners = Callable[[ExitStack, Tap], tuple[list[int], list[bytes]]]


def another_tap(stack: ExitStack, tap: Tap) -> tuple[list[int], list[bytes]]:
    """A second tap, whose frames nobody takes: the stack drops them."""
    return [tap.fd, stack.enter_context(make_tap("tap1")).fd], [SYN]


def limited_tap(stack: ExitStack, tap: Tap) -> tuple[list[int], list[bytes]]:
    """A second tap behind a limit: its drops have the reason of a policer's."""
    other = stack.enter_context(make_tap("tap1"))
    stack.enter_context(nft_ingress_limit(other.name, rate_bytes_per_second=1000, burst_bytes=1000))
    # A limit of its own makes a netfilter drop count as policed, if it is the tap's.
    stack.enter_context(nft_ingress_limit(tap.name, rate_bytes_per_second=10**9, burst_bytes=10**9))
    return [tap.fd, other.fd], [SYN]


def same_number_elsewhere(stack: ExitStack, tap: Tap) -> tuple[list[int], list[bytes]]:
    """A tap in another network namespace that has the same ifindex, as pods' taps have."""
    with stack.enter_context(private_netns(enter=False)).entered():
        other = stack.enter_context(make_tap("tap0"))
    assert other.ifindex == tap.ifindex
    return [tap.fd, other.fd], [SYN]


def own_torn_frames(stack: ExitStack, tap: Tap) -> tuple[list[int], list[bytes]]:
    """The guest's own frames that the kernel frees before they get to tc."""
    return [tap.fd], [SYN, TORN_TAG]


def own_frames_to_xdp(stack: ExitStack, tap: Tap) -> tuple[list[int], list[bytes]]:
    """The guest's own frames that generic XDP drops, with vifprobe's tc program behind it."""
    if not has_tcx(tap.ifindex):
        subprocess.run(["tc", "qdisc", "add", "dev", tap.name, "clsact"], check=True)
    stack.enter_context(xdp("xdp_some", dropping(0x99), tap.ifindex, "generic"))
    return [tap.fd], [SYN, SYN[:5] + b"\x99" + SYN[6:]]


@contextmanager
def without(check: tuple[str, str]) -> Iterator[None]:
    """The programs compiled without one of their checks."""
    text = source_text()
    assert text.count(check[0]) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "source_text", lambda: text.replace(*check))
        patch.setenv("VIFPROBE_CACHE", "")
        yield


#: Those of the tap that do not come to the hook.
UNSEEN = (own_torn_frames, own_frames_to_xdp)


def run(tap: Tap, foreigners: Foreigners, count: int) -> Watched:
    """`count` frames of the tap, one foreign one after each."""
    with ExitStack() as stack:
        fds, frames = foreigners(stack, tap)
        stack.enter_context(forwarding(tap))
        writing = writer(fds, frames, count=2 * count, seconds=FLOOD_SECONDS, cpu=FIRST_CPU)
        flooding = stack.enter_context(writing)
        probe = stack.enter_context(Probe(tap.name, bin_ns=1_000_000))
        # The tap's driver counts frames that the hook does not see: missed, once the run takes some seconds.
        found = watch_flood(probe, [flooding], missed_max=count if foreigners in UNSEEN else 0)
    assert found.total().packets == count
    return found


@pytest.mark.parametrize(
    "foreigners", [another_tap, limited_tap, same_number_elsewhere, own_torn_frames, own_frames_to_xdp]
)
def test_what_passes_has_passed(tap: Tap, foreigners: Foreigners) -> None:
    """0 dropped and 0 policed, in counts and in bins, while every second skb on this CPU is dropped."""
    found = run(tap, foreigners, COUNT)
    assert found.total(Verdict.PASSED).packets == COUNT
    assert found.binned(Verdict.PASSED)[0] == found.binned()[0] == COUNT


@pytest.mark.parametrize(
    ("foreigners", "check", "verdict"),
    [
        (another_tap, IIF, Verdict.DROPPED),
        (limited_tap, IIF, Verdict.POLICED),
        (same_number_elsewhere, NETNS, Verdict.DROPPED),
        (own_torn_frames, TAG, Verdict.DROPPED),
        (own_frames_to_xdp, XDP, Verdict.DROPPED),
    ],
)
def test_the_danger_is_real(tap: Tap, foreigners: Foreigners, check: tuple[str, str], verdict: Verdict) -> None:
    """Without the check the same run shows foreign drops as the tap's: the tests above can fail."""
    count = 1009
    with without(check):
        found = run(tap, foreigners, count)
    assert found.total(verdict).packets > count // 2


def test_where_the_hook_is_before_xdp_its_drops_count(tap: Tap) -> None:
    """Without tcx and without a qdisc, the tracepoint counts; it runs first (net/core/dev.c)."""
    if has_tcx(tap.ifindex):
        pytest.skip("kernel: tcx is used")
    with ExitStack() as stack:
        stack.enter_context(xdp("xdp_some", dropping(0x99), tap.ifindex, "generic"))
        stack.enter_context(forwarding(tap))
        frames = [SYN, SYN[:5] + b"\x99" + SYN[6:]]
        flooding = stack.enter_context(writer([tap.fd], frames, count=2018, seconds=FLOOD_SECONDS, cpu=FIRST_CPU))
        probe = stack.enter_context(Probe(tap.name))
        found = watch_flood(probe, [flooding])
    assert found.total(Verdict.PASSED).packets == found.total(Verdict.DROPPED).packets == 1009
