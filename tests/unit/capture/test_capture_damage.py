# SPDX-License-Identifier: Apache-2.0
"""A folder that is damaged, foreign, hostile or of a newer version: each is named, none is believed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from capture_kit import FLOOD, TAPS, bins_like, manifest, reading

from vifprobe.capture.reader import load
from vifprobe.capture.rows import EventRow
from vifprobe.capture.writer import CaptureWriter, Totals
from vifprobe.errors import CaptureError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with CaptureWriter(tmp_path / "c", manifest()) as writer:
        writer.add_bins(bins_like(FLOOD, 0, writer.manifest.start_monotonic_ns))
        writer.add_events([EventRow(5, "tap0", "link", "down", None, "")])
        writer.begin_samples(100, 10**9, {})
        writer.finish(Totals([reading(tap) for tap in TAPS]))
    return tmp_path / "c"


def change(folder: Path, **keys: Any) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**content, **keys}))


def rewrite(folder: Path, name: str, new: Callable[[bytes], bytes]) -> None:
    """Change a file and its sum: what a newer version or a forger would have written."""
    content = new((folder / name).read_bytes())
    (folder / name).write_bytes(content)
    sums = json.loads((folder / "manifest.json").read_text())["sha256"]
    change(folder, sha256={**sums, name: hashlib.sha256(content).hexdigest()})


@pytest.mark.parametrize("name", ["histogram.csv", "timeline.csv", "events.csv", "findings.json", "samples.pcapng"])
def test_one_changed_byte_is_found(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(CaptureError, match=rf"/c/{name}: not what the capture wrote\.\n.*sha256 is .* expected"):
        load(folder)


@pytest.mark.parametrize("name", ["histogram.csv", "drops.csv", "findings.json", "samples.pcapng"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CaptureError, match=rf"/c/{name}: missing, but manifest\.json lists it"):
        load(folder)


def test_a_file_that_was_added_is_left_out_and_said(folder: Path) -> None:
    (folder / "top.csv").write_text("tap\n")
    capture = load(folder)
    assert capture.top == ()
    assert capture.warnings == ("top.csv: left out: manifest.json does not list it.",)


def test_a_complete_capture_without_sums_is_not_believed(folder: Path) -> None:
    change(folder, sha256={})
    with pytest.raises(CaptureError, match=r"histogram\.csv: not there"):
        load(folder)


def test_foreign_names_in_the_manifest_are_never_opened(folder: Path) -> None:
    sums = json.loads((folder / "manifest.json").read_text())["sha256"]
    change(folder, sha256={**sums, "../../etc/passwd": "0", "later.csv": "1"})
    assert load(folder).warnings == ("manifest.json: unknown files left out: '../../etc/passwd, later.csv'.",)


def test_a_newer_schema_says_what_to_read_it_with(folder: Path) -> None:
    change(folder, schema=2, vifprobe_version="9.1")
    with pytest.raises(CaptureError, match=r"schema 2; vifprobe .* reads schema 1\.\n.*written by vifprobe '9\.1'"):
        load(folder)


def test_a_newer_manifest_with_more_keys_is_read(folder: Path) -> None:
    change(folder, weather="fine")
    assert len(load(folder).readings()) == 2


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("schema", None, "schema is None"),
        ("schema", True, "schema is True"),
        ("schema", "1", "schema is '1'"),
        ("taps", {}, r"taps is \{\}"),
        ("taps", [5], r"taps\[0\] is 5"),
        ("taps", [{}], r"taps\[0\]\.hooks is missing"),
        ("start", "yesterday", "start is 'yesterday'"),
        ("start", "2026-11-22T05:12:44", "Expected a time with its zone"),
        ("start_monotonic_ns", 1.5, r"start_monotonic_ns is 1\.5"),
        ("complete", 1, "complete is 1"),
        ("sha256", [], r"sha256 is \[\]"),
        ("gaps", [{"tap": "tap0"}], r"gaps\[0\]\.start_ns is missing"),
        ("host", ["\x1b[2J" * 99], r"host is \['.*…\.\n.*Expected str"),
    ],
)
def test_a_wrong_value_in_the_manifest_is_named(folder: Path, key: str, value: Any, told: str) -> None:
    change(folder, **{key: value})
    with pytest.raises(CaptureError, match=told) as caught:
        load(folder)
    assert "\x1b" not in str(caught.value)
    assert str(caught.value).startswith(f"{folder}/manifest.json: ")


def test_a_wrong_value_of_a_tap_is_named(folder: Path) -> None:
    taps = json.loads((folder / "manifest.json").read_text())["taps"]
    for key, value, told in (
        ("directions", ["up"], r"taps\[1\]\.directions is \['up'\]"),
        ("limits", {"outbound": {"declared_bps": "fast"}}, r"taps\[1\]\.limits\.outbound\.declared_bps is 'fast'"),
        ("name", TAPS[0], "Expected each name once"),
    ):
        change(folder, taps=[taps[0], {**taps[1], key: value}])
        with pytest.raises(CaptureError, match=told):
            load(folder)


@pytest.mark.parametrize("content", [b"", b"\xff", b"{", b"[" * 200_000, b"[]", b'"capture"'])
def test_a_manifest_that_is_none_is_named(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(CaptureError, match=r"/c/manifest\.json: "):
        load(folder)


@pytest.mark.parametrize(
    ("name", "old", "new", "told"),
    [
        ("histogram.csv", b"\ntap0,", b"\ntap9,", r"histogram\.csv: line 2: tap is 'tap9'\.\n.*Expected one of"),
        ("histogram.csv", b",policed,", b",Policed,", r"verdict is 'Policed'\.\n.*one of \(empty\), passed, policed,"),
        ("histogram.csv", b",40,47,", b",41,47,", r"histogram\.csv: line \d+: no size bucket goes from 41 to 47"),
        ("histogram.csv", b",65536,,", b",65536,99999,", r"no size bucket goes from 65536 to 99999"),
        ("timeline.csv", b",10000000,", b",ten,", r"timeline\.csv: line 2: duration_ns is 'ten'"),
        ("events.csv", b"at_ns,", b"when,", r"events\.csv: line 1 lacks the column at_ns"),
        ("findings.json", b'"severity"', b'"weight"', r"findings\.json: \[0\]\.severity is missing"),
        ("findings.json", b"[", b"{", r"findings\.json: not JSON"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_line(
    folder: Path, name: str, old: bytes, new: bytes, told: str
) -> None:
    rewrite(folder, name, lambda content: content.replace(old, new, 1))
    with pytest.raises(CaptureError, match=told):
        load(folder)


@pytest.mark.parametrize("start", [2**63 - 1, 2**61, -(2**61), -(2**63)])
def test_times_of_which_two_go_beyond_64_bits_are_refused(folder: Path, start: int) -> None:
    line = f"tap0,outbound,{start},1,passed,5,7,0\n".encode()
    rewrite(folder, "timeline.csv", lambda content: content + line)
    with pytest.raises(CaptureError, match=rf"timeline\.csv: line \d+: start_ns is '{start}'"):
        load(folder)


def test_a_link_or_fifo_in_the_folder_is_not_followed_or_waited_for(folder: Path) -> None:
    (folder / "events.csv").unlink()
    (folder / "events.csv").symlink_to("/etc/passwd")
    with pytest.raises(CaptureError, match=r"events\.csv: too many levels of symbolic links"):
        load(folder)
    (folder / "events.csv").unlink()
    os.mkfifo(folder / "events.csv")
    with pytest.raises(CaptureError, match=r"events\.csv: not a regular file"):
        load(folder)


def test_a_folder_that_is_no_capture_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path, told in (
        (tmp_path / "no", r"/no: no such file or directory"),
        (tmp_path / "file", r"/file: not a directory"),
        (tmp_path, r"/manifest\.json: no such file: this is not a capture"),
    ):
        with pytest.raises(CaptureError, match=told):
            load(path)


def test_a_tap_that_is_not_there_gets_the_nearest_name(folder: Path) -> None:
    with pytest.raises(
        CaptureError, match=r"tap834d76e9-5e: no such tap .*\n.*Of 2 taps the closest is tap834d76e9-5f"
    ):
        load(folder).reading("tap834d76e9-5e")
    with pytest.raises(CaptureError, match=r"2 taps\.\n.*Name one: tap0, tap834d76e9-5f"):
        load(folder).reading()


def test_names_in_a_foreign_capture_reach_no_terminal_raw(folder: Path) -> None:
    taps = json.loads((folder / "manifest.json").read_text())["taps"]
    rewrite(folder, "findings.json", lambda _: b"[]")
    change(folder, taps=[*taps, {**taps[1], "name": "\x1b[2J"}], error="\x1b[2J", complete=False)
    capture = load(folder)
    assert capture.warnings == ("incomplete: \\x1b[2J",)
    for name in (None, "\x1b[2K"):
        with pytest.raises(CaptureError) as caught:
            capture.reading(name)
        assert "\x1b" not in str(caught.value)
