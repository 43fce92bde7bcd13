# SPDX-License-Identifier: Apache-2.0
"""The live screen in a real terminal (tmux), as a person sees it, and what is left there after it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_kit import COMMAND, DEADLINE_SECONDS, environment

from vifprobe.testing.net.links import nft_ingress_limit
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.packets import frames as f
from vifprobe.testing.traffic.flood import flood
from vifprobe.testing.waiting import wait_until

Require = Callable[[str, object, str], None]

SYN = f.eth(f.ipv4(f.tcp(f.TcpFlag.SYN)), f.EtherType.IPV4)
#: Select Graphic Rendition with a foreground or background colour, as `capture-pane -e` gives it back.
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[;\dm]")
DONE = "ended with"


@dataclass(frozen=True)
class Terminal:
    """A terminal with a shell line running in it."""

    socket: Path

    def text(self, *options: str) -> str:
        """What is on it."""
        return self._tmux("capture-pane", "-p", *options)

    def wait_for(self, *words: str) -> str:
        """The screen, once all words are on it."""

        def there() -> str:
            text = self.text()
            return text if all(word in text for word in words) else ""

        try:
            return wait_until(there, DEADLINE_SECONDS)
        except TimeoutError as error:
            raise AssertionError(f"{words} never came up on\n{self.text()}") from error

    def press(self, key: str) -> None:
        """A key, as tmux names it."""
        self._tmux("send-keys", key)

    def resize(self, columns: int, lines: int) -> None:
        """Another size."""
        self._tmux("resize-window", "-x", str(columns), "-y", str(lines))

    def _tmux(self, *arguments: str) -> str:
        command = ["tmux", "-S", str(self.socket), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout


Open = Callable[..., Terminal]


@pytest.fixture
def terminal(tmp_path_factory: pytest.TempPathFactory, require: Require) -> Iterator[Open]:
    """Opens a terminal that runs `vifprobe ARGUMENTS...`, then tells how that ended, and stays."""
    require("tmux", shutil.which("tmux"), "tmux is not installed")
    # A server of its own. A socket's path can't be long, and pytest's folders are.
    socket = Path(f"/tmp/vifprobe-tmux-{os.getpid()}")  # noqa: S108 - one server at a time, and gone after the test

    def opened(*arguments: str, columns: int = 80, lines: int = 24, **changes: str) -> Terminal:
        line = f"{shlex.join([*COMMAND, *arguments])}; echo {DONE} $?; exec cat"
        size = ["-x", str(columns), "-y", str(lines)]
        env = environment(LANG="C.UTF-8", LC_ALL="C.UTF-8", **changes)
        # -f: not the settings of who runs the tests.
        server = ["tmux", "-S", str(socket), "-f", "/dev/null", "-u"]
        subprocess.run([*server, "new-session", "-d", *size, line], check=True, env={**env, "TERM": "screen-256color"})
        return Terminal(socket)

    try:
        yield opened
    finally:
        subprocess.run(["tmux", "-S", str(socket), "kill-server"], check=False, capture_output=True)
        socket.unlink(missing_ok=True)


@contextmanager
def limited(tap: Tap) -> Iterator[None]:
    """A limit that a few hundred SYNs a second exceed."""
    with nft_ingress_limit(tap.name, rate_bytes_per_second=40 * 101, burst_bytes=40 * 11):
        yield


def send(tap: Tap) -> None:
    """Half a second of SYNs."""
    flood([tap.fd], [SYN], count=5003, seconds=20, packets_per_second=10_007)


def test_the_screen_tells_what_happens_and_stays_after_the_end(tap: Tap, terminal: Open) -> None:
    with limited(tap):
        shown = terminal("watch", tap.name, "--interval", "200ms")
        shown.wait_for("Ctrl-C ends", "NO TRAFFIC")
        send(tap)
        live = shown.wait_for("tcp_syn", "policed", "Ctrl-C ends")
        shown.press("C-c")
        ended = shown.wait_for(f"{DONE} 0")
    assert tap.name in live.splitlines()[0]
    assert "outbound" in live.splitlines()[0]
    assert max(map(len, live.splitlines())) <= 80
    assert "verdicts from the kernel" in ended
    assert "Ctrl-C ends" not in ended
    assert "Traceback" not in shown.text("-S", "-200")


@pytest.mark.parametrize(("columns", "lines"), [(60, 20), (100, 30), (132, 50)])
def test_it_fits_the_terminal(columns: int, lines: int, tap: Tap, terminal: Open) -> None:
    """No line is wrapped, the first line is the title, and the last one says how to end it."""
    with limited(tap):
        shown = terminal("watch", tap.name, "--interval", "200ms", columns=columns, lines=lines)
        shown.wait_for("Ctrl-C ends")
        send(tap)
        live = shown.wait_for("tcp_syn", "Ctrl-C ends").rstrip("\n").splitlines()
    assert live[0].startswith(tap.name)
    assert len(live) <= lines
    assert "Ctrl-C ends" in live[-1]
    assert max(map(len, live)) <= columns


def test_it_follows_a_new_size(tap: Tap, terminal: Open) -> None:
    shown = terminal("watch", tap.name, "--interval", "100ms", columns=120, lines=40)
    shown.wait_for("Ctrl-C ends")
    shown.resize(70, 22)
    send(tap)

    def fits() -> bool:
        live = shown.text().rstrip("\n").splitlines()
        return len(live) <= 22 and live[0].startswith(tap.name) and "Ctrl-C ends" in live[-1] and "tcp_syn" in str(live)

    wait_until(fits, DEADLINE_SECONDS)


def test_colour_is_for_terminals_and_no_color_is_honoured(tap: Tap, terminal: Open) -> None:
    with limited(tap):
        shown = terminal("watch", tap.name, "--interval", "100ms", "--duration", "1s")
        send(tap)
        shown.wait_for(f"{DONE} 0")
        assert COLOUR.search(shown.text("-e", "-S", "-200"))


def test_no_color(tap: Tap, terminal: Open) -> None:
    with limited(tap):
        shown = terminal("watch", tap.name, "--interval", "100ms", "--duration", "1s", NO_COLOR="1")
        send(tap)
        shown.wait_for(f"{DONE} 0")
        assert not COLOUR.search(shown.text("-e", "-S", "-200"))


def test_a_tap_that_is_deleted_gives_the_terminal_back(tap: Tap, terminal: Open) -> None:
    shown = terminal("watch", tap.name, "--interval", "200ms")
    shown.wait_for("Ctrl-C ends")
    subprocess.run(["ip", "link", "delete", tap.name], check=True)
    shown.wait_for(f"{DONE} 1", f"{tap.name}: deleted while it was watched")


def test_capture_shows_a_bar_and_a_summary(tap: Tap, terminal: Open, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("c") / "o"
    shown = terminal("capture", tap.name, "-d", "3s", "-o", str(folder), lines=50)
    shown.wait_for("capturing", "of 3 s")
    send(tap)
    ended = shown.wait_for(f"{DONE} 0", "tcp_syn")
    assert "capturing" not in ended
    assert "Traceback" not in ended
