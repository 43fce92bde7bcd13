# SPDX-License-Identifier: Apache-2.0
"""Valid capture folders and recordings, damaged on purpose; and what must hold of whoever reads them."""

from __future__ import annotations

import hashlib
import json
import random
import resource
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from capture_kit import FLOOD, OUT, REASONS, TAPS, bins_like, manifest, reading

from vifprobe.capture.manifest import CoverageGap
from vifprobe.capture.rows import EventRow, HostRow, PolicerRow, ReconcileRow
from vifprobe.capture.writer import CaptureWriter, Totals
from vifprobe.model.flood import Flood, Measure, Top
from vifprobe.model.layout import PacketClass
from vifprobe.model.whatif import WhatIfRow
from vifprobe.testing.packets.recording import PcapngWriter, pcap_bytes

#: Numbers at which readers break: signs, edges of 31, 32, 61, 63 and 64 bits, far beyond, and what is no number.
NUMBERS: tuple[str, ...] = ("0", "-1", "1", "2147483648", "4294967295", "2305843009213693951", "2305843009213693952")
NUMBERS += ("9223372036854775807", "9223372036854775808", "-9223372036854775808", "18446744073709551615", "9" * 22)
WORDS = (*NUMBERS, "9" * 400, "9" * 5000, "1e308", "nan", "inf", "-inf", "0x10", "1_0", "", " ", '"', "\\x1b", "true")
TEXTS = (*WORDS, "tap0", "outbound", "policed", "=1+1", "\x1b[2J", "\ud800", "\u202e", "[red]", "<b>", "x" * 70_000)
VALUES: tuple[Any, ...] = (None, True, 0, -1, 1, 2**31, 2**61, 2**63, -(2**63), 2**64, 10**400, 0.5, 1e308, [], {}, "")
VALUES += (*TEXTS, [None], [[[]]], {"": {}}, "9999-12-31T23:59:59-23:00", "0001-01-01T00:00:00+23:00", "tap0")


def write_folder(path: Path) -> Path:
    """A complete capture with something in every file."""
    flood = Flood({"syn_share": Measure(0.9973, "of 1"), "sources": Measure(65_521, "different", 2_131)}, _TOP)
    tried = WhatIfRow(TAPS[0], OUT, "pps=5", PacketClass.TCP_SYN, 5, 300, 7, 420)
    readings = [reading(TAPS[0], flood={OUT: flood}, what_ifs=(tried,)), reading(TAPS[1], missed=0)]
    with CaptureWriter(path, manifest()) as writer:
        writer.add_bins(bins_like(FLOOD, 0, writer.manifest.start_monotonic_ns))
        writer.add_events([EventRow(-5, "tap0", "qdisc_del", "ingress, by hand", 4711, "tc")])
        writer.add_host(HostRow(at * 10**9, 10**9, "other", f"x{at}", 7, 13, 17, 10**8) for at in range(7))
        writer.finish(
            Totals(
                readings,
                REASONS,
                lambda _: "nf_hook_slow",
                [ReconcileRow(TAPS[0], OUT, "device rx_packets", 7, 100_010, 100_003, 100_003, 100_003, True)],
                [CoverageGap(TAPS[0], 13, None, "the qdisc was deleted")],
                [PolicerRow(TAPS[0], OUT, "tc", "police", 10**8, 3_200_000, None, "all", True, 5, 7, 11)],
            )
        )
    return path


_TOP = (Top("port", "80", 100_003, 5_400_162, 3), Top("source", "192.0.2.1", 7, 420, 0))


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, put in, taken out or said twice."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(content) + 1)
        length = rng.choice((1, 1, 4, 17, 1000))
        kind = rng.randrange(5)
        if kind == 0:
            content[at : at + length] = rng.randbytes(length)
        elif kind == 1:
            content[at:at] = rng.randbytes(length)
        elif kind == 2:
            del content[at : at + length]
        elif kind == 3:
            content[at:at] = content[at : at + length] * rng.choice((1, 3))
        else:
            content[at : at + 4] = struct.pack(rng.choice("<>") + "I", rng.choice((0, 1, 11, 2**31, 2**32 - 1)))
    return bytes(content)


def damage_csv(data: bytes, rng: random.Random) -> bytes:
    """Cells of some rows replaced, rows said twice or many times."""
    lines = data.decode().split("\n")[:-1]
    for _ in range(rng.choice((1, 1, 3))):
        at = rng.randrange(len(lines))
        cells = lines[at].split(",")
        place = rng.randrange(len(cells))
        plausible = cells[place].isdigit() and rng.randrange(4)
        cells[place] = rng.choice(NUMBERS if plausible else TEXTS).replace("\ud800", "?")
        lines[at] = ",".join(cells)
        if not rng.randrange(4):
            lines[at:at] = [lines[at]] * rng.choice((1, 1000))
    return ("\n".join(lines) + "\n").encode()


def damage_json(data: bytes, rng: random.Random) -> bytes:
    """A value somewhere replaced, taken out or put deep into lists."""
    content = json.loads(data)
    for _ in range(rng.choice((1, 1, 3))):
        places = list(_places(content))
        if not places:
            break
        inside, key = rng.choice(places)
        value = rng.choice(VALUES)
        for _ in range(rng.choice((0, 0, 0, 0, 40))):
            value = [value]
        if rng.randrange(8):
            inside[key] = value
        else:
            del inside[key]
    text = json.dumps(content)
    return text.replace("null", "NaN", 1).encode() if not rng.randrange(20) else text.encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    pairs = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, inner in pairs:
        yield value, key
        yield from _places(inner)


def damage_folder(path: Path, good: dict[str, bytes], rng: random.Random) -> str:
    """Damage one file of the folder, mostly with its sum set right, as a forger would. Which file."""
    for name, content in good.items():
        (path / name).write_bytes(content)
    name = rng.choice([*good, "manifest.json", "manifest.json"])
    content = good[name]
    if rng.randrange(4) == 0:
        content = damage_bytes(content, rng)
    elif name.endswith(".csv"):
        content = damage_csv(content, rng)
    else:
        content = damage_json(content, rng)
    (path / name).write_bytes(content)
    if name != "manifest.json" and rng.randrange(10):
        told = json.loads(good["manifest.json"])
        told["sha256"][name] = hashlib.sha256(content).hexdigest()
        (path / "manifest.json").write_text(json.dumps(told))
    return name


def recordings() -> list[bytes]:
    """Small valid recordings of both formats, with every block and option that is read."""
    frames = [bytes([number]) * (60 + number) for number in range(5)]
    times = [1_700_000_000_000_000_000 + number * 1000 for number in range(5)]
    found = [pcap_bytes(zip(times, frames, strict=True), order=order) for order in "<>"]
    for order in "<>":
        writer = PcapngWriter(order)
        writer.interface(resolution=9, offset_seconds=1_600_000_000, fcs_bytes=4, name="tap0")
        writer.interface(resolution=0x80 | 9, snaplen=96, name="tap1")
        writer.interface(link_type=113, name="any")
        writer.packet(times[0], frames[0], flags=1)
        writer.block(4, b"\x01\x00\x08\x00" + bytes(12))
        writer.packet(times[1], frames[1], interface=1, length=9000)
        writer.old_packet(times[2], frames[2])
        writer.simple_packet(frames[3])
        writer.statistics(0, dropped=7, os_dropped=11)
        found.append(bytes(writer.content))
    return found


@contextmanager
def bounded(seconds: int, mebibytes: int) -> Iterator[None]:
    """Run the block with so much more memory and time than now; MemoryError or TimeoutError beyond that."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before_limit = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (mebibytes << 20), before_limit[1]))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, before_limit)
        signal.signal(signal.SIGALRM, before)
