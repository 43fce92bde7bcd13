# SPDX-License-Identifier: Apache-2.0
"""Who can reach a capture folder, what is refused, and what --force may remove."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from capture_kit import manifest, reading

from vifprobe.capture.reader import load
from vifprobe.capture.rows import EventRow
from vifprobe.capture.writer import CaptureWriter, Totals
from vifprobe.errors import CaptureError


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o277])
def umask(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """After tmp_path, which is to be made with the umask that was there."""
    before = os.umask(request.param)
    yield
    os.umask(before)


def write(directory: Path, force: bool = False) -> None:
    with CaptureWriter(directory, manifest(), force=force) as writer:
        writer.add_events([EventRow(5, "tap0", "link", "up", None, "")])
        writer.add_host([])
        writer.finish(Totals([reading()], policer=(), flood=(), top=()))


def modes(directory: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.lstat().st_mode) for path in directory.iterdir()}


@pytest.mark.usefixtures("umask")
def test_folder_is_0700_and_files_0600_whatever_the_umask(tmp_path: Path) -> None:
    write(tmp_path / "c")
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o700
    assert set(modes(tmp_path / "c").values()) == {0o600}
    assert len(modes(tmp_path / "c")) == 12


def test_files_are_0600_while_the_capture_runs(tmp_path: Path) -> None:
    with CaptureWriter(tmp_path / "c", manifest()) as writer:
        assert modes(tmp_path / "c") == {"manifest.json": 0o600, "timeline.csv": 0o600, "events.csv": 0o600}
        writer.begin_samples(100, 10**9, {})
        assert modes(tmp_path / "c")["samples.pcapng"] == 0o600


def test_an_empty_folder_is_taken_and_made_private(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir(mode=0o755)
    write(tmp_path / "c")
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o700


def test_a_folder_with_anything_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(CaptureError, match="not empty"):
            write(tmp_path, force)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"name": "a web app", "icons": []}', "{" * 100_000])
def test_force_refuses_a_foreign_manifest(tmp_path: Path, content: str) -> None:
    """manifest.json is a common name: browsers and packages have one too."""
    (tmp_path / "manifest.json").write_text(content)
    (tmp_path / "events.csv").write_text("mine")
    with pytest.raises(CaptureError, match="not a capture that --force can replace"):
        write(tmp_path, force=True)
    assert (tmp_path / "events.csv").read_text() == "mine"
    assert (tmp_path / "manifest.json").read_text() == content


def test_an_earlier_capture_is_only_replaced_with_force(tmp_path: Path) -> None:
    write(tmp_path / "c")
    before = (tmp_path / "c/manifest.json").read_bytes()
    with pytest.raises(CaptureError, match=r"not empty \(\d+ entries\)\.\n.*--force"):
        write(tmp_path / "c")
    assert (tmp_path / "c/manifest.json").read_bytes() == before
    write(tmp_path / "c", force=True)
    assert (tmp_path / "c/manifest.json").read_bytes() != before
    load(tmp_path / "c")


def test_force_keeps_files_that_no_capture_writes(tmp_path: Path) -> None:
    write(tmp_path / "c")
    (tmp_path / "c/notes.txt").write_text("mine")
    (tmp_path / "c/sub").mkdir()
    (tmp_path / "c/host.csv").write_text("of the old capture")
    (tmp_path / "c/.histogram.csv.new").write_text("left by a kill")
    with CaptureWriter(tmp_path / "c", manifest(), force=True) as writer:
        writer.finish(Totals([reading()]))
    assert (tmp_path / "c/notes.txt").read_text() == "mine"
    assert (tmp_path / "c/sub").is_dir()
    assert not (tmp_path / "c/host.csv").exists()
    assert not (tmp_path / "c/.histogram.csv.new").exists()


def test_force_removes_a_link_but_not_what_it_points_to(tmp_path: Path) -> None:
    write(tmp_path / "c")
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "c/timeline.csv").unlink()
    (tmp_path / "c/timeline.csv").symlink_to(tmp_path / "precious")
    write(tmp_path / "c", force=True)
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (tmp_path / "c/timeline.csv").is_symlink()


def test_a_link_in_place_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "c").symlink_to(tmp_path / "theirs")
    for force in (False, True):
        with pytest.raises(CaptureError, match="a symbolic link, which is not followed"):
            write(tmp_path / "c", force)
    assert list((tmp_path / "theirs").iterdir()) == []


def test_a_dangling_link_in_place_of_the_folder_makes_nothing(tmp_path: Path) -> None:
    (tmp_path / "c").symlink_to(tmp_path / "not-there")
    with pytest.raises(CaptureError, match="a symbolic link, which is not followed"):
        write(tmp_path / "c")
    assert not (tmp_path / "not-there").exists()


@pytest.mark.parametrize("lay", [Path.symlink_to, Path.hardlink_to])
@pytest.mark.parametrize("name", ["host.csv", "samples.pcapng"])
def test_a_link_laid_in_the_folder_is_not_written_through(
    tmp_path: Path, name: str, lay: Callable[[Path, Path], None]
) -> None:
    """Someone who can write to the folder lays a link where a file will be made."""
    (tmp_path / "precious").write_text("mine")
    with CaptureWriter(tmp_path / "c", manifest()) as writer:
        lay(tmp_path / "c" / name, tmp_path / "precious")
        with pytest.raises(CaptureError, match=name):
            writer.add_host([]) if name == "host.csv" else writer.begin_samples(100, 10**9, {})
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize("name", ["histogram.csv", ".histogram.csv.new", ".manifest.json.new"])
def test_a_link_laid_under_a_replaced_file_is_replaced_itself(tmp_path: Path, name: str) -> None:
    (tmp_path / "precious").write_text("mine")
    with CaptureWriter(tmp_path / "c", manifest()) as writer:
        (tmp_path / "c" / name).symlink_to(tmp_path / "precious")
        writer.finish(Totals([reading()]))
    assert (tmp_path / "precious").read_text() == "mine"
    assert load(tmp_path / "c").manifest.complete


def test_renaming_the_folder_midway_changes_nothing(tmp_path: Path) -> None:
    with CaptureWriter(tmp_path / "c", manifest()) as writer:
        (tmp_path / "c").rename(tmp_path / "moved")
        (tmp_path / "c").mkdir()
        writer.finish(Totals([reading()]))
    assert load(tmp_path / "moved").manifest.complete
    assert list((tmp_path / "c").iterdir()) == []


def test_a_second_writer_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    with CaptureWriter(tmp_path / "c", manifest()) as writer:
        for force in (False, True):
            with pytest.raises(CaptureError, match="another vifprobe is writing there"):
                write(tmp_path / "c", force)
        writer.finish(Totals([reading()]))
    assert load(tmp_path / "c").manifest.complete


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_someone_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    os.chown(tmp_path / "c", 12345, -1)
    with pytest.raises(CaptureError, match="belongs to user 12345"):
        write(tmp_path / "c")
    assert list((tmp_path / "c").iterdir()) == []


def test_a_parent_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"no such folder .*/no"):
        write(tmp_path / "no/c")


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("mine")
    with pytest.raises(CaptureError, match="not a directory"):
        write(tmp_path / "c", force=True)
    assert (tmp_path / "c").read_text() == "mine"


def test_a_directory_under_the_name_of_a_file_is_an_error_not_a_loss(tmp_path: Path) -> None:
    write(tmp_path / "c")
    (tmp_path / "c/host.csv").unlink()
    (tmp_path / "c/host.csv").mkdir()
    (tmp_path / "c/host.csv/mine").write_text("mine")
    with pytest.raises(CaptureError, match=r"host\.csv: is a directory"):
        write(tmp_path / "c", force=True)
    assert (tmp_path / "c/host.csv/mine").read_text() == "mine"


def test_a_capture_that_could_not_begin_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CaptureError, match="no space left on device"):
        write(tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    def opened() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = opened()
    write(tmp_path / "c")
    with pytest.raises(CaptureError):
        write(tmp_path / "c")
    with pytest.raises(RuntimeError), CaptureWriter(tmp_path / "d", manifest()):
        raise RuntimeError
    load(tmp_path / "c")
    with pytest.raises(CaptureError):
        load(tmp_path)
    assert opened() == before
