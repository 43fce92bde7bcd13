# SPDX-License-Identifier: Apache-2.0
"""What root takes from other users: no program, no directory and no setting that they can change."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vifprobe.errors import KernelError, UsageError
from vifprobe.host.ovs import meters
from vifprobe.host.ovs.ports import OvsInterface
from vifprobe.kernel.toolchain import compiler
from vifprobe.process import children
from vifprobe.process.caller import foreign_caller, setting
from vifprobe.process.trust import open_trusted, problem

NOBODY = 65534

Require = Callable[[str, object, str], None]
pytestmark = pytest.mark.usefixtures("_root")


@pytest.fixture
def _root(require: Require, monkeypatch: pytest.MonkeyPatch) -> None:
    require("kernel", os.geteuid() == 0, "files of several users: root")
    for name in ("SUDO_UID", "PKEXEC_UID", "DOAS_USER"):
        monkeypatch.delenv(name, raising=False)


def _plain(place: Path) -> None:
    """Root's own, all the way."""


def _mode(mode: int) -> Callable[[Path], None]:
    return lambda place: place.chmod(mode)


def _owner(uid: int, gid: int = 0) -> Callable[[Path], None]:
    return lambda place: os.chown(place, uid, gid)


def _shared_with(gid: int) -> Callable[[Path], None]:
    def share(place: Path) -> None:
        os.chown(place, 0, gid)
        place.chmod(0o775)

    return share


def _linked(uid: int) -> Callable[[Path], None]:
    def link(place: Path) -> None:
        target = place.with_name("target")
        place.rename(target)
        place.symlink_to("../a/./target" if place.name == "b" else target)
        os.chown(place, uid, uid, follow_symlinks=False)

    return link


#: What is done to a directory -> whether a file below it is trusted, and whether the directory itself is.
CHANGES: dict[str, tuple[Callable[[Path], None], bool, bool]] = {
    "plain": (_plain, True, True),
    "all may write": (_mode(0o777), False, False),
    "only others may write": (_mode(0o702), False, False),
    "another user's": (_owner(NOBODY), False, False),
    "group root may write": (_shared_with(0), True, True),
    "another group may write": (_shared_with(NOBODY), False, False),
    "a group that is not known may write": (_shared_with(54321), False, False),
    # As /tmp: nobody else can take away what root has there, but anybody can add to it.
    "sticky": (_mode(0o1777), True, False),
    "root's link": (_linked(0), True, True),
    "another user's link": (_linked(NOBODY), False, False),
}


@pytest.mark.parametrize("depth", ["a", "a/b", "a/b/c"])
@pytest.mark.parametrize("kind", CHANGES)
def test_every_component_counts(tmp_path: Path, kind: str, depth: str) -> None:
    change, trusted_below, trusted_itself = CHANGES[kind]
    file = tmp_path / "a/b/c/file"
    file.parent.mkdir(parents=True)
    file.write_text("x")
    assert problem(file) == ""
    change(tmp_path / depth)
    assert (problem(file) == "") is trusted_below
    assert (problem(tmp_path / depth) == "") is trusted_itself
    if not trusted_below:
        assert depth.rpartition("/")[2] in problem(file)  # it is named


def test_somebody_elses_file_in_a_sticky_directory_is_not_trusted(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    file = tmp_path / "file"
    file.write_text("x")
    assert problem(file) == ""
    os.chown(file, NOBODY, NOBODY)
    assert "everybody" in problem(file)


def test_a_link_at_the_end_and_a_circle_of_links(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "file").write_text("x")
    os.close(open_trusted(tmp_path / "link"))
    with pytest.raises(PermissionError, match="is a link"):
        open_trusted(tmp_path / "link", may_be_link=False)
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(PermissionError, match="is a link"):
        open_trusted(tmp_path / "one")
    with pytest.raises(FileNotFoundError):
        open_trusted(tmp_path / "none/at/all")


def test_no_fd_is_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for place in (tmp_path, tmp_path / "none", Path("/etc/../usr/bin")):
        try:
            os.close(open_trusted(place))
        except OSError:
            continue
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_programs_are_found_in_trusted_directories_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("env", "ovs-ofctl"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    assert children.program("env") in ("/usr/bin/env", "/bin/env")
    assert children.program("no-such-program") is None
    monkeypatch.setattr(children, "DIRECTORIES", (str(tmp_path), "/usr/bin", "/bin"))
    assert children.program("env") == str(tmp_path / "env")
    tmp_path.chmod(0o777)
    assert children.program("env") in ("/usr/bin/env", "/bin/env")


def test_a_child_gets_nothing_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ovs-ofctl that writes down what it gets."""
    (tmp_path / "ovs-ofctl").write_text(f"#!/bin/sh\n{{ pwd; env; }} > {tmp_path}/seen\n")
    (tmp_path / "ovs-ofctl").chmod(0o755)
    monkeypatch.setattr(children, "DIRECTORIES", (str(tmp_path),))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/somewhere")
    meters.meters_of(OvsInterface("tap0", bridge="br-int", ofport=7))
    folder, *seen = (tmp_path / "seen").read_text().splitlines()
    assert folder == "/"
    given = {f"{name}={value}" for name, value in children.ENVIRONMENT.items()}
    assert given <= set(seen) <= given | {"PWD=/", "SHLVL=0", "SHLVL=1", "OLDPWD=/", "_=/usr/bin/env"}


@pytest.mark.parametrize("caller", ["SUDO_UID=1000", "PKEXEC_UID=1000", "DOAS_USER=alice"])
@pytest.mark.parametrize("name", ["VIFPROBE_COMPILER", "VIFPROBE_CACHE"])
def test_settings_of_another_user_are_refused(caller: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "/etc")
    assert setting(name) == "/etc"
    monkeypatch.setenv(*caller.split("="))
    with pytest.raises(UsageError, match=f"{name}=/etc.*{caller}"):
        setting(name)
    monkeypatch.setenv(name, "")
    assert setting(name, "/var/cache/vifprobe") == ""


@pytest.mark.parametrize("caller", ["SUDO_UID=0", "SUDO_UID=", "DOAS_USER=root"])
def test_root_who_becomes_root_is_root(caller: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(*caller.split("="))
    assert foreign_caller() == ""


@pytest.mark.parametrize("kind", ["relative", "another user's", "absent"])
def test_a_compiler_that_others_can_change_is_not_run(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "compiler"
    program.write_text(f"#!/bin/sh\n: > {tmp_path}/ran\n")
    program.chmod(0o755)
    if kind == "another user's":
        os.chown(program, NOBODY, NOBODY)
    monkeypatch.chdir(tmp_path)
    value = {"relative": "./compiler", "another user's": str(program), "absent": str(tmp_path / "none")}[kind]
    monkeypatch.setenv(compiler.VARIABLE, value)
    with pytest.raises(KernelError, match=f"{compiler.VARIABLE}={value}: not run"):
        compiler.compile_apart("", tmp_path, [])
    assert not (tmp_path / "ran").exists()
