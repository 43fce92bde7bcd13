# SPDX-License-Identifier: Apache-2.0
"""Which way is outbound, by the kind of the device: with real traffic in both directions, and limits on both sides."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from inbound_kit import statistics
from probe_kit import FLOOD_SECONDS, SYN, capturing, command, final_of, finish, watching

from vifprobe import Probe, load
from vifprobe.kernel.attach import NoHookError
from vifprobe.model.layout import Direction, Verdict
from vifprobe.model.reading import Limit, Reading
from vifprobe.render.export.jsonlines import reading_line
from vifprobe.session.audit.snapshot import audit_tap
from vifprobe.session.counter_check import CounterCheck
from vifprobe.testing.net.links import bridge_with, nft_ingress_limit, veth_pair
from vifprobe.testing.net.macvtap import GUEST_MAC, macvtap
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.net.taps import Tap, device_counters
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.traffic.flood import flood

OUT, IN = Direction
SO_SNDBUFFORCE = 32  # include/uapi/asm-generic/socket.h
FROM_GUEST, TO_GUEST = 1009, 101
#: To the guest's MAC: a macvlan hands it up, a bridge sends it on.
TO_GUEST_FRAME = bytes.fromhex(GUEST_MAC.replace(":", "")) + SYN[6:]
#: 10,003 bytes and a second's worth of that rate: a part of what is sent to the guest passes.
NFT = {"rate_bytes_per_second": 10_003, "burst_bytes": 1_009}
MODES = ("bridge", "passthru", "private", "vepa")


def run(line: str) -> None:
    subprocess.run(line.split(), check=True, capture_output=True)


@contextmanager
def sender(device: str) -> Iterator[Callable[[bytes, int], None]]:
    """Sends frames out of a device, as the network behind it would."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as packets:
        packets.bind((device, 0))
        # What lies in a ring is its sender's until it is read: it would wait for a guest that does not read.
        packets.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 1 << 26)

        def send(frame: bytes, count: int) -> None:
            for _ in range(count):
                packets.send(frame)

        yield send


@dataclass(frozen=True)
class Port:
    """A device to watch. outbound, inbound: send so many packets from and to its guest, or what stands for one."""

    name: str
    outbound: Callable[[int], None]
    inbound: Callable[[int], None]


@contextmanager
def tap_port(name: str = "tap0") -> Iterator[Port]:
    """A tap on a bridge with a veth pair to the network."""
    with make_tap(name) as tap, veth_pair("up0", "up1"), bridge_with(tap) as bridge, sender("up1") as send:
        run(f"ip link set up0 master {bridge}")
        yield Port(name, lambda count: write(tap, count), lambda count: send(b"\xff" * 6 + SYN[6:], count))


@contextmanager
def macvtap_port(mode: str = "bridge", name: str = "macvtap0") -> Iterator[Port]:
    """A macvtap on one end of a veth pair, whose other end is the network."""
    with veth_pair("up0", "up1"), macvtap(name, "up0", mode) as guest, sender("up1") as send:
        yield Port(name, lambda count: write(guest, count), lambda count: send(TO_GUEST_FRAME, count))


def write(tap: Tap, count: int, frame: bytes = SYN) -> None:
    flood([tap.fd], [frame], count=count, seconds=FLOOD_SECONDS)


def offered(port: Port) -> dict[Direction, int]:
    """Packets of both directions, as a probe tells them apart."""
    with Probe(port.name, bin_ns=10_000_000, samples=100, create_qdisc=True) as probe:
        port.outbound(FROM_GUEST)
        port.inbound(TO_GUEST)
        found = finish(probe)
        samples = probe.take_samples()
    is_out = (samples["headers"][:, :6] == np.frombuffer(SYN[:6], np.uint8)).all(axis=1)
    assert (samples["direction"] == np.where(is_out, OUT, IN)).all()
    assert 0 < is_out.sum() < len(samples)
    reading = found.totals[port.name]
    for direction in Direction:
        rows = found.bins[found.bins["direction"] == direction]
        assert int(rows["packets"].sum()) == reading.offered(direction).packets
        assert reading.flood[direction].value("syn_packets") == reading.offered(direction).packets
    return {direction: reading.offered(direction).packets for direction in Direction}


def test_a_tap(netns: Netns) -> None:
    """Its ingress is what the guest sends."""
    with tap_port() as port:
        assert offered(port) == {OUT: FROM_GUEST, IN: TO_GUEST}


@pytest.mark.parametrize("mode", MODES)
def test_a_macvtap(netns: Netns, mode: str) -> None:
    """Its egress is what the guest sends, in every mode; and the verdicts of both directions are known."""
    with macvtap_port(mode) as port:
        assert offered(port) == {OUT: FROM_GUEST, IN: TO_GUEST}
        counters = device_counters(port.name)
    assert (counters["tx_packets"], counters["rx_packets"]) == (FROM_GUEST, TO_GUEST)


def test_what_a_macvtap_receives_without_a_hook(netns: Netns, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels without tcx, no qdisc: the tracepoint names the device below. Unknown, and said to be; not 0."""

    def no_hook(*_: object) -> None:
        raise NoHookError("as on a kernel without tcx")

    monkeypatch.setattr("vifprobe.session.components.has_tcx", lambda _: False)
    monkeypatch.setattr("vifprobe.session.tap_hooks.attach", no_hook)
    with macvtap_port() as port:
        with Probe(port.name) as probe:
            port.outbound(FROM_GUEST)
            port.inbound(TO_GUEST)
            reading = finish(probe).totals[port.name]
        alone = Probe(port.name, directions=(IN,))
        with pytest.raises(NoHookError, match="inbound packets of macvtap0 are not counted"), alone:
            pass
    assert (reading.directions, reading.offered(OUT).packets) == ((OUT,), FROM_GUEST)
    assert any("inbound packets of macvtap0 are not counted" in note for note in reading.notes)
    assert json.loads(reading_line(reading))["inbound"]["offered"] is None


def test_limits_of_a_macvtap(netns: Netns, tmp_path: Path) -> None:
    """As libvirt sets them: HTB at the root for what the guest sends, a policer at ingress for what comes to it.

    They are the declared limits (no P1, P11 or P12), and their counters agree.
    """
    limits = {OUT: Limit(declared_bps=800_024), IN: Limit(declared_bps=80_024)}
    counter_check = CounterCheck()
    with macvtap_port() as port, nft_ingress_limit(port.name, **NFT) as nft:
        run(f"tc qdisc add dev {port.name} root handle 1: htb default 1")
        run(f"tc class add dev {port.name} parent 1: classid 1:1 htb rate 100003bps burst 2kb")
        run(f"tc qdisc add dev {port.name} parent 1:1 handle 2: pfifo limit 11")
        with Probe(port.name, limits=limits, counter_check=counter_check, create_qdisc=True) as probe:
            port.outbound(FROM_GUEST)
            port.inbound(10 * TO_GUEST)
            reading = finish(probe).totals[port.name]
            rows = {row.counter: row for row in counter_check.rows([reading], reasons=probe.features.reasons)}
            policed = nft.read().packets
        dropped = statistics("qdisc", port.name, "1:")["drops"]
    assert (reading.offered(OUT).packets, reading.offered(IN).packets) == (FROM_GUEST, 10 * TO_GUEST)
    assert policed_packets(reading, OUT) == dropped > 0
    assert policed_packets(reading, IN) == policed > 0
    assert reading.limits[OUT].installed_bps == 800_024
    assert reading.limits[IN].installed_bps == 80_024
    assert {one.pattern for one in reading.findings} & {"P1", "P11", "P12"} == set()
    assert not [row for row in rows.values() if row.agrees is False]
    by_direction = {
        OUT: ("device tx_packets", "tc root drops"),
        IN: ("device rx_packets", "nft drops packets: ingress"),
    }
    for direction, counters in by_direction.items():
        assert {rows[counter].direction for counter in counters} == {direction}
    assert rows["tc root drops"].agrees
    assert rows["device rx_packets"].agrees


def policed_packets(reading: Reading, direction: Direction) -> int:
    found = reading.counts(direction, Verdict.POLICED)
    assert found is not None
    return found.packets


def test_a_limit_on_the_wrong_side_of_a_macvtap(netns: Netns) -> None:
    """Set as if it were a tap: said to be on the other side, with what would be right."""
    with macvtap_port() as port, nft_ingress_limit(port.name, **NFT):
        report = audit_tap(port.name, {OUT: Limit(declared_bps=80_024)}, (OUT, IN), 0.1, packets=False)
    (finding,) = [one for one in report.findings if one.pattern == "P12"]
    assert "the outbound limit of 80 kbit/s is installed inbound" in finding.title
    assert "its root qdisc limits it" in finding.advice


def test_one_command_for_a_tap_and_a_macvtap(netns: Netns, tmp_path: Path) -> None:
    """`watch --json` of both in one run, and `taps` of both: each by its own kind."""
    with tap_port() as tap, macvtap_port_of("up1") as guest:
        with watching(tmp_path, taps=(tap.name, guest.name)) as watch:
            tap.outbound(FROM_GUEST)
            guest.outbound(TO_GUEST)
            out = watch.end()
        with command("taps", "--json", folder=tmp_path) as taps:
            listed = {found["name"]: found for found in map(json.loads, taps.ended().splitlines())}
    assert final_of(out, tap.name)["outbound"]["offered"]["packets"] == FROM_GUEST
    final = final_of(out, guest.name)
    assert final["outbound"]["offered"]["packets"] == TO_GUEST
    assert (final["kind"], final["guest_port"]) == ("macvtap", True)
    assert (listed[tap.name]["outbound_hook"], listed[guest.name]["outbound_hook"]) == ("ingress", "egress")
    assert listed[guest.name]["outbound_packets"] == TO_GUEST


@contextmanager
def macvtap_port_of(lower: str, name: str = "macvtap0") -> Iterator[Port]:
    with macvtap(name, lower) as guest:
        yield Port(name, lambda count: write(guest, count), lambda _count: None)


@contextmanager
def veth_port() -> Iterator[Port]:
    """No guest's port: outbound is what it receives."""
    with veth_pair("up0", "up1"), sender("up1") as received, sender("up0") as sent:
        yield Port("up0", lambda count: received(SYN, count), lambda count: sent(SYN, count))


@contextmanager
def bridge_port() -> Iterator[Port]:
    """The bridge's own device: what is for its host, and what its host sends."""
    with make_tap("tap0") as tap, bridge_with(tap) as bridge, sender(bridge) as sent:
        frame = mac_of(bridge) + SYN[6:]
        yield Port(bridge, lambda count: write(tap, count, frame), lambda count: sent(SYN, count))


def mac_of(device: str) -> bytes:
    shown = subprocess.run(["ip", "-j", "link", "show", device], check=True, capture_output=True)
    return bytes.fromhex(json.loads(shown.stdout)[0]["address"].replace(":", ""))


@pytest.mark.parametrize("kind", ["veth", "bridge"])
def test_other_devices_in_neutral_words(netns: Netns, tmp_path: Path, kind: str) -> None:
    """Received is its ingress, sent its egress; no view speaks of a guest, each one says that there is none."""
    with {"veth": veth_port, "bridge": bridge_port}[kind]() as port:
        with Probe(port.name) as probe:
            port.outbound(FROM_GUEST)
            port.inbound(TO_GUEST)
            reading = finish(probe).totals[port.name]
        assert (reading.offered(OUT).packets, reading.offered(IN).packets) == (FROM_GUEST, TO_GUEST)
        assert reading.notes[0].startswith(f"{port.name} is a {kind} device, not a guest's port")
        with capturing(tmp_path, taps=(port.name,)) as capture:
            port.outbound(10 * FROM_GUEST)
            texts = [capture.end()]
        with command("watch", port.name, "--duration", "100ms", folder=tmp_path) as lines:
            texts.append(lines.ended())
        with command("policer", port.name, "--rate", "1mbit", "-d", "100ms", folder=tmp_path) as policer:
            texts.append(policer.ended())
    for text in texts:
        told = " ".join(text.split())
        assert "received" in told
        assert "not a guest's port" in told
        assert "guest" not in told.replace("not a guest's port", "")
        assert "outbound" not in told.replace("top = share of outbound packets", "")
    found = load(tmp_path / "capture")
    assert (found.manifest.taps[0].kind, found.reading().kind) == (kind, kind)
