# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: entering one by name, path or pid, and finding the one that holds an interface.

Entered with setns(2), never through `ip netns exec`, which would mount a fresh /sys and hide tracefs and bpffs.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from vifprobe.errors import HostError
from vifprobe.host.net import names
from vifprobe.host.net.links import RTM_GETLINK, request
from vifprobe.host.net.netlink import Netlink, NetlinkError
from vifprobe.process import capabilities

#: Where `ip netns add` (and with it Neutron) and Docker keep the names.
NAMED_DIRECTORIES = (Path("/run/netns"), Path("/run/docker/netns"))

_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
_SEARCH_SECONDS = 2.0
_OWN = Path("/proc/thread-self/ns/net")  # /proc/self is the process's first thread, which may be elsewhere

# os.setns came with Python 3.12.
_libc = ctypes.CDLL(None, use_errno=True)


def enter(name_or_path_or_pid: str) -> None:
    """Move the calling thread, and every thread and process it starts from now on, into a network namespace.

    A name is looked up in /run/netns and /run/docker/netns, a number that is no such name is a process id, and what
    holds a slash is a path. Raises HostError with the nearest name where there is no such namespace, and where
    entering it is not allowed.
    """
    path = _path_of(name_or_path_or_pid)
    shown = names.shown(name_or_path_or_pid)
    try:
        # A namespace is a regular file of nsfs. Opening a fifo would wait for its writer, and a device may act upon it.
        if not stat.S_ISREG(path.stat().st_mode):
            raise HostError(f"{shown}: {path} is not a network namespace.", _known_hint())
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"{shown}: can't open the network namespace {path}: {error.strerror}.") from error
    try:
        _setns(fd)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise HostError(f"{shown}: {path} is not a network namespace.", _known_hint()) from error
        raise HostError(
            f"{shown}: can't enter the network namespace: {error.strerror}.",
            "Entering a namespace needs root (CAP_SYS_ADMIN).",
        ) from error
    finally:
        os.close(fd)


def own() -> int:
    """Return an fd of the calling thread's network namespace, for `return_to`."""
    try:
        return os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _no_own(error) from error


def _no_own(error: OSError) -> HostError:
    return HostError(f"{_OWN}: {(error.strerror or str(error)).lower()}.", "Run vifprobe where /proc is mounted.")


def return_to(fd: int) -> None:
    """Move the calling thread back to the namespace of an fd from `own`, and close the fd."""
    try:
        if not os.path.samestat(os.fstat(fd), _OWN.stat()):  # staying where one is takes no right
            _setns(fd)
    except PermissionError:
        if not capabilities.is_planned():  # else the process ends now: it has given up what it takes to go back
            raise
    finally:
        os.close(fd)


def inode() -> int:
    """Return the inode (`net:[4026531840]`) of the calling thread's network namespace, as lsns(8) prints it."""
    try:
        return _OWN.stat().st_ino
    except OSError as error:
        raise _no_own(error) from error


def named() -> dict[str, Path]:
    """Return names for `enter` -> their paths; empty where there are none, or they can't be listed."""
    found: dict[str, Path] = {}
    for directory in NAMED_DIRECTORIES:
        try:
            for path in sorted(directory.iterdir()):
                found.setdefault(path.name, path)
        except OSError:
            continue
    return found


def find_elsewhere(link_name: str) -> list[str]:
    """Namespaces, other than the calling thread's, that hold an interface of this name; each is good for `enter`.

    Searched: the named ones, then those of all running processes, given by a process id. Those that can't be entered
    (not root) are left out, and the search ends after two seconds. The caller stays where it is: a thread of its own
    does the walking.
    """
    found: list[str] = []

    def search() -> None:
        deadline = time.monotonic() + _SEARCH_SECONDS
        for name, path in _others():
            if time.monotonic() > deadline:
                break
            if _holds(path, link_name):
                found.append(name)

    _in_thread(search)
    return found


def holds(pid: int, link_name: str) -> bool:
    """Return True if the namespace of process `pid` has an interface of this name; False where it can't be read."""
    begin = f"{link_name}:".encode()
    try:
        # These files show the process's namespace, so that it need not be entered.
        lines = Path(f"/proc/{pid}/net/dev").read_bytes().splitlines()
    except OSError:
        return False
    return any(line.lstrip().startswith(begin) for line in lines)


def _in_thread(work: Callable[[], None]) -> None:
    """Run `work` in a separate thread, which ends in the namespace that it has entered."""
    thread = threading.Thread(target=work, name="netns", daemon=True)
    thread.start()
    thread.join()


def _others() -> Iterator[tuple[str, Path]]:
    """Yield (name or pid, path) of each namespace once, without the caller's."""
    own = _OWN.stat()
    seen = {(own.st_dev, own.st_ino)}
    candidates = list(named().items())
    pids = sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    candidates += [(str(pid), Path(f"/proc/{pid}/ns/net")) for pid in pids]
    for name, path in candidates:
        try:
            status = path.stat()
        except OSError:  # the process has ended, or may not be read
            continue
        if (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            yield name, path


def _holds(path: Path, link_name: str) -> bool:
    """Enter `path` for good and ask. Only for a thread that ends afterwards."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(fd)
        finally:
            os.close(fd)
        with Netlink() as netlink:
            netlink.get(RTM_GETLINK, request(name=link_name))
    except (OSError, NetlinkError):
        return False
    return True


def _path_of(value: str) -> Path:
    if not value or not value.isprintable():
        raise HostError(f"{names.shown(value)}: not a network namespace: give a name, a path or a process id.")
    known = named()
    if value in known:
        return known[value]
    if "/" in value:
        return Path(value)
    if value.isdigit():
        path = Path(f"/proc/{int(value)}/ns/net")
        if not path.parent.parent.exists():
            raise HostError(f"{value}: no such process, and no network namespace of that name.", _known_hint())
        return path
    near = names.closest(value, known)
    hint = f"Looked at {_count(len(known))} in /run/netns and /run/docker/netns"
    raise HostError(
        f"{names.shown(value)}: no such network namespace.",
        f"{hint}; the closest name is {names.shown(near)}." if near else f"{hint}; no name is close to it.",
        "See `ip netns`, or give a path such as /proc/PID/ns/net, or a process id.",
    )


def _count(number: int) -> str:
    return "1 namespace" if number == 1 else f"{number} namespaces"


def _known_hint() -> str:
    known = list(named())
    listed = ", ".join(names.shown(name) for name in known[:8]) + (", ..." if len(known) > 8 else "")
    return f"Names in /run/netns: {listed}." if known else "There are no names in /run/netns; see `lsns -t net`."


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
