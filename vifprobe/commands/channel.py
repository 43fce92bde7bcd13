# SPDX-License-Identifier: Apache-2.0
"""Bytes to a file descriptor whose reader may stall, leave or never come."""

from __future__ import annotations

import errno
import io
import os
import select
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING

from vifprobe.commands.signals import STOP
from vifprobe.errors import OutputError, ReaderGoneError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: A run that ends waits so long for a reader that takes nothing, and so long in all for one that is slow.
STALLED_SECONDS = 2.0
SLOW_SECONDS = 10.0
#: After a second signal, in place of STALLED_SECONDS.
URGENT_SECONDS = 0.2
#: Between two looks whether a second signal has come.
_LOOK_SECONDS = 0.1
#: poll(2) promises room for so many bytes at least (pipe(7), PIPE_BUF).
_ROOM_BYTES = select.PIPE_BUF
_CHUNK_BYTES = 1 << 16
_MESSAGES_MAX_BYTES = 1 << 16


class Use(Enum):
    """Treatment of bytes that the descriptor does not take at once."""

    WAIT = "waited for"
    HOLD = "held until they are taken; errors are kept for `finish`"
    MESSAGES = "held, up to a limit; errors are ignored"


class Channel(io.RawIOBase):
    """Writes to a descriptor without being blocked by its reader.

    name: for error messages. use: see Use. is_ending: a write waits for the reader a few seconds only, as it does in
    any case once a signal has asked for the end.
    """

    def __init__(self, fd: int, name: str, use: Use = Use.WAIT) -> None:
        self.name = name
        self.is_ending = False
        self._fd = fd
        self._use = use
        self._pending = bytearray()
        self._lock = threading.Lock()  # rich draws from a thread of its own
        self._cut_bytes = 0  # of a line whose end is not written yet
        self._error: OSError | None = None
        self._on_error: Callable[[], None] = lambda: None
        self._write_some = _writer(fd)

    def fileno(self) -> int:
        """The descriptor, to wait on until it is writable."""
        return self._fd

    def isatty(self) -> bool:
        """Return True if it is a terminal."""
        return os.isatty(self._fd)

    def writable(self) -> bool:
        """Yes."""
        return True

    def close(self) -> None:
        """Nothing: the descriptor belongs to the process."""

    def flush(self) -> None:
        """Hand on what is taken without waiting."""
        self.push()

    def hold(self, on_error: Callable[[], None]) -> None:
        """Make writes return at once; `push` and `finish` do the rest. on_error: called when an error is found."""
        self._use = Use.HOLD
        self._on_error = on_error

    def write(self, data: ReadableBuffer) -> int:
        """Take all bytes. Raises OutputError and ReaderGoneError where `use` is WAIT."""
        content = bytes(data)
        if self._error is None and not self._is_too_much(content):
            self._pending += content
        if self._use is Use.WAIT:
            self.finish(None)
        else:
            self.push()
        return len(content)

    def push(self) -> bool:
        """Write what is taken without waiting. Return True when nothing is left, be it by an error."""
        with self._lock:
            try:
                while self._pending:
                    chunk = bytes(self._pending[:_CHUNK_BYTES])
                    written = self._write_some(chunk)
                    del self._pending[:written]
                    line_end = chunk.rfind(b"\n", 0, written)
                    self._cut_bytes = self._cut_bytes + written if line_end < 0 else written - line_end - 1
            except BlockingIOError:
                return False
            except OSError as error:
                self._pending.clear()
                self._error = error
        if self._error is not None and self._use is not Use.MESSAGES:
            self._on_error()
        return True

    def finish(self, patience_seconds: float | None = STALLED_SECONDS) -> None:
        """Wait until everything is written; patience_seconds None: as long as the run goes on.

        Raises OutputError and ReaderGoneError, except for messages.
        """
        is_taken = self._wait(patience_seconds)
        left_bytes = len(self._pending)
        self._pending.clear()
        if self._use is Use.MESSAGES:
            return
        if not is_taken:
            raise self._stalled(left_bytes)
        if self._error is not None:
            raise self._failure(self._error) from self._error

    def cut_last_line(self) -> None:
        """Take the beginning of a line that is not whole off the end of a regular file, as far as that is possible."""
        if self._cut_bytes:
            with suppress(OSError):
                os.ftruncate(self._fd, os.lseek(self._fd, 0, os.SEEK_CUR) - self._cut_bytes)

    def _wait(self, patience_seconds: float | None) -> bool:
        """Push until nothing is left; False where the reader took too little for too long."""
        clock = _Patience(patience_seconds)
        while not self.push():
            if STOP.is_urgent:
                clock.limit(URGENT_SECONDS)
            elif self.is_ending or STOP.is_set:
                clock.limit(STALLED_SECONDS)
            if clock.is_over(len(self._pending)):
                return False
            self._wait_for_room(clock.seconds)
        return True

    def _wait_for_room(self, seconds: float | None) -> None:
        waiting = select.poll()
        waiting.register(self._fd, select.POLLOUT)
        if STOP.is_set:  # its descriptor stays readable
            seconds = _LOOK_SECONDS if seconds is None else min(seconds, _LOOK_SECONDS)
        else:
            waiting.register(STOP, select.POLLIN)
        waiting.poll(None if seconds is None else seconds * 1e3)

    def _is_too_much(self, content: bytes) -> bool:
        return self._use is Use.MESSAGES and len(self._pending) + len(content) > _MESSAGES_MAX_BYTES

    def _stalled(self, left_bytes: int) -> OutputError:
        return OutputError(
            f"{self.name}: the reader does not read: the last {left_bytes:,} bytes were not written.",
            "The end of the output is missing, and the last line that was read may be cut.",
        )

    def _failure(self, error: OSError) -> OutputError | ReaderGoneError:
        if error.errno == errno.EPIPE:
            return ReaderGoneError(f"{self.name}: its reader has gone.")
        why = "it is closed" if error.errno == errno.EBADF else error.strerror or str(error)
        return OutputError(f"{self.name}: {why}.", *_hints(error))


def _hints(error: OSError) -> list[str]:
    if error.errno == errno.EBADF:
        return ["Redirect it to a file, or to /dev/null if it is not wanted."]
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ["Make room there, or write to another place."]
    return ["Seen where a terminal has gone."] if error.errno == errno.EIO else []


class _Patience:
    """Time limits of the wait for a reader: from its last progress, and in total."""

    def __init__(self, seconds: float | None) -> None:
        self._stalled_seconds = seconds
        self._left_bytes = 0
        self._since = self._began = time.monotonic()

    def limit(self, seconds: float) -> None:
        """From now on; a limit never becomes longer."""
        if self._stalled_seconds is None:
            self._since = self._began = time.monotonic()
        self._stalled_seconds = min(seconds, self._stalled_seconds or seconds)

    @property
    def seconds(self) -> float | None:
        """Left without progress, None for any number."""
        if self._stalled_seconds is None:
            return None
        now = time.monotonic()
        return max(0.0, min(self._since + self._stalled_seconds, self._began + SLOW_SECONDS) - now)

    def is_over(self, left_bytes: int) -> bool:
        """Return True if the wait for the reader is over; left_bytes: not read yet."""
        if left_bytes != self._left_bytes:
            self._left_bytes, self._since = left_bytes, time.monotonic()
        return self.seconds == 0.0


def _writer(fd: int) -> Callable[[bytes], int]:
    """Return what writes some bytes to the descriptor, or raises BlockingIOError where that would wait."""
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        mode = 0
    if stat.S_ISSOCK(mode):
        return _socket_writer(fd)
    if not stat.S_ISFIFO(mode) and not os.isatty(fd):
        return lambda data: os.write(fd, data)  # files and devices make nobody wait for a reader
    # O_NONBLOCK belongs to the open file description, which others share (the shell's terminal): ours is a new one.
    with suppress(OSError):
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        own_fd = os.open(f"/proc/self/fd/{fd}", flags)
        return lambda data: os.write(own_fd, data)
    return lambda data: _write_polled(fd, data)


def _socket_writer(fd: int) -> Callable[[bytes], int]:
    import socket

    own = socket.socket(fileno=os.dup(fd))
    return lambda data: own.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def _write_polled(fd: int, data: bytes) -> int:
    """Where no description of our own is to be had: as much as fits for certain while nobody else writes there."""
    room = select.poll()
    room.register(fd, select.POLLOUT)
    if not room.poll(0):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return os.write(fd, data[:_ROOM_BYTES])
