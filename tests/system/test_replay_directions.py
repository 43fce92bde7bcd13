# SPDX-License-Identifier: Apache-2.0
"""`vifprobe replay` of what a recorder on a tap has: both directions in one file, told apart by the guest's MAC."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from command_kit import assert_is_error, run

from vifprobe import load
from vifprobe.kernel.features import missing_capabilities
from vifprobe.model.layout import Direction, PacketClass
from vifprobe.model.reading import Reading
from vifprobe.replay.player import Replay
from vifprobe.replay.recording import opened
from vifprobe.session.probe import Probe
from vifprobe.testing.net.cable import GUEST_ADDRESS, HOST_ADDRESS, Wired, wired_guest
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.packets import frames as f
from vifprobe.testing.packets.recording import pcap_bytes
from vifprobe.testing.traffic.connections import serving, working

OUT, IN = Direction.OUTBOUND, Direction.INBOUND
SYN = f.eth(f.ipv4(f.tcp(f.TcpFlag.SYN)), f.EtherType.IPV4)
ANSWER = f.eth(
    f.ipv4(f.tcp(f.TcpFlag.SYN | f.TcpFlag.ACK), source=f.DESTINATION_IPV4, destination=f.SOURCE_IPV4),
    f.EtherType.IPV4,
    source=f.DESTINATION_MAC,
    destination=f.SOURCE_MAC,
)
TO_GROUP = f.pad(f.eth(f.arp(), f.EtherType.ARP, source=f.DESTINATION_MAC, destination=b"\xff" * 6))
STRANGE = f.eth(f.ipv4(f.udp()), f.EtherType.IPV4, source=f.DESTINATION_MAC, destination=b"\x02\0\0\0\0\x09")
MAC = f.SOURCE_MAC.hex(":")
START_NS = 1_613_692_801_000_000_007
# include/uapi/linux/if_packet.h, if_ether.h, asm-generic/socket.h
ETH_P_ALL, PACKET_OUTGOING, SOL_PACKET, PACKET_STATISTICS, SO_RCVBUFFORCE = 3, 4, 263, 6, 33
Classes = dict[tuple[Direction, PacketClass, int], tuple[int, int]]


@pytest.fixture(autouse=True)
def _capable(require: Callable[[str, object, str], None]) -> None:
    missing = missing_capabilities()
    require("kernel", not missing, f"this process lacks {', '.join(missing)}")


@pytest.fixture
def wired(netns: Netns) -> Iterator[Wired]:
    with wired_guest() as made:
        yield made


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """503 SYNs, 401 answers, 7 frames to all and 3 to somebody else."""
    frames = [SYN] * 503 + [ANSWER] * 401 + [TO_GROUP] * 7 + [STRANGE] * 3
    path = tmp_path / "both.pcap"
    path.write_bytes(pcap_bytes([(START_NS + 1_000_000 * place, one) for place, one in enumerate(frames)]))
    return path


class Recorded(NamedTuple):
    """A frame as a recorder on the tap has it. is_outgoing: what the kernel says, and no pcap file does."""

    at_ns: int
    frame: bytes
    is_outgoing: bool


def record(recorder: socket.socket, until: Callable[[], bool]) -> list[Recorded]:
    """What came, in its order, until nothing is left."""
    found: list[Recorded] = []
    while True:
        try:
            frame, origin = recorder.recvfrom(65_536)
        except BlockingIOError:
            if until():
                return found
            continue
        found.append(Recorded(time.time_ns(), frame, origin[2] == PACKET_OUTGOING))


def by_class(reading: Reading) -> Classes:
    found: Classes = {}
    for cell in reading.cells:
        key = Direction(cell["direction"]), PacketClass(cell["packet_class"]), int(cell["size"])
        packets, size = found.get(key, (0, 0))
        found[key] = packets + int(cell["packets"]), size + int(cell["frame_bytes"])
    return found


def test_what_a_recorder_on_the_tap_has_is_what_was_seen_live(wired: Wired, netns: Netns, tmp_path: Path) -> None:
    """Real connections of a guest, watched and recorded at once: the same by direction, class and size."""
    with (
        serving(netns.path, 8_080),
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as recorder,
        ThreadPoolExecutor(1) as pool,
    ):
        recorder.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        recorder.bind((wired.tap, ETH_P_ALL))
        recorder.setblocking(False)
        # Both are there before the first packet.
        client = working(wired.guest_netns, [(HOST_ADDRESS, 8_080)], seconds=0.7, per_second=300.0)
        with Probe(wired.tap) as probe, client as work:
            done = pool.submit(work.wait)
            frames = record(recorder, done.done)
            *_, live = probe.readings(0.3, 0.3)
        frames += record(recorder, lambda: True)
        _, dropped = struct.unpack("=II", recorder.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
    assert dropped == 0
    assert done.result().connected > 20
    path = tmp_path / "tap.pcap"
    path.write_bytes(pcap_bytes([(one.at_ns, one.frame) for one in frames], nanoseconds=True))
    guest = next(one.frame[6:12] for one in frames if not one.is_outgoing)
    with opened(str(path)) as file, Replay(file, guest_macs=[guest], samples=True) as replay:
        replay.run()
        again = replay.reading()
    assert again.offered(OUT).packets == sum(not one.is_outgoing for one in frames)
    assert again.offered(IN).packets == sum(one.is_outgoing for one in frames)
    assert by_class(again) == by_class(live)
    assert again.offered(OUT, PacketClass.TCP_SYN).packets == done.result().connected
    flood = again.flood[OUT]
    assert flood.value("synack_back_packets") == again.offered(IN, PacketClass.TCP_SYNACK).packets
    assert flood.value("foreign_mac_share") == flood.value("unknown_source_share") == 0
    assert {one.key for one in flood.top if one.kind == "source"} == {GUEST_ADDRESS}
    assert not [one for one in again.findings if one.pattern.startswith("S")]
    assert replay.notes.strangers == 0


def test_both_directions_in_a_folder_and_on_screen(both: Path, tmp_path: Path) -> None:
    folder = tmp_path / "evidence"
    assert run("replay", str(both), "--guest-mac", MAC, "--rate", "80kbit", "-o", str(folder)).code == 0
    shown = run("replay", str(both), "--guest-mac", MAC, "--rate", "80kbit")
    assert (shown.code, shown.err) == (0, "")
    assert "OUTBOUND" in shown.out
    assert "INBOUND" in shown.out
    assert "3 frames are neither from the guest nor for its MAC" in " ".join(shown.out.split())
    assert all(len(line) <= 80 for line in shown.out.splitlines())
    capture = load(folder)
    (reading,) = capture.readings()
    (tap,) = capture.manifest.taps
    assert (tap.directions, dict(tap.hooks)) == ((OUT, IN), {OUT: "test_run", IN: "test_run"})
    assert capture.manifest.options["guest_macs"] == [MAC]
    assert (reading.offered(OUT).packets, reading.offered(IN).packets) == (503, 411)
    told = run("replay", str(both), "--guest-mac", MAC, "--rate", "80kbit", "--json").objects[0]
    assert told["outbound"]["classes"]["tcp_syn"]["offered"]["packets"] == 503
    assert told["inbound"]["classes"]["tcp_synack"]["offered"]["packets"] == 401
    replay = told["replay"]
    assert replay["conform"]["packets"] + replay["exceed"]["packets"] == 503
    inbound = replay["inbound"]
    assert inbound["conform"]["packets"] + inbound["exceed"]["packets"] == 411


def test_several_guests_macs(both: Path) -> None:
    told = run("replay", str(both), "--guest-mac", MAC.upper(), "--guest-mac", "02-00-00-00-00-02", "--json").objects[0]
    assert told["outbound"]["offered"]["packets"] == 914
    assert told["replay"]["strangers"] == 0


def test_one_direction_is_asked_for_where_both_are_in_the_file(both: Path) -> None:
    """Without the MAC all is outbound, and that is said; where only one direction is recorded, nothing is."""
    (told,) = run("replay", str(both), "--json").objects
    (note,) = told["replay"]["notes"]
    assert f"401 frames are for {MAC}" in note
    assert "--guest-mac" in note
    assert told["outbound"]["offered"]["packets"] == 914
    both.write_bytes(pcap_bytes([(START_NS, SYN)] * 211))
    assert run("replay", str(both), "--json").objects[0]["replay"]["notes"] == []


def test_wrong_macs(both: Path) -> None:
    for wrong in ("fa:16:3e", "fa:16:3e:01:02:zz", "ff:ff:ff:ff:ff:ff", ""):
        assert_is_error(run("replay", str(both), "--guest-mac", wrong), 2, "MAC")
    assert_is_error(run("replay", str(both), "--guest-mac", MAC, "--inbound"), 2, "cannot be combined")
