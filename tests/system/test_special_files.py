# SPDX-License-Identifier: Apache-2.0
"""Whatever lies at a path that the user gives: a clear error in bounded time and memory, and it stays as it was."""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from broken_kit import SURROUNDINGS
from forked_kit import Forked, forked
from mutate_kit import write_folder

from vifprobe.testing.net.taps import Tap
from vifprobe.testing.packets import frames as f
from vifprobe.testing.packets.recording import pcap_bytes

SYN = f.eth(f.ipv4(f.tcp(f.TcpFlag.SYN)), f.EtherType.IPV4)
GROWN_KIB_MAX = 200 << 10


def _sparse(size: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(size)

    return make


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def _device(path: Path) -> None:
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero


#: What is there -> how it is made.
KINDS: dict[str, Callable[[Path], None]] = {
    "fifo": os.mkfifo,
    "folder": lambda path: path.mkdir(),
    "40 GiB": _sparse(40 << 30),
    "4 TiB": _sparse(4 << 40),
    "/dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "device": _device,
    "socket": _socket,
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path),
    "empty": lambda path: path.touch(),
    "nothing": lambda path: None,
}
#: For what is read: one of these is in the error.
READ = {
    "fifo": ("no process writes to this fifo", "is not a network namespace", "not a directory"),
    "folder": ("is a directory", "is not a network namespace", "no such file: this is not a capture"),
    "40 GiB": ("longer than", "begins with 00 00 00 00", "not a directory", "is not a network namespace"),
    "/dev/zero": ("not a regular file", "begins with 00 00 00 00", "not a directory", "is not a network namespace"),
    "socket": ("not a regular file", "no such device or address", "not a directory", "is not a network namespace"),
    "dangling link": ("no such file or directory",),
    "link to itself": ("too many levels of symbolic links",),
    "empty": ("it is empty", "not a directory", "is not a network namespace"),
}
#: For what is written, a file or a folder.
WRITTEN = {
    "fifo": ("no process reads this fifo", "not a regular file", "not a directory"),
    "folder": ("not a regular file",),
    "40 GiB": ("file exists", "not a directory"),
    "/dev/zero": ("a symbolic link, which is not followed",),
    "device": ("not a regular file", "not a directory"),
    "socket": ("not a regular file", "not a directory"),
    "dangling link": ("a symbolic link, which is not followed",),
    "link to itself": ("a symbolic link, which is not followed",),
    "empty": ("file exists", "not a directory"),
}
for table in (READ, WRITTEN):
    table["4 TiB"] = table["40 GiB"]
READ |= {"device": READ["/dev/zero"], "nothing": READ["dangling link"]}
FILES = {"40 GiB", "4 TiB", "empty", "nothing"}
LINKS = {"/dev/zero", "dangling link", "link to itself"}
#: Of what is written to a file; and to a folder, or with --force: there a kind stands for those that go the same way.
SOME, FEW = {*READ} - {"4 TiB", "link to itself"}, {"fifo", "folder", "40 GiB", "dangling link", "nothing"}
#: Command, @ being the path -> (what is in its errors, at which kinds it does its work).
SHORT = "--interval 20ms --duration 20ms"
TABLE: dict[str, tuple[dict[str, tuple[str, ...]], set[str]]] = {
    "replay x.pcap --thresholds @": (READ, {"empty"}),
    "taps --netns @": (READ, set()),
    "report @ -o -": (READ, set()),
    "diff good @": (READ, set()),
    "replay @": ({kind: words for kind, words in READ.items() if kind != "fifo"}, set()),
    f"watch tap0 {SHORT} --csv @": (WRITTEN, {"nothing", "device"}),
    f"watch tap0 {SHORT} --csv @ --force": (WRITTEN, {"device", *FILES, *LINKS}),
    "capture tap0 -d 20ms -o @": (WRITTEN, {"nothing", "folder"}),
    "capture tap0 -d 20ms -o @ --force": (WRITTEN, {"nothing", "folder"}),
    "replay x.pcap -o @": (WRITTEN, {"nothing", "folder"}),
    "report good -o @": (WRITTEN, {"nothing"}),
    "report good -o @ --force": (WRITTEN, {*FILES, *LINKS}),
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recording and a capture, which is the current one."""
    (tmp_path / "x.pcap").write_bytes(pcap_bytes([(10**18, SYN)]))
    write_folder(tmp_path / "good")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problem(ended: Forked, path: Path, words: tuple[str, ...]) -> str:
    """What is wrong with how it ended; "" where nothing is. words: () where it should have done its work."""
    if ended.grown_kib > GROWN_KIB_MAX:
        return f"{ended.grown_kib >> 10} MiB of memory"
    if not words:
        return "" if ended.code == 0 and not ended.err else f"exit code {ended.code}: {ended.err[-700:]}"
    if ended.code not in (1, 2):
        return f"exit code {ended.code}: {ended.err[-700:]}"
    if not ended.err.startswith(f"Error: {path}") or not any(word in ended.err.lower() for word in words):
        return f"the cause is not named: {ended.err[-700:]}"
    return ""


def told_of(path: Path) -> tuple[int, ...]:
    """What must stay as it is."""
    about = path.lstat()
    return (about.st_ino, about.st_mode, about.st_size, about.st_mtime_ns)


@pytest.mark.parametrize("command", TABLE)
def test_whatever_is_there(command: str, tap: Tap, place: Path) -> None:
    words, works = TABLE[command]
    kinds = {*words, *works}
    if words is WRITTEN:
        kinds &= SOME if "csv" in command or command == "report good -o @" else FEW
    problems = []
    for number, (kind, make) in enumerate(KINDS.items()):
        if kind not in kinds:
            continue
        path = place / str(number) / "thing"
        path.parent.mkdir()
        make(path)
        before = None if kind == "nothing" else told_of(path)
        ended = forked(*command.replace("@", str(path)).split(), folder=path.parent)
        if found := problem(ended, path, () if kind in works else words[kind]):
            problems.append(f"{kind}: {found}")
        elif before and kind not in works and told_of(path) != before:
            problems.append(f"{kind}: it was changed")
    assert problems == [], "\n".join(problems)


def plain_user() -> None:
    """As `sudo -u nobody`."""
    SURROUNDINGS["plain user"]()


@pytest.mark.parametrize("command", ["replay x.pcap --thresholds @", "report @ -o -", "diff @ @", "replay @"])
def test_what_a_plain_user_may_not_read(command: str, place: Path) -> None:
    for parent in (place, *place.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o011)
    (place / "thing").write_text("syn_packets=5\n")
    folder = command.startswith(("report", "diff"))
    thing = place / ("good" if folder else "thing")
    thing.chmod(0o700 if folder else 0o600)
    place.chmod(0o777)
    ended = forked(*command.replace("@", str(thing)).split(), folder=place, before=plain_user)
    assert problem(ended, thing, ("permission denied",)) == ""


def test_a_recording_that_nobody_writes_yet_is_waited_for_and_a_signal_ends_that(place: Path) -> None:
    """As `tcpdump -r FIFO`: a fifo is a recording that is still to come."""
    os.mkfifo(place / "fifo")

    def interrupt() -> None:
        signal.signal(signal.SIGALRM, signal.default_int_handler)  # what Ctrl-C does
        signal.setitimer(signal.ITIMER_REAL, 0.3)

    ended = forked("replay", "fifo", folder=place, before=interrupt)
    assert (ended.code, ended.err.strip()) == (1, "Stopped.")
