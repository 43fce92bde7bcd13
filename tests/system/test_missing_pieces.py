# SPDX-License-Identifier: Apache-2.0
"""Without what vifprobe needs from the host: which piece, and where it comes from; exit 1, and nothing is attached."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from command_kit import assert_is_error, run

Require = Callable[[str, object, str], None]

_SPEC = find_spec("bcc")
BCC = str(_SPEC.origin) if _SPEC else ""
MISSING = 'raise ModuleNotFoundError("No module named \'bcc\'", name="bcc")\n'


@pytest.fixture(autouse=True)
def _bcc(require: Require) -> None:
    require("kernel", BCC, "bcc (package python3-bpfcc)")


COMMANDS = [("watch", "tap0"), ("capture", "tap0", "-d", "1s", "-o", "never-made")]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize(
    ("kept", "missing"),
    [
        ("-all", ["CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON"]),
        ("-all,+net_admin", ["CAP_BPF", "CAP_PERFMON"]),
        ("-all,+bpf,+perfmon", ["CAP_NET_ADMIN"]),
    ],
)
@pytest.mark.usefixtures("tap")
def test_without_permission_the_missing_capability_is_named(
    command: tuple[str, ...], kept: str, missing: list[str], require: Require
) -> None:
    require("kernel", shutil.which("setpriv"), "setpriv (util-linux)")
    ended = run(*command, prefix=["setpriv", f"--bounding-set={kept}", "--inh-caps=-all"])
    assert_is_error(ended, 1, *missing, "sudo")
    assert {"CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON"} - set(missing) == {
        name for name in ("CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON") if name not in ended.err
    }


@pytest.mark.usefixtures("tap")
def test_the_capabilities_that_are_named_are_enough(require: Require) -> None:
    require("kernel", shutil.which("setpriv"), "setpriv (util-linux)")
    prefix = ["setpriv", "--bounding-set=-all,+net_admin,+bpf,+perfmon", "--inh-caps=-all"]
    ended = run("watch", "tap0", "--duration", "50ms", prefix=prefix)
    assert ended.code == 0, ended


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.usefixtures("tap")
def test_without_bcc_the_package_is_named_and_the_wrong_one_too(command: tuple[str, ...], tmp_path: Path) -> None:
    ended = run(*command, prefix=instead_of_bcc(tmp_path, MISSING), VIFPROBE_CACHE="")
    assert_is_error(ended, 1, "bcc", "python3-bpfcc", "python3-bcc", "PyPI", "Do not install", "--system-site-packages")


@pytest.mark.usefixtures("tap")
def test_the_wrong_bcc_is_recognised(tmp_path: Path) -> None:
    """PyPI's package of that name is another project, and hides the real one."""
    prefix = instead_of_bcc(tmp_path, "def compress(): ...\n")
    ended = run("watch", "tap0", prefix=prefix, VIFPROBE_CACHE="")
    assert_is_error(ended, 1, BCC, "PyPI", "python3-bpfcc", "pip uninstall bcc")


@pytest.mark.parametrize("arguments", [["--version"], ["watch", "--help"], ["doctor", "--help"]])
def test_what_needs_no_kernel_needs_no_bcc(arguments: list[str], tmp_path: Path) -> None:
    ended = run(*arguments, prefix=instead_of_bcc(tmp_path, MISSING))
    assert (ended.code, ended.err) == (0, "")


@pytest.mark.usefixtures("netns")
def test_doctor_tells_that_bcc_is_missing(tmp_path: Path) -> None:
    ended = run("doctor", prefix=instead_of_bcc(tmp_path, MISSING))
    assert ended.code == 1
    assert "python3-bpfcc" in ended.out
    assert "Traceback" not in ended.err, ended.err


def instead_of_bcc(tmp_path: Path, text: str) -> list[str]:
    """Start of a command for which the distribution's module `bcc` has this text: no other place is looked at."""
    replaced = tmp_path / "bcc.py"
    replaced.write_text(text)
    script = f'mount --bind {replaced} {BCC} && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh"]
