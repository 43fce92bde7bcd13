# SPDX-License-Identifier: Apache-2.0
"""Who dropped it, where several can: the tap's own limit, a program at its tc ingress, chains of the bridge behind it.

Each of them counts for itself, and what vifprobe says of each is what that one counted. act_police among them is for
tests/vm/test_dropped_by_police.py.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import pytest
from host_fixtures import run
from probe_kit import FLOOD_SECONDS, KERNEL, Watched, finish, watch_flood

from vifprobe import Probe
from vifprobe.host.net.links import find_link
from vifprobe.kernel import libbpf
from vifprobe.kernel.attach import has_tcx
from vifprobe.model.layout import Direction, Verdict
from vifprobe.model.reading import count
from vifprobe.testing.net.links import nft_chain, nft_ingress_limit
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.packets import frames as f
from vifprobe.testing.packets.frames import EtherType
from vifprobe.testing.traffic.flood import writer
from vifprobe.testing.traffic.scenario import forwarded

Require = Callable[[str, object, str], None]
COUNT = 10_007
UDP4 = f.eth(f.ipv4(f.udp(bytes(19))), EtherType.IPV4)
UDP6 = f.eth(f.ipv6(f.udp(bytes(19))), EtherType.IPV6)
POLICED, DROPPED, PASSED = Verdict.POLICED, Verdict.DROPPED, Verdict.PASSED
#: `if skb->protocol == IPv6 drop, else go on`; __sk_buff.protocol is at 16, TC_ACT_SHOT is 2.
IPV6_DROPPER = b"".join(
    struct.pack("=BBhi", *each)
    for each in ((0x61, 0x12, 16, 0), (0xB7, 0, 0, -1), (0x55, 2, 1, 0xDD86), (0xB7, 0, 0, 2), (0x95, 0, 0, 0))
)


@contextmanager
def ipv6_dropper(tap: Tap, require: Require, last: bool = False) -> Iterator[int]:
    """A tcx program of somebody else's; gives its id. last: behind all that are there."""
    program = libbpf.load_tc_program("accelerator", IPV6_DROPPER)
    with ExitStack() as stack:
        stack.callback(os.close, program)
        require("kernel", has_tcx(tap.ifindex), "tcx (Linux 6.6)")
        if last:
            link = libbpf.library().bpf_link_create(program, tap.ifindex, libbpf.BPF_TCX_INGRESS, None)
        else:
            link = libbpf.attach_tcx(program, tap.ifindex, ingress=True)
        stack.callback(os.close, link)
        (number,) = struct.unpack_from("=I", libbpf.object_info(program), 4)
        yield number


class Seen(NamedTuple):
    """What was said, and the names of the reasons."""

    by: Watched
    names: Mapping[int, str]

    def packets(self, verdict: Verdict | None = None) -> int:
        return self.by.total(verdict).packets

    def reasons(self, verdict: Verdict) -> dict[str, int]:
        cells = self.by.totals["tap0"].where(Direction.OUTBOUND, verdict)
        numbers = set(cells["reason"].tolist())
        return {self.names[number]: count(cells[cells["reason"] == number]).packets for number in numbers}

    @property
    def notes(self) -> list[str]:
        return list(self.by.totals["tap0"].notes)


def watched(tap: Tap, frames: list[bytes]) -> Seen:
    with writer(tap.fds, frames, count=COUNT, seconds=FLOOD_SECONDS) as flood, Probe(tap.name) as probe:
        return Seen(watch_flood(probe, [flood]), probe.features.reasons)


def test_what_a_program_drops_is_not_policed(tap: Tap, require: Require) -> None:
    """No policer is there at all: the drop is the program's, with the kernel's reason."""
    with ipv6_dropper(tap, require) as number, forwarded(tap):
        found = watched(tap, [UDP4, UDP6, UDP6])
    gone = COUNT // 3 * 2 + 1
    assert (found.packets(POLICED), found.packets(DROPPED)) == (0, gone)
    assert found.packets(PASSED) == COUNT - gone
    assert found.reasons(DROPPED) == {"TC_INGRESS": gone}
    assert found.notes == [
        f"{gone:,} packets were dropped at tc ingress by the tcx program accelerator (id {number}), not by a policer"
    ]


def test_a_program_ahead_of_a_limit(tap: Tap, require: Require) -> None:
    with (
        ipv6_dropper(tap, require),
        forwarded(tap),
        nft_ingress_limit(tap.name, rate_bytes_per_second=10_000, burst_bytes=10_000) as limit,
    ):
        found = watched(tap, [UDP4, UDP6, UDP6])
        policed = limit.read().packets
    gone = COUNT // 3 * 2 + 1
    assert (found.packets(POLICED), found.packets(DROPPED)) == (policed, gone)
    assert 0 < policed < COUNT - gone


CHAINS = {
    "bridge": ("bridge", "hook forward priority 0;"),
    "bridge prerouting": ("bridge", "hook prerouting priority 0;"),
    "ip": ("ip", "hook prerouting priority 0;"),
    "inet": ("inet", "hook prerouting priority 0;"),
}


def check_chains_apart(tap: Tap, which: str, require: Require, tags: int = 0) -> None:
    """A limit of the tap's own, and a chain behind it that drops all IPv4 (the IP stack's: all).

    tags: of priority alone, which the IP stack passes over.
    """
    family, hook = CHAINS[which]
    chain = f"chain c {{\ntype filter {hook}\n{'ether type ip ' if family == 'bridge' else ''}counter drop\n}}"
    with ExitStack() as stack:
        if family == "bridge":
            stack.enter_context(forwarded(tap))
        done = subprocess.run(["nft", "-f", "-"], input=f"table {family} x {{\n{chain}\n}}\n", text=True, check=False)
        require("kernel", done.returncode == 0, f"nft tables of family {family}")
        limit = nft_ingress_limit(tap.name, rate_bytes_per_second=20_000, burst_bytes=20_000)
        policer = stack.enter_context(limit)
        # A bridge forwards to others; the IP stack takes what is for the tap's own address.
        to = UDP4[:6] if family == "bridge" else bytes.fromhex(find_link(tap.name).mac.replace(":", ""))
        frames = [to + UDP4[6:], to + UDP6[6:]]
        for _ in range(tags):
            frames = [f.vlan(frame, vid=0) for frame in frames]
        found = watched(tap, frames)
        policed = policer.read().packets
        (theirs,) = [
            expression["counter"]["packets"]
            for item in json.loads(run(f"nft -j list table {family} x"))["nftables"]
            for expression in item.get("rule", {}).get("expr", [])
            if "counter" in expression
        ]
    assert found.packets(POLICED) == policed > 0
    assert found.packets(DROPPED) >= theirs > 0
    if not KERNEL:  # older ones give no reason, or not for all of these
        assert found.reasons(POLICED) == {"NETFILTER_DROP": policed}
        assert found.reasons(DROPPED).get("NETFILTER_DROP", 0) == theirs
    assert found.packets() == COUNT
    assert found.notes == []


def have_tc_hook(tap: Tap) -> None:
    """Without tcx it is a filter's: the tap needs a qdisc for it, or tracepoints would count its packets."""
    if not has_tcx(tap.ifindex):
        run(f"tc qdisc add dev {tap.name} clsact")


@pytest.mark.parametrize("which", CHAINS)
def test_drops_of_chains_behind_the_tap_are_told_from_those_of_its_own(tap: Tap, which: str, require: Require) -> None:
    """All of them have one reason, and are freed by one function."""
    check_chains_apart(tap, which, require)


@pytest.mark.parametrize("frame", [UDP4, UDP6])
def test_a_tap_whose_number_is_the_length_that_is_charged(netns: Netns, frame: bytes, require: Require) -> None:
    """The IP stack writes the number where tc wrote the length: what looks the same is told by its counters."""
    with make_tap("tap0", ifindex=len(frame) - 14) as tap:
        have_tc_hook(tap)
        check_chains_apart(tap, "inet", require)


def test_a_tap_whose_number_is_the_length_of_tagged_packets(netns: Netns, require: Require) -> None:
    with make_tap("tap0", ifindex=len(UDP4) - 14) as tap:
        have_tc_hook(tap)
        check_chains_apart(tap, "inet", require, tags=1)


def test_what_cannot_be_told_apart_is_said(tap: Tap, require: Require) -> None:
    """A frame without a payload: 0 bytes are charged, and 0 is what a bridge's first chain finds there."""
    empty = UDP4[:12] + f.EtherType.EXPERIMENTAL.to_bytes(2, "big")
    with (
        forwarded(tap),
        nft_chain("bridge", "prerouting", "counter drop"),
        nft_ingress_limit(tap.name, rate_bytes_per_second=20_000, burst_bytes=20_000) as limit,
    ):
        found = watched(tap, [empty, UDP4])
        policed = limit.read().packets
    assert found.packets() == COUNT
    assert found.notes == [f"{COUNT // 2 + 1:,} netfilter drops count as policed, by an unknown chain"]
    assert found.packets(POLICED) == policed + COUNT // 2 + 1


def test_a_chain_behind_the_tap_that_comes_while_it_is_watched(tap: Tap) -> None:
    """From the transaction on, each drop is told apart; nothing is counted twice while the programs change."""
    with (
        forwarded(tap),
        nft_ingress_limit(tap.name, rate_bytes_per_second=20_000, burst_bytes=20_000) as limit,
        writer(tap.fds, [UDP4], count=COUNT, seconds=FLOOD_SECONDS, packets_per_second=5_000) as flood,
        Probe(tap.name) as probe,
    ):
        script = "table bridge x {\nchain c {\ntype filter hook forward priority 0;\n}\n}\n"
        subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True)
        found = Seen(watch_flood(probe, [flood]), probe.features.reasons)
        assert found.packets(POLICED) == limit.read().packets > 0
    assert found.packets() == COUNT
    assert found.packets(DROPPED) == 0


def late(packets: int, counted_as: str, by: str) -> str:
    return (
        f"up to {packets:,} packets that count as {counted_as} can have been dropped by {by}, before vifprobe had read "
        "that it was there"
    )


def test_what_a_new_limit_drops_before_it_is_read_is_said(tap: Tap) -> None:
    """Nobody reads between the limit's first packet and the half: these count as dropped, and a note says so."""
    with forwarded(tap), Probe(tap.name) as probe:
        readings = probe.readings(0.05, FLOOD_SECONDS)
        with nft_ingress_limit(tap.name, rate_bytes_per_second=1_000, burst_bytes=1_000) as limit:
            for _ in range(COUNT):
                os.write(tap.fd, tap.packet(UDP4))
            before = limit.read().packets
            found = next(reading for reading in readings if reading.limits[Direction.OUTBOUND].installed_bps)
            assert late(before, "dropped", "the tap's nft chain") in found.notes
            for _ in range(COUNT):
                os.write(tap.fd, tap.packet(UDP4))
            after = limit.read().packets
            probe.stop()
            *_, totals = readings
    assert count(totals.where(Direction.OUTBOUND, DROPPED)).packets == before > 0
    assert count(totals.where(Direction.OUTBOUND, POLICED)).packets == after - before > 0
    assert list(totals.notes) == [late(before, "dropped", "the tap's nft chain")]


def test_what_a_new_program_drops_before_it_is_seen_is_said(tap: Tap, require: Require) -> None:
    """No event reports a tcx program: its drops count as a policer's, until vifprobe looks. It does so at the end."""
    with forwarded(tap), Probe(tap.name) as probe, ipv6_dropper(tap, require, last=True):
        for _ in range(COUNT):
            os.write(tap.fd, tap.packet(UDP6))
        found = Seen(finish(probe), probe.features.reasons)
    assert found.packets(POLICED) == COUNT
    assert found.notes == [late(COUNT, "policed", "another program at tc ingress")]
