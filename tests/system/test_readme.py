# SPDX-License-Identifier: Apache-2.0
"""The commands and the Python example of README.md, run as they stand there, on a tap of a private namespace."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_kit import run

from vifprobe.cli import COMMANDS
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.packets.recording import pcap_bytes

README = (Path(__file__).parents[2] / "README.md").read_text()
TAP = "tap834d76e9-5f"
#: How long a live run lasts here, in the place of Ctrl-C or what README says.
SHORT = "300ms"


def commands() -> list[list[str]]:
    """Arguments of each vifprobe command, in code blocks and inline, in the order in which README shows them."""
    inline = re.findall(r"`(?:sudo )?vifprobe ([^`]+)`", README)
    code = "\n".join(re.findall(r"^```\n(.*?)^```", README, re.MULTILINE | re.DOTALL))
    blocks = re.findall(r"^(?:sudo )?vifprobe ([^#\n]+)", code, re.MULTILINE)
    return [shlex.split(line) for line in (*blocks, *inline)]


def on(tap: Tap, arguments: list[str]) -> list[str]:
    """The same on this tap, and short."""
    found = [tap.name if one in (TAP, "TAP") else one for one in arguments]
    if arguments[0] == "watch":
        return [*found, "--duration", SHORT]
    return [SHORT if before == "-d" else one for before, one in zip(["", *found], found, strict=False)]


def test_each_command_of_readme_works_as_typed(tap: Tap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an order in which each finds the folders and the recording that it names."""
    shown = commands()
    assert {arguments[0] for arguments in shown} >= {"doctor", "taps", "watch", "policer", "capture", "report", "diff"}
    assert {arguments[0] for arguments in shown} <= set(COMMANDS)
    monkeypatch.chdir(tmp_path)
    first = [arguments for arguments in shown if arguments[0] == "capture"]
    for arguments in [*first, *(one for one in shown if one not in first)]:
        if arguments[0] == "replay":
            (tmp_path / "flood.pcapng").write_bytes(pcap_bytes([(1, bytes(60))]))
        if arguments[0] == "diff":
            for name in ("before", "after"):
                shutil.copytree(tmp_path / "evidence", tmp_path / name, dirs_exist_ok=True)
        if arguments[0] == "capture":
            shutil.rmtree(tmp_path / "evidence", ignore_errors=True)
        if arguments[0] == "report":
            (tmp_path / "evidence.html").unlink(missing_ok=True)
        ended = run(*on(tap, arguments))
        assert ended.code == 0, (arguments, ended)


def test_each_option_that_readme_names_is_one() -> None:
    """Also those that stand without their command."""
    known = set(re.findall(r"--[a-z-]+", "".join(run(command, "--help").out for command in COMMANDS)))
    others = {"--system-site-packages", "--no-network"}
    text = README.replace("scripts/setup --dev", "")
    named = set(re.findall(r"`[^`\n]*?(--[a-z-]+)", text)) | set(re.findall(r"vifprobe [^`\n]*?(--[a-z-]+)", text))
    assert named - known - others == set()


def test_the_example_for_a_notebook_works(tap: Tap, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert run("capture", tap.name, "-d", SHORT, "-o", str(tmp_path / "evidence")).code == 0
    short = code.replace('"tap0"', f'"{tap.name}"').replace("seconds=1, duration_seconds=10", "0.1, 0.3")
    assert "0.1, 0.3" in short
    told = subprocess.run([sys.executable, "-c", short], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert told.returncode == 0, told.stderr
    assert [int(line) for line in told.stdout.split()]
