# SPDX-License-Identifier: Apache-2.0
"""Standard output and standard error of all commands. Neither can keep a command from ending.

A pipe whose reader does not read, or a terminal that is stopped, blocks a plain write for ever. Here a wait precedes
every write, and a signal ends this wait. An error of standard output is an error of the command. An error of standard
error is not: perhaps nobody reads it.
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
#: Wait at the end of the process for messages that standard error has not taken yet.
_LAST_MESSAGES_SECONDS = 1.0


class Output(io.TextIOWrapper):
    """Text stream on a Channel. Each write goes to the Channel at once, so that lines stay complete.

    like: the stream whose encoding is used; None: UTF-8.
    """

    def __init__(self, channel: Channel, like: object = None) -> None:
        encoding, errors = (getattr(like, name, None) for name in ("encoding", "errors"))
        super().__init__(channel, encoding or "utf-8", errors or "backslashreplace", newline="\n", write_through=True)
        self.channel = channel


def set_up() -> None:
    """Replace sys.stdout and sys.stderr, once, before anything is written.

    A stream that another program has set (a test, a notebook) stays.
    """
    _open_standard_descriptors()
    if sys.stdout is sys.__stdout__:
        sys.stdout = Output(Channel(_STDOUT, "standard output"), sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = Output(Channel(_STDERR, "standard error", Use.MESSAGES), sys.stderr)


def _open_standard_descriptors() -> None:
    """Open /dev/null on those descriptors 0 to 2 that the caller has closed.

    Otherwise the next opened file gets such a number, and a library writes its messages for standard error into that
    file. As in gnulib's stdopen, 0 can then not be read and 1 cannot be written: this error is shown.
    """
    for fd, mode in ((_STDIN, os.O_WRONLY), (_STDOUT, os.O_RDONLY), (_STDERR, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, mode)  # gets the lowest free number, which is this one


def standard_output() -> Output:
    """Return sys.stdout as an Output; a new Output if vifprobe.cli does not run the command."""
    return sys.stdout if isinstance(sys.stdout, Output) else Output(Channel(_STDOUT, "standard output"), sys.stdout)


def end_messages() -> None:
    """Give standard error a moment to take the pending messages. Never raises."""
    if isinstance(sys.stderr, Output):
        sys.stderr.channel.finish(_LAST_MESSAGES_SECONDS)


@contextmanager
def streaming(output: Output, end_run: Callable[[], None]) -> Iterator[Channel]:
    """Let writes inside the block return at once; `end_run` is called as soon as a write fails.

    At the end of the block, the reader has a few seconds to read the rest. Raises OutputError if the reader does not
    read the rest, and ReaderGoneError if the reader has gone.
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
    """Show what is also in a file. If it cannot be shown, that is only a warning: the file is complete.

    kept: name of the file or folder. None: there is no file, and errors are raised as they are.
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
