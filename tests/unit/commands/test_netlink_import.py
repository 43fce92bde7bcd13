# SPDX-License-Identifier: Apache-2.0
"""What a command imports: pyroute2 costs 0.1 s and 20 MB, and not every command has to ask the kernel over netlink."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command_kit import environment
from mutate_kit import write_folder

from vifprobe.cli import COMMANDS
from vifprobe.testing.net.netns import Netns

_SCRIPT = """
import sys
from vifprobe.__main__ import main
try:
    main()
except SystemExit:
    pass
print("imported" if "pyroute2" in sys.modules else "left out", file=sys.stderr)
"""


def pyroute2_is(*arguments: str) -> str:
    """`imported` or `left out`, after a command has run."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, *arguments], capture_output=True, text=True, check=True, env=environment()
    )
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), *((name, "--help") for name in COMMANDS)])
def test_help_imports_no_pyroute2(arguments: tuple[str, ...]) -> None:
    assert pyroute2_is(*arguments) == "left out"


@pytest.mark.parametrize("command", ["report", "diff"])
def test_what_reads_a_folder_imports_no_pyroute2(command: str, tmp_path: Path) -> None:
    folder = str(write_folder(tmp_path / "capture"))
    arguments = (folder, folder) if command == "diff" else (folder, "-o", str(tmp_path / "page.html"))
    assert pyroute2_is(command, *arguments) == "left out"
    assert command == "diff" or (tmp_path / "page.html").exists()


def test_what_asks_the_kernel_imports_it(netns: Netns) -> None:
    """The check above can fail."""
    assert pyroute2_is("taps") == "imported"
