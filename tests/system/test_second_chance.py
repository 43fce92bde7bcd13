# SPDX-License-Identifier: Apache-2.0
"""scripts/lab/vm-tests: what failed on a stock kernel runs once more, alone. Real but for the boot."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "lab" / "vm-tests"
#: In place of scripts/vm: no guest, the command here, in the checkout, with the folder of results where it really is.
NO_GUEST = """#!/bin/bash
while [[ $1 != -- ]]; do [[ $1 != --results ]] || results=$2; shift; done
shift 2
export VIFPROBE_CACHE=
cd "$(dirname "$0")/.."
exec {python} "${{@//\\/run\\/vm\\/results/$results}}"
"""
TESTS = """
from pathlib import Path
import pytest

def test_good(): pass

@pytest.mark.parametrize("word", ["a word"])
def test_at_times(word):
    once = Path(__file__).with_suffix(".once")
    failed_before = once.exists()
    once.touch()
    assert failed_before
"""
ALWAYS = "def test_bad(): assert not 'good'\n"
LATER = "def test_other(): pass\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """One with the script and three files of tests."""
    lab = tmp_path / "scripts" / "lab"
    lab.mkdir(parents=True)
    shutil.copy(SCRIPT, lab)
    instead = tmp_path / "scripts" / "vm"
    instead.write_text(NO_GUEST.format(python=shlex.quote(sys.executable)))
    instead.chmod(0o755)
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    for name, text in {"first": TESTS, "always": ALWAYS, "later": LATER}.items():
        (tmp_path / f"test_{name}.py").write_text(text)
    return tmp_path


def run(checkout: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    """The script on one kernel with `tests`."""
    command = [str(checkout / "scripts" / "lab" / "vm-tests"), "-k", "6.1", *tests]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "VIFPROBE"))}
    environment["VIFPROBE_VM_CACHE"] = str(checkout / "cache")
    return subprocess.run(command, cwd=checkout, env=environment, text=True, capture_output=True, timeout=60)


def test_what_failed_at_first_may_pass_whatever_comes_after_it(checkout: Path) -> None:
    done = run(checkout, "test_first.py::test_good", "test_first.py::test_at_times[a word]", "test_later.py")
    assert done.returncode == 0, done.stdout + done.stderr
    first, again, last = done.stdout.splitlines()
    assert "1 failed, 2 passed" in first
    assert "run once more: FAILED test_first.py::test_at_times[a word]" in again
    assert "1 passed in" in last


def test_what_fails_twice_has_failed(checkout: Path) -> None:
    done = run(checkout, "test_first.py::test_good", "test_always.py", "test_later.py::test_other")
    assert done.returncode == 1
    assert "assert not 'good'" in done.stdout
    words = done.stdout.splitlines()
    assert words[-3].startswith("6.1: run once more: FAILED test_always.py::test_bad")
    assert "1 failed in" in words[-2]
    assert words[-1].startswith("FAILED on 6.1")
