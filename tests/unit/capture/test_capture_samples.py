# SPDX-License-Identifier: Apache-2.0
"""samples.pcapng as tshark reads it; bounded and still unbiased; readable however it was cut off."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from capture_kit import REASONS, TAPS, manifest, reading

from vifprobe.capture.manifest import SampleCounts, from_json
from vifprobe.capture.samples import ALWAYS_OF_A_KIND, SampleEncoder
from vifprobe.capture.writer import CaptureWriter, Totals
from vifprobe.model.layout import SAMPLE, Direction, Expected, PacketClass, SampleFlag, Verdict
from vifprobe.testing.packets import frames as f

Rows = npt.NDArray[Any]
START_NS = 5_000_000_007
START = datetime(2026, 11, 22, 5, 12, 44, 123456, tzinfo=timezone.utc)
SYN = f.eth(f.ipv4(f.tcp(f.TcpFlag.SYN)), f.EtherType.IPV4)
FIELDS = (
    "frame.time_epoch",
    "frame.len",
    "frame.cap_len",
    "frame.interface_name",
    "frame.packet_flags_direction",
    "frame.verdict.ebpf_tc",
    "frame.comment",
    "vlan.id",
    "vlan.priority",
    "tcp.flags",
)


def row(frame: bytes = SYN, frame_bytes: int | None = None, **fields: Any) -> Rows:
    """One sample of a frame of which all is headers."""
    made = np.zeros(1, SAMPLE)
    made["weight"] = 1
    made["frame_bytes"] = len(frame) if frame_bytes is None else frame_bytes
    made["charged_bytes"], made["wire_bytes"] = made["frame_bytes"] - 14, 84
    made["header_bytes"] = len(frame)
    made["headers"][0, : len(frame)] = np.frombuffer(frame, np.uint8)
    for name, value in fields.items():
        made[name] = value
    return made


def encoder(limit: int = 1000, span_ns: int = 10**9) -> SampleEncoder:
    return SampleEncoder(dict.fromkeys(TAPS, "tap"), START, START_NS, limit, span_ns, REASONS)


def written(path: Path, *rows: Rows) -> Path:
    made = encoder()
    blocks = [block for part in rows for block in made.blocks(part, 0, START_NS + 10**9)]
    path.write_bytes(made.header() + b"".join(blocks))
    return path


def tshark(file: Path, code: int = 0) -> list[dict[str, str]]:
    """What tshark reads of each packet."""
    wanted = [word for name in FIELDS for word in ("-e", name)]
    ran = subprocess.run(
        ["tshark", "-n", "-r", file, "-T", "fields", "-E", "occurrence=f", *wanted],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == code, ran.stderr
    return [dict(zip(FIELDS, line.split("\t"), strict=True)) for line in ran.stdout.splitlines()]


@pytest.fixture(autouse=True)
def _tshark(require: Callable[[str, object, str], None]) -> None:
    require("tshark", shutil.which("tshark"), "tshark (package tshark)")


def test_what_tshark_reads_of_a_policed_syn(tmp_path: Path) -> None:
    """Time to the nanosecond, length on the tap, interface, direction, verdict, and the comment."""
    sample = row(
        at_ns=START_NS + 1_000_000_001,
        verdict=Verdict.POLICED,
        reason=6,
        expected=Expected.EXCEED,
        weight=64,
        tap=1,
        frame_bytes=60,
    )
    (seen,) = tshark(written(tmp_path / "s.pcapng", sample))
    assert seen == {
        "frame.time_epoch": "1795324365.123456001",
        "frame.len": "60",
        "frame.cap_len": "54",
        "frame.interface_name": TAPS[1],
        "frame.packet_flags_direction": "0x00000002",
        "frame.verdict.ebpf_tc": "2",
        "frame.comment": "class=tcp_syn verdict=policed reason=TC_INGRESS expected=exceed weight=64 "
        "frame_bytes=60 charged_bytes=46 wire_bytes=84",
        "vlan.id": "",
        "vlan.priority": "",
        "tcp.flags": "0x0002",
    }


def test_verdicts_and_directions(tmp_path: Path) -> None:
    """Passed is TC_ACT_OK, any drop TC_ACT_SHOT, and what is not known is not said."""
    rows = [row(verdict=verdict, direction=Direction.INBOUND) for verdict in Verdict]
    seen = tshark(written(tmp_path / "s.pcapng", *rows))
    assert [one["frame.verdict.ebpf_tc"] for one in seen] == ["", "0", "2", "2", ""]
    assert {one["frame.packet_flags_direction"] for one in seen} == {"0x00000001"}


def test_the_tag_is_put_back(tmp_path: Path) -> None:
    """Customer and service tag, with priority; the length is that of the tagged frame."""
    tagged = row(flags=SampleFlag.TAGGED, vlan_tci=5 << 13 | 2003)
    service = row(flags=SampleFlag.TAGGED | SampleFlag.SERVICE_TAG, vlan_tci=7)
    one, other = tshark(written(tmp_path / "s.pcapng", tagged, service))
    assert (one["vlan.id"], one["vlan.priority"], one["frame.len"], one["tcp.flags"]) == ("2003", "5", "58", "0x0002")
    assert (other["frame.len"], other["tcp.flags"]) == ("58", "0x0002")


def test_a_file_that_was_cut_off_is_readable_up_to_there(tmp_path: Path) -> None:
    """Blocks are whole, one after the other: a reader loses only the one that a crash cut."""
    file = written(tmp_path / "s.pcapng", *(row(at_ns=START_NS + number) for number in range(101)))
    content = file.read_bytes()
    file.write_bytes(content[:-17])
    assert len(tshark(file, code=2)) == 100


def test_the_limit_holds_and_weights_make_up_for_what_is_left_out() -> None:
    """Ten times more samples than wanted: about the limit is written, weighted sums stay those of all."""
    made, kept, weight, true = encoder(limit=1_000, span_ns=10 * 10**9), 0, Counter[str](), Counter[str]()
    random = np.random.default_rng(7)
    for second in range(1, 11):
        rows = np.concatenate([row(weight=13)] * 1_009)
        rows["packet_class"] = random.choice([PacketClass.TCP_SYN, PacketClass.UDP], len(rows), p=[0.8, 0.2])
        if second == 5:
            rows["packet_class"][500] = PacketClass.ARP  # the one of its kind
        true.update(PacketClass(code).name.lower() for code in np.repeat(rows["packet_class"], 13).tolist())
        blocks = made.blocks(rows, kept, START_NS + second * 10**9)
        kept += len(blocks)
        for block in blocks:
            text = block[block.index(b"class=") :].split(b"\0")[0].split(b" wire")[0].decode()
            words = dict(word.split("=") for word in text.split())
            weight[words["class"]] += int(words["weight"])
    assert made.taken == 10_090
    assert kept <= 1_000 + 2 * ALWAYS_OF_A_KIND
    assert kept > 900
    assert weight["arp"] == 13
    for kind, packets in true.items():
        # Each was taken one in about ten, 13 packets at a time.
        assert abs(weight[kind] - packets) <= 5 * np.sqrt(packets * 13 * 10), kind


def test_counts_are_in_the_manifest(tmp_path: Path) -> None:
    """Taken, written, left out and lost; and the file's sum."""
    with CaptureWriter(tmp_path / "c", manifest()) as writer:
        writer.begin_samples(1000, 1, REASONS)
        rows = np.concatenate([row()] * 17)
        writer.add_samples(rows)
        told = writer.finish(Totals([reading()], lost_samples=5))
    assert told.samples == SampleCounts(17, 17, 0, 5)
    read = from_json((tmp_path / "c" / "manifest.json").read_bytes())
    assert read.samples == told.samples
    assert "samples.pcapng" in read.sha256
    assert len(tshark(tmp_path / "c" / "samples.pcapng")) == 17


def test_without_samples_there_is_no_file(tmp_path: Path) -> None:
    """And the manifest says that nobody looked."""
    with CaptureWriter(tmp_path / "c", manifest()) as writer:
        writer.add_samples(np.zeros(0, SAMPLE))
        told = writer.finish(Totals([reading()]))
    assert told.samples is None
    assert not (tmp_path / "c" / "samples.pcapng").exists()


def test_nothing_to_write_beyond_the_limit() -> None:
    """An interval without samples, once more than its share has been written."""
    assert encoder(limit=10).blocks(row()[:0], 10_000, START_NS + 10**6) == []
