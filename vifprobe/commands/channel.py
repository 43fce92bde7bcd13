# SPDX-License-Identifier: Apache-2.0
"""Output to a file descriptor whose reader may stall, leave or never come."""

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

#: How long a run that ends waits for a reader that reads nothing, and in total for a slow reader.
STALLED_SECONDS = 2.0
SLOW_SECONDS = 10.0
#: The same after a second signal, instead of STALLED_SECONDS.
URGENT_SECONDS = 0.2
#: Between two checks for a second signal.
_LOOK_SECONDS = 0.1
#: poll(2) promises room for at least this many bytes (pipe(7), PIPE_BUF).
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

    - name: for error messages;
    - use: see Use;
    - is_ending: a write waits for the reader a few seconds only. The same holds after a signal that ends the run.
    """

    def __init__(self, fd: int, name: str, use: Use = Use.WAIT) -> None:
        self.name = name
        self.is_ending = False
        self._fd = fd
        self._use = use
        self._pending = bytearray()
        self._lock = threading.Lock()  # rich draws from its own thread
        self._cut_bytes = 0  # of a line whose end is not written yet
        self._error: OSError | None = None
        self._on_error: Callable[[], None] = lambda: None
        self._write_some = _writer(fd)

    def fileno(self) -> int:
        """Return the descriptor, to wait on until it is writable."""
        return self._fd

    def isatty(self) -> bool:
        """Return True if the descriptor is a terminal."""
        return os.isatty(self._fd)

    def writable(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Do nothing: the descriptor belongs to the process."""

    def flush(self) -> None:
        """Write what is pending, as far as that is possible without waiting."""
        self.push()

    def hold(self, on_error: Callable[[], None]) -> None:
        """Make writes return at once; `push` and `finish` write the rest. on_error: called when a write fails."""
        self._use = Use.HOLD
        self._on_error = on_error

    def write(self, data: ReadableBuffer) -> int:
        """Take all bytes. With Use.WAIT, raises OutputError and ReaderGoneError."""
        content = bytes(data)
        if self._error is None and not self._is_too_much(content):
            self._pending += content
        if self._use is Use.WAIT:
            self.finish(None)
        else:
            self.push()
        return len(content)

    def push(self) -> bool:
        """Write without waiting. Return True if nothing is pending any more, also after an error."""
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
        """Wait until everything is written. patience_seconds: time limit; None: as long as the run lasts.

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
        """Remove an incomplete last line from a regular file, as far as that is possible."""
        if self._cut_bytes:
            with suppress(OSError):
                os.ftruncate(self._fd, os.lseek(self._fd, 0, os.SEEK_CUR) - self._cut_bytes)

    def _wait(self, patience_seconds: float | None) -> bool:
        """Push until nothing is pending. Return False if the reader read too little for too long."""
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
        return ["Redirect it to a file, or to /dev/null if you do not need it."]
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ["Free some space there, or write to another place."]
    return ["This happens when the terminal was closed."] if error.errno == errno.EIO else []


class _Patience:
    """Time limits for a reader: since its last progress, and in total."""

    def __init__(self, seconds: float | None) -> None:
        self._stalled_seconds = seconds
        self._left_bytes = 0
        self._since = self._began = time.monotonic()

    def limit(self, seconds: float) -> None:
        """Set a time limit from now on; a limit never becomes longer."""
        if self._stalled_seconds is None:
            self._since = self._began = time.monotonic()
        self._stalled_seconds = min(seconds, self._stalled_seconds or seconds)

    @property
    def seconds(self) -> float | None:
        """Time left for a reader without progress, in seconds; None: no limit."""
        if self._stalled_seconds is None:
            return None
        now = time.monotonic()
        return max(0.0, min(self._since + self._stalled_seconds, self._began + SLOW_SECONDS) - now)

    def is_over(self, left_bytes: int) -> bool:
        """Return True if the reader's time is over. left_bytes: bytes not read yet."""
        if left_bytes != self._left_bytes:
            self._left_bytes, self._since = left_bytes, time.monotonic()
        return self.seconds == 0.0


def _writer(fd: int) -> Callable[[bytes], int]:
    """Return a function that writes some bytes to the descriptor; it raises BlockingIOError instead of waiting."""
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        mode = 0
    if stat.S_ISSOCK(mode):
        return _socket_writer(fd)
    if not stat.S_ISFIFO(mode) and not os.isatty(fd):
        return lambda data: os.write(fd, data)  # a write to a file or device does not wait for a reader
    # O_NONBLOCK belongs to the file description, which others share (the shell's terminal), so a new one is opened.
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
    """Write as much as fits for certain, if no other process writes there. For a shared file description."""
    room = select.poll()
    room.register(fd, select.POLLOUT)
    if not room.poll(0):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return os.write(fd, data[:_ROOM_BYTES])
