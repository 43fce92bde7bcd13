# SPDX-License-Identifier: Apache-2.0
"""Processes: the holder of a tap or a socket, and guest data from QEMU's command line.

Source: drivers/net/tun.c, tun_chr_show_fdinfo: `/proc/PID/fdinfo/N` of a tun descriptor says `iff:` and the interface.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from vifprobe.host.net import netns
from vifprobe.host.net.links import Link
from vifprobe.process.capabilities import Capability, raised

_TUN_DEVICE = "/net/tun"  # the end of /dev/net/tun, which a container may mount elsewhere
_MACVTAP_DEVICE = "/dev/tap"  # and the ifindex: drivers/net/macvtap.c
_LIKELY = ("qemu", "kvm", "cloud-hyperviso", "firecracker", "crosvm")
_SEARCH_SECONDS = 30.0
_COMMAND_LINE_BYTES_MAX = 256 * 1024


@dataclass(frozen=True)
class Process:
    """A process that holds a tap open.

    - guest, uuid: of QEMU's -name and -uuid; None for other processes, or where unknown.
    - is_shared: not a hypervisor, and a child process holds the tap, too: either of them can be the sender.
    """

    pid: int
    comm: str
    guest: str | None = None
    uuid: str | None = None
    is_shared: bool = False

    @property
    def is_qemu(self) -> bool:
        """Told by its name; `qemu-system-x86`, `qemu-kvm` and `kvm` are those that distributions use."""
        return self.comm.startswith(("qemu", "kvm"))


def holders(links: Iterable[Link]) -> dict[int, Process]:
    """Ifindex -> the process that holds this tap open; taps that none holds, or none that we may look at, are absent.

    Processes that look like a hypervisor are read first, and the rest only while a tap with a carrier (one that some
    process does hold) is left without an answer. Never raises: processes end while they are looked at.
    """
    by_target = {_target(link): link for link in links}
    own = netns.inode()
    found: dict[int, Process] = {}

    held: dict[int, frozenset[str]] = {}  # of each process once: one may hold hundreds of taps

    def held_by(pid: int) -> frozenset[str]:
        if pid not in held:
            held[pid] = frozenset(_held(pid, by_target.keys()))
        return held[pid]

    def look(pids: Iterable[int], remaining: set[str]) -> None:
        for pid in pids:
            if not remaining:
                return
            for target in held_by(pid) & remaining:
                if _is_same_device(pid, by_target[target], own):
                    holder = process(pid)
                    if not holder.is_qemu:
                        holder = process(_first_holder(pid, target, held_by))
                    is_shared = any(target in held_by(child) for child in started_by(holder))
                    found[by_target[target].ifindex] = replace(holder, is_shared=is_shared)
                    remaining.discard(target)

    started: dict[int, list[int]] = {}

    def started_by(holder: Process) -> list[int]:
        if holder.pid not in started:
            started[holder.pid] = [] if holder.is_qemu else list(_started_by(holder.pid))
        return started[holder.pid]

    pids = running()
    likely = [pid for pid in pids if comm(pid).startswith(_LIKELY)] if by_target else []
    look(likely, set(by_target))
    look(
        sorted(set(pids).difference(likely)),
        {target for target, link in by_target.items() if link.ifindex not in found and link.carrier is not False},
    )
    return found


class Holders:
    """Finds the holders of taps repeatedly.

    For a known holder, only its descriptor is checked. All processes are searched only where a tap has no known holder,
    and not each time.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[Process, str]] = {}  # by ifindex; with the descriptor's number
        self._searched = -_SEARCH_SECONDS
        self._missing: frozenset[int] = frozenset()

    def find(self, links: Iterable[Link]) -> dict[int, Process]:
        """Return ifindex -> process, as :func:`holders` does."""
        with raised(Capability.SYS_PTRACE):
            return self._find(links)

    def _find(self, links: Iterable[Link]) -> dict[int, Process]:
        wanted = {link.ifindex: link for link in links}
        self._known = {
            ifindex: (holder, descriptor)
            for ifindex, (holder, descriptor) in self._known.items()
            if ifindex in wanted and self._holds(holder, descriptor, _target(wanted[ifindex]))
        }
        missing = wanted.keys() - self._known.keys()
        if missing and (missing - self._missing or time.monotonic() - self._searched >= _SEARCH_SECONDS):
            self._searched = time.monotonic()
            self._search([wanted[ifindex] for ifindex in missing])
            self._missing = frozenset(wanted.keys() - self._known.keys())
        return {ifindex: holder for ifindex, (holder, _) in self._known.items()}

    def _search(self, links: list[Link]) -> None:
        found = holders(links)
        targets = {_target(link): link.ifindex for link in links if link.ifindex in found}
        for pid in {holder.pid for holder in found.values()}:
            for target, descriptor in _descriptors(pid, targets.keys()):
                if found[targets[target]].pid == pid:
                    self._known[targets[target]] = found[targets[target]], descriptor

    @staticmethod
    def _holds(holder: Process, descriptor: str, target: str) -> bool:
        try:
            now = os.readlink(f"/proc/{holder.pid}/fd/{descriptor}")  # noqa: PTH115 - once a tap
        except OSError:
            return False
        return (_interface_of(holder.pid, descriptor) if now.endswith(_TUN_DEVICE) else now) == target


def process(pid: int) -> Process:
    """Name and, for QEMU, guest and uuid of a process; "" and None where it has ended."""
    name = comm(pid)
    arguments = _command_line(pid) if name.startswith(_LIKELY) else []
    return Process(pid, name, guest_name(arguments), _after(arguments, "uuid"))


def comm(pid: int) -> str:
    """Name of a process (its main thread), "" where it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_bytes().rstrip(b"\n").decode("utf-8", "replace")
    except OSError:
        return ""


def guest_name(arguments: list[str]) -> str | None:
    """Guest's name in QEMU's arguments: `-name guest=NAME,...` or `-name NAME`; a comma in it is doubled."""
    value = _after(arguments, "name")
    if value is None:
        return None
    for option in value.replace(",,", "\0").split(","):
        key, equals, name = option.partition("=")
        if not equals:
            key, name = "guest", key  # the option that may go without its name
        if key == "guest" and name:
            return name.replace("\0", ",")
    return None


def socket_holder(pids: Iterable[int], inode: int) -> int | None:
    """Return the process that holds the socket with this inode; None if none does."""
    target = f"socket:[{inode}]"
    with raised(Capability.SYS_PTRACE):
        return next((pid for pid in pids if any(_held(pid, {target}))), None)


def running() -> list[int]:
    """Return the ids of all processes."""
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]  # noqa: PTH208 - there may be 10,000


def _target(link: Link) -> str:
    return f"{_MACVTAP_DEVICE}{link.ifindex}" if link.kind in ("macvtap", "ipvtap") else link.name


def _held(pid: int, wanted: Collection[str]) -> Iterator[str]:
    """Return the wanted targets, names of taps and of descriptors alike, that a process holds."""
    return (target for target, _ in _descriptors(pid, wanted))


def _descriptors(pid: int, wanted: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield (target, number of the descriptor) of each wanted target that a process holds."""
    directory = f"/proc/{pid}/fd"
    try:
        descriptors = os.listdir(directory)  # noqa: PTH208 - a QEMU has hundreds, and there are hundreds of QEMUs
    except OSError:
        return
    for descriptor in descriptors:
        try:
            target = os.readlink(f"{directory}/{descriptor}")  # noqa: PTH115 - likewise
        except OSError:
            continue
        if target.endswith(_TUN_DEVICE):
            target = _interface_of(pid, descriptor)
        if target in wanted:
            yield target, descriptor


def _interface_of(pid: int, descriptor: str) -> str:
    try:
        lines = os.fsdecode(Path(f"/proc/{pid}/fdinfo/{descriptor}").read_bytes()).splitlines()
    except OSError:
        return ""
    return next((line[4:].strip() for line in lines if line.startswith("iff:")), "")


def _first_holder(pid: int, target: str, held_by: Callable[[int], Collection[str]]) -> int:
    """Return the topmost holder among this process and its ancestors. (Process ids wrap.)"""
    while (parent := _parent(pid)) and target in held_by(parent):
        pid = parent
    return pid


def _parent(pid: int) -> int:
    """0 for none, or a process that has ended. /proc/PID/stat: the name in brackets, its state, its parent."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def _started_by(pid: int) -> Iterator[int]:
    """The processes that it has started and that are there now (proc_pid_children of fs/proc/array.c), and theirs."""
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(word) for word in listed.read_text().split()]
        except OSError:
            continue
        for child in children:
            yield child
            yield from _started_by(child)


def _is_same_device(pid: int, link: Link, own_namespace: int) -> bool:
    """Return True if `iff:` names this link, and not one of that name in the process's own, other namespace."""
    try:
        namespace = Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:
        return False
    return namespace == own_namespace or not netns.holds(pid, link.name)


def _command_line(pid: int) -> list[str]:
    try:
        with Path(f"/proc/{pid}/cmdline").open("rb") as file:
            return [os.fsdecode(word) for word in file.read(_COMMAND_LINE_BYTES_MAX).split(b"\0")]
    except OSError:
        return []


def _after(arguments: list[str], option: str) -> str | None:
    """The argument behind `-option` (QEMU takes `--option`, too)."""
    for word, following in pairwise(arguments):
        if word in (f"-{option}", f"--{option}"):
            return following
    return None
