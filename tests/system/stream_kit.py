# SPDX-License-Identifier: Apache-2.0
"""vifprobe with standard streams that a test chooses: pipes that nobody reads, terminals that go, closed ones."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import subprocess
import termios
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from command_kit import COMMAND, DEADLINE_SECONDS, Object, environment

from vifprobe.testing.waiting import wait_until

PAGE_BYTES = 4096


@dataclass
class Job:
    """A running command. errors: the file that its standard error goes to, unless the test chose another place."""

    process: subprocess.Popen[bytes]
    errors: Path

    def ended(self, seconds: float = DEADLINE_SECONDS) -> int:
        """Wait for its end; its exit code."""
        code = self.process.wait(seconds)
        assert "Traceback" not in self.told(), self.told()
        return code

    def told(self) -> str:
        """Its standard error so far."""
        return self.errors.read_text()

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Until the condition holds; fails at once when the process has ended without."""

        def done() -> bool:
            ended = self.process.poll() is not None
            if condition():
                return True
            assert not ended, f"ended with {self.process.returncode}: {self.told()}"
            return False

        wait_until(done, DEADLINE_SECONDS)


@contextmanager
def job(
    *arguments: str,
    out: int | IO[bytes],
    folder: Path,
    err: int | None = None,
    redirect: str = "",
    changes: Mapping[str, str] | None = None,
) -> Iterator[Job]:
    """`vifprobe ARGUMENTS...` while the block runs.

    out, err: where its streams go. folder: for standard error, where `err` is None. redirect: in the shell's words.
    changes: of the environment.
    """
    errors = folder / f"{len(list(folder.glob('*.stderr')))}.stderr"
    with errors.open("wb") as file:
        process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" {redirect}', "bash", *COMMAND, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=file if err is None else err,
            env=environment(**(changes or {})),
            start_new_session=True,
        )
    with process:
        try:
            yield Job(process, errors)
        finally:
            process.kill()


@dataclass
class Ends:
    """Two descriptors that belong together; each can be closed early."""

    read: int
    write: int

    def close(self, *names: str) -> None:
        """Close these ends, unless that was done."""
        for name in names:
            if (fd := getattr(self, name)) >= 0:
                setattr(self, name, -1)
                os.close(fd)


@contextmanager
def short_pipe() -> Iterator[Ends]:
    """A pipe that takes a page."""
    ends = Ends(*os.pipe())
    fcntl.fcntl(ends.write, fcntl.F_SETPIPE_SZ, PAGE_BYTES)
    try:
        yield ends
    finally:
        ends.close("read", "write")


def waiting_bytes(fd: int) -> int:
    """How much there is to read."""
    found = bytearray(4)
    fcntl.ioctl(fd, termios.FIONREAD, found)
    return int.from_bytes(found, "little")


def read_all(fd: int) -> str:
    """Up to the end."""
    parts = []
    while part := os.read(fd, 1 << 16):
        parts.append(part)
    return b"".join(parts).decode()


def objects(text: str) -> list[Object]:
    """Lines of JSON, each of them whole."""
    assert text.endswith("\n"), text[-80:]
    return [json.loads(line) for line in text.splitlines()]


@contextmanager
def terminal() -> Iterator[Ends]:
    """A terminal: `write` is for the command. It vanishes, as with an ssh session, when `read` is closed."""
    ends = Ends(*pty.openpty())
    try:
        yield ends
    finally:
        ends.close("read", "write")


def total_packets(found: list[dict[str, Any]]) -> int:
    """Outbound packets offered in these objects."""
    return sum(one["outbound"]["offered"]["packets"] for one in found)
