# SPDX-License-Identifier: Apache-2.0
"""The live screen on a real (pseudo) terminal: whatever ends it, the terminal is as before."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import render_kit as kit

from vifprobe.render.text.screen import LiveScreen

ENTER, LEAVE, SHOW_CURSOR = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25h"
DEADLINE_SECONDS = 30.0

PROGRAM = """
import select, signal, sys
import render_kit as kit
from vifprobe.render.text.screen import LiveScreen
how = sys.argv[1]
with LiveScreen(sys.stdout, {kit.TAP: kit.CONTEXT}) as screen:
    for number in range(3):
        screen.update([kit.at(number)])
    if how == "error":
        raise RuntimeError("boom")
    while how in ("SIGTERM", "SIGINT"):
        select.select([], [], [], 0.1)  # signal.pause() would sleep through one that comes right before it
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
"""


def run_on_terminal(how: str, **environment: str) -> tuple[str, int]:
    """What the program wrote to its terminal, and how it ended; a signal is sent once it has drawn."""
    ours, theirs = pty.openpty()
    here = Path(__file__).parent
    env = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": f"{here}:{here.parents[2]}", **environment}
    env = {"PYTHONIOENCODING": "utf-8", "COLUMNS": "80", "LINES": "24", **env}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, how], stdout=theirs, stderr=theirs, stdin=theirs, env=env
    )
    os.close(theirs)
    seen, sent, deadline = b"", False, time.monotonic() + DEADLINE_SECONDS
    try:
        while time.monotonic() < deadline:
            if not select.select([ours], [], [], 0.1)[0]:
                continue
            try:
                seen += os.read(ours, 65536)
            except OSError:  # EIO: the other side is closed
                break
            if how.startswith("SIG") and not sent and b"ran 3 s" in seen:
                process.send_signal(signal.Signals[how])
                sent = True
        return seen.decode(), process.wait(timeout=DEADLINE_SECONDS)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.parametrize(("how", "code"), [("end", 0), ("error", 1), ("SIGTERM", 143), ("SIGINT", -signal.SIGINT)])
def test_the_terminal_is_restored_and_the_last_screen_stays(how: str, code: int) -> None:
    text, ended = run_on_terminal(how)
    assert ended == code, text
    assert text.count(ENTER) == 1
    assert text.count(LEAVE) == 1
    live, _, after = text.partition(LEAVE)
    assert "Ctrl-C ends" in live
    assert "Ctrl-C ends" not in after
    assert "LIMIT HOLDS" in after
    assert "ran 3 s" in after
    assert SHOW_CURSOR in text
    assert text.rindex(SHOW_CURSOR) > text.rindex("\x1b[?25l")


def test_no_color_is_honoured() -> None:
    text, _ = run_on_terminal("end", NO_COLOR="1")
    assert "LIMIT HOLDS" in text
    assert not any(f";{code}m" in text or f"[{code}m" in text for code in range(30, 38))


def test_a_dumb_terminal_gets_no_alternate_screen() -> None:
    text, ended = run_on_terminal("end", TERM="dumb")
    assert ended == 0
    assert "\x1b" not in text
    assert "LIMIT HOLDS" in text


def test_what_is_no_terminal_gets_the_last_screen_alone() -> None:
    stream = io.StringIO()
    handler = signal.getsignal(signal.SIGTERM)
    with LiveScreen(stream, {kit.TAP: kit.CONTEXT}) as screen:
        for number in range(5):
            screen.update([kit.at(number)])
        assert signal.getsignal(signal.SIGTERM) is handler
        assert stream.getvalue() == ""
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().count("LIMIT HOLDS") == 1
    assert "ran 5 s" in stream.getvalue()
