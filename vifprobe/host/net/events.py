# SPDX-License-Identifier: Apache-2.0
"""Events of watched interfaces and the processes that caused them: netlink notifications of links, tc and nft.

A separate thread receives them (vifprobe.host.net.receiver), so that an event has its time and its process even if it
is read a second later.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass

from vifprobe.host.net.changes import NO_CHANGE, EventKind, LinkChange, Watched
from vifprobe.host.net.links import RTM_GETLINK, Link, list_links, request
from vifprobe.host.net.netlink import Message, Netlink, NetlinkError, messages, subscribe
from vifprobe.host.net.receiver import Received, Receiver
from vifprobe.host.net.senders import Sender, Senders
from vifprobe.host.nft.events import NftChange, Transactions, subscribed
from vifprobe.host.procs import processes
from vifprobe.host.tc.objects import qdisc
from vifprobe.host.tc.reader import RTM_GETQDISC, RTM_NEWQDISC, request_of
from vifprobe.host.tc.records import TcClass, TcFilter, TcQdisc

_GROUPS = 1 << 0 | 1 << 3  # RTMGRP_LINK, RTMGRP_TC
_RECEIVE_BUFFER_BYTES = 8 * 1024 * 1024  # some 4,000 link messages


#: Others run them.
_COMMANDS = ("tc", "nft", "ip")


@dataclass(frozen=True)
class Event:
    """One change.

    - at_ns: when the notification was received, monotonic clock.
    - ifindex: of the interface; 0 for `overflow`, `unreadable` and `nft_change`. An nft change can concern any
      interface's chains, so the reader has to dump the rules.
    - kind: see changes.EventKind. `overflow`: notifications were lost (ENOBUFS). Changes of links follow, found by a
      dump; those of tc and nft have to be dumped by the reader.
    - detail: the change, for people.
    - by_pid, by_comm: process that requested the change. None where the kernel names none (it acted by itself, or for
      an ioctl), and where the process had ended.
    - by_parent_comm: name of that process's parent; None or "" where unknown.
    - by_proved: the process holds the socket of the request. Else the socket's number is its process id, as for
      short-lived commands like tc.
    - record: the object as the kernel described it; None without one.
    - times: number of combined notifications, the last one at `at_ns`: link messages without a change.
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
    times: int = 1

    @property
    def says_nothing(self) -> bool:
        """Return True for a link message without a change."""
        return self.detail == NO_CHANGE

    @property
    def by_words(self) -> str:
        """Return the process that made the change; for a command, with its parent: `tc (started by libvirtd)`.

        "" where unknown.
        """
        by = self.by_comm or ""
        return f"{by} (started by {self.by_parent_comm})" if by in _COMMANDS and self.by_parent_comm else by


class Events:
    """Subscription to events in the calling thread's network namespace, from its creation until it is closed.

    Read it from threads in that namespace, one at a time. Raises HostError where netlink is not available.
    """

    def __init__(self, ifindexes: Iterable[int]) -> None:
        route = subscribe(_GROUPS, _RECEIVE_BUFFER_BYTES)
        try:
            self._watched = Watched(ifindexes, list_links(), _qdiscs())
            self._receiver = Receiver(route)
        except BaseException:
            route.close()
            raise
        self._senders, self._transactions = Senders(), Transactions()
        self._closed = False
        self.follow_nft()
        self._receiver.start()

    def follow_nft(self) -> bool:
        """Subscribe to nft changes once nf_tables is loaded; return True if subscribed. Harmless when called again."""
        if not self._receiver.hears_nft:
            source = subscribed(_RECEIVE_BUFFER_BYTES)
            if source is not None:
                self._receiver.add_nft(source)
        return self._receiver.hears_nft

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """Return a descriptor for select and poll, readable when there are events."""
        return self._receiver.fileno()

    def read(self) -> list[Event]:
        """Return the events since the last call, oldest first, without waiting. Raises OSError once closed."""
        if self._closed:
            raise OSError(errno.EBADF, "the subscription is closed")
        return [event for one in self._receiver.take() for event in self._events(one)]

    def close(self) -> None:
        """End the subscription. Events not read yet are lost; to close twice is no error."""
        if self._closed:
            return
        self._closed = True
        self._receiver.close()

    def _events(self, received: Received) -> list[Event]:
        at_ns = received.at_ns
        events: list[Event] = []
        try:
            if received.data is None:
                return self._lost(received)
            if received.repeats:
                return self._repeated(received)
            if received.look_again:
                return self._look_again(received)
            for message in messages(received.data):
                events += self._of_nft(received, message) if received.is_nft else self._of_route(received, message)
        except NetlinkError as error:
            events.append(Event(at_ns, 0, "unreadable", error.message))
        return events

    def _of_route(self, received: Received, message: Message) -> list[Event]:
        changes = self._watched.changes(message)
        sender = self._senders.find(message.port, received.seen or received.caught) if changes else None
        return [_event(received.at_ns, change, sender) for change in changes]

    def _repeated(self, received: Received) -> list[Event]:
        if not self._watched.is_watched(received.ifindex):
            return []
        return [Event(received.at_ns, received.ifindex, "link_change", NO_CHANGE, times=received.repeats)]

    def _look_again(self, received: Received) -> list[Event]:
        """Read the state of an interface that sent too many link messages to be received."""
        try:
            with Netlink() as netlink:
                message = netlink.get(RTM_GETLINK, request(received.ifindex))
        except NetlinkError:  # the interface is gone, which another message reports
            return []
        changes = [change for change in self._watched.changes(message) if change.detail != NO_CHANGE]
        return [_event(received.at_ns, change, None) for change in changes]

    def _of_nft(self, received: Received, message: Message) -> list[Event]:
        change = self._transactions.take(message)
        if change is None:
            return []
        # The port is the process's id for nft itself; a daemon's socket may have another, and then its name is enough.
        seen = received.seen if received.seen and received.seen.comm == change.by_comm else None
        parent = processes.comm(seen.parent) if seen else None
        who = (change.by_pid, change.by_comm, parent or None, change.by_comm is not None)
        return [Event(received.at_ns, 0, "nft_change", change.detail, *who, change)]

    def _lost(self, received: Received) -> list[Event]:
        """Compare the current state with the known one, after notifications were lost."""
        words = "notifications were lost: there were too many at once"
        self._transactions.lost()
        if received.is_nft:
            return [Event(received.at_ns, 0, "overflow", f"nft {words}")]
        changes = self._watched.resync(list_links())
        return [
            Event(received.at_ns, 0, "overflow", words),
            *(_event(received.at_ns, change, None) for change in changes),
        ]


def _event(at_ns: int, change: LinkChange, sender: Sender | None) -> Event:
    return Event(
        at_ns=at_ns,
        ifindex=change.ifindex,
        kind=change.kind,
        detail=change.detail,
        by_pid=sender.pid if sender else None,
        by_comm=sender.comm if sender else None,
        by_parent_comm=sender.parent_comm if sender else None,
        by_proved=sender.proved if sender else False,
        record=change.record,
    )


def _qdiscs() -> list[TcQdisc]:
    with Netlink() as netlink:
        rows = netlink.dump(RTM_GETQDISC, request_of())
    return [qdisc(row) for row in rows if row.type == RTM_NEWQDISC]
