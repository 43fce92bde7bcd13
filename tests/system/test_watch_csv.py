# SPDX-License-Identifier: Apache-2.0
"""The file of `watch --csv` (and of `report -o`): private, never through a link, never over another file."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_kit import assert_is_error, run
from stream_kit import job

from vifprobe.testing.net.taps import Tap
from vifprobe.testing.packets import frames as f
from vifprobe.testing.traffic.flood import flood
from vifprobe.testing.waiting import wait_until

SYN = f.eth(f.ipv4(f.tcp(f.TcpFlag.SYN)), f.EtherType.IPV4)
SHORT = ("--interval", "20ms", "--duration", "60ms")
HEADER = "at,tap,direction,start_ns,duration_ns,packet_class,verdict,packets"


@pytest.fixture
def umask_of_none() -> Iterator[None]:
    """The caller's umask keeps nothing from anybody."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask_of_none")
def test_the_file_is_private(tap: Tap, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    ended = run("watch", tap.name, *SHORT, "--csv", str(file))
    assert (ended.code, ended.err) == (0, "")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text().startswith(HEADER)


@pytest.mark.parametrize("force", [False, True])
def test_a_file_is_replaced_only_when_asked(force: bool, tap: Tap, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("an hour's work\n")
    ended = run("watch", tap.name, *SHORT, "--csv", str(file), *(["--force"] if force else []))
    if force:
        assert (ended.code, ended.err) == (0, "")
        assert file.read_text().startswith(HEADER)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    else:
        assert ended.code == 1
        assert ended.err.startswith(f"Error: {file}: file exists.\n")
        assert "--force" in ended.err
        assert file.read_text() == "an hour's work\n"
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("dangling", [False, True])
@pytest.mark.parametrize("command", ["watch", "report"])
def test_a_link_is_never_followed(command: str, dangling: bool, force: bool, tap: Tap, tmp_path: Path) -> None:
    """Laid there by somebody else, in a folder that many can write to. --force replaces the link itself."""
    precious, link = tmp_path / "precious", tmp_path / "link"
    if not dangling:
        precious.write_text("root's own\n")
    link.symlink_to(precious)
    if command == "watch":
        words = ["watch", tap.name, *SHORT, "--csv", str(link)]
    else:
        assert run("capture", tap.name, "-d", "20ms", "-o", str(tmp_path / "one")).code == 0
        words = ["report", str(tmp_path / "one"), "-o", str(link)]
    ended = run(*words, *(["--force"] if force else []))
    assert ended.code == (0 if force else 1), ended
    if not force:
        assert ended.err.startswith(f"Error: {link}: a symbolic link, which is not followed.")
    assert link.is_symlink() != force
    assert precious.exists() != dangling
    assert dangling or precious.read_text() == "root's own\n"


@pytest.mark.parametrize("kind", ["folder", "socket"])
@pytest.mark.usefixtures("netns")
def test_what_is_no_file_is_never_replaced(kind: str, tap: Tap, tmp_path: Path) -> None:
    place = tmp_path / "rows"
    if kind == "folder":
        place.mkdir()
    else:
        os.mknod(place, stat.S_IFSOCK | 0o600)
    for force in ([], ["--force"]):
        assert run("watch", tap.name, *SHORT, "--csv", str(place), *force).code == 1
    assert place.is_dir() or stat.S_ISSOCK(place.stat().st_mode)


def test_rows_on_standard_output(tap: Tap, tmp_path: Path) -> None:
    """`--csv -`: the rows and nothing else, and not beside --json."""
    with (
        (tmp_path / "out").open("wb") as out,
        job("watch", tap.name, *SHORT, "--csv", "-", out=out, folder=tmp_path) as it,
    ):
        flood([tap.fd], [SYN], count=11, seconds=20)
        assert it.ended() == 0
    assert (tmp_path / "out").read_text().startswith(HEADER)
    assert_is_error(run("watch", tap.name, *SHORT, "--csv", "-", "--json"), 2, "--csv -", "--json")


def test_rows_for_another_program(tap: Tap, tmp_path: Path) -> None:
    """`--csv >(gzip > FILE)`, which the shell makes a link of: it is the caller's own descriptor."""
    packed = tmp_path / "rows.gz"
    with job(
        "watch", tap.name, *SHORT, out=subprocess.DEVNULL, folder=tmp_path, redirect=f"--csv >(gzip > {packed})"
    ) as it:
        assert it.ended() == 0, it.told()
    wait_until(lambda: unpacked(packed).startswith(HEADER), 60)  # gzip ends after the run


def unpacked(file: Path) -> str:
    return subprocess.run(["zcat", file], capture_output=True, text=True, check=False).stdout


def test_a_fifo_that_nobody_opens_is_named(tap: Tap, tmp_path: Path) -> None:
    """It does not stop the run, which nobody could end then."""
    fifo = tmp_path / "rows"
    os.mkfifo(fifo)
    assert_is_error(
        run("watch", tap.name, *SHORT, "--json", "--csv", str(fifo)), 1, f"{fifo}: no process reads this fifo"
    )


def test_a_full_disk_keeps_whole_rows(tap: Tap, disk: Path, tmp_path: Path) -> None:
    """The last row is not cut, what was shown goes on to the totals, and the error names the file."""
    file = disk / "rows.csv"
    out = tmp_path / "out"
    with (
        out.open("wb") as opened,
        job("watch", tap.name, "--json", "--interval", "10ms", "--csv", str(file), out=opened, folder=tmp_path) as it,
    ):
        it.wait_for(out.read_bytes)
        (disk / "ballast").write_bytes(bytes(os.statvfs(disk).f_bavail * 4096 - 4096))

        def has_ended() -> bool:
            flood([tap.fd], [SYN], count=11, seconds=20)
            return it.process.poll() is not None

        wait_until(has_ended, 120)
        assert it.ended() == 1
    assert it.told().startswith(f"Error: {file}: No space left on device.")
    header, *rows = file.read_text().split("\n")
    assert rows.pop() == ""
    assert {row.count(",") for row in rows} == {header.count(",")}
    assert '"final": true' in out.read_text().splitlines()[-1]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", place], check=True)
