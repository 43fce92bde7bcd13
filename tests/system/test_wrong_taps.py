# SPDX-License-Identifier: Apache-2.0
"""A tap that can't be watched: which one, why, and what to do next; exit 1."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from command_kit import assert_is_error, run

from vifprobe.testing.net.netns import private_netns
from vifprobe.testing.net.taps import create_tap
from vifprobe.testing.net.taps import tap as make_tap

NAME = "tap5eedf00d-5f"
#: Each with the options that it can't do without.
COMMANDS = {"watch": [], "capture": ["-d", "1s", "-o", "never-made"]}


@contextmanager
def someone() -> Iterator[int]:
    """The pid of a process in the calling thread's namespace."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        yield process.pid


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("netns")
def test_an_unknown_tap_is_told_the_nearest(command: str) -> None:
    with make_tap(NAME):
        ended = run(command, "tap5eedf00d-5e", *COMMANDS[command])
    assert_is_error(ended, 1, "tap5eedf00d-5e: no such interface", f"closest name is {NAME}", "vifprobe taps")


@pytest.mark.usefixtures("netns")
def test_of_several_taps_the_wrong_one_is_named() -> None:
    with make_tap(NAME), make_tap("tap2"):
        ended = run("watch", NAME, "nothing-like-it", "tap2")
    assert_is_error(ended, 1, "nothing-like-it: no such interface")
    assert f"{NAME}:" not in ended.err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tap5eedf00d-5ffb", ["16 bytes", "at most 15"]),
        ("tap\x1b[31m", ["'tap\\x1b[31m'", "can't be printed"]),
        ("tap\n0", ["'tap\\n0'", "can't be printed"]),
        ("tap 0", ["'tap 0'", "contains a space"]),
        ("../tap0", ["../tap0", "'/'"]),
        ("", ["empty"]),
    ],
)
@pytest.mark.usefixtures("netns")
def test_what_can_be_no_name_is_shown_safely(name: str, words: list[str]) -> None:
    ended = run("watch", name)
    assert_is_error(ended, 1, *words)
    assert "\x1b" not in ended.err


@pytest.mark.usefixtures("netns")
def test_a_device_without_ethernet_headers_is_refused() -> None:
    assert_is_error(run("watch", "lo"), 1, "lo: a loopback device", "Ethernet")


@pytest.mark.usefixtures("netns")
def test_a_tap_in_another_namespace_is_found_there() -> None:
    """The error names a process that is in it, and naming that process works."""
    with ExitStack() as stack:
        other = stack.enter_context(private_netns(enter=False))
        with other.entered():
            stack.enter_context(make_tap("tap-elsewhere"))
            pid = stack.enter_context(someone())
        ended = run("watch", "tap-elsewhere")
        again = run("watch", "tap-elsewhere", "--netns", str(pid), "--duration", "50ms")
    assert_is_error(ended, 1, "tap-elsewhere: no such interface", f"--netns {pid}")
    assert again.code == 0, again


@pytest.mark.usefixtures("netns")
def test_a_namespace_that_is_none() -> None:
    assert_is_error(run("watch", "tap0", "--netns", "no-such-namespace"), 1, "no-such-namespace: no such network")
    assert_is_error(run("watch", "tap0", "--netns", "/dev/null"), 1, "/dev/null is not a network namespace")


@pytest.mark.usefixtures("netns")
def test_a_tap_that_is_down_can_be_watched() -> None:
    """A VM that is still to come."""
    with create_tap("tap0"):
        assert run("watch", "tap0", "--duration", "50ms").code == 0
