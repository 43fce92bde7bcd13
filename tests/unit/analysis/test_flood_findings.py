# SPDX-License-Identifier: Apache-2.0
"""S1 to S5 from real frames: each flood raises its own findings and no other, ordinary traffic raises none."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address

import numpy as np
import pytest
from flood_kit import IN, OUT, cells, samples, seeded

from vifprobe.analysis.findings.raised import findings
from vifprobe.analysis.findings.situation import Situation
from vifprobe.analysis.findings.thresholds import FloodThresholds, flood_thresholds
from vifprobe.analysis.flood.addresses import OwnAddresses, mac_number
from vifprobe.analysis.flood.tracker import FloodTracker
from vifprobe.analysis.policer import SetUp
from vifprobe.errors import UsageError
from vifprobe.model.flood import Measure
from vifprobe.model.layout import Direction, PacketClass, Verdict
from vifprobe.model.reading import Cells, Finding
from vifprobe.testing.packets import frames as f
from vifprobe.testing.packets import syns
from vifprobe.testing.packets.frames import EtherType

SYN, SYNACK, ACK, DATA = PacketClass.TCP_SYN, PacketClass.TCP_SYNACK, PacketClass.TCP_ACK, PacketClass.TCP_DATA
BOTH = (OUT, IN)
SECOND_NS = 10**9
ARP = samples([f.pad(f.eth(f.arp(), EtherType.ARP))], PacketClass.ARP)


def situation(
    frames: list[bytes],
    counted: Cells,
    *,
    weight: int = 1,
    direction: Direction = OUT,
    directions: tuple[Direction, ...] = BOTH,
    host: OwnAddresses | None = None,
    arp: bool = True,
    thresholds: FloodThresholds | None = None,
    young: int = 0,
) -> Situation:
    """A second in which `counted` packets came, of which the SYNs of `frames` were sampled."""
    tracker = FloodTracker(host, seeded(1))
    if arp:
        tracker.add(ARP)
    tracker.add(samples(frames, direction=direction, weight=weight))
    kernel = {direction: {"half_open_young": Measure(young, "handshakes")}}
    found = tracker.interval(counted, SECOND_NS, directions, kernel)
    known = OwnAddresses(ips=tracker.knowledge.ips, sources=tracker.knowledge.sources)
    told = Situation(SetUp("tap0"), floods=found, own_addresses=known, directions=directions)
    return replace(told, flood_thresholds=thresholds or FloodThresholds())


def raised(told: Situation) -> dict[str, Finding]:
    found = {one.pattern: one for one in findings(told)}
    json.dumps([dict(one.evidence) for one in found.values()], allow_nan=False)
    return found


def flooding(packets: int = 20_011) -> Cells:
    return cells((OUT, SYN, packets), (OUT, ACK, 31), (IN, SYNACK, 17))


def test_a_flood_by_a_tool_at_one_target() -> None:
    found = raised(situation(syns.hping(4_001), flooding(), weight=5))
    assert set(found) == {"S1", "S3", "S5"}
    assert found["S1"].severity == "critical"
    assert found["S1"].evidence["syn_pps"] == 20_011
    assert found["S1"].evidence["handshakes_completed_at_most"] == 17
    assert "at most <1 % completed" in found["S1"].title
    assert found["S3"].evidence["proofs"] == ["no TCP options, not even an MSS"]
    assert found["S3"].evidence["fingerprint"] == "IPv4 ttl 64 window 512 no options"
    assert "source_port_incrementing_share" in found["S3"].evidence
    assert found["S5"].evidence["target"] == "198.51.100.2:80"
    assert "at least 98 %" in found["S5"].title or ">99 %" in found["S5"].title


def test_every_sample_taken_is_exact_and_shown_without_a_bound() -> None:
    found = raised(situation(syns.hping(4_001), cells((OUT, SYN, 4_001))))
    assert found["S5"].title.endswith("gets 100 % of the SYNs")
    assert "endpoint_top_share_error" not in found["S5"].evidence
    assert found["S1"].evidence["sources"] == 1


def test_spoofed_sources_by_the_taps_own_arp() -> None:
    found = raised(situation(syns.spoofed(4_001), flooding(), weight=5))
    assert set(found) == {"S1", "S2", "S3", "S5"}
    assert "are not from the port's addresses" in found["S2"].title
    assert found["S2"].evidence["own_addresses"] == [str(IPv4Address(f.SOURCE_IPV4))]
    assert found["S2"].evidence["known_from"] == ["its ARP"]
    assert len(found["S2"].evidence["proofs"]) == 2


def test_spoofed_sources_where_nothing_is_known_of_the_port() -> None:
    found = raised(situation(syns.spoofed(4_001), flooding(), weight=5, arp=False))
    assert "S2" in found
    assert "addresses that no host has" in found["S2"].title


def test_a_spoofed_mac() -> None:
    host = OwnAddresses(macs=frozenset({mac_number("fa:16:3e:01:02:03") or 0}), sources=("libvirt",))
    found = raised(situation(syns.hping(4_001), flooding(), weight=5, host=host))
    assert "MAC that is not the port's" in found["S2"].title
    own = OwnAddresses(macs=frozenset({int.from_bytes(f.SOURCE_MAC, "big")}), sources=("libvirt",))
    assert "S2" not in raised(situation(syns.hping(4_001), flooding(), weight=5, host=own))


def test_mirais_scanner_is_a_sweep_and_no_flood() -> None:
    found = raised(situation(syns.mirai_scan(3_001), cells((OUT, SYN, 3_001), (OUT, ACK, 41))))
    assert set(found) == {"S3", "S4"}
    assert "for port 23:" in found["S4"].title
    assert found["S3"].evidence["proofs"] == [
        "the sequence number is the destination address, as of Mirai's scanner",
        "no TCP options, not even an MSS",
    ]


def test_a_sweep_is_told_from_a_part_of_its_packets_too() -> None:
    assert set(raised(situation(syns.mirai_scan(3_001), cells((OUT, SYN, 15_005)), weight=5))) == {"S3", "S4"}


def test_a_port_scan_is_no_flood() -> None:
    found = raised(situation(syns.port_scan(1_009), cells((OUT, SYN, 1_009), (IN, PacketClass.TCP_RST, 1_001))))
    assert set(found) == {"S4"}
    assert found["S4"].title.startswith("port scan of 198.51.100.2:")


def test_a_flood_at_the_guest() -> None:
    """The guest answers each SYN, but nobody goes on."""
    counted = cells((IN, SYN, 20_011), (IN, ACK, 13), (OUT, SYNACK, 20_011))
    found = raised(situation(syns.spoofed(4_001), counted, weight=5, direction=IN))
    assert set(found) == {"S1", "S3", "S5"}
    assert found["S1"].id == "S1-inbound"
    assert "at the guest" in found["S1"].title


def test_a_policed_flood_is_judged_by_what_passed() -> None:
    counted = np.concatenate([cells((OUT, SYN, 30_011)), cells((OUT, SYN, 160_001), verdict=Verdict.POLICED)])
    found = raised(situation(syns.hping(4_001), counted, weight=40))
    assert found["S1"].evidence["syn_policed_packets"] == 160_001
    assert found["S1"].evidence["handshakes_completed_at_most"] == 0


@pytest.mark.parametrize(
    "counted",
    [
        cells((OUT, SYN, 5_003), (IN, SYNACK, 5_003), (OUT, ACK, 5_003), (OUT, DATA, 9_001)),
        cells((OUT, SYN, 5_003), (IN, SYNACK, 4_001), (OUT, ACK, 4_001)),  # a fifth is lost on its way
        cells((IN, SYN, 5_003), (OUT, SYNACK, 5_003), (IN, ACK, 10_007)),
    ],
    ids=["proxy", "proxy-with-losses", "server"],
)
def test_real_connections_raise_nothing(counted: Cells) -> None:
    for direction in BOTH:
        assert raised(situation(syns.stack(4_001), counted, direction=direction)) == {}


def test_a_heavily_policed_client_raises_nothing() -> None:
    """Most of its SYNs are policed and sent again; those that pass are completed."""
    counted = np.concatenate(
        [cells((OUT, SYN, 503), (OUT, ACK, 499), (IN, SYNACK, 501)), cells((OUT, SYN, 4_001), verdict=Verdict.POLICED)]
    )
    assert raised(situation(syns.stack(4_001), counted)) == {}


def test_connections_that_began_just_now_raise_nothing() -> None:
    """A proxy starts shortly before a reading: each SYN is younger than a round trip may take."""
    begun = situation(syns.stack(4_001), cells((OUT, SYN, 4_001)), young=4_001)
    assert raised(begun) == {}
    flood = situation(syns.stack(4_001), cells((OUT, SYN, 4_001)), young=2_003)
    assert set(raised(flood)) == {"S1", "S5"}


def test_a_few_health_checks_of_dead_servers_raise_nothing() -> None:
    assert raised(situation(syns.stack(40), cells((OUT, SYN, 40)))) == {}
    assert raised(situation(syns.stack(307), cells((OUT, SYN, 307)))) == {}


def test_without_samples_a_flood_is_a_flood_all_the_same() -> None:
    assert set(raised(situation([], flooding()))) == {"S1"}


def test_an_estimate_that_is_not_sure_proves_nothing() -> None:
    """120 samples of 20,011 packets: shares within 13 %. 89 % are without options, and a tool is one from 80 % on."""
    frames = syns.hping(107) + syns.stack(13)
    assert "S3" not in raised(situation(frames, flooding(), weight=166))
    assert "S3" in raised(situation(frames * 40, flooding(), weight=4))


def test_thresholds_can_be_set() -> None:
    told = situation(syns.hping(4_001), flooding(), weight=5, thresholds=flood_thresholds(["flood_syn_pps = 30000"]))
    assert "S1" not in raised(told)
    with pytest.raises(UsageError, match=r"flod_syn_pps.*") as caught:
        flood_thresholds(["flod_syn_pps=1"])
    assert "The closest is flood_syn_pps." in caught.value.hints
    for wrong in ("bursts", "bursts=", "bursts=many", "bursts=-1", "bursts=inf", "bursts=nan"):
        with pytest.raises(UsageError):
            flood_thresholds([wrong])
