# SPDX-License-Identifier: Apache-2.0
"""Floods and scans through a real tap: each raises its own findings and no other, and estimates hold their bounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from ipaddress import IPv6Address
from itertools import islice
from math import log

import pytest

from vifprobe.model.layout import Direction, PacketClass
from vifprobe.model.reading import Reading
from vifprobe.session.probe import Probe
from vifprobe.testing.net.links import nft_ingress_limit
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.packets import frames as f
from vifprobe.testing.packets import syns
from vifprobe.testing.packets.frames import EtherType, TcpFlag
from vifprobe.testing.traffic.flood import writer

OUT = Direction.OUTBOUND
ARP = f.pad(f.eth(f.arp(), EtherType.ARP))


def watched(
    tap: Tap, frames: list[bytes], *, count: int, pps: float, samples: int = 20_000, first: bytes = ARP
) -> Reading:
    """The run's totals after writing so many frames, over more than a second."""
    with Probe(tap.name, directions=(OUT,), samples=samples) as probe:
        tap.write(first)
        with writer(tap.fds, frames, count=count, seconds=30.0, packets_per_second=pps) as started:
            started.start()
            for reading in probe.readings(1.0, 30.0):
                if reading.offered(OUT, PacketClass.TCP_SYN).packets == 0 and reading.start_ns > 0:
                    probe.stop()  # all were written some time before
                last = reading
            assert started.wait().frames == count
    assert last.final
    return last


def patterns(reading: Reading) -> set[str]:
    return {finding.pattern for finding in reading.findings if finding.pattern.startswith("S")}


@pytest.mark.parametrize(
    ("make", "raised"),
    [
        (syns.hping, {"S1", "S3", "S5"}),
        (syns.spoofed, {"S1", "S2", "S3", "S5"}),
        (syns.mirai_scan, {"S3", "S4"}),
        (syns.port_scan, {"S4"}),
    ],
    ids=["hping", "spoofed", "mirai", "nmap"],
)
def test_each_is_told_apart(tap: Tap, make: Callable[[int], list[bytes]], raised: set[str]) -> None:
    frames = make(9_001)
    found = watched(tap, frames, count=9_001, pps=6_000.0)
    assert patterns(found) == raised, [one.title for one in found.findings]
    assert found.flood[OUT].value("syn_packets") == 9_001


def test_a_flood_over_ipv6_is_what_was_written(tap: Tap) -> None:
    """Each value beside a count of what was written, within its bound; times as much more as makes 95 % never."""
    frames = syns.spoofed_v6(9_001, targets=7, sources=3_001)
    solicitation = f.eth(f.ipv6(f.icmpv6(kind=135), hop_limit=255), EtherType.IPV6)
    found = watched(tap, frames, count=9_001, pps=6_000.0, first=solicitation)
    assert patterns(found) == {"S1", "S2", "S3"}
    flood = found.flood[OUT]
    truths = {
        "syn_packets": 9_001,
        "sources": 3_001,
        "destinations": 7,
        "source_ports": 9_001,
        "destination_ports": 7,
        "unknown_source_share": 1,
        "foreign_mac_share": 0,
        "impossible_source_share": 0,
        "no_options_share": 1,
        "destination_top_share": 1286 / 9_001,
        "source_entropy": log(3_001) / log(9_001),
        "destination_entropy": log(7) / log(9_001),
        "port_entropy": log(7) / log(9_001),
    }
    for name, truth in truths.items():
        known = flood.known(name)
        assert known is not None, name
        # HyperLogLog's 1.96 standard errors as five; a share is written with nine digits.
        assert abs(known.value - truth) <= 2.6 * known.error + 1e-9, (name, known)
    own = {one.kind: one for one in flood.top}
    assert own["fingerprint"].key == "IPv6 ttl 64 window 512 no options"
    targets = Counter(f"2001:db8:1::{2 + number % 7:x}" for number in range(9_001))
    assert {one.key for one in flood.top if one.kind == "destination"} == set(targets)
    for one in flood.top:
        if one.kind == "destination":
            assert abs(one.packets - targets[one.key]) <= one.error_max
    own_sources = {str(IPv6Address(frame[22:38])) for frame in frames}
    assert {one.key for one in flood.top if one.kind == "source"} <= own_sources


def test_estimates_lie_within_their_bounds(tap: Tap) -> None:
    """Four destination ports in shares that are known, some of the SYNs from elsewhere; one in many is sampled."""
    ports = [80] * 601 + [443] * 307 + [22] * 83 + [25] * 10
    frames = [
        syns.syn(
            destination_port=port,
            source=syns.GUEST if number % 3 else syns.TARGET,
            sequence=number * 2_654_435_761 % 2**32,
            options=syns.LINUX_OPTIONS if number % 7 else b"",
        )
        for number, port in enumerate(ports)
    ]
    found = watched(tap, frames, count=30_030, pps=20_000.0, samples=2_000)
    flood, syn_packets = found.flood[OUT], 30_030
    assert flood.value("syn_packets") == syn_packets
    assert 500 < (flood.value("sampled_syn_packets") or 0) < syn_packets
    truth = Counter({str(port): count * 30 for port, count in Counter(ports).items()})
    for top in islice((one for one in flood.top if one.kind == "port"), 4):
        assert abs(top.packets - truth[top.key]) <= top.error_max, top
    for name, share in (("unknown_source_share", 334 / 1_001), ("no_options_share", 143 / 1_001)):
        known = flood.known(name)
        assert known is not None
        assert 0 < known.error < 0.2
        assert known.low <= share <= known.high, name


def test_without_samples_only_counts_are_told(tap: Tap) -> None:
    """Features that are off cost nothing, and say nothing."""
    with Probe(tap.name, directions=(OUT,)) as probe:
        for _ in range(211):
            tap.write(f.eth(f.ipv4(f.tcp(TcpFlag.SYN)), EtherType.IPV4))
        *_, last = probe.readings(0.1, 0.2)
    assert last.offered(OUT).packets == 211
    assert last.flood == {}
    assert patterns(last) == set()


def test_a_guest_that_empties_its_bucket_again_and_again(tap: Tap) -> None:
    """S6: silence until the bucket is full, then all of it at once. The pace is that of the readings."""
    frames = f.eth(f.ipv4(f.udp(bytes(972))), EtherType.IPV4)
    limit = nft_ingress_limit(tap.name, rate_bytes_per_second=100_003, burst_bytes=1_009)
    with limit, Probe(tap.name, directions=(OUT,), samples=20_000, bin_ns=10_000_000) as probe:
        for last in probe.readings(1.1, 20.0):
            reading = last
            probe.take_bins()
            if "S6" in patterns(last):  # on a busy machine a burst can take too long to be one: then one more
                probe.stop()
            elif not last.final:
                for _ in range(211):  # twice what the bucket holds
                    tap.write(frames)
        assert reading.final
    (found,) = [one for one in reading.findings if one.pattern == "S6"]
    assert found.severity == "info"
    assert found.evidence["bursts"] >= 3
    assert (reading.flood[OUT].value("bucket_emptied") or 0) >= found.evidence["bursts"]
    assert (reading.flood[OUT].value("passed_peak_100ms_bps") or 0) > 5 * 8 * 100_003
    assert patterns(reading) == {"S6"}
