# SPDX-License-Identifier: Apache-2.0
"""What happens to interfaces while they are watched, and who did it: netlink notifications of links, tc and nft.

A thread of its own receives, so that an event has its time and its process even if nobody reads for a second. It does
no more than that, at the lowest real-time priority where it may: the tc command behind a change ends within a
millisecond, and on a busy machine a thread of ordinary priority comes too late to see its name every second time.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from vifprobe.host import processes
from vifprobe.host.askers import Asker, Askers, Catcher, Glimpse, glimpse
from vifprobe.host.changes import Change, EventKind, Watched
from vifprobe.host.links import Link, list_links
from vifprobe.host.netlink import NETLINK_ROUTE, RECEIVE_BYTES, Message, Netlink, NetlinkError, messages, port_of
from vifprobe.host.nft_events import SO_RCVBUFFORCE, NftChange, Transactions, subscribed
from vifprobe.host.tc import RTM_GETQDISC, RTM_NEWQDISC
from vifprobe.host.tc_objects import TCMSG, qdisc
from vifprobe.host.tc_records import TcClass, TcFilter, TcQdisc

_GROUPS = 1 << 0 | 1 << 3  # RTMGRP_LINK, RTMGRP_TC
_RECEIVE_BUFFER_BYTES = 8 * 1024 * 1024  # some 4,000 link messages
_QUEUE_MAX = 20_000  # datagrams that nobody has read; what comes after them is lost, and said to be
_RECEIVED_AT_ONCE_MAX = 2_000  # in a second, some 30 µs of work each


#: Others run them.
_COMMANDS = ("tc", "nft", "ip")


class _Received(NamedTuple):
    """A datagram as it came in; data is None where datagrams before it were lost."""

    at_ns: int
    data: bytes | None
    seen: Glimpse | None = None
    is_nft: bool = False
    caught: Asker | None = None


@dataclass(frozen=True)
class Event:
    """One change. at_ns: monotonic clock, when the notification was received.

    kind: see changes.EventKind; `overflow` says that notifications were lost (ENOBUFS): changes of links follow as
    found by a fresh dump, those of tc and nft have to be dumped by the reader. ifindex: 0 for `overflow`, `unreadable`
    and `nft_change`, which may be one of any interface's chains: what nft does there has to be dumped, too.
    by_pid, by_comm: who asked for it; None where the kernel names nobody (it did it by itself, or for an ioctl), and
    where the process had ended. by_parent_comm: name of the process that started it. by_proved: the process holds the
    very socket; else it had the socket's number as its process id, as short-lived ones like tc do. record: the object
    as the kernel described it.
    """

    at_ns: int
    ifindex: int
    kind: EventKind
    detail: str
    by_pid: int | None = None
    by_comm: str | None = None
    by_parent_comm: str | None = None
    by_proved: bool = False
    record: Link | TcQdisc | TcClass | TcFilter | NftChange | None = None

    @property
    def by_words(self) -> str:
        """Who asked for it; for a command, with who ran it: `tc (started by libvirtd)`. "" where nobody is known."""
        by = self.by_comm or ""
        return f"{by} (started by {self.by_parent_comm})" if by in _COMMANDS and self.by_parent_comm else by


class Events:
    """Subscribed from the moment it is made, in the calling thread's network namespace, until it is closed.

    To be read from threads in that namespace, one at a time. Raises HostError where netlink can't be had.
    """

    def __init__(self, ifindexes: Iterable[int]) -> None:
        self._socket = _subscribe()
        self._nft_socket: socket.socket | None = None
        try:
            self._watched = Watched(ifindexes, list_links(), _qdiscs())
            self._ready, self._stop = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC), os.eventfd(0, os.EFD_CLOEXEC)
        except BaseException:
            self._socket.close()
            raise
        self._queue: deque[_Received] = deque()
        self._askers, self._catcher, self._transactions = Askers(), Catcher(), Transactions()
        self._closed = False
        # Sockets can be added to it while the thread waits.
        self._poll = select.epoll()
        self._poll.register(self._socket.fileno(), select.EPOLLIN)
        self._poll.register(self._stop, select.EPOLLIN)
        self.follow_nft()
        self._thread = threading.Thread(target=self._receive_all, name="events", daemon=True)
        self._thread.start()

    def follow_nft(self) -> None:
        """Subscribe to what nft changes, once nf_tables is there; harmless when called again."""
        if self._nft_socket is None:
            self._nft_socket = subscribed(_RECEIVE_BUFFER_BYTES)
            if self._nft_socket is not None:
                self._poll.register(self._nft_socket.fileno(), select.EPOLLIN)

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """Readable, for select and poll, when there is something to read."""
        return self._ready

    def read(self) -> list[Event]:
        """The events since the last call, oldest first; never waits for one. Raises OSError once closed."""
        if self._closed:
            raise OSError(errno.EBADF, "the subscription is closed")
        try:
            os.eventfd_read(self._ready)
        except BlockingIOError:
            return []
        received = [self._queue.popleft() for _ in range(len(self._queue))]
        return [event for one in received for event in self._events(one)]

    def close(self) -> None:
        """End the subscription. Events not read yet are lost; to close twice is no error."""
        if self._closed:
            return
        self._closed = True
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        self._poll.close()
        self._socket.close()
        if self._nft_socket is not None:
            self._nft_socket.close()
        os.close(self._ready)
        os.close(self._stop)

    def _receive_all(self) -> None:
        pace = _Pace()
        while all(self._receive(fd, pace) for fd, _ in self._poll.poll()):
            pass

    def _receive(self, fd: int, pace: _Pace) -> bool:
        """One datagram of a socket; False for the end."""
        if fd == self._stop:
            return False
        is_nft = fd != self._socket.fileno()
        source = self._nft_socket if is_nft else self._socket
        assert source is not None  # noqa: S101 - it is registered
        try:
            data, sender = source.recvfrom(RECEIVE_BYTES)
            seen = glimpse(port := port_of(data))  # before all else
            at_ns = time.monotonic_ns()
            caught = self._catcher.find(port, at_ns) if seen is None and not is_nft else None
            received = _Received(at_ns, data, seen, is_nft, caught)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # not known to happen; to go on could be to spin
                return False
            received, sender = _Received(time.monotonic_ns(), None, None, is_nft), (0, 0)
        if sender[0] == 0 and len(self._queue) < _QUEUE_MAX:  # from the kernel
            last = len(self._queue) == _QUEUE_MAX - 1
            self._queue.append(_Received(received.at_ns, None) if last else received)
            os.eventfd_write(self._ready, 1)
        pace.step(received.at_ns)
        return True

    def _events(self, received: _Received) -> list[Event]:
        at_ns = received.at_ns
        events: list[Event] = []
        try:
            if received.data is None:
                return self._lost(received)
            for message in messages(received.data):
                events += self._of_nft(received, message) if received.is_nft else self._of_route(received, message)
        except NetlinkError as error:
            events.append(Event(at_ns, 0, "unreadable", error.message))
        return events

    def _of_route(self, received: _Received, message: Message) -> list[Event]:
        changes = self._watched.changes(message)
        asker = self._askers.find(message.port, received.seen or received.caught) if changes else None
        return [_event(received.at_ns, change, asker) for change in changes]

    def _of_nft(self, received: _Received, message: Message) -> list[Event]:
        change = self._transactions.take(message)
        if change is None:
            return []
        # The port is the process's id for nft itself; a daemon's socket may have another, and then its name is enough.
        seen = received.seen if received.seen and received.seen.comm == change.by_comm else None
        parent = processes.comm(seen.parent) if seen else None
        who = (change.by_pid, change.by_comm, parent or None, change.by_comm is not None)
        return [Event(received.at_ns, 0, "nft_change", change.detail, *who, change)]

    def _lost(self, received: _Received) -> list[Event]:
        """Notifications were lost: what is now is compared with what was known."""
        words = "notifications were lost: there were too many at once"
        self._transactions.lost()
        if received.is_nft:
            return [Event(received.at_ns, 0, "overflow", f"nft {words}")]
        changes = self._watched.resync(list_links())
        return [
            Event(received.at_ns, 0, "overflow", words),
            *(_event(received.at_ns, change, None) for change in changes),
        ]


class _Pace:
    """The receiving thread's priority: real-time, until there is so much to receive that it would be felt."""

    def __init__(self) -> None:
        self._count, self._since_ns = 0, time.monotonic_ns()
        self._is_real_time = _set_scheduler(os.SCHED_RR, 1)

    def step(self, now_ns: int) -> None:
        """After each datagram."""
        self._count += 1
        if self._is_real_time and self._count >= _RECEIVED_AT_ONCE_MAX:
            if now_ns - self._since_ns < 1_000_000_000:
                self._is_real_time = not _set_scheduler(os.SCHED_OTHER, 0)
            self._count, self._since_ns = 0, now_ns


def _set_scheduler(policy: int, priority: int) -> bool:
    """For the calling thread alone; False where it may not."""
    try:
        os.sched_setscheduler(0, policy, os.sched_param(priority))
    except OSError:
        return False
    return True


def _event(at_ns: int, change: Change, asker: Asker | None) -> Event:
    return Event(
        at_ns=at_ns,
        ifindex=change.ifindex,
        kind=change.kind,
        detail=change.detail,
        by_pid=asker.pid if asker else None,
        by_comm=asker.comm if asker else None,
        by_parent_comm=asker.parent_comm if asker else None,
        by_proved=asker.proved if asker else False,
        record=change.record,
    )


def _subscribe() -> socket.socket:
    try:
        made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)
    except OSError as error:
        raise NetlinkError(f"netlink: no socket ({error.strerror}).", code=error.errno or 0) from error
    try:
        made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
    except OSError:  # not root: as much as net.core.rmem_max allows
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
    made.setblocking(False)
    made.bind((0, _GROUPS))
    return made


def _qdiscs() -> list[TcQdisc]:
    with Netlink() as netlink:
        rows = netlink.dump(RTM_GETQDISC, TCMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
    return [qdisc(row) for row in rows if row.type == RTM_NEWQDISC]
