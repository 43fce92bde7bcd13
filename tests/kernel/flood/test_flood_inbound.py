# SPDX-License-Identifier: Apache-2.0
"""A SYN flood at a guest: its kernel answers, nobody goes on. That real clients at such a guest raise nothing is in
`test_flood_quiet`.
"""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address

import pytest

from vifprobe.model.layout import Direction, PacketClass
from vifprobe.session.probe import Probe
from vifprobe.testing.net.cable import GUEST_ADDRESS, GUEST_ADDRESS_V6, Wired, add_ipv6, wired_guest
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.packets import syns
from vifprobe.testing.traffic.connections import serving
from vifprobe.testing.traffic.flood import flood

OUT, IN = Direction.OUTBOUND, Direction.INBOUND
COUNT, PORT = 6_007, 8_080


@pytest.fixture
def wired(netns: Netns) -> Iterator[Wired]:
    with wired_guest() as made:
        add_ipv6(made)
        yield made


def mac_of(name: str) -> bytes:
    (found,) = json.loads(subprocess.run(["ip", "-j", "link", "show", name], check=True, capture_output=True).stdout)
    return bytes.fromhex(found["address"].replace(":", ""))


def attack(wired: Wired, ip: IPv4Address | IPv6Address) -> list[bytes]:
    """Each from another address, as hping3 writes it, at the guest's one open port."""
    host_mac, guest_mac = mac_of(wired.tap), wired.guest.run(lambda: mac_of("eth0"))
    first = IPv4Address("198.18.0.1") if ip.version == 4 else IPv6Address("2001:db8:99::1")
    return [
        syns.syn(
            source=first + number,
            destination=ip,
            source_port=1_024 + number,
            destination_port=PORT,
            sequence=number * 2_654_435_761 % 2**32,
            window=512,
            source_mac=host_mac,
            destination_mac=guest_mac,
        )
        for number in range(COUNT)
    ]


@pytest.mark.parametrize("address", [GUEST_ADDRESS, GUEST_ADDRESS_V6], ids=["ipv4", "ipv6"])
def test_a_flood_at_the_guest(wired: Wired, address: str) -> None:
    """The host sends it through its own end of the tap; the guest's answers to made-up addresses get lost there."""
    ip = IPv6Address(address) if ":" in address else IPv4Address(address)
    frames = attack(wired, ip)
    with (
        serving(wired.guest_netns, PORT),
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as card,
        Probe(wired.tap, samples=20_000) as probe,
        ThreadPoolExecutor(1) as pool,
    ):
        card.bind((wired.tap, 0))

        def work() -> None:
            try:
                flood([card.fileno()], frames, count=COUNT, seconds=30, packets_per_second=4_000)
            finally:
                probe.stop()

        done = pool.submit(work)
        *_, last = probe.readings(1.0, 60.0)
        done.result()
    assert last.offered(IN, PacketClass.TCP_SYN).packets == COUNT
    assert last.offered(OUT, PacketClass.TCP_SYN).packets == 0
    assert last.offered(OUT, PacketClass.TCP_SYNACK).packets > COUNT / 2
    found = {one.id: one for one in last.findings if one.pattern.startswith("S")}
    assert set(found) == {"S1-inbound", "S3-inbound", "S5-inbound"}
    assert "at the guest" in found["S1-inbound"].title
    assert found["S5-inbound"].evidence["target"] == (f"[{ip}]:{PORT}" if ip.version == 6 else f"{ip}:{PORT}")
    measured = last.flood[IN]
    assert measured.value("syn_packets") == COUNT
    assert measured.value("handshakes_completed") == 0
    for name, truth in (("sources", COUNT), ("destinations", 1), ("source_ports", COUNT), ("destination_ports", 1)):
        known = measured.known(name)
        assert known is not None
        assert abs(known.value - truth) <= 2.6 * known.error, (name, known)  # five standard errors, of those with 1.96
