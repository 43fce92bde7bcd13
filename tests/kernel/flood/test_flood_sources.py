# SPDX-License-Identifier: Apache-2.0
"""Sources that are not the port's own, live: by what the host's neighbour table says of the port, and by what its ARP
and neighbour discovery showed. And no alarm where a guest has several addresses, or takes another one over.
"""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from random import Random
from typing import Any

import pytest

from vifprobe.analysis.findings.thresholds import flood_thresholds
from vifprobe.model.layout import Direction
from vifprobe.model.reading import Reading
from vifprobe.session.probe import Probe
from vifprobe.testing.net.cable import GUEST_ADDRESS, GUEST_ADDRESS_V6, Wired, add_ipv6, wired_guest
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.net.taps import Tap, device_counters
from vifprobe.testing.packets import frames as f
from vifprobe.testing.packets import syns
from vifprobe.testing.packets.frames import EtherType
from vifprobe.testing.traffic.connections import Done, working
from vifprobe.testing.traffic.flood import flood, writer
from vifprobe.testing.waiting import wait_until

OUT = Direction.OUTBOUND
COUNT = 4_001
ARP = f.pad(f.eth(f.arp(), EtherType.ARP))
OTHER_MAC = bytes.fromhex("0200000000ff")
STRICT = flood_thresholds(["syn_packets=20", "flood_syn_pps=20", "spoofed_pps=5"])


def watched(name: str, work: Callable[[], None], directions: tuple[Direction, ...] = tuple(Direction)) -> list[Reading]:
    """Readings while the work is done, and of the whole run."""
    with Probe(name, directions=directions, samples=20_000, thresholds=STRICT) as probe, ThreadPoolExecutor(1) as pool:

        def then_stop() -> None:
            try:
                work()
            finally:
                probe.stop()

        done = pool.submit(then_stop)
        found = list(probe.readings(1.0, 60.0))
        done.result()
    assert found[-1].final
    return found


def flooded(tap: Tap, frames: list[bytes], *first: bytes) -> Reading:
    """The run's totals after these frames, then the flood."""

    def work() -> None:
        for frame in first:
            tap.write(frame)
        with writer(tap.fds, frames, count=len(frames), seconds=30.0, packets_per_second=4_000.0) as started:
            started.start()
            assert started.wait().frames == len(frames)

    *_, last = watched(tap.name, work, (OUT,))
    assert last.flood[OUT].value("syn_packets") == len(frames)
    return last


def proofs(reading: Reading) -> list[str]:
    """What S2 rests on."""
    found = [one for one in reading.findings if one.pattern == "S2"]
    return [str(proof) for one in found for proof in one.evidence["proofs"]]


def share(reading: Reading, name: str) -> float | None:
    return reading.flood[OUT].value(name)


def holds(reading: Reading, name: str, truth: float) -> bool:
    """Whether a share is known to a fifth, and true. Measures are rounded to nine decimals."""
    known = reading.flood[OUT].known(name)
    return known is not None and known.error < 0.2 and abs(known.value - truth) <= known.error + 1e-9


def mixed_sources(spoofed: int, *, mac: bytes = f.SOURCE_MAC) -> list[bytes]:
    """SYNs of which so many, in no regular order, have a source (and this MAC) that is not the port's."""
    chosen = set(Random(7).sample(range(COUNT), spoofed))
    return [
        syns.syn(
            source=IPv4Address(0xC0000205 + number) if number in chosen else syns.GUEST,
            source_mac=mac if number in chosen else f.SOURCE_MAC,
            source_port=1_024 + number,
        )
        for number in range(COUNT)
    ]


@pytest.fixture
def known(tap: Tap) -> Tap:
    """The host knows who answers on the tap: no ARP is seen, none was sent by the guest."""
    Path(f"/proc/sys/net/ipv6/conf/{tap.name}/disable_ipv6").write_text("0")
    table = (("192.0.2.1", "02:00:00:00:00:01"), ("2001:db8::1", "02:00:00:00:00:01"))
    for ip, mac in table:
        subprocess.run(["ip", "neigh", "add", ip, "lladdr", mac, "dev", tap.name], check=True)
    return tap


def test_own_addresses_by_the_neighbour_table(known: Tap) -> None:
    found = flooded(known, mixed_sources(0))
    assert (share(found, "unknown_source_share"), share(found, "foreign_mac_share")) == (0, 0)
    assert proofs(found) == []


def test_spoofed_addresses_by_the_neighbour_table(known: Tap) -> None:
    found = flooded(known, mixed_sources(3_001))
    assert holds(found, "unknown_source_share", 3_001 / COUNT)
    assert share(found, "foreign_mac_share") == 0
    (proof,) = proofs(found)
    assert "not from the port's addresses" in proof


def test_spoofed_macs_by_the_neighbour_table(known: Tap) -> None:
    frames = [syns.syn(source_mac=OTHER_MAC, source_port=1_024 + number) for number in range(COUNT)]
    found = flooded(known, frames)
    assert (share(found, "unknown_source_share"), share(found, "foreign_mac_share")) == (0, 1)
    (proof,) = proofs(found)
    assert "a MAC that is not the port's" in proof


def test_ipv6_by_the_neighbour_table(known: Tap) -> None:
    found = flooded(known, syns.spoofed_v6(COUNT))
    assert share(found, "unknown_source_share") == 1
    assert "not from the port's addresses" in proofs(found)[0]


def test_spoofed_addresses_and_macs_by_arp(tap: Tap) -> None:
    found = flooded(tap, mixed_sources(3_001, mac=OTHER_MAC), ARP)
    assert holds(found, "unknown_source_share", 3_001 / COUNT)
    assert holds(found, "foreign_mac_share", 3_001 / COUNT)
    assert len(proofs(found)) == 2
    (s2,) = (one for one in found.findings if one.pattern == "S2")
    assert s2.evidence["known_from"] == ["its ARP"]
    assert s2.evidence["own_addresses"] == ["192.0.2.1"]


def test_own_addresses_by_arp(tap: Tap) -> None:
    found = flooded(tap, mixed_sources(0), ARP)
    assert (share(found, "unknown_source_share"), share(found, "foreign_mac_share")) == (0, 0)
    assert proofs(found) == []


def test_an_address_that_is_taken_over(tap: Tap) -> None:
    """A gratuitous ARP (RFC 5227, 3) of a new address, from another MAC, as of a virtual router's: both its own."""
    new = IPv4Address("192.0.2.77")
    gratuitous = f.arp(mac=OTHER_MAC, source=new.packed, target=new.packed)
    claim = f.pad(f.eth(gratuitous, EtherType.ARP, source=OTHER_MAC, destination=b"\xff" * 6))
    frames = [syns.syn(source=new, source_mac=OTHER_MAC, source_port=1_024 + number) for number in range(COUNT)]
    found = flooded(tap, frames, ARP, claim)
    assert (share(found, "unknown_source_share"), share(found, "foreign_mac_share")) == (0, 0)
    assert proofs(found) == []
    without = flooded(tap, frames, ARP)
    assert (share(without, "unknown_source_share"), share(without, "foreign_mac_share")) == (1, 1)


def test_ipv6_by_neighbour_discovery(tap: Tap) -> None:
    """Its global address is known once it has asked for a neighbour with it; the link-local one tells nothing."""

    def asks(source: IPv6Address) -> bytes:
        return f.eth(f.ipv6(f.icmpv6(kind=135), hop_limit=255, source=source.packed), EtherType.IPV6)

    own = [syns.syn(source=syns.GUEST_V6, destination=syns.TARGET_V6, source_port=1_024 + n) for n in range(COUNT)]
    local = flooded(tap, own, asks(IPv6Address("fe80::1")))
    assert share(local, "unknown_source_share") is None
    assert proofs(local) == []
    both = (asks(IPv6Address("fe80::1")), asks(syns.GUEST_V6))
    assert share(flooded(tap, own, *both), "unknown_source_share") == 0
    spoofed = flooded(tap, syns.spoofed_v6(COUNT), *both)
    assert share(spoofed, "unknown_source_share") == 1
    assert len(proofs(spoofed)) == 1


@pytest.fixture
def wired(netns: Netns) -> Iterator[Wired]:
    with wired_guest() as made:
        add_ipv6(made)
        yield made


def guests_addresses(wired: Wired) -> dict[str, str]:
    """What the guest's kernel gave itself: `link`, `global`, `temporary`, `mac`; once it would use each of them."""

    def card_now() -> dict[str, Any]:
        (card,) = json.loads(wired.guest.run(lambda: output("ip", "-j", "address", "show", "eth0")))
        return dict(card)

    def is_settled() -> bool:
        addresses = card_now()["addr_info"]
        return any(one.get("temporary") for one in addresses) and not any(one.get("tentative") for one in addresses)

    wait_until(is_settled, 20)
    card = card_now()
    found = {"mac": card["address"]}
    for one in (one for one in card["addr_info"] if one["family"] == "inet6"):
        found["temporary" if one.get("temporary") else one["scope"]] = one["local"]
    return found


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("known", ["by-the-host", "by-its-traffic"])
def test_a_real_guest_with_several_addresses_raises_nothing(wired: Wired, known: str) -> None:
    """Link-local, its own, and a temporary one that its connections begin from; nobody answers them, and S1 to S4 would
    be right to say so. Its link-local address is all that the host knows of its IPv6.
    """
    own = guests_addresses(wired)
    if known == "by-the-host":
        for ip in (own["link"], GUEST_ADDRESS):
            output("ip", "neigh", "replace", ip, "lladdr", own["mac"], "dev", wired.tap, "nud", "permanent")
    ends: list[Done] = []
    dead = [("2001:db8:99::1", 80), ("198.51.100.1", 80)]

    def work() -> None:
        with working(wired.guest_netns, dead, seconds=1.1, per_second=300.0) as connecting:
            ends.append(connecting.wait())

    *readings, last = watched(wired.tap, work)
    assert ends[0].connected == 0
    assert ends[0].failed > 100
    assert {one.key for one in last.flood[OUT].top if one.kind == "source"} == {own["temporary"], GUEST_ADDRESS}
    assert share(last, "foreign_mac_share") == 0
    assert share(last, "unknown_source_share") == 0
    assert [proofs(reading) for reading in (*readings, last)] == [[]] * (len(readings) + 1)


@pytest.mark.parametrize("what", ["address", "mac"])
def test_a_real_guest_that_spoofs(wired: Wired, what: str) -> None:
    """The host's kernel has talked with it over IPv4 and IPv6; then come SYNs of a raw socket."""
    for address in (GUEST_ADDRESS, GUEST_ADDRESS_V6):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address, 9), timeout=5)
    mac = bytes.fromhex(guests_addresses(wired)["mac"].replace(":", ""))
    frames = [
        syns.syn(
            source=ip if what == "mac" else ip + 7 + number,
            destination=syns.TARGET if ip.version == 4 else syns.TARGET_V6,
            source_mac=OTHER_MAC if what == "mac" else mac,
        )
        for number in range(1_000)
        for ip in (IPv4Address(GUEST_ADDRESS), IPv6Address(GUEST_ADDRESS_V6))
    ]

    def work() -> None:
        before = device_counters(wired.tap)["rx_packets"]
        with wired.guest.run(raw_socket) as card:
            flood([card.fileno()], frames, count=len(frames), seconds=30, packets_per_second=1_500)
            wait_until(lambda: device_counters(wired.tap)["rx_packets"] >= before + len(frames), 10)

    *_, last = watched(wired.tap, work)
    shares = share(last, "unknown_source_share"), share(last, "foreign_mac_share")
    assert shares == ((0, 1) if what == "mac" else (1, 0))
    assert len(proofs(last)) == 1


def raw_socket() -> socket.socket:
    """One that sends frames as they are, on the guest's own card; the host's tap has none."""
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    made.bind(("eth0", 0))
    return made
