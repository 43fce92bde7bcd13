# SPDX-License-Identifier: Apache-2.0
"""What every command answers before it touches the kernel: version, help, and what can't be meant."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command_kit import assert_is_error, environment, run

from vifprobe import __version__
from vifprobe.cli import COMMANDS


def test_the_module_tells_its_version() -> None:
    ended = run("--version")
    assert (ended.code, ended.out, ended.err) == (0, f"vifprobe, version {__version__}\n", "")


def test_the_installed_command_tells_the_same() -> None:
    script = Path(sys.executable).with_name("vifprobe")
    if not script.exists():
        pytest.skip(f"vifprobe is not installed in {script.parent}")
    told = subprocess.run([script, "--version"], capture_output=True, text=True, check=True, env=environment())
    assert told.stdout == f"vifprobe, version {__version__}\n"


#: They read a folder or a page, on any machine and as any user.
READERS = ("report", "diff", "explain")


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_names_every_command_with_an_example(option: str) -> None:
    ended = run(option)
    assert ended.code == 0
    assert "sudo vifprobe watch tap" in ended.out
    for command in COMMANDS:
        assert f"\n  {command} " in ended.out


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_an_example_for_80_columns(command: str) -> None:
    ended = run(command, "--help")
    assert ended.code == 0
    before, heading, after = ended.out.partition("Example:\n")
    assert heading, before
    root = "" if command in READERS else "sudo "
    assert after.lstrip().startswith(f"{root}vifprobe {command}")
    assert max(map(len, ended.out.splitlines())) <= 80


@pytest.mark.parametrize(("typed", "meant"), [("wacth", "watch"), ("captur", "capture"), ("tap", "taps")])
def test_a_mistyped_command_is_told_the_nearest(typed: str, meant: str) -> None:
    assert_is_error(run(typed, "tap0"), 2, repr(typed), f"`{meant}`")


def test_where_no_command_is_near_all_are_named() -> None:
    assert_is_error(run("zzz"), 2, "'zzz'", *COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("watch", ["TAP"]),
        ("watch tap0 --interval 5", ["--interval", "'5'", "500ms"]),
        ("watch tap0 --interval soon", ["--interval", "'soon'"]),
        ("watch tap0 --duration -3s", ["--duration", "'-3s'"]),
        ("watch tap0 --rate 100quick", ["--rate", "'100quick'", "100mbit"]),
        ("watch tap0 --rate 100mbit --burst much", ["--burst", "'much'"]),
        ("watch tap0 --burst 3125kb", ["--burst", "--rate"]),
        ("watch tap0 --direction sideways", ["--direction", "'sideways'", "outbound"]),
        ("watch tap0 --fail-on doom", ["--fail-on", "'doom'", "critical"]),
        ("watch tap0 --intervall 1s", ["--intervall", "--interval"]),
        ("capture tap0", ["--duration"]),
        ("capture tap0 -d 1s", ["--output"]),
        ("capture tap0 -d 1s -o made --bin 10us", ["--bin", "1ms"]),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(
    arguments: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 2, naming the option, the value and what would be right; and nothing is made or touched."""
    monkeypatch.chdir(tmp_path)
    assert_is_error(run(*arguments.split()), 2, *words)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_while_it_is_still_importing_is_no_traceback(tmp_path: Path) -> None:
    """Ctrl-C right after Enter: here it comes with the import of click."""
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    told = subprocess.run(
        [sys.executable, "-m", "vifprobe", "taps"],
        capture_output=True,
        text=True,
        env={**environment(), "PYTHONPATH": f"{tmp_path}:{environment().get('PYTHONPATH', '')}"},
    )
    assert (told.returncode, told.stdout, told.stderr) == (1, "", "Stopped.\n")


@pytest.mark.parametrize(("typed", "closest"), [("P111", "P11"), ("S9", "S1"), ("zzz", "P17")])
def test_an_unknown_code_is_told_the_closest(typed: str, closest: str) -> None:
    assert_is_error(run("explain", typed), 2, repr(typed), closest, "S6")
