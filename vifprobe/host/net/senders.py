# SPDX-License-Identifier: Apache-2.0
"""Sender of a netlink request: find the process by the port in a notification's header.

The port is the process id of the sender for the first socket of a process that lets the kernel choose (nearly all),
and a random number for its further ones (net/netlink/af_netlink.c, netlink_autobind); a process in a container has
another id there. So the number alone proves nothing: the socket behind it is looked up in /proc/net/netlink, and the
process that holds this socket is the one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vifprobe.host.procs import processes

# /proc/net is the namespace of the process's first thread; this one follows the calling thread.
_TABLE = Path("/proc/thread-self/net/netlink")
_ROUTE_PROTOCOL = "0"
_PIDS = 1 << 22  # PID_MAX_LIMIT, include/linux/threads.h
_SEARCH_SECONDS = 0.2  # of CPU time
_CAUGHT_NS = 1_000_000_000  # who a port belongs to is not asked again for so long
_CAUGHT_MAX = 1000
_KNOWN_MAX = 1000


class Sender(NamedTuple):
    """A process that sent a request.

    - pid, comm: id and name.
    - parent_comm: name of its parent; "" where that has ended.
    - proved: the process holds the socket of the request. Else the port's number is its process id, and the process was
      about to end.
    """

    pid: int
    comm: str
    parent_comm: str
    proved: bool


class ProcessSnapshot(NamedTuple):
    """A process by its id, read as soon as its request was received."""

    comm: str
    parent: int


class Catcher:
    """Looks up the holder of a socket whose port is not a process id, as soon as its request was received.

    A daemon that ends later takes the socket with it. To be fast in the receiving thread, it searches only processes
    that also have a socket with their process id as its port.
    """

    def __init__(self) -> None:
        self._caught: dict[int, tuple[int, Sender | None]] = {}  # port -> (when, who)

    def find(self, port: int, at_ns: int) -> Sender | None:
        """Return the process that has the port now; None for the kernel, and where the search would take longer."""
        if not port:
            return None
        caught = self._caught.get(port)
        if caught is None or at_ns - caught[0] > _CAUGHT_NS:
            if len(self._caught) >= _CAUGHT_MAX:
                self._caught.clear()
            caught = self._caught[port] = at_ns, self._look_up(port)
        return caught[1]

    @staticmethod
    def _look_up(port: int) -> Sender | None:
        ports = dict(_ports())
        inode = ports.get(port)
        pid = processes.socket_holder((one for one in ports if 0 < one < _PIDS), inode) if inode is not None else None
        return _holding(pid) if pid is not None else None


class Senders:
    """Looks up the process of a port, fastest method first. For one thread at a time.

    It caches sockets that stay open (at most _KNOWN_MAX).
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, Sender | None]] = {}  # port -> (inode of its socket, who)

    def find(self, port: int, seen: ProcessSnapshot | Sender | None) -> Sender | None:
        """Return the process with this port in the calling thread's network namespace; None for the kernel, or if gone.

        seen: what :func:`process_snapshot` of the port, or a Catcher, gave at once.
        """
        if not port:
            return None
        by_number = _by_number(port, seen) if isinstance(seen, ProcessSnapshot) else seen
        ports = dict(_ports())
        inode = ports.get(port)
        if inode is None:
            return by_number
        known = self._known.get(port)
        if known is not None and known[0] == inode:
            return known[1]
        pid = _holder(port, inode, ports)
        sender = by_number if pid is None else _holding(pid)
        if len(self._known) >= _KNOWN_MAX:
            self._known.clear()
        self._known[port] = inode, sender
        return sender


def _by_number(port: int, seen: ProcessSnapshot) -> Sender:
    return Sender(port, seen.comm, processes.comm(seen.parent), proved=False)


def _holding(pid: int) -> Sender:
    holder = process_snapshot(pid) or ProcessSnapshot("", 0)
    return Sender(pid, holder.comm, processes.comm(holder.parent), proved=True)


def _holder(port: int, inode: int, ports: dict[int, int]) -> int | None:
    """Return the process that holds the socket: first the one with the port's number is tried, then all others."""
    deadline = time.thread_time() + _SEARCH_SECONDS

    def candidates() -> Iterator[int]:
        yield port
        yield from ports
        for pid in processes.running():
            if time.thread_time() > deadline:
                return
            yield pid

    return processes.socket_holder((pid for pid in candidates() if 0 < pid < _PIDS), inode)


def process_snapshot(port: int) -> ProcessSnapshot | None:
    """Return the process whose id is this port, if any. It is fast: a tc command ends within a millisecond."""
    if not 0 < port < _PIDS:
        return None
    try:
        fd = os.open(f"/proc/{port}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = os.read(fd, 512)
        finally:
            os.close(fd)
    except OSError:
        return None
    # 4711 (name, which may hold blanks and brackets) S 4710 ...
    start, end = found.find(b"("), found.rfind(b")")
    rest = found[end + 1 :].split(maxsplit=2)
    return ProcessSnapshot(os.fsdecode(found[start + 1 : end]), int(rest[1])) if len(rest) > 1 else None


def _ports() -> Iterator[tuple[int, int]]:
    """Yield (port, inode) of each route socket in the namespace."""
    try:
        lines = _TABLE.read_text().splitlines()[1:]
    except OSError:
        return
    for line in lines:
        words = line.split()  # sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
        if len(words) >= 10 and words[1] == _ROUTE_PROTOCOL:
            yield int(words[2]), int(words[9])
