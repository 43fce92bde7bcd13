# SPDX-License-Identifier: Apache-2.0
"""Signals that end a run: SIGINT, SIGTERM and SIGHUP cleanly, SIGQUIT at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

#: Each ends a run and keeps what was seen.
CLEAN = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Stay ignored if the parent process ignored them: nohup ignores SIGHUP, a shell's `&` ignores SIGQUIT.
_MAY_BE_IGNORED = (signal.SIGHUP, signal.SIGQUIT)


class Stop:
    """State of the request to end this process. One object for each process, as for signal handlers.

    - is_set: the run must end;
    - is_urgent: a second signal came, so the run waits for no reader any more.
    """

    def __init__(self) -> None:
        self.is_set = False
        self.is_urgent = False
        self._fd: int | None = None

    def fileno(self) -> int:
        """Return a descriptor that is readable as soon as `is_set`."""
        if self._fd is None:
            self._fd = os.eventfd(1 if self.is_set else 0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        return self._fd

    def set(self) -> None:
        """Request the end; a second call requests an end without any wait. Safe in a signal handler."""
        self.is_urgent = self.is_set
        self.is_set = True
        if self._fd is not None:
            with suppress(BlockingIOError):
                os.eventfd_write(self._fd, 1)


#: The Stop object of this process.
STOP = Stop()


@contextmanager
def ended_by_signals(stop: Callable[[], None]) -> Iterator[Stop]:
    """Call `stop` on SIGINT, SIGTERM and SIGHUP; raise KeyboardInterrupt on SIGQUIT, to end at once.

    The handlers stay until the process ends: a signal that comes while a command writes its last lines must not undo
    what the run has kept.
    """
    callbacks = [stop]

    def end(number: int, frame: FrameType | None) -> None:
        STOP.set()
        for callback in callbacks:
            callback()

    def quit_now(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGQUIT, signal.SIG_IGN)  # a second one must not interrupt the detaching
        STOP.set()
        STOP.set()
        raise KeyboardInterrupt

    STOP.fileno()
    for number in (*CLEAN, signal.SIGQUIT):
        if number not in _MAY_BE_IGNORED or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, quit_now if number is signal.SIGQUIT else end)
    if STOP.is_set:
        stop()
    try:
        yield STOP
    finally:
        callbacks.clear()
