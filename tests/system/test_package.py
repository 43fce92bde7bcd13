# SPDX-License-Identifier: Apache-2.0
"""What is installed without the checkout beside it: the programs' source and the licences are in the wheel."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from command_kit import COMMAND, DEADLINE_SECONDS, environment

from vifprobe.testing.net.taps import Tap

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel puts into site-packages."""
    pytest.importorskip("hatchling", reason="hatchling, which builds the wheel, is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=CHECKOUT, check=True, capture_output=True, timeout=DEADLINE_SECONDS)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_carries_every_source_of_the_programs(installed: Path) -> None:
    here = {path.relative_to(CHECKOUT / "bpf") for path in (CHECKOUT / "bpf").rglob("*") if path.is_file()}
    there = {path.relative_to(installed / "vifprobe/bpf") for path in (installed / "vifprobe/bpf").rglob("*.*")}
    assert {path for path in here if path.suffix in (".c", ".h")} <= there


def test_the_wheel_carries_the_page_that_explain_prints(installed: Path) -> None:
    page = (CHECKOUT / "docs/findings.md").read_text()
    assert (installed / "vifprobe/docs/findings.md").read_text() == page
    asked = [sys.executable, "-m", "vifprobe", "explain", "P11"]
    env = environment(PYTHONPATH=str(installed))
    told = subprocess.run(asked, cwd=installed, env=env, capture_output=True, text=True, check=True)
    assert told.stdout.startswith("P11 ")


def test_the_wheel_says_that_it_is_typed(installed: Path) -> None:
    assert (installed / "vifprobe/py.typed").exists()


def test_the_wheel_carries_both_licences(installed: Path) -> None:
    assert "GNU GENERAL PUBLIC LICENSE" in (installed / "vifprobe/bpf/LICENSE").read_text()
    (metadata,) = installed.glob("*.dist-info")
    assert "Apache License" in (metadata / "licenses/LICENSE").read_text()
    assert "License-Expression: Apache-2.0 AND GPL-2.0-only\n" in (metadata / "METADATA").read_text()


def test_it_compiles_and_watches_far_from_the_checkout(installed: Path, tap: Tap, tmp_path: Path) -> None:
    env = environment(PYTHONPATH=str(installed), VIFPROBE_CACHE="")
    command = [*COMMAND, "watch", tap.name, "--json", "--duration", "50ms"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=DEADLINE_SECONDS)
    assert (done.returncode, done.stderr) == (0, "")
    question = "from vifprobe.kernel.toolchain.source import source_directory; print(source_directory())"
    asked = [sys.executable, "-c", question]
    told = subprocess.run(asked, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert told.stdout == f"{installed / 'vifprobe/bpf'}\n"
