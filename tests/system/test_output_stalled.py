# SPDX-License-Identifier: Apache-2.0
"""A reader that does not read can't keep a run from ending, and costs no packet: what it takes later is right."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from command_kit import DEADLINE_SECONDS
from stream_kit import PAGE_BYTES, Job, job, objects, read_all, short_pipe, terminal, total_packets, waiting_bytes

from vifprobe import load
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.packets import frames as f
from vifprobe.testing.traffic.flood import flood
from vifprobe.testing.waiting import wait_until

SYN = f.eth(f.ipv4(f.tcp(f.TcpFlag.SYN)), f.EtherType.IPV4)
FRAMES = 2003
JSON = ("--json", "--interval", "20ms")
#: Patience with a stalled reader is 2 s; the rest is for a machine that does other things.
ENDS_SECONDS = 30.0


def wait_until_stalled(running: Job, read: int) -> None:
    """The pipe is full, and a line is not through."""
    running.wait_for(lambda: waiting_bytes(read) == PAGE_BYTES)


def ends_without_its_reader(running: Job) -> None:
    """Exit code 1, and it is said that something is missing."""
    assert running.ended(ENDS_SECONDS) == 1
    assert running.told().startswith("Error: standard output: the reader does not read: the last ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_watch_that_nobody_reads(number: signal.Signals, tap: Tap, tmp_path: Path) -> None:
    with short_pipe() as pipe, job("watch", tap.name, *JSON, out=pipe.write, folder=tmp_path) as running:
        wait_until_stalled(running, pipe.read)
        running.process.send_signal(number)
        ends_without_its_reader(running)


@pytest.mark.parametrize("options", ["--json", ""])
def test_its_duration_ends_it_too(options: str, tap: Tap, tmp_path: Path) -> None:
    span = ("--interval", "10ms", "--duration", "1s")  # 100 intervals: several pages in any format
    with short_pipe() as pipe, job("watch", tap.name, *span, *options.split(), out=pipe.write, folder=tmp_path) as it:
        ends_without_its_reader(it)


def test_two_signals_end_it_at_once(tap: Tap, tmp_path: Path) -> None:
    with short_pipe() as pipe, job("watch", tap.name, *JSON, out=pipe.write, folder=tmp_path) as running:
        wait_until_stalled(running, pipe.read)
        for number in (signal.SIGTERM, signal.SIGTERM):
            running.process.send_signal(number)
        ends_without_its_reader(running)


@pytest.mark.parametrize(
    ("changes", "nonblocking"),
    [({}, False), ({"PYTHONUNBUFFERED": "1"}, False), ({}, True), ({"PYTHONUNBUFFERED": "1"}, True)],
    ids=["plain", "unbuffered", "nonblocking", "both"],
)
def test_what_was_not_taken_comes_later(changes: dict[str, str], nonblocking: bool, tap: Tap, tmp_path: Path) -> None:
    """An interval lasts until its reader has the one before: whole lines, no gap between them, and the right sums.

    nonblocking: somebody who shares the pipe has set O_NONBLOCK.
    """
    with short_pipe() as pipe:
        os.set_blocking(pipe.write, not nonblocking)
        with job("watch", tap.name, *JSON, out=pipe.write, folder=tmp_path, changes=changes) as running:
            wait_until_stalled(running, pipe.read)
            flood([tap.fd], [SYN], count=FRAMES, seconds=20)
            assert fcntl.fcntl(pipe.write, fcntl.F_GETFL) & os.O_NONBLOCK == (os.O_NONBLOCK if nonblocking else 0)
            pipe.close("write")
            threading.Timer(0.2, running.process.send_signal, [signal.SIGTERM]).start()
            *found, last = objects(read_all(pipe.read))
            assert running.ended() == 0, running.told()
    assert last["final"] is True
    assert last["outbound"]["offered"]["packets"] == total_packets(found) == FRAMES
    ends = [one["start_ns"] + one["duration_ns"] for one in found]
    assert [one["start_ns"] for one in found] == [0, *ends[:-1]]
    assert max(one["duration_ns"] for one in found) > 2 * 20_000_000  # of the one that had to wait


def test_several_writers_on_one_full_pipe(tap: Tap, tmp_path: Path) -> None:
    """The room that poll(2) promises may be gone when it is used: that must not block either."""
    with short_pipe() as pipe:
        jobs = [job("watch", tap.name, *JSON, out=pipe.write, folder=tmp_path / str(number)) for number in range(2)]
        for number in range(2):
            (tmp_path / str(number)).mkdir()
        with jobs[0] as one, jobs[1] as other:
            wait_until_stalled(one, pipe.read)
            for running in (one, other):
                running.process.send_signal(signal.SIGTERM)
            codes = {running.process.wait(ENDS_SECONDS) for running in (one, other)}
    assert codes <= {0, 1, -signal.SIGTERM}  # the other one may have been importing


def test_rows_for_a_fifo_that_nobody_reads(tap: Tap, tmp_path: Path) -> None:
    """Its reader stalls: the run ends, exit code 1, and standard output has all of it."""
    fifo = tmp_path / "rows"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, PAGE_BYTES)
    out = tmp_path / "out"
    try:
        with out.open("wb") as file, job("watch", tap.name, *JSON, "--csv", str(fifo), out=file, folder=tmp_path) as it:
            it.wait_for(out.read_bytes)
            rate = {"count": 10_007, "seconds": 20, "packets_per_second": 5003}
            sender = threading.Thread(target=flood, args=([tap.fd], [SYN]), kwargs=rate)
            sender.start()
            it.wait_for(lambda: waiting_bytes(reader) > PAGE_BYTES - 256)  # no room for one more row
            sender.join()
            it.process.send_signal(signal.SIGTERM)
            assert it.ended(ENDS_SECONDS) == 1
        assert it.told().startswith(f"Error: {fifo}: the reader does not read")
    finally:
        os.close(reader)
    *found, last = objects(out.read_text())
    assert last["outbound"]["offered"]["packets"] == total_packets(found) == 10_007


@pytest.mark.parametrize("arguments", ["watch tap0 --interval 20ms", "capture tap0 -d 5m -o {}"])
def test_a_terminal_that_is_stopped(arguments: str, tap: Tap, tmp_path: Path) -> None:
    """Ctrl-S, or an ssh connection that stalls: nothing is taken any more, by standard error either."""
    folder = tmp_path / "made"
    with terminal() as held:
        words = arguments.format(folder).split()
        with job(*words, out=held.write, err=held.write, folder=tmp_path, changes={"TERM": "xterm"}) as running:
            running.wait_for(lambda: waiting_bytes(held.read) > 0)
            fill(held.write)
            running.process.send_signal(signal.SIGTERM)
            code = running.process.wait(ENDS_SECONDS)
    if "capture" in arguments:
        assert code == 0
        assert load(folder).manifest.complete
    else:
        assert code == 1


def fill(fd: int) -> None:
    """Write to a terminal until it takes nothing more."""
    own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        while select.select([], [own], [], 0.2)[1]:
            os.write(own, b"x" * PAGE_BYTES)
    except BlockingIOError:
        pass
    finally:
        os.close(own)


def cpu_seconds(pid: int) -> float:
    """Of user and system, so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_stalled_watch_does_not_spin(tap: Tap, tmp_path: Path) -> None:
    """It sleeps between intervals, on a pipe and on a terminal."""
    with short_pipe() as pipe, terminal() as held:
        fill(held.write)
        with (
            job("watch", tap.name, "--json", out=pipe.write, folder=tmp_path) as piped,
            job("watch", tap.name, out=held.write, folder=tmp_path, changes={"TERM": "xterm"}) as drawn,
        ):
            wait_until_stalled(piped, pipe.read)
            drawn.wait_for(lambda: is_asleep(drawn.process.pid))
            for running in (piped, drawn):
                before = cpu_seconds(running.process.pid)
                pass_time(2.0)
                assert cpu_seconds(running.process.pid) - before < 0.5, running.process.args
                running.process.send_signal(signal.SIGTERM)
            assert {running.process.wait(ENDS_SECONDS) for running in (piped, drawn)} == {1}


def pass_time(seconds: float) -> None:
    """That nothing happens can only be seen over a time."""
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > seconds, DEADLINE_SECONDS)


def is_asleep(pid: int) -> bool:
    """Whether it has attached: it holds links then, and waits."""
    listed = subprocess.run(["ls", "-l", f"/proc/{pid}/fd"], capture_output=True, text=True).stdout
    return "bpf_link" in listed


@pytest.mark.parametrize("arguments", ["taps", "diff {0} {0}", "report {0} -o -"])
def test_a_command_that_prints_once_waits_for_its_reader(arguments: str, tap: Tap, tmp_path: Path) -> None:
    """As `| less` has it: no matter for how long, and a signal ends it."""
    capture = tmp_path / "one"
    if "{0}" in arguments:
        with job("capture", tap.name, "-d", "20ms", "-o", str(capture), out=subprocess.DEVNULL, folder=tmp_path) as it:
            assert it.ended() == 0
    words = arguments.format(capture).split()
    with short_pipe() as pipe:
        os.set_blocking(pipe.write, False)
        while select.select([], [pipe.write], [], 0)[1]:
            os.write(pipe.write, b"x" * PAGE_BYTES)
        os.set_blocking(pipe.write, True)
        with (
            job(*words, out=pipe.write, folder=tmp_path) as running,
            job(*words, out=pipe.write, folder=tmp_path) as ended,
        ):
            ended.wait_for(lambda: is_idle(ended.process.pid))
            running.wait_for(lambda: is_idle(running.process.pid))
            ended.process.send_signal(signal.SIGTERM)
            assert ended.process.wait(ENDS_SECONDS) == -signal.SIGTERM
            pipe.close("write")
            text = read_all(pipe.read).lstrip("x")
            assert running.ended() == 0
    assert text.endswith(("\n", "</html>"))


def is_idle(pid: int) -> bool:
    """Whether it has begun, and uses no CPU time for half a second."""
    before = cpu_seconds(pid)
    pass_time(0.5)
    return cpu_seconds(pid) == before > 0.05
