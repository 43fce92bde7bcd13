# SPDX-License-Identifier: Apache-2.0
"""Signals that end a run, at every moment of `watch` and `capture`: an exit code, whole evidence or none, no hook."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from forked_kit import Forked, forked
from leftovers_kit import settings
from stream_kit import job, terminal

from vifprobe import load
from vifprobe.capture.folder import Folder
from vifprobe.capture.writer import CaptureWriter
from vifprobe.session import components
from vifprobe.session.event_loop import EventLoop
from vifprobe.session.hooks import Hooks
from vifprobe.session.probe import Probe
from vifprobe.testing.net.taps import Tap

CLEAN = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SIGNALS = (*CLEAN, signal.SIGQUIT)
#: With any value, each of them at each moment (4 minutes); else one at most moments, all at some.
EVERY = bool(os.environ.get("VIFPROBE_EVERY_SIGNAL"))
#: Moment -> what begins with it, in order.
MOMENTS: dict[str, tuple[Any, str]] = {
    "start": (Probe, "__init__"),
    "open": (Probe, "__enter__"),
    "compile": (components, "make_programs"),
    "load": (Hooks, "load"),
    "attach": (Hooks, "attach"),
    "attached": (Hooks, "count"),
    "folder": (CaptureWriter, "__init__"),
    "count": (EventLoop, "wait"),
    "interval": (Probe, "_interval"),
    "detach": (Hooks, "detach"),
    "end": (EventLoop, "end"),
    "write": (CaptureWriter, "finish"),
    "seal": (Folder, "digests"),
    "close": (CaptureWriter, "__exit__"),
}
#: Before there are handlers: the process ends as any other.
EARLY = ("start",)
#: The run had ended by itself.
LATE = ("detach", "end", "write", "seal", "close")


def chosen(moment: str, first: int) -> tuple[signal.Signals, ...]:
    """Which signals are sent at that moment."""
    place = (first + list(MOMENTS).index(moment)) % len(SIGNALS)
    return SIGNALS if EVERY or moment == "count" else SIGNALS[place : place + 1]


def send_at(moment: str, number: signal.Signals, sent: Path) -> None:
    """Send this process a signal when it comes to that moment for the first time, and leave a file that says so."""
    place, name = MOMENTS[moment]
    original: Callable[..., Any] = getattr(place, name)

    def first(*arguments: Any, **named: Any) -> Any:
        setattr(place, name, original)
        (sent / f"sent-{number.name}-{moment}").touch()
        os.kill(os.getpid(), number)
        return original(*arguments, **named)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    setattr(place, name, first)


def problem(ended: Forked, moment: str, number: signal.Signals) -> str:
    """What is wrong with the exit code and with what was said; "" where nothing is."""
    at_once = {signal.SIGINT: 1} if moment in EARLY else {signal.SIGQUIT: 1}
    expected = at_once.get(number, -number if moment in EARLY else 0)
    if ended.code != expected:
        return f"exit code {ended.code}, not {expected}: {ended.err[-900:]}"
    if "Traceback" in ended.err or "Exception ignored" in ended.err:
        return ended.err[-900:]
    if ended.code == 1 and "Stopped." not in ended.err:
        return f"not told that it was stopped: {ended.err[-300:]}"
    return ""


def folder_problem(folder: Path, ended: Forked) -> str:
    """What is wrong with the evidence: complete after an exit code of 0, else marked as incomplete or not there."""
    if not folder.exists():
        return "no folder" if ended.code == 0 else ""
    capture = load(folder)
    complete = capture.manifest.complete
    if ended.code == 0:
        return "" if complete and not capture.warnings and capture.readings() else f"not complete: {capture.warnings}"
    return f"complete, with exit code {ended.code}" if complete and ended.code < 0 else ""


@pytest.mark.parametrize("moment", MOMENTS)
def test_capture(moment: str, tap: Tap, tmp_path: Path) -> None:
    before, problems = settings(), []
    for number in chosen(moment, 0):
        place = tmp_path / number.name
        place.mkdir()
        duration = "20ms" if moment in LATE else "5m"
        options = ("capture", tap.name, "-d", duration, "-o", str(place / "made"))
        ended = forked(*options, folder=place, before=partial(send_at, moment, number, place))
        assert (place / f"sent-{number.name}-{moment}").exists()
        found = problem(ended, moment, number) or folder_problem(place / "made", ended)
        problems += [f"{number.name}: {found}"] if found else []
    assert problems == []
    assert settings() == before


@pytest.mark.parametrize(
    "moment", [name for name, (place, _) in MOMENTS.items() if place not in (CaptureWriter, Folder)]
)
def test_watch(moment: str, tap: Tap, tmp_path: Path) -> None:
    before, problems = settings(), []
    for number in chosen(moment, 2):
        duration = () if moment not in LATE else ("--duration", "20ms")
        options = ("watch", tap.name, "--json", "--interval", "20ms", *duration)
        ended = forked(*options, folder=tmp_path, before=partial(send_at, moment, number, tmp_path))
        assert (tmp_path / f"sent-{number.name}-{moment}").exists()
        found = problem(ended, moment, number)
        lines = [json.loads(line) for line in ended.out.splitlines()]
        if not found and ended.code == 0 and not (lines and lines[-1]["final"]):
            found = f"no totals: {ended.out[-300:]}"
        problems += [f"{number.name}: {found}"] if found else []
    assert problems == []
    assert settings() == before


def test_two_signals_and_one_that_is_ignored(tap: Tap, tmp_path: Path) -> None:
    """`nohup`: SIGHUP changes nothing. A second signal does not undo what the first has begun."""

    def ignored_then_asked() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        send_at("attached", signal.SIGHUP, tmp_path)
        send_at("interval", signal.SIGTERM, tmp_path)
        send_at("write", signal.SIGTERM, tmp_path)

    options = ("capture", tap.name, "-d", "5m", "-o", str(tmp_path / "made"))
    ended = forked(*options, folder=tmp_path, before=ignored_then_asked)
    assert (problem(ended, "count", signal.SIGTERM), folder_problem(tmp_path / "made", ended)) == ("", "")
    assert len(list(tmp_path.glob("sent-*"))) == 3
    assert load(tmp_path / "made").readings()[0].duration_ns > 10**8  # an interval, which SIGHUP did not cut short


@pytest.mark.parametrize("arguments", ["watch tap0 --interval 50ms", "capture tap0 -d 5m -o made"])
def test_a_terminal_that_vanishes(arguments: str, tap: Tap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with an ssh session that drops; the shell sends SIGHUP. A capture is whole, and nothing stays attached."""
    monkeypatch.chdir(tmp_path)
    before = settings()
    with terminal() as held:
        changes = {"TERM": "xterm"}
        with job(*arguments.split(), out=held.write, err=held.write, folder=tmp_path, changes=changes) as running:
            held.close("write")
            running.wait_for(lambda: is_attached(running.process.pid))
            held.close("read")
            running.process.send_signal(signal.SIGHUP)
            code = running.process.wait(60)
    assert code == (0 if "capture" in arguments else 1)  # what was to be shown is lost
    if "capture" in arguments:
        assert load(tmp_path / "made").manifest.complete
    assert settings() == before


def is_attached(pid: int) -> bool:
    """Whether it holds links of BPF programs."""
    return "bpf_link" in subprocess.run(["ls", "-l", f"/proc/{pid}/fd"], capture_output=True, text=True).stdout
