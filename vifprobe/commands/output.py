# SPDX-License-Identifier: Apache-2.0
"""Standard output and standard error of all commands. Neither can keep a command from ending.

A pipe whose reader does not read, or a terminal that is stopped, blocks a plain write for ever. Here every write is
preceded by a wait that also ends by a signal. Errors of standard output are errors of the command; those of standard
error are not, since nobody may be there to read it.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from vifprobe.commands.channel import Channel, Use
from vifprobe.errors import OutputError, ReaderGoneError
from vifprobe.model.untrusted_text import safe

_STDIN, _STDOUT, _STDERR = range(3)
#: At the end of the process, for messages that standard error has not taken yet.
_LAST_MESSAGES_SECONDS = 1.0


class Output(io.TextIOWrapper):
    """Text stream on a Channel; each write is handed on at once, so that lines stay whole.

    like: the stream whose encoding it takes over; None: UTF-8.
    """

    def __init__(self, channel: Channel, like: object = None) -> None:
        encoding, errors = (getattr(like, name, None) for name in ("encoding", "errors"))
        super().__init__(channel, encoding or "utf-8", errors or "backslashreplace", newline="\n", write_through=True)
        self.channel = channel


def set_up() -> None:
    """Replace sys.stdout and sys.stderr, once, before anything is written.

    A stream that somebody else has put in place (a test, a notebook) stays.
    """
    _open_standard_descriptors()
    if sys.stdout is sys.__stdout__:
        sys.stdout = Output(Channel(_STDOUT, "standard output"), sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = Output(Channel(_STDERR, "standard error", Use.MESSAGES), sys.stderr)


def _open_standard_descriptors() -> None:
    """Put something on descriptors 0 to 2 where the caller has closed them.

    Else the next file that is opened gets such a number, and what a library writes to "standard error" goes into it. As
    gnulib's stdopen does it, 0 can then not be read and 1 not be written: that is an error, which is shown.
    """
    for fd, mode in ((_STDIN, os.O_WRONLY), (_STDOUT, os.O_RDONLY), (_STDERR, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, mode)  # gets the lowest free number, which is this one


def standard_output() -> Output:
    """sys.stdout as an Output; a new one where the commands are not run by vifprobe.cli."""
    return sys.stdout if isinstance(sys.stdout, Output) else Output(Channel(_STDOUT, "standard output"), sys.stdout)


def end_messages() -> None:
    """Give standard error a moment to take what is left. Never raises."""
    if isinstance(sys.stderr, Output):
        sys.stderr.channel.finish(_LAST_MESSAGES_SECONDS)


@contextmanager
def streaming(output: Output, end_run: Callable[[], None]) -> Iterator[Channel]:
    """Writes do not wait inside the block; `end_run` is called as soon as an error is found.

    At the end of the block the reader is given a few seconds for what is left. Raises OutputError where it does not
    take that, and ReaderGoneError where it has gone.
    """
    channel = output.channel
    channel.hold(end_run)
    try:
        yield channel
    except BaseException:
        with suppress(OutputError, ReaderGoneError):
            channel.finish()
        raise
    channel.finish()


def show_beside(show: Callable[[], object], kept: str | None) -> None:
    """Show what is also in a file. That it can't be shown is a warning: the file is what counts.

    kept: name of the file or folder; None: there is none, and errors are raised as they are.
    """
    if kept is None:
        show()
        return
    if isinstance(sys.stdout, Output):
        sys.stdout.channel.is_ending = True
    try:
        show()
    except ReaderGoneError:
        pass
    except OutputError as error:
        with suppress(OSError, ValueError):
            sys.stderr.write(f"Warning: {error.message}\n  {safe(kept)} is complete.\n")
