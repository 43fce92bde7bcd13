# SPDX-License-Identifier: Apache-2.0
"""Receive netlink notifications in a separate thread, so that each has its time and its process.

The thread does no more than that, at the lowest real-time priority where it may: the tc command behind a change ends
within a millisecond, and on a busy machine a thread of ordinary priority comes too late to see its name every second
time. What link messages without news cost is bounded (vifprobe.host.net.link_storm).
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from vifprobe.host.net.link_storm import LinkStorms, mute
from vifprobe.host.net.netlink import RECEIVE_BYTES, port_of
from vifprobe.host.net.senders import Catcher, ProcessSnapshot, Sender, process_snapshot
from vifprobe.process import capabilities

_QUEUE_MAX = 20_000  # datagrams that nobody has read; what comes after them is lost, and said to be
_QUEUE_BYTES_MAX = 16 * 1024 * 1024
_RECEIVED_AT_ONCE_MAX = 2_000  # in a second, some 30 µs of work each
_BATCH = 64  # datagrams of one socket before the other one is looked at
#: Who waits for messages is not woken for one without news before this: the next message that says something does it.
_TOLD_AGAIN_NS = 100_000_000


@dataclass
class Received:
    """A received datagram.

    - at_ns: time of receipt, monotonic.
    - data: its bytes; None where datagrams before it were lost.
    - repeats: number of link messages equal to an earlier one, the last one at `at_ns`; 0 for other datagrams.
    - ifindex: interface of the repeats.
    - look_again: this interface was muted until now.
    """

    at_ns: int
    data: bytes | None
    seen: ProcessSnapshot | None = None
    is_nft: bool = False
    caught: Sender | None = None
    ifindex: int = 0
    repeats: int = 0
    look_again: bool = False


class Receiver:
    """From `start` to `close`. route: from netlink.subscribe; nft can be added later."""

    def __init__(self, route: Any) -> None:
        self._route = route
        self._socket: socket.socket = route.socket
        self._nft_socket: socket.socket | None = None
        self._ready, self._stop = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC), os.eventfd(0, os.EFD_CLOEXEC)
        self._queue: deque[Received] = deque()
        self._queued_bytes = 0
        self._drained = True
        self._is_full = self._is_loss_told = False
        self._repeats: dict[int, Received] = {}  # by interface; not in the queue yet
        self._woken_ns = 0
        self._catcher, self._storms = Catcher(), LinkStorms()
        # Sockets can be added to it while the thread waits.
        self._poll = select.epoll()
        self._poll.register(self._socket.fileno(), select.EPOLLIN)
        self._poll.register(self._stop, select.EPOLLIN)
        self._thread = threading.Thread(target=self._receive_all, name="events", daemon=True)

    def start(self) -> None:
        """Start to receive."""
        self._thread.start()

    @property
    def hears_nft(self) -> bool:
        """Return True if there is a socket for nft changes."""
        return self._nft_socket is not None

    def add_nft(self, source: socket.socket) -> None:
        """Receive from this socket of nft notifications, too."""
        self._nft_socket = source
        self._poll.register(source.fileno(), select.EPOLLIN)

    def fileno(self) -> int:
        """Return a descriptor that is readable when `take` has messages."""
        return self._ready

    def take(self) -> list[Received]:
        """Return the messages since the last call."""
        try:
            os.eventfd_read(self._ready)
        except BlockingIOError:
            return []
        self._drained = True
        return [self._queue.popleft() for _ in range(len(self._queue))]

    def close(self) -> None:
        """End the thread and close the sockets."""
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        self._poll.close()
        self._route.close()
        if self._nft_socket is not None:
            self._nft_socket.close()
        os.close(self._ready)
        os.close(self._stop)

    def _receive_all(self) -> None:
        pace = _Pace()
        capabilities.follow_plan()
        while all(self._receive_batch(fd, pace) for fd, _ in self._poll.poll(self._timeout_seconds())):
            self._after_batch(time.monotonic_ns())

    def _timeout_seconds(self) -> float:
        """Return the time until work is due without a message; negative: never."""
        if self._storms.muted:
            return 0.05
        return _TOLD_AGAIN_NS / 1e9 if self._repeats else -1

    def _after_batch(self, now_ns: int) -> None:
        """Mute and unmute interfaces; wake the reader for repeats that are due."""
        over = self._storms.to_unmute(now_ns)
        if self._storms.to_mute(now_ns) or over:
            mute(self._socket, self._storms.muted)
        for ifindex in over:
            self._put(Received(now_ns, b"", ifindex=ifindex, look_again=True))
        if self._repeats and now_ns - self._woken_ns >= _TOLD_AGAIN_NS:
            self._queue_repeats()
            self._wake(now_ns)

    def _receive_batch(self, fd: int, pace: _Pace) -> bool:
        """Receive the messages of a socket, up to a bound; return False at the end."""
        if fd == self._stop:
            return False
        is_nft = fd != self._socket.fileno()
        source = self._nft_socket if is_nft else self._socket
        assert source is not None  # noqa: S101 - it is registered
        for _ in range(_BATCH):
            try:
                data, sender = source.recvfrom(RECEIVE_BYTES)
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # not known to happen; to go on could be to spin
                    return False
                self._lost(is_nft)
                continue
            if sender[0] == 0:  # from the kernel
                self._take_in(data, is_nft, pace)
        return True

    def _take_in(self, data: bytes, is_nft: bool, pace: _Pace) -> None:
        seen = process_snapshot(port := port_of(data))  # first, because the process can end at any time
        at_ns = time.monotonic_ns()
        repeated = None if is_nft else self._storms.repeated(data, at_ns)
        if repeated is not None:
            self._repeat(repeated, at_ns)
            return
        caught = self._catcher.find(port, at_ns) if seen is None and not is_nft else None
        self._put(Received(at_ns, data, seen, is_nft, caught))
        pace.step(at_ns)

    def _repeat(self, ifindex: int, at_ns: int) -> None:
        """Count a repeated message with the previous ones, since the last message with a change."""
        known = self._repeats.get(ifindex)
        if known is not None:
            known.repeats += 1
            known.at_ns = at_ns
            return
        self._repeats[ifindex] = Received(at_ns, b"", ifindex=ifindex, repeats=1)
        if at_ns - self._woken_ns >= _TOLD_AGAIN_NS:
            self._queue_repeats()
            self._wake(at_ns)

    def _queue_repeats(self) -> None:
        """Queue the counted repeats for the reader; counting starts again."""
        for one in self._repeats.values():
            self._queue_up(one)
        self._repeats.clear()

    def _lost(self, is_nft: bool) -> None:
        """Queue a loss once until it is read: the reader then compares with the current state."""
        self._storms.forget()
        if is_nft or self._drained or not self._is_loss_told:
            self._put(Received(time.monotonic_ns(), None, None, is_nft))
            self._is_loss_told |= not is_nft

    def _put(self, received: Received) -> None:
        self._queue_repeats()
        self._queue_up(received)
        self._wake(received.at_ns)

    def _queue_up(self, received: Received) -> None:
        if self._drained:
            self._drained = self._is_full = self._is_loss_told = False
            self._queued_bytes = 0
        if self._is_full:
            return
        self._queued_bytes += len(received.data or b"")
        self._is_full = len(self._queue) >= _QUEUE_MAX - 1 or self._queued_bytes > _QUEUE_BYTES_MAX
        if self._is_full:
            self._storms.forget()
        self._queue.append(Received(received.at_ns, None) if self._is_full else received)

    def _wake(self, at_ns: int) -> None:
        self._woken_ns = at_ns
        os.eventfd_write(self._ready, 1)


class _Pace:
    """Priority of the receiving thread: real-time, except while messages are so many that it would slow the host."""

    def __init__(self) -> None:
        self._count, self._since_ns = 0, time.monotonic_ns()
        self._is_real_time = _set_scheduler(os.SCHED_RR, 1)

    def step(self, now_ns: int) -> None:
        """Update the priority, after each datagram with a change."""
        self._count += 1
        if self._count < _RECEIVED_AT_ONCE_MAX and now_ns - self._since_ns < 1_000_000_000:
            return
        is_busy = self._count >= _RECEIVED_AT_ONCE_MAX
        if self._is_real_time and is_busy:
            self._is_real_time = not _set_scheduler(os.SCHED_OTHER, 0)
        elif not self._is_real_time and not is_busy:
            self._is_real_time = _set_scheduler(os.SCHED_RR, 1)
        self._count, self._since_ns = 0, now_ns


def _set_scheduler(policy: int, priority: int) -> bool:
    """Set the scheduling policy of the calling thread; return False where it is not permitted."""
    try:
        os.sched_setscheduler(0, policy, os.sched_param(priority))
    except OSError:
        return False
    return True
