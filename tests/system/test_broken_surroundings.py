# SPDX-License-Identifier: Apache-2.0
"""Commands where something is missing or refused: no traceback, an exit code, and the cause in words."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path

import broken_kit
import pytest
from broken_kit import SURROUNDINGS
from command_kit import COMMAND, Ended, environment

from vifprobe import cli
from vifprobe.capture.manifest import TapEntry, begin
from vifprobe.capture.writer import CaptureWriter, Totals
from vifprobe.model.reading import Reading, no_cells
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.packets import frames as f
from vifprobe.testing.packets.recording import pcap_bytes

#: Surroundings -> one of these words is in the error, where a command fails there.
CAUSES: dict[str, tuple[str, ...]] = {
    "plain user": ("not permitted", "permission denied", "lacks cap_"),
    "seccomp": ("not permitted", "seccomp"),
    "little memory": ("memory", "allocate", "failed to map"),
    "deleted directory": ("current directory", "no such file", "no such folder"),
    "read-only directory": ("read-only file system",),
    "no libbpf": ("libbpf",),
    "no bcc": ("bcc",),
    "no proc": ("/proc", "no such file", "process"),
    "no sys": ("/sys", "btf", "no such file"),
    "no BTF": ("btf",),
    **{name: ("too many open files", "file descriptors") for name in SURROUNDINGS if name.endswith(" files")},
}
#: VIFPROBE_EVERY_COMMAND=1: each command in each of these surroundings, which takes minutes.
IS_EVERY = os.environ.get("VIFPROBE_EVERY_COMMAND") == "1"
#: Here each command fails in another way; elsewhere some stand for all.
EVERY = ("plain user", "seccomp", "48 files", "no proc")
SOME = ("taps", "watch", "report", "doctor")
#: What writes, for a directory in which nothing can be written.
WRITING = ("watch --csv", "capture", "report -o", "replay -o")
FRAME = f.eth(f.ipv4(f.tcp(f.TcpFlag.SYN)), f.EtherType.IPV4)


def commands(folder: Path) -> dict[str, list[str]]:
    """Every command with what it needs, reading from `folder` and writing to places of its own."""
    capture, recording, out = str(folder / "capture"), str(folder / "x.pcap"), folder / "out"
    here = f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net"
    return {
        "taps": ["taps"],
        "taps --netns": ["taps", "--netns", here],
        "policer": ["policer", "tap0", "--duration", "100ms"],
        "watch": ["watch", "tap0", "--duration", "100ms", "--interval", "100ms"],
        "watch --netns": ["watch", "tap0", "--netns", here, "--duration", "100ms", "--interval", "100ms"],
        "capture": ["capture", "tap0", "-d", "100ms", "-o", str(out / "capture")],
        "report": ["report", capture, "-o", "-"],
        "diff": ["diff", capture, capture],
        "replay": ["replay", recording],
        "doctor": ["doctor"],
        "cleanup": ["cleanup"],
        "explain": ["explain", "P11"],
        "watch --csv": ["watch", "tap0", "--duration", "100ms", "--csv", str(out / "watch.csv")],
        "report -o": ["report", capture, "-o", str(out / "page.html")],
        "replay -o": ["replay", recording, "-o", str(out / "replay")],
    }


def broken(name: str, arguments: list[str], folder: Path) -> Ended:
    """The command in these surroundings."""
    command = [sys.executable, broken_kit.__file__, name, *COMMAND, *arguments]
    done = subprocess.run(command, capture_output=True, timeout=120, env=environment(), cwd=folder, check=False)
    return Ended(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


def chosen(name: str, wanted: Collection[str]) -> list[str]:
    """Return the commands that are tried in these surroundings."""
    if name == "read-only directory":
        return list(WRITING)
    if IS_EVERY:
        return sorted(wanted)
    return [one for one in wanted if one == "capture" or one not in WRITING] if name in EVERY else list(SOME)


def problem(name: str, ended: Ended) -> str:
    """What is wrong with how it ended; "" where nothing is."""
    if "Traceback" in ended.err or "Exception ignored" in ended.err:
        return f"traceback: {ended.err[-1500:]}"
    if ended.code not in (0, 1, 2, 3):
        return f"exit code {ended.code}: {ended.err[-500:]}"
    if ended.code in (1, 2) and "error: " not in ended.err.lower() and not ended.out:
        return f"no error text: {ended.err[-500:]}"
    if name == "read-only directory" and ended.code != 1:
        return f"exit code {ended.code}, although nothing can be written"
    causes = CAUSES.get(name)
    if causes and ended.code == 1 and not any(cause in (ended.err + ended.out).lower() for cause in causes):
        return f"the cause is not named: {ended.err[-500:]}"
    if causes is None and ended.code != 0:
        return f"exit code {ended.code}, although nothing that it needs is missing: {ended.err[-500:]}"
    return ""


def test_the_table_has_every_command(tmp_path: Path) -> None:
    assert {label.split()[0] for label in commands(tmp_path)} == set(cli.COMMANDS)


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_every_command(name: str, tap: Tap, tmp_path: Path) -> None:
    (tmp_path / "x.pcap").write_bytes(pcap_bytes([(10**18, FRAME)]))
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o777)
    with CaptureWriter(tmp_path / "capture", begin([TapEntry(tap.name, tap.ifindex)], 10_000_000)) as writer:
        writer.finish(Totals([Reading(tap.name, datetime.now(timezone.utc), 0, 10**9, no_cells())]))
    wanted = commands(tmp_path)
    namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY)

    def one(label: str) -> str:
        broken_kit.enter_netns(namespace)
        found = problem(name, broken(name, wanted[label], tmp_path))
        return f"{label}: {found}" if found else ""

    try:
        with ThreadPoolExecutor(3) as pool:
            problems = [found for found in pool.map(one, chosen(name, wanted)) if found]
    finally:
        os.close(namespace)
    assert problems == [], "\n\n".join(problems)
