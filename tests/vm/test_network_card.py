# SPDX-License-Identifier: Apache-2.0
"""A network card: not a guest's port, received is its ingress and sent its egress; real traffic in both directions.

The guest's two virtio-net cards have a cable between them (scripts/vm); each is in a namespace of its own here.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from vm_kit import KERNEL, ROOM, run

from vifprobe import Probe, load
from vifprobe.analysis.reconcile import ReconcileRow
from vifprobe.model.layout import Direction, PacketClass
from vifprobe.model.reading import Reading
from vifprobe.session.counter_check import CounterCheck
from vifprobe.testing.net.netns import Netns, private_netns
from vifprobe.testing.net.taps import device_counters, set_link_up
from vifprobe.testing.waiting import wait_until

pytestmark = pytest.mark.usefixtures("stock_kernel")

OUT, IN = Direction
NEAR, FAR = "10.78.0.1", "10.78.0.2"
MACS = {NEAR: "02:00:00:00:0c:01", FAR: "02:00:00:00:0c:02"}
PORT = 4099
RECEIVED, SENT = 1009, 401
STREAM_BYTES = 1_000_003
UDP_BYTES = 14 + 28 + 100


@dataclass(frozen=True)
class Card:
    """The card that is watched, in the namespace of the test; `far` is that of the other one."""

    name: str
    far: Netns

    def receive(self, count: int) -> None:
        """So many datagrams from the other card."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as into:
            into.bind((NEAR, PORT))
            self.far.run(lambda: send_datagrams(NEAR, into, count))

    def send(self, count: int) -> None:
        """So many datagrams to the other card."""
        into = self.far.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        with into:
            into.bind((FAR, PORT))
            send_datagrams(FAR, into, count)


def send_datagrams(to: str, into: socket.socket, count: int) -> None:
    """Each waits until the one before it is there: none is lost."""
    into.settimeout(ROOM)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(count):
            sender.sendto(bytes(100), (to, PORT))
            into.recv(200)


def cards() -> dict[str, str]:
    """Names by MAC, of the calling thread's namespace."""
    return {link["address"]: link["ifname"] for link in json.loads(run("ip -j link show"))}


@pytest.fixture
def card() -> Iterator[Card]:
    run("modprobe virtio_net")
    wait_until(lambda: set(MACS.values()) <= cards().keys(), 30.0)
    names = cards()
    with ExitStack() as stack:
        spaces = {address: stack.enter_context(private_netns(enter=False)) for address in MACS}
        for address, space in spaces.items():
            name, other = names[MACS[address]], FAR if address == NEAR else NEAR
            # Gone from there with the namespace, back to the first one.
            run(f"ip link set {name} netns {space.path}")
            with space.entered():
                set_link_up(name)
                run(f"ip address add {address}/24 dev {name}")
                run(f"ip neighbour replace {other} lladdr {MACS[other]} dev {name}")
        stack.enter_context(spaces[NEAR].entered())
        # Its virtio-net leaves headers in pages, where the tracepoint can't read them (docs/kernels.md).
        if KERNEL == "5.10":
            run(f"tc qdisc add dev {names[MACS[NEAR]]} clsact")
        yield Card(names[MACS[NEAR]], spaces[FAR])


def finish(probe: Probe) -> Reading:
    """Ends the run; its totals."""
    probe.stop()
    (final,) = [reading for reading in probe.readings(0.5, ROOM) if reading.final]
    return final


def disagreeing(rows: list[ReconcileRow]) -> list[ReconcileRow]:
    return [row for row in rows if row.agrees is False]


def test_received_and_sent_are_exact(card: Card) -> None:
    """To the packet and the byte those that were sent each way, and what the card itself counts."""
    counter_check = CounterCheck()
    with Probe(card.name, samples=1_000, counter_check=counter_check) as probe:
        card.receive(RECEIVED)
        card.send(SENT)
        reading = finish(probe)
        rows = counter_check.rows([reading], reasons=probe.features.reasons)
    assert reading.kind == "ethernet"
    for direction, packets in ((OUT, RECEIVED), (IN, SENT)):
        found = reading.offered(direction)
        assert (found.packets, found.frame_bytes) == (packets, UDP_BYTES * packets)
        assert reading.offered(direction, PacketClass.UDP).packets == packets
    assert reading.missed == 0
    assert disagreeing(rows) == []
    assert {row.counter: row.delta for row in rows}["device rx_packets"] == RECEIVED
    assert reading.notes[0].startswith(f"{card.name} is a network device, not a guest's port")


def test_a_stream_whose_segments_are_merged(card: Card) -> None:
    """TSO and GRO: frames longer than the card sends or receives; what is merged before tc contradicts no counter."""
    before = device_counters(card.name)
    counter_check = CounterCheck()
    with (
        socket.create_server((NEAR, PORT)) as server,
        Probe(card.name, samples=1_000, counter_check=counter_check) as probe,
    ):
        sender = threading.Thread(target=lambda: card.far.run(stream_to_near))
        sender.start()
        with server.accept()[0] as connection:
            received = sum(iter(lambda: len(connection.recv(1 << 16)), 0))
        sender.join()
        reading = finish(probe)
        rows = counter_check.rows([reading], reasons=probe.features.reasons)
    found = reading.offered(OUT)
    assert received == STREAM_BYTES
    # 66 bytes of headers each, the SYN's 8 more; emulated, a segment can be sent twice.
    assert found.frame_bytes >= STREAM_BYTES + 66 * found.packets + 8
    assert 0 < reading.offered(OUT, PacketClass.TCP_DATA).packets < STREAM_BYTES // 1448
    assert reading.offered(IN, PacketClass.TCP_SYNACK).packets == 1
    assert device_counters(card.name)["rx_packets"] > before["rx_packets"]
    assert disagreeing(rows) == []


def stream_to_near() -> None:
    with socket.create_connection((NEAR, PORT), timeout=ROOM) as connection:
        connection.sendall(bytes(STREAM_BYTES))


def test_commands_speak_of_no_guest(card: Card, tmp_path: Path) -> None:
    """`watch` and `capture` name the directions received and sent; `taps` lists what guests hang on alone."""
    folder = tmp_path / "capture"
    texts = [run(f"vifprobe watch {card.name} --duration 300ms")]
    texts.append(run(f"vifprobe capture {card.name} -d 300ms -o {folder}"))
    for text in texts:
        told = " ".join(text.split())
        assert "received" in told
        assert "not a guest's port" in told
        assert "guest" not in told.replace("not a guest's port", "")
    assert load(folder).manifest.taps[0].kind == "ethernet"
    assert card.name not in run("vifprobe taps --json")
