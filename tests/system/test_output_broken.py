# SPDX-License-Identifier: Apache-2.0
"""Every command that prints, on a full disk, on closed descriptors and on a terminal that has gone."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from command_kit import DEADLINE_SECONDS, run
from stream_kit import job, terminal

from vifprobe import load
from vifprobe.testing.net.netns import private_netns
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.packets import frames as f
from vifprobe.testing.packets.recording import pcap_bytes

SYN = f.eth(f.ipv4(f.tcp(f.TcpFlag.SYN)), f.EtherType.IPV4)

#: What prints data. tap0 is there, and so are one and two (captures) and some.pcap.
PRINTING = (
    "--version",
    "watch --help",
    "taps",
    "taps --json",
    "doctor",
    "policer tap0 -d 20ms",
    "policer tap0 --no-packets -d 20ms --json",
    "watch tap0 --interval 20ms --duration 60ms",
    "watch tap0 --interval 20ms --duration 60ms --json",
    "watch tap0 --interval 20ms --duration 60ms --csv -",
    "replay some.pcap --rate 1mbit",
    "replay some.pcap --json",
    "report one -o -",
    "diff one two",
    "diff one two --json",
    "cleanup --dry-run",
)
#: What leaves a file or folder, whose name is "made"; what is printed comes beside it.
KEEPING = (
    "capture tap0 -d 50ms -o made",
    "replay some.pcap -o made",
    "replay some.pcap -o made --json",
    "report one -o made",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with two captures and a recording; tap0 is in the network namespace of the tests that use it."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "some.pcap").write_bytes(pcap_bytes([(number * 1_000_000, SYN) for number in range(211)]))
    with pytest.MonkeyPatch.context() as patch, private_netns(), make_tap("tap0"):
        patch.chdir(folder)
        for name in ("one", "two"):
            assert run("capture", "tap0", "-d", "20ms", "-o", name).code == 0
        yield folder


@pytest.mark.parametrize("arguments", PRINTING)
def test_data_that_cannot_be_printed_is_an_error(arguments: str, place: Path, tmp_path: Path) -> None:
    """Exit code 1, what was to be written to and why that failed; and no traceback."""
    with ExitStack() as stack:  # both at once: it is a machine of several cores
        started = {
            why: stack.enter_context(
                job(*arguments.split(), out=subprocess.DEVNULL, folder=tmp_path, redirect=redirect)
            )
            for redirect, why in ((">/dev/full", "No space left on device"), (">&-", "it is closed"))
        }
        for why, running in started.items():
            assert running.ended() == 1, running.told()
            assert running.told().startswith(f"Error: standard output: {why}.")


@pytest.mark.parametrize("arguments", PRINTING)
def test_nobody_needs_standard_error(arguments: str, place: Path, tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out, job(*arguments.split(), out=out, folder=tmp_path, redirect="2>&-") as it:
        assert it.ended() == 0
    assert (tmp_path / "out").read_bytes()


@pytest.mark.parametrize("redirect", ["2>&-", "2>/dev/full"])
def test_an_error_that_cannot_be_shown_still_has_its_exit_code(redirect: str, tmp_path: Path) -> None:
    for arguments, code in (("taps --no-such-option", 2), ("diff nothing nowhere", 1)):
        with job(*arguments.split(), out=subprocess.DEVNULL, folder=tmp_path, redirect=redirect) as running:
            assert running.ended() == code
    assert running.told() == ""


@pytest.mark.parametrize("redirect", [">/dev/full", ">&-", "2>&-", "2>/dev/full", "<&- >&- 2>&-"])
@pytest.mark.parametrize("arguments", KEEPING)
def test_a_file_does_not_depend_on_who_is_looking(
    arguments: str, redirect: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 0: it is whole, whatever becomes of what is printed beside it; and nothing else is in it."""
    for name in ("one", "some.pcap"):
        (tmp_path / name).symlink_to(place / name)
    monkeypatch.chdir(tmp_path)
    with job(*arguments.split(), out=subprocess.DEVNULL, folder=tmp_path, redirect=redirect) as running:
        assert running.ended() == 0, running.told()
    made = tmp_path / "made"
    if made.is_dir():
        assert load(made).manifest.complete
        assert load(made).warnings == ()
    else:
        assert made.read_text().rstrip().endswith("</html>")
    assert ("Warning: standard output" in running.told()) == (redirect in (">/dev/full", ">&-"))


@pytest.mark.parametrize("arguments", ["taps", "watch tap0 --interval 20ms", "capture tap0 -d 100ms -o here"])
def test_a_terminal_that_has_gone_before_the_start(
    arguments: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EIO on both streams: the data can't be shown, but a capture is made."""
    monkeypatch.chdir(tmp_path)
    with terminal() as gone:
        gone.close("read")
        with job(
            *arguments.split(), out=gone.write, err=gone.write, folder=tmp_path, changes={"TERM": "xterm"}
        ) as running:
            code = running.process.wait(DEADLINE_SECONDS)
    assert code == (0 if "capture" in arguments else 1)
    if "capture" in arguments:
        assert load(tmp_path / "here").manifest.complete
