# SPDX-License-Identifier: Apache-2.0
"""Files that another user has put where root's command comes past: none of them runs, whatever the command.

Each planted file writes its name into a folder. Left out is what Python looks for before any line of vifprobe runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_kit import DEADLINE_SECONDS, assert_is_error, environment, run

from vifprobe.cli import COMMANDS
from vifprobe.process.trust import PACKAGE
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.packets import frames as f
from vifprobe.testing.packets.recording import pcap_bytes

NOBODY = 65534
SYN = f.eth(f.ipv4(f.tcp(f.TcpFlag.SYN)), f.EtherType.IPV4)
#: Modules of vifprobe's commands and its compiler, none of which Python itself needs to start.
MODULES: tuple[str, ...] = (
    "json",
    "numpy",
    "click",
    "rich",
    "bcc",
    "ctypes",
    "subprocess",
    "typing",
    "contextlib",
    "dataclasses",
)
MODULES += ("__future__", "pathlib", "shlex", "base64", "tempfile", "concurrent", "xml", "jinja2", "matplotlib", "pwd")
AT_START = ("sitecustomize", "usercustomize", "vifprobe", "runpy")
PROGRAMS = ("ovs-ofctl", "ovs-vsctl", "virsh", "tc", "nft", "ip", "clang", "ld", "python3", "python", "uname", "mktemp")


@dataclass(frozen=True)
class Plot:
    """folder: another user's, full of such files. markers: where those that ran have left their name."""

    folder: Path
    markers: Path

    @property
    def ran(self) -> list[str]:
        return sorted(path.name for path in self.markers.iterdir())

    def plant_modules(self, place: Path, names: tuple[str, ...]) -> None:
        """Every other one as a package."""
        place.mkdir(parents=True, exist_ok=True)
        for number, name in enumerate(names):
            text = f"import os\nopen({str(self.markers / name)!r} + f'-{{os.getpid()}}', 'w').close()\n"
            if number % 2:
                (place / name).mkdir()
                (place / name / "__init__.py").write_text(text)
            else:
                (place / f"{name}.py").write_text(text)

    def unplant_module(self, name: str) -> None:
        """What `python -m` itself looks for can't be helped."""
        for path in (self.folder / f"{name}.py", self.folder / name):
            if path.exists():
                path.rename(path.with_name(f"not {path.name}"))

    def environment(self, **changes: str) -> dict[str, str]:
        """Everything that says where code is found leads to the folder."""
        here = str(self.folder)
        names = ("PYTHONPATH", "PYTHONUSERBASE", "TMPDIR", "LD_LIBRARY_PATH", "BCC_KERNEL_SOURCE", "XDG_CONFIG_HOME")
        hostile = dict.fromkeys((*names, "MPLCONFIGDIR"), here)
        path = f"{here}:{os.environ['PATH']}"
        return {**environment(), **hostile, "PATH": path, "HOME": here, "MPLBACKEND": "module://json", **changes}


@pytest.fixture
def plot(tmp_path: Path) -> Plot:
    made = Plot(tmp_path / "theirs", tmp_path / "markers")
    made.markers.mkdir()
    made.plant_modules(made.folder, MODULES)
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    made.plant_modules(made.folder / ".local/lib" / version / "site-packages", MODULES)
    for name in PROGRAMS:
        (made.folder / name).write_text(f"#!/bin/sh\n: > {made.markers / name}\n")
        (made.folder / name).chmod(0o755)
    (made.folder / "libbpf.so.1").write_text("no library: who opens it fails")
    for path in (made.folder, *made.folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    made.markers.chmod(0o777)
    return made


def _script(folder: Path, isolated: bool) -> list[str]:
    """The script that pip makes; isolated: as scripts/setup changes it."""
    script = folder / "vifprobe"
    script.write_text("import sys\nfrom vifprobe.__main__ import main\nsys.exit(main())\n")
    return [sys.executable, *(["-I"] if isolated else []), str(script)]


def _by_setup(plot: Plot, folder: Path) -> tuple[list[str], dict[str, str]]:
    """The command that scripts/setup makes, started by another user with all of his environment (sudo -E)."""
    plot.plant_modules(plot.folder, AT_START)
    return _script(folder, isolated=True), plot.environment(SUDO_UID=str(NOBODY))


def _by_pip(plot: Plot, folder: Path) -> tuple[list[str], dict[str, str]]:
    """pip's own script, started likewise: what Python looks for at its start is not planted."""
    return _script(folder, isolated=False), plot.environment(SUDO_UID=str(NOBODY))


def _by_root(plot: Plot, folder: Path) -> tuple[list[str], dict[str, str]]:
    """`python -m vifprobe` by root himself, in another user's folder, which his variables lead to as well."""
    listed = "import sys, runpy; print(*sys.modules)"
    by_python = subprocess.run([sys.executable, "-I", "-c", listed], capture_output=True, text=True, check=True)
    for name in set(by_python.stdout.split()) & set(MODULES):
        plot.unplant_module(name)
    changes = {"LD_LIBRARY_PATH": "", "BCC_KERNEL_SOURCE": str(plot.folder)}
    return [sys.executable, "-m", "vifprobe"], plot.environment(**changes)


def _commands(tap: Tap, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """A command line of each command, in an order in which one makes what another reads."""
    (folder / "syn.pcap").write_bytes(pcap_bytes([(1_613_692_801_000_000_007, SYN)]))
    capture, page = str(folder / "capture"), str(folder / "page.html")
    yield "watch", ["watch", tap.name, "--duration", "50ms", "--json"]
    yield "capture", ["capture", tap.name, "-d", "50ms", "-o", capture]
    yield "report", ["report", capture, "-o", page]
    yield "diff", ["diff", capture, capture]
    yield "replay", ["replay", str(folder / "syn.pcap")]
    yield "policer", ["policer", tap.name]
    yield "taps", ["taps"]
    yield "doctor", ["doctor"]
    yield "cleanup", ["cleanup"]
    yield "explain", ["explain", "P11"]


@pytest.mark.parametrize("start", [_by_setup, _by_pip, _by_root], ids=lambda start: start.__name__[1:])
def test_nothing_that_another_user_has_planted_runs(
    start: Callable[[Plot, Path], tuple[list[str], dict[str, str]]], plot: Plot, tap: Tap, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    command, variables = start(plot, own)
    tried = set()
    for name, arguments in _commands(tap, own):
        # Compiled each time by the first one: what was compiled before would hide the compiler.
        cache = {"VIFPROBE_CACHE": ""} if name == "watch" else {}
        done = _run([*command, *arguments], plot.folder, {**variables, **cache})
        assert (done.returncode, done.stderr) == (0, ""), (name, done)
        assert plot.ran == [], name
        tried.add(name)
    assert tried == set(COMMANDS)


@pytest.mark.parametrize("kind", ["package", "library"])
@pytest.mark.usefixtures("netns")
def test_code_that_everybody_can_write_is_not_run(kind: str, tmp_path: Path) -> None:
    """A copy of this package, or of a library of it, whose directory is not protected: said which, nothing is run."""
    shutil.copytree(PACKAGE, tmp_path / "vifprobe", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "click").mkdir()
    (tmp_path / "click" / "__init__.py").write_text("raise SystemExit('was imported')\n")
    exposed = tmp_path / {"package": "vifprobe", "library": "click"}[kind]
    exposed.chmod(0o777)
    variables = environment(PYTHONPATH=str(tmp_path))
    done = _run([sys.executable, "-m", "vifprobe", "taps"], tmp_path, variables)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: {exposed}: others can change what root would run: ")
    assert "everybody" in done.stderr
    assert "chmod go-w" in done.stderr


@pytest.mark.parametrize("name", ["VIFPROBE_CACHE", "VIFPROBE_COMPILER"])
def test_another_users_settings_are_refused(name: str, tap: Tap, tmp_path: Path) -> None:
    changes = {"VIFPROBE_CACHE": "", name: str(tmp_path), "SUDO_UID": str(NOBODY)}
    ended = run("watch", tap.name, "--duration", "50ms", **changes)
    assert_is_error(ended, 2, f"{name}={tmp_path}", f"SUDO_UID={NOBODY}", "Unset it")
    assert list(tmp_path.iterdir()) == []


def _run(command: list[str], folder: Path, variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
    )
