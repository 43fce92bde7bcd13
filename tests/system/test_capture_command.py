# SPDX-License-Identifier: Apache-2.0
"""`vifprobe capture`: the folder, whatever ends the run, and what it refuses."""

from __future__ import annotations

import csv
import json
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest
from command_kit import Running, assert_is_error, run, start

from vifprobe import load
from vifprobe.model.layout import Direction, PacketClass
from vifprobe.testing.net.links import nft_ingress_limit
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.packets import frames as f
from vifprobe.testing.traffic.flood import flood
from vifprobe.testing.waiting import wait_until

SYN = f.eth(f.ipv4(f.tcp(f.TcpFlag.SYN)), f.EtherType.IPV4)
ARP = f.pad(f.eth(f.arp(), f.EtherType.ARP))
FRAMES = 4001
PROMISED = {
    *("manifest.json", "histogram.csv", "timeline.csv", "drops.csv", "reconcile.csv", "events.csv", "findings.json"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where to capture to; not there yet."""
    return tmp_path / "evidence"


def wait_until_it_counts(running: Running, folder: Path) -> None:
    """The folder is made once everything is attached."""
    wait_until(lambda: (folder / "manifest.json").exists() or running.process.poll() is not None, 60)


def rows(path: Path) -> list[dict[str, str]]:
    """A CSV file's rows by column."""
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def packets(path: Path) -> int:
    """Outbound packets in a CSV file."""
    return sum(int(row["packets"]) for row in rows(path) if row["direction"] == "outbound")


def test_the_folder_holds_what_was_sent(tap: Tap, folder: Path) -> None:
    """Every file that is promised, private, with the same sums, and no counter of the kernel's disagrees."""
    with nft_ingress_limit(tap.name, rate_bytes_per_second=40 * 101, burst_bytes=40 * 307) as limit:
        with start("capture", tap.name, "-d", "30s", "-o", str(folder)) as running:
            wait_until_it_counts(running, folder)
            flood([tap.fd], [SYN, SYN, ARP], count=FRAMES, seconds=20)
            running.tell(signal.SIGINT)
            ended = running.end()
        policed = limit.read().packets
    assert (ended.code, ended.err) == (0, "")
    assert {path.name for path in folder.iterdir()} >= PROMISED
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert packets(folder / "histogram.csv") == packets(folder / "timeline.csv") == FRAMES
    by_verdict = {"policed": 0}
    for row in rows(folder / "histogram.csv"):
        by_verdict[row["verdict"]] = by_verdict.get(row["verdict"], 0) + int(row["packets"])
    assert by_verdict["policed"] == policed > 0
    assert sum(by_verdict.values()) == FRAMES
    assert {row["agrees"] for row in rows(folder / "reconcile.csv")} <= {"true", ""}
    assert {row["counter"] for row in rows(folder / "reconcile.csv")} >= {"device rx_packets"}
    reading = load(folder).reading()
    assert reading.offered(Direction.OUTBOUND).packets == FRAMES
    assert reading.offered(Direction.OUTBOUND, PacketClass.ARP).packets == FRAMES // 3
    assert json.loads((folder / "manifest.json").read_text())["complete"] is True


def test_the_summary_names_tap_classes_and_files(tap: Tap, folder: Path) -> None:
    ended = run("capture", tap.name, "-d", "100ms", "-o", str(folder))
    assert (ended.code, ended.err) == (0, "")
    assert tap.name in ended.out.splitlines()[0]
    assert str(folder / "histogram.csv") in ended.out
    assert "\x1b" not in ended.out
    assert max(map(len, ended.out.splitlines())) <= max(80, len(str(folder)) + 30)


def test_sigterm_keeps_what_was_seen(tap: Tap, folder: Path) -> None:
    with start("capture", tap.name, "-d", "5m", "-o", str(folder)) as running:
        wait_until_it_counts(running, folder)
        flood([tap.fd], [SYN], count=FRAMES, seconds=20)
        running.tell(signal.SIGTERM)
        ended = running.end()
    assert ended.code == 0
    assert packets(folder / "histogram.csv") == FRAMES


@pytest.mark.usefixtures("netns")
def test_a_tap_that_is_deleted_is_told_and_what_was_seen_is_kept(folder: Path) -> None:
    with make_tap("tap0") as tap, start("capture", "tap0", "-d", "5m", "-o", str(folder)) as running:
        wait_until_it_counts(running, folder)
        flood([tap.fd], [SYN], count=FRAMES, seconds=20)
        subprocess.run(["ip", "link", "delete", "tap0"], check=True)
        ended = running.end()
    assert ended.code == 1
    assert "tap0: deleted during the capture." in ended.err
    assert packets(folder / "histogram.csv") == FRAMES
    assert any("tap0" in str(row) for row in rows(folder / "events.csv"))


def test_an_existing_folder_is_kept_unless_forced(tap: Tap, folder: Path) -> None:
    options = ("capture", tap.name, "-d", "50ms", "-o", str(folder))
    assert run(*options).code == 0
    first = (folder / "manifest.json").read_bytes()
    assert_is_error(run(*options), 1, str(folder), "--force")
    assert (folder / "manifest.json").read_bytes() == first
    assert run(*options, "--force").code == 0
    assert (folder / "manifest.json").read_bytes() != first


@pytest.mark.parametrize("options", [[], ["--force"]], ids=["plain", "forced"])
def test_a_folder_with_something_else_in_it_is_never_touched(options: list[str], tap: Tap, folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.txt").write_text("three years")
    ended = run("capture", tap.name, "-d", "50ms", "-o", str(folder), *options)
    assert ended.code == 1
    assert str(folder) in ended.err
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_a_place_that_cannot_be_written_is_named(tap: Tap) -> None:
    assert_is_error(run("capture", tap.name, "-d", "50ms", "-o", "/nonexistent/evidence"), 1, "/nonexistent")


def write_a_bin_apart(tap: Tap) -> None:
    """A packet, and more than a millisecond until the next one, however busy this machine is."""
    tap.write(SYN)
    sent_ns = time.monotonic_ns()
    wait_until(lambda: time.monotonic_ns() - sent_ns > 1_000_000, 20.0, poll_seconds=0.001)


def test_fine_bins(tap: Tap, folder: Path) -> None:
    """`--bin 1ms`: every packet is in one, and none is wider."""
    with start("capture", tap.name, "-d", "30s", "--bin", "1ms", "-o", str(folder)) as running:
        wait_until_it_counts(running, folder)
        flood([tap.fd], [SYN], count=FRAMES, seconds=20)
        for _ in range(101):
            write_a_bin_apart(tap)
        running.tell(signal.SIGINT)
        assert running.end().code == 0
    bins = rows(folder / "timeline.csv")
    assert {row["duration_ns"] for row in bins} == {"1000000"}
    assert packets(folder / "timeline.csv") == FRAMES + 101
    assert len({row["start_ns"] for row in bins}) >= 101
