# SPDX-License-Identifier: Apache-2.0
"""`vifprobe replay`: what a tap saw live, it says of a recording of it; and what is odd about a file, it tells."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
from command_kit import assert_is_error, run, start

from vifprobe import load
from vifprobe.analysis.limit_state import answers_of
from vifprobe.capture.tables import without
from vifprobe.commands import replay as command
from vifprobe.kernel.features import missing_capabilities
from vifprobe.model.layout import Bucket, Direction, Expected, PacketClass, Verdict
from vifprobe.model.reading import Limit, Reading, count
from vifprobe.render.text.replay import replay_lines
from vifprobe.replay.player import Replay
from vifprobe.replay.recording import opened
from vifprobe.session.probe import Probe
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.packets import frames as f
from vifprobe.testing.packets.fuzz import corpus
from vifprobe.testing.packets.recording import PcapngWriter, pcap_bytes
from vifprobe.testing.packets.table import Run, cases_for
from vifprobe.testing.token_bucket import judge

SYN = f.eth(f.ipv4(f.tcp(f.TcpFlag.SYN)), f.EtherType.IPV4)
DATA = f.eth(f.ipv4(f.tcp(f.TcpFlag.ACK, bytes(1009))), f.EtherType.IPV4)
START_NS = 1_613_692_801_000_000_007
OUT = Direction.OUTBOUND


@pytest.fixture(autouse=True)
def _capable(require: Callable[[str, object, str], None]) -> None:
    missing = missing_capabilities()
    require("kernel", not missing, f"this process lacks {', '.join(missing)}")


def spread(frames: list[bytes]) -> list[tuple[int, bytes]]:
    """Frames with times: 101 µs apart, but for a few pauses and a few at once."""
    gaps = (101_000 if place % 17 else 0 if place % 3 else 30_000_000 for place in range(len(frames)))
    return list(zip(accumulate(gaps, initial=START_NS), frames, strict=False))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """1,009 packets: SYNs, and data now and then."""
    path = tmp_path / "mixed.pcap"
    path.write_bytes(pcap_bytes(spread([DATA if place % 7 == 3 else SYN for place in range(1009)]), nanoseconds=True))
    return path


def replayed(path: Path, **options: object) -> tuple[Reading, Replay]:
    with opened(str(path)) as file, Replay(file, **options) as run:  # type: ignore[arg-type]
        run.run()
        return run.reading(), run


def without_fate(reading: Reading) -> Reading:
    """As if nobody knew what became of the packets, in a run of a second that ended when the other one did."""
    cells = without(reading.cells, "tap", "verdict", "expected", "reason", "location")
    made = replace(
        reading, tap="one", cells=cells, verdicts="", duration_ns=10**9, at=reading.at.fromtimestamp(0),
        limits={}, findings=(), notes=(), directions=(OUT,), start_ns=0,
    )  # fmt: skip
    return replace(made, limit_states=answers_of(made))


def fits_a_tap(frame: bytes) -> bool:
    """Longer than a tag that it begins: others the kernel frees before tc."""
    return len(frame) >= (20 if frame[12:14] in (b"\x81\x00", b"\x88\xa8") else 14)


def test_live_and_replay_give_the_same_text(tap: Tap, tmp_path: Path) -> None:
    """Each frame of the packet table, and some made at random: written to a tap, and recorded as it was written."""
    frames = [case.frame for case in cases_for(Run.TAP, gso=False)]
    frames += [frame for frame in corpus(7, 2003) if fits_a_tap(frame)]
    recorded = []
    with Probe(tap.name, directions=(OUT,)) as probe:
        for frame in frames:
            recorded.append((time.time_ns(), frame))
            os.write(tap.fd, frame)
        *_, live = probe.readings(0.05, 0.05)
    path = tmp_path / "recorded.pcap"
    path.write_bytes(pcap_bytes(recorded, nanoseconds=True))
    again, _ = replayed(path)
    assert live.offered(OUT).packets == len(frames)
    assert set(again.cells["verdict"]) == {Verdict.UNKNOWN}
    one, other = without_fate(live), without_fate(again)
    assert one.cells.tolist() == other.cells.tolist()
    text = [line.plain for line in replay_lines(one, "")]
    assert text == [line.plain for line in replay_lines(other, "")]
    assert len(text) > len(PacketClass) + 20
    assert live.missed == again.missed == 0


@pytest.mark.parametrize("direction", list(Direction))
def test_the_ideal_bucket_takes_the_files_own_times(mixed: Path, direction: Direction) -> None:
    """As the model says of each packet; charged without the L2 header where a policer at ingress does so."""
    limit = Limit(declared_bps=800_000, burst_bytes=5003)
    reading, _ = replayed(mixed, direction=direction, limit=limit)
    l2_bytes = f.ETH_HEADER_BYTES if direction is OUT else 0
    packets = spread([DATA if place % 7 == 3 else SYN for place in range(1009)])
    says = judge(Bucket(100_000, 5003), [at for at, _ in packets], [len(frame) - l2_bytes for _, frame in packets])
    conform = [len(frame) for (_, frame), does in zip(packets, says, strict=True) if does]
    counts = reading.would(direction, Expected.CONFORM)
    assert counts is not None
    assert counts[:3] == (len(conform), sum(conform), sum(conform) - l2_bytes * len(conform))
    assert 0 < len(conform) < 1009
    assert reading.duration_ns == packets[-1][0] - packets[0][0]


def test_the_folder_is_a_captures(mixed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "evidence"
    ended = run("replay", str(mixed), "--rate", "800kbit", "--burst", "5003", "-o", str(folder), "--json")
    assert (ended.code, ended.err) == (0, "")
    (told,) = ended.objects
    capture = load(folder)
    assert capture.warnings == ()
    (reading,) = capture.readings()
    (tap,) = capture.manifest.taps
    assert (tap.name, tap.hooks, tap.verdicts) == ("mixed.pcap", {OUT: "test_run"}, "")
    assert capture.manifest.complete
    assert capture.manifest.options["replay"] is True
    assert capture.manifest.options["packets_of_the_file"]["packets"] == 1009
    assert capture.manifest.start.timestamp() == pytest.approx(START_NS / 1e9, abs=1e-5)
    assert reading.offered(OUT)._asdict() == told["outbound"]["offered"]
    assert told["outbound"]["passed"] is None
    assert told["replay"]["conform"]["packets"] + told["replay"]["exceed"]["packets"] == 1009
    classes = told["replay"]["exceed"]["classes"]
    exceed = {name: counts["packets"] for name, counts in classes.items()}
    for name in ("tcp_syn", "tcp_data"):
        rows = reading.where(OUT, packet_class=PacketClass[name.upper()], expected=Expected.EXCEED)
        assert count(rows).packets == exceed[name]
    bins = capture.bins
    assert int(bins["packets"].sum()) == 1009
    assert int(bins["syn_packets"].sum()) == reading.offered(OUT, PacketClass.TCP_SYN).packets
    assert int(bins["start_ns"].min()) == capture.manifest.start_monotonic_ns
    assert "S1" in {finding["pattern"] for finding in json.loads((folder / "findings.json").read_text())}
    with opened(str(folder / "samples.pcapng")) as samples:
        memory = samples.window.memory
        heads = [(at_ns, bytes(memory[at : at + size]), size) for at_ns, at, size, _ in samples.packets()]
    # Each packet stands for itself, with its own time: no payload, and no estimate.
    packets = spread([DATA if place % 7 == 3 else SYN for place in range(1009)])
    assert heads == [(at_ns, frame[:54], 54) for at_ns, frame in packets]
    assert {row.value for row in capture.flood if row.measure == "syn_packets"} == {
        reading.offered(OUT, PacketClass.TCP_SYN).packets
    }


def test_gaps_between_packets_are_the_files(mixed: Path) -> None:
    """Wherever the run is scheduled: its books are on one CPU, and the thread may go anywhere again afterwards."""
    allowed = os.sched_getaffinity(0)
    with opened(str(mixed)) as file, Replay(file, samples=True) as run_of_it:
        run_of_it.run()
        rows = run_of_it.take_samples()
    times = [at_ns for at_ns, _ in spread([SYN] * 1009)]
    assert rows["gap_ns"].tolist() == [-1, *(later - earlier for earlier, later in pairwise(times))]
    assert set(rows["weight"]) == {1}
    assert os.sched_getaffinity(0) == allowed


def test_a_finding_can_fail_the_run(mixed: Path) -> None:
    assert run("replay", str(mixed), "--fail-on", "critical", "--json").code == 3
    ended = run("replay", str(mixed), "--fail-on", "info", "--no-samples", "--json")
    assert (ended.code, ended.objects[0]["flood"]) == (0, None)


def test_limits_are_tried_out_on_a_recording(mixed: Path) -> None:
    """As the model says, packets a second as well as bytes."""
    ended = run("replay", str(mixed), "--what-if", "pps=500,burst=7", "--what-if", "rate=1mbit,burst=3kb", "--json")
    assert ended.code == 0, ended
    packets = spread([DATA if place % 7 == 3 else SYN for place in range(1009)])
    times = [at for at, _ in packets]
    by_packets = judge(Bucket(500, 7), times, [1] * len(packets))
    by_bytes = judge(Bucket(125_000, 3072), times, [len(frame) - f.ETH_HEADER_BYTES for _, frame in packets])
    tried = ended.objects[0]["outbound"]["what_if"]
    assert [limit["stopped"]["packets"] for limit in tried] == [int((~by_packets).sum()), int((~by_bytes).sum())]


def test_what_is_seen_on_screen(mixed: Path) -> None:
    ended = run("replay", str(mixed), "--rate", "800kbit", "--burst", "5003")
    assert (ended.code, ended.err) == (0, "")
    assert "OFFERED ONLY" in ended.out
    assert "would have stopped" in ended.out
    assert all(len(line) <= 80 for line in ended.out.splitlines())
    for word in ("conform", "exceed", "tcp_syn", "tcp_data", "1,009", "recorded pcap"):
        assert word in ended.out
    assert "passed" not in ended.out


def test_what_is_odd_about_a_file_is_told(tmp_path: Path) -> None:
    """Cut frames, a cut end, losses, times that run backwards, frames that no wire carries in one piece."""
    writer = PcapngWriter(">")
    writer.interface(resolution=9)
    writer.packet(START_NS, SYN)
    writer.packet(START_NS + 5_000, DATA[:60], length=len(DATA))
    writer.packet(START_NS + 3_000, DATA[:40], length=len(DATA))  # a TCP header that is not there
    writer.packet(START_NS + 9_000, SYN[:33])  # a frame that TEST_RUN refuses
    writer.packet(START_NS + 9_000, f.eth(f.ipv4(f.tcp(f.TcpFlag.ACK, bytes(20_011))), f.EtherType.IPV4))
    writer.packet(START_NS + 2 * 10**18, SYN)
    writer.statistics(0, dropped=17, os_dropped=2)
    path = tmp_path / "odd.pcapng"
    end = len(writer.content)
    writer.packet(START_NS, SYN)
    path.write_bytes(writer.content[: end + 17])
    reading, replay = replayed(path)
    counts = {code: reading.offered(OUT, code).packets for code in reading.classes(OUT)}
    assert counts == {PacketClass.TCP_SYN: 2, PacketClass.TCP_DATA: 2, PacketClass.MALFORMED: 1}
    assert reading.missed == 1
    assert reading.offered(OUT).frame_bytes == 2 * len(SYN) + len(DATA) + 33 + 54 + 20_011
    seen = replay.notes
    assert (seen.packets, seen.cut, seen.refused, seen.backwards, seen.wild, seen.long) == (6, 2, 2, 1, 1, 1)
    notes = " ".join(reading.notes)
    for words in ("17 bytes", "19 packets were lost", "2 frames were recorded cut short", "of 1 too little", "TSO"):
        assert words in notes
    assert reading.duration_ns == 9_000


def test_a_damaged_file_is_counted_up_to_there_and_fails(mixed: Path, tmp_path: Path) -> None:
    content = mixed.read_bytes()
    whole = content[: 24 + 3 * (16 + len(SYN))]
    mixed.write_bytes(whole + b"\xff" * 16)
    folder = tmp_path / "evidence"
    ended = run("replay", str(mixed), "-o", str(folder))
    assert ended.code == 1
    assert f"mixed.pcap: damaged at byte {len(whole)}" in ended.err
    capture = load(folder)
    assert not capture.manifest.complete
    assert capture.readings()[0].offered(OUT).packets == 3


def test_wrong_files_are_told_apart(tmp_path: Path, mixed: Path) -> None:
    cooked = tmp_path / "any.pcap"
    cooked.write_bytes(pcap_bytes([(START_NS, SYN)], link_type=276))
    assert_is_error(run("replay", str(cooked)), 1, "link type 276", "Record at the tap")
    assert_is_error(run("replay", str(cooked), "-o", str(tmp_path / "x")), 1, "link type 276")
    assert not (tmp_path / "x").exists()
    assert_is_error(run("replay", str(tmp_path / "none.pcap")), 1, "none.pcap: no such file")
    assert_is_error(run("replay", str(mixed), "--burst", "3kb"), 2, "--rate")
    assert_is_error(run("replay", str(mixed), "-o", str(tmp_path), "--bin", "10us"), 2, "--bin")


def test_a_pipe_is_read_as_it_comes_and_a_signal_ends_it(tmp_path: Path) -> None:
    """What came until then is kept, although the other end stays open and silent."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    folder = tmp_path / "evidence"
    with start("replay", str(fifo), "-o", str(folder)) as running, fifo.open("wb") as stream:
        stream.write(pcap_bytes(spread([SYN] * 211), nanoseconds=True))
        stream.flush()
        running.wait_for(lambda _: (folder / "manifest.json").exists())
        running.tell(signal.SIGINT)
        ended = running.end()
    assert (ended.code, ended.err) == (0, "")
    assert "stopped after" in ended.out
    capture = load(folder)
    assert not capture.manifest.complete
    assert capture.manifest.error is not None
    assert "stopped" in capture.manifest.error


def test_standard_input(mixed: Path) -> None:
    ended = run("replay", "-", "--json", prefix=("sh", "-c", f'"$0" "$@" < {mixed}'))
    assert (ended.code, ended.err) == (0, "")
    (told,) = ended.objects
    assert (told["tap"], told["outbound"]["offered"]["packets"]) == ("stdin", 1009)


def test_a_long_run_shows_a_bar_on_a_terminal(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing elsewhere, and nothing where it is over at once."""
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as terminal, os.fdopen(master, "rb", 0) as seen, opened(str(mixed)) as file:
        monkeypatch.setattr(sys, "stderr", terminal)
        with command._progress(file) as advance:
            advance()
        terminal.write("|")
        monkeypatch.setattr(command, "_BAR_AFTER_SECONDS", 0.0)
        with command._progress(file) as advance:
            advance()
            advance()
        terminal.flush()
        shown = ""
        while "replaying" not in shown:  # a terminal hands over what it has in parts
            assert select.select([seen], [], [], 10)[0], shown
            shown += seen.read(65536).decode()
    assert shown.startswith("|")
