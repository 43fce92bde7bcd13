# SPDX-License-Identifier: Apache-2.0
"""What a run could change or leave behind: settings of the namespace, BPF objects, file descriptors."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

from vifprobe.kernel.libbpf import library

#: How an fd's /proc/PID/fdinfo names a BPF object -> libbpf's call to get at it.
_OPENERS = {"prog_id": "bpf_prog_get_fd_by_id", "map_id": "bpf_map_get_fd_by_id", "link_id": "bpf_link_get_fd_by_id"}

BpfObject = tuple[str, int]


def settings() -> dict[str, str]:
    """Everything about links, qdiscs, filters and nft in this namespace that is not a counter."""
    names = [link["ifname"] for link in json.loads(_run("ip -j link show"))]
    commands = ["ip -d link show", "tc qdisc show", "nft -s list ruleset"]
    commands += [f"tc filter show dev {name} {side}" for name in names for side in ("root", "ingress", "egress")]
    # A bridge's timers run by themselves.
    return {command: re.sub(r"_timer +[\d.]+", "_timer", _run(command)) for command in commands}


def operational_state(name: str) -> str:
    """What `ip link` prints as its state."""
    return str(json.loads(_run(f"ip -j link show {name}"))[0]["operstate"])


def promiscuity(name: str) -> int:
    """How many want the interface promiscuous."""
    return int(json.loads(_run(f"ip -d -j link show {name}"))[0]["promiscuity"])


def bpf_objects(pid: int | str = "self") -> set[BpfObject]:
    """The BPF programs, maps and links that a process holds, now."""
    found: set[BpfObject] = set()
    try:
        for file in Path(f"/proc/{pid}/fdinfo").iterdir():
            found |= {(kind, int(number)) for kind, number in re.findall(r"^(\w+_id):\s*(\d+)$", _text(file), re.M)}
    except (FileNotFoundError, ProcessLookupError):  # it ended
        pass
    return {(kind, number) for kind, number in found if kind in _OPENERS}


def still_there(objects: set[BpfObject]) -> set[BpfObject]:
    """Those that the kernel still has."""
    return {(kind, number) for kind, number in objects if _exists(kind, number)}


def open_fds() -> dict[str, str]:
    """The file descriptors of the calling process."""
    found = {}
    for file in Path("/proc/self/fd").iterdir():
        try:
            found[file.name] = str(file.readlink())
        except FileNotFoundError:  # that of the directory itself
            continue
    return found


def _exists(kind: str, number: int) -> bool:
    fd = getattr(library(), _OPENERS[kind])(number)
    if fd < 0:
        return False
    os.close(fd)
    return True


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _run(command: str) -> str:
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    # A device without an ingress or egress side says so; that it does is a setting, too.
    return done.stdout + done.stderr
