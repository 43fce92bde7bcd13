# SPDX-License-Identifier: Apache-2.0
"""scripts/lab/vm-tests and scripts/test: what failed on a stock kernel, or natively beside one, runs once more, alone.

Real but for the boot; of scripts/test, but for setup, lint and types, too.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
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
    shutil.copy(SCRIPTS / "lab" / "vm-tests", lab)
    instead = tmp_path / "scripts" / "vm"
    instead.write_text(NO_GUEST.format(python=shlex.quote(sys.executable)))
    instead.chmod(0o755)
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    for name, text in {"first": TESTS, "always": ALWAYS, "later": LATER}.items():
        (tmp_path / f"test_{name}.py").write_text(text)
    return tmp_path


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """One with scripts/test, where all but pytest is well; tests are written into its `tests`."""
    nothing, python = "#!/bin/sh\n", f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n'
    tools = {f".venv/bin/{name}": nothing for name in ("ruff", "mypy", "shellcheck")}
    places = {"scripts/setup": nothing, "scripts/lab/vm-tests": nothing, **tools, ".venv/bin/python": python}
    own = {f"tests/system/test_{name}.py": LATER for name in ("real_guest", "command")}
    for place, text in {**places, **own}.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(text)
        (tmp_path / place).chmod(0o755)
    shutil.copy(SCRIPTS / "test", tmp_path / "scripts")
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\ntestpaths = ["tests"]\n')
    return tmp_path


def run(checkout: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    """vm-tests on one kernel with `tests`."""
    return script(checkout, "scripts/lab/vm-tests", "-k", "6.1", *tests)


def script(checkout: Path, name: str, *options: str) -> subprocess.CompletedProcess[str]:
    """One of its scripts."""
    command = [str(checkout / name), *options]
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


def test_natively_what_failed_at_first_may_pass(whole: Path) -> None:
    (whole / "tests" / "test_first.py").write_text(TESTS)
    (whole / "tests" / "test_later.py").write_text(LATER)
    done = script(whole, "scripts/test", "--vm")
    assert done.returncode == 0, done.stdout + done.stderr
    first, again = done.stdout.split("== virtual machine 5.10\n")
    assert "1 failed, 2 passed" in first
    assert "== pytest: some failed, to be repeated" in first
    assert "== pytest, what failed: passed" in again
    assert "1 passed in" in again.partition("== virtual machines")[0]


def test_commands_that_failed_at_first_may_pass(whole: Path) -> None:
    """They run beside the others, with a list of failures for themselves."""
    (whole / "tests" / "test_later.py").write_text(LATER)
    (whole / "tests" / "system" / "test_first.py").write_text(TESTS)
    done = script(whole, "scripts/test", "--vm")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "== pytest, commands: some failed, to be repeated" in done.stdout
    assert "== commands, what failed: passed" in done.stdout
    assert "== pytest, what failed" not in done.stdout


def test_commands_that_fail_twice_have_failed(whole: Path) -> None:
    (whole / "tests" / "test_later.py").write_text(LATER)
    (whole / "tests" / "system" / "test_always.py").write_text(ALWAYS)
    done = script(whole, "scripts/test", "--vm")
    assert done.returncode == 1
    assert re.fullmatch("FAILED after [0-9]+ s: commands, what failed", done.stdout.splitlines()[-1])


def test_named_tests_run_at_once(whole: Path) -> None:
    (whole / "tests" / "test_later.py").write_text(LATER)
    done = script(whole, "scripts/test", "--vm", "tests/test_later.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "== pytest, commands" not in done.stdout
    assert "1 passed" in done.stdout


def test_natively_what_fails_twice_has_failed(whole: Path) -> None:
    (whole / "tests" / "test_always.py").write_text(ALWAYS)
    done = script(whole, "scripts/test", "--vm")
    assert done.returncode == 1
    assert re.fullmatch("FAILED after [0-9]+ s: pytest, what failed", done.stdout.splitlines()[-1])


def test_what_did_not_fail_is_not_repeated(whole: Path) -> None:
    (whole / "tests" / "test_later.py").write_text(LATER)
    done = script(whole, "scripts/test", "--vm")
    assert done.returncode == 0
    assert "what failed" not in done.stdout
