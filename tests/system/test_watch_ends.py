# SPDX-License-Identifier: Apache-2.0
"""However a watch ends, what was seen is told, and nothing stays behind."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from command_kit import COMMAND, DEADLINE_SECONDS, assert_adds_up, environment, run, start, total

from vifprobe.testing.net.taps import Tap
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.packets import frames as f
from vifprobe.testing.traffic.flood import flood

SYN = f.eth(f.ipv4(f.tcp(f.TcpFlag.SYN)), f.EtherType.IPV4)
FRAMES = 2003
JSON = ("--json", "--interval", "50ms")


def counted(lines: Sequence[str]) -> int:
    """Packets in the objects so far."""
    return total([json.loads(line) for line in lines], "offered")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_the_rest_and_the_totals(number: signal.Signals, tap: Tap) -> None:
    """In the middle of an interval: what it had counted is printed as a shorter one."""
    with start("watch", tap.name, "--json", "--interval", "3s") as running:
        running.wait_for_lines(1)
        flood([tap.fd], [SYN], count=FRAMES, seconds=20)
        running.tell(number)
        ended = running.end()
    assert (ended.code, ended.err) == (0, "")
    assert [found["final"] for found in ended.objects] == [False, False, True]
    _, rest, last = ended.objects
    assert rest["duration_ns"] < 3_000_000_000
    for found in (rest, last):
        assert found["outbound"]["offered"]["packets"] == FRAMES
        assert_adds_up(found)


def test_lines_for_people_end_with_a_total(tap: Tap) -> None:
    with start("watch", tap.name, "--interval", "50ms") as running:
        running.wait_for_lines(2)
        running.tell(signal.SIGINT)
        ended = running.end()
    assert (ended.code, ended.err) == (0, "")
    first, *lines, last = ended.out.splitlines()
    assert first.startswith("# ")
    assert all(f" {tap.name} " in line for line in [*lines, last])
    assert last.startswith("total")


@pytest.mark.parametrize("options", ["--json", "", "--json --csv watch.csv"])
def test_a_reader_that_leaves_is_no_error(options: str, tap: Tap, tmp_path: Path) -> None:
    """`vifprobe watch ... | head -n 1`: no traceback, no complaint, and the run ends."""
    command = shlex.join([*COMMAND, "watch", tap.name, "--interval", "20ms", *options.split()])
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -n 1; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE_SECONDS,
        env=environment(),
        cwd=tmp_path,
    )
    line, code = done.stdout.splitlines()
    assert line[0] in "#{"
    assert (code, done.stderr) == ("0", "")


@pytest.mark.usefixtures("netns")
def test_a_tap_that_is_deleted_is_told_and_what_was_seen_is_kept() -> None:
    with make_tap("tap0") as tap, start("watch", "tap0", *JSON) as running:
        running.wait_for_lines(1)
        flood([tap.fd], [SYN], count=FRAMES, seconds=20)
        running.wait_for(lambda lines: counted(lines) == FRAMES)
        subprocess.run(["ip", "link", "delete", "tap0"], check=True)
        ended = running.end()
    assert ended.code == 1
    assert ended.err.startswith("Error: tap0: deleted while it was watched.")
    assert ended.objects[-1]["final"]
    assert ended.objects[-1]["outbound"]["offered"]["packets"] == FRAMES


def test_the_other_tap_goes_on_when_one_is_deleted(tap: Tap) -> None:
    with make_tap("tap1") as other, start("watch", "tap0", "tap1", *JSON) as running:
        running.wait_for_lines(2)
        flood([other.fd], [SYN], count=101, seconds=20)
        running.wait_for(lambda lines: counted(lines) == 101)
        subprocess.run(["ip", "link", "delete", "tap1"], check=True)
        flood([tap.fd], [SYN], count=FRAMES, seconds=20)
        running.wait_for(lambda lines: counted(lines) == 101 + FRAMES)
        running.tell(signal.SIGINT)
        ended = running.end()
    assert ended.code == 1
    assert "tap1: deleted" in ended.err
    finals = {found["tap"]: found["outbound"]["offered"]["packets"] for found in ended.objects if found["final"]}
    assert finals == {"tap0": FRAMES, "tap1": 101}


def test_csv_is_written_beside(tap: Tap, tmp_path: Path) -> None:
    """Same numbers in FILE as on the screen, whose totals are not among the rows."""
    file = tmp_path / "watch.csv"
    with start("watch", tap.name, *JSON, "--csv", str(file)) as running:
        running.wait_for_lines(1)
        flood([tap.fd], [SYN], count=FRAMES, seconds=20)
        running.wait_for(lambda lines: counted(lines) == FRAMES)
        running.tell(signal.SIGTERM)
        assert running.end().code == 0
    header, *rows = (line.split(",") for line in file.read_text().splitlines())
    packets = sum(int(row[header.index("packets")]) for row in rows)
    assert packets == FRAMES


@pytest.mark.usefixtures("netns")
def test_a_run_that_never_starts_leaves_an_earlier_csv_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "watch.csv"
    file.write_text("an hour's work\n")
    assert run("watch", "no-such-tap", "--csv", str(file)).code == 1
    assert file.read_text() == "an hour's work\n"


def test_a_full_disk_under_the_csv_file_is_told(tap: Tap) -> None:
    ended = run("watch", tap.name, *JSON, "--csv", "/dev/full")
    assert ended.code == 1
    assert ended.err.startswith("Error: /dev/full: No space left on device.")
    assert "Traceback" not in ended.err


def test_a_csv_file_that_cannot_be_written_is_told(tap: Tap) -> None:
    ended = run("watch", tap.name, "--csv", "/nonexistent/watch.csv", "--duration", "1s")
    assert ended.code == 1
    assert "/nonexistent/watch.csv" in ended.err
