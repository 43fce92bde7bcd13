# SPDX-License-Identifier: Apache-2.0
"""Recordings, read packet by packet: both formats, both byte orders, every resolution, and what is damaged or cut."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from vifprobe.errors import CaptureError
from vifprobe.replay import window
from vifprobe.replay.recording import PacketFile, opened
from vifprobe.testing.packets.recording import Block, PcapngWriter, pcap_bytes

FRAMES = [bytes([number % 251]) * (14 + number % 97) for number in range(211)]
AT = 1_700_000_000_123_456_789


class Read(NamedTuple):
    at_ns: int
    frame: bytes
    length: int


def read(content: bytes, path: Path) -> tuple[list[Read], PacketFile]:
    path.write_bytes(content)
    with opened(str(path)) as file:
        found = [
            Read(at_ns, bytes(file.window.memory[at : at + captured]), length)
            for at_ns, at, captured, length in file.packets()
        ]
    return found, file


def spaced(step_ns: int) -> list[int]:
    """A time for each frame, a multiple of the step."""
    first = AT - AT % step_ns
    return [first + 7 * number * step_ns for number in range(len(FRAMES))]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("step_ns", [1, 1000])
def test_pcap(tmp_path: Path, order: str, step_ns: int) -> None:
    times = spaced(step_ns)
    content = pcap_bytes(zip(times, FRAMES, strict=True), order=order, nanoseconds=step_ns == 1)
    found, file = read(content, tmp_path / "x.pcap")
    assert found == [Read(at, frame, len(frame)) for at, frame in zip(times, FRAMES, strict=True)]
    assert (file.format, file.name, file.size_bytes) == ("pcap", "x.pcap", len(content))
    assert file.remarks.cut_bytes == 0


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("resolution", "step_ns"), [(None, 1000), (6, 1000), (9, 1), (3, 1_000_000), (0x80 | 9, 1_953_125), (10, 1)]
)
def test_pcapng(tmp_path: Path, order: str, resolution: int | None, step_ns: int) -> None:
    times = spaced(step_ns)
    writer = PcapngWriter(order)
    writer.interface(resolution=resolution)
    for at, frame in zip(times, FRAMES, strict=True):
        writer.packet(at, frame)
    found, file = read(bytes(writer.content), tmp_path / "x.pcapng")
    assert found == [Read(at, frame, len(frame)) for at, frame in zip(times, FRAMES, strict=True)]
    assert (file.format, file.remarks.cut_bytes) == ("pcapng", 0)


def test_pcapng_with_several_sections_and_interfaces(tmp_path: Path) -> None:
    """Each section has its own byte order and its own interfaces, each of those its own clock."""
    writer = PcapngWriter(">")
    writer.interface(resolution=9)
    writer.interface(resolution=6, offset_seconds=1_700_000_000, link_type=113)  # described, and never used
    writer.interface(resolution=6, offset_seconds=1_700_000_000)
    writer.packet(AT, FRAMES[3])
    writer.packet(5_000, FRAMES[5], interface=2)
    writer.block(Block.NAME_RESOLUTION, b"\0" * 1009)
    writer.section("<")
    writer.interface(resolution=9)
    writer.packet(AT + 11, FRAMES[7])
    writer.old_packet(AT + 13, FRAMES[11])
    found, file = read(bytes(writer.content), tmp_path / "x.pcapng")
    assert [row.frame for row in found] == [FRAMES[3], FRAMES[5], FRAMES[7], FRAMES[11]]
    assert [row.at_ns for row in found] == [AT, 1_700_000_000_000_005_000, AT + 11, AT + 13]
    assert file.remarks.skipped_blocks == {Block.NAME_RESOLUTION: 1}


def test_a_simple_packet_has_no_time_and_is_cut_at_the_interfaces_length(tmp_path: Path) -> None:
    writer = PcapngWriter("<")
    writer.interface(snaplen=61)
    writer.packet(AT - AT % 1000, FRAMES[2])
    writer.simple_packet(FRAMES[90], snaplen=61)
    found, file = read(bytes(writer.content), tmp_path / "x.pcapng")
    assert found[1] == Read(AT - AT % 1000, FRAMES[90][:61], len(FRAMES[90]))
    assert file.remarks.without_time == 1


def test_packets_cut_by_the_recorder_keep_their_length(tmp_path: Path) -> None:
    writer = PcapngWriter("<")
    writer.interface(resolution=9)
    writer.packet(AT, FRAMES[90][:31], length=len(FRAMES[90]))
    for content, name in (
        (pcap_bytes([(AT, FRAMES[90][:31])], lengths=[len(FRAMES[90])], nanoseconds=True), "x.pcap"),
        (bytes(writer.content), "x.pcapng"),
    ):
        assert read(content, tmp_path / name)[0] == [Read(AT, FRAMES[90][:31], len(FRAMES[90]))]


def test_a_frame_check_sequence_is_no_part_of_the_frame(tmp_path: Path) -> None:
    """The pcap header says that it is there, or the interface, or the packet itself."""
    writer = PcapngWriter("<")
    writer.interface(resolution=9, fcs_bytes=4)
    writer.packet(AT, FRAMES[40] + b"FCS!")
    writer.interface(resolution=9)
    writer.packet(AT, FRAMES[40] + b"FCS!", interface=1, flags=4 << 5)
    linked = pcap_bytes([(AT, FRAMES[40] + b"FCS!")], link_type=1 | 1 << 26 | 2 << 28, nanoseconds=True)
    for content, name in ((linked, "x.pcap"), (bytes(writer.content), "x.pcapng")):
        found, _ = read(content, tmp_path / name)
        assert set(found) == {Read(AT, FRAMES[40], len(FRAMES[40]))}


def test_what_the_recorder_lost_is_told(tmp_path: Path) -> None:
    """Statistics are running totals of an interface: the last one counts."""
    writer = PcapngWriter("<")
    for drops in ((3, 5), (7, 11)):
        writer.interface(resolution=9)
        for drop in drops:
            writer.statistics(number := len(writer.interfaces) - 1, dropped=drop, os_dropped=13)
    assert number == 1
    assert read(bytes(writer.content), tmp_path / "x.pcapng")[1].remarks.lost_packets == 5 + 13 + 11 + 13


@pytest.mark.parametrize("name", ["x.pcap", "x.pcapng"])
def test_a_file_that_ends_anywhere(tmp_path: Path, name: str) -> None:
    """Whatever is whole is read; what is cut is told to the byte."""
    times = spaced(1)[:3]
    whole = [Read(at, frame, len(frame)) for at, frame in zip(times, FRAMES, strict=False)]
    if name == "x.pcap":
        content = pcap_bytes(zip(times, FRAMES, strict=False), nanoseconds=True)
        header, ends = 24, [24]
        for frame in FRAMES[:3]:
            ends.append(ends[-1] + 16 + len(frame))
    else:
        writer = PcapngWriter("<")
        writer.interface(resolution=9)
        header, ends = len(writer.content), [len(writer.content)]
        for at, frame in zip(times, FRAMES, strict=False):
            writer.packet(at, frame)
            ends.append(len(writer.content))
        content = bytes(writer.content)
    for length in range(header, len(content) + 1):
        found, file = read(content[:length], tmp_path / name)
        complete = sum(end <= length for end in ends) - 1
        assert found == whole[:complete]
        assert file.remarks.cut_bytes == length - ends[complete]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"\x1f\x8b\x08\0" * 9, "gzip"),
        (b"GIF89a" * 9, "begins with 47 49 46"),
        (pcap_bytes([], link_type=113), r"link type 113 \(Linux cooked"),
        (pcap_bytes([], link_type=147), "link type 147; only Ethernet"),
        (pcap_bytes([])[:23], "file header of 24 bytes is cut"),
        (pcap_bytes([(AT, b"x" * 60)])[:24] + struct.pack("<IIII", 1, 1, 1 << 21, 60), "damaged at byte 24"),
    ],
)
def test_what_is_no_recording_of_ethernet_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(CaptureError, match=words):
        read(content, tmp_path / "x")


def test_a_packet_of_an_interface_that_is_no_ethernet_is_refused(tmp_path: Path) -> None:
    writer = PcapngWriter("<")
    writer.interface(link_type=276, name="any")
    writer.packet(AT, FRAMES[0])
    with pytest.raises(CaptureError, match=r"interface 0 \(any\) has link type 276"):
        read(bytes(writer.content), tmp_path / "x")


def damaged_blocks() -> Sequence[tuple[str, bytes]]:
    good = PcapngWriter("<")
    good.interface()
    start = bytes(good.content)
    return [
        ("block of 11 bytes", start + struct.pack("<II", 6, 11) + bytes(100)),
        ("block of 13 bytes", start + struct.pack("<II", 6, 13) + bytes(100)),
        ("two lengths", start + struct.pack("<II24xI", 6, 36, 40)),
        ("block of type 6 of 16 bytes", start + struct.pack("<II4xI", 6, 16, 16)),
        ("interface 7, which is not described", start + struct.pack("<IIIIIII4xI", 6, 36, 7, 0, 0, 4, 4, 36)),
        ("packet of 5 bytes", start + struct.pack("<IIIIIII4xI", 6, 36, 0, 0, 0, 5, 5, 36)),
        ("section without byte order", start + struct.pack("<IIII", 0x0A0D0D0A, 28, 7, 0) + bytes(12)),
        (f"of {1 << 24} bytes", start + struct.pack("<II", 6, 1 << 24) + bytes(100)),
    ]


@pytest.mark.parametrize(("words", "content"), damaged_blocks(), ids=[words for words, _ in damaged_blocks()])
def test_a_damaged_pcapng_is_told_with_its_place(tmp_path: Path, words: str, content: bytes) -> None:
    with pytest.raises(CaptureError, match=rf"x: damaged at byte \d+: .*{words}"):
        read(content, tmp_path / "x")


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packets that lie across the window's end, and a block longer than the window, are read all the same."""
    monkeypatch.setattr(window, "WINDOW_BYTES", 509)
    writer = PcapngWriter("<")
    writer.interface(resolution=9)
    for frame in FRAMES:
        writer.packet(AT, frame)
    writer.block(Block.NAME_RESOLUTION, bytes(5003))
    writer.packet(AT, FRAMES[1])
    found, file = read(bytes(writer.content), tmp_path / "x.pcapng")
    assert [row.frame for row in found] == [*FRAMES, FRAMES[1]]
    assert len(file.window.memory) == 509 + window.SLACK_BYTES
    assert file.window.position == len(writer.content)
    content = pcap_bytes(((AT, frame) for frame in FRAMES), nanoseconds=True)
    assert [row.frame for row in read(content, tmp_path / "x.pcap")[0]] == FRAMES


def test_a_pipe_can_be_given_up_while_it_is_silent(tmp_path: Path) -> None:
    """`stop` ends a read that waits: a signal alone would not, Python takes the read up again."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    content = pcap_bytes([(AT, FRAMES[0]), (AT, FRAMES[1])], nanoseconds=True)
    found: list[int] = []

    def consume() -> None:
        with opened(str(fifo)) as file:
            files.append(file)
            for packet in file.packets():
                found.append(packet[3])
                if len(found) == 2:
                    silent.set()

    files: list[PacketFile] = []
    silent = threading.Event()
    thread = threading.Thread(target=consume)
    thread.start()
    with fifo.open("wb") as stream:
        stream.write(content)
        stream.flush()
        assert silent.wait(10)
        files[0].stop()
        thread.join(10)
        assert not thread.is_alive()
    assert found == [len(FRAMES[0]), len(FRAMES[1])]


@pytest.mark.parametrize("offset", [2**63 - 1, -(2**63), 2**33, -(2**33)])
def test_a_time_that_no_clock_has_is_that_of_the_packet_before(tmp_path: Path, offset: int) -> None:
    writer = PcapngWriter("<")
    writer.interface(resolution=9)
    writer.interface(resolution=9)
    writer.interface(resolution=9, offset_seconds=offset)
    writer.interfaces[2] = (10**9, 0)
    writer.packet(AT, FRAMES[0])
    writer.packet(7, FRAMES[1], interface=2)
    writer.packet(AT + 1, FRAMES[2])
    found, file = read(bytes(writer.content), tmp_path / "x")
    assert [row.at_ns for row in found] == [AT, AT, AT + 1]
    assert file.remarks.without_time == 1


@pytest.mark.parametrize("resolution", [0, 1, 0x7F, 0x80, 0xFF])
def test_any_resolution_gives_a_time(tmp_path: Path, resolution: int) -> None:
    writer = PcapngWriter("<")
    writer.interface(resolution=resolution)
    head = struct.pack("<IIIII", 0, 0xFFFFFFFF, 0xFFFFFFFF, len(FRAMES[0]), len(FRAMES[0]))
    writer.block(Block.PACKET, head + FRAMES[0] + bytes(-len(FRAMES[0]) % 4))
    (found,), _ = read(bytes(writer.content), tmp_path / "x")
    assert 0 <= found.at_ns < 2**62


def sparse(path: Path, content: bytes, size: int) -> Path:
    """A file that begins with this content, and goes on with a hole."""
    path.write_bytes(content)
    os.truncate(path, size)
    return path


@pytest.mark.parametrize("content", [pcap_bytes([(AT, FRAMES[0])]), pcap_bytes([]), bytes(PcapngWriter("<").content)])
def test_a_hole_ends_a_recording(tmp_path: Path, content: bytes) -> None:
    with (
        pytest.raises(CaptureError, match=r"only zeros, as in a hole|a block of 0 bytes"),
        opened(str(sparse(tmp_path / "x", content, 40 << 30))) as file,
    ):
        list(file.packets())


def test_what_is_skipped_is_not_read(tmp_path: Path) -> None:
    """Blocks that are not read, of 4 GiB each, in a hole: the packet behind them is there at once."""
    writer = PcapngWriter("<")
    writer.interface(resolution=9)
    length = 2**32 - 4
    with sparse(tmp_path / "x", bytes(writer.content), len(writer.content)).open("r+b") as file:
        for _ in range(10):
            file.seek(0, os.SEEK_END)
            file.write(struct.pack("<II", 4, length))
            file.truncate(file.tell() + length - 8)
        writer.content.clear()
        writer.packet(AT, FRAMES[0])
        file.seek(0, os.SEEK_END)
        file.write(writer.content)
    with opened(str(tmp_path / "x")) as recording:
        assert [at_ns for at_ns, *_ in recording.packets()] == [AT]
        assert recording.window.position == recording.size_bytes
        assert recording.remarks.skipped_blocks == {4: 10}
    os.truncate(tmp_path / "x", 20 << 30)
    with opened(str(tmp_path / "x")) as recording:
        assert list(recording.packets()) == []
        assert recording.remarks.cut_bytes > 0


def test_what_is_kept_of_a_recording_is_bounded(tmp_path: Path) -> None:
    """Interfaces without end, and blocks of ever new types."""
    writer = PcapngWriter("<")
    for kind in range(1000, 1200):
        writer.block(kind, b"")
    content = bytes(writer.content)
    writer.content.clear()
    writer.interface(name="x" * 3000)
    found, file = read(content + bytes(writer.content), tmp_path / "x")
    assert found == []
    assert len(file.remarks.skipped_blocks) == 64
    writer.content.clear()
    writer.interface()
    with pytest.raises(CaptureError, match="more than 65536 interfaces in one section"):
        read(content + bytes(writer.content) * 65_537, tmp_path / "x")
