# SPDX-License-Identifier: Apache-2.0
"""vifprobe as a user runs it: a process of its own, its output read as it comes, every wait with a deadline."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import vifprobe
from vifprobe.testing.waiting import wait_until

#: Enough for a machine that does other things at the same time; a test that passes takes a second or two.
DEADLINE_SECONDS = 60.0
COMMAND = (sys.executable, "-m", "vifprobe")
VERDICTS = ("passed", "policed", "dropped")

Object = dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """What a process left behind."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[Object]:
        """Its lines as JSON."""
        return [json.loads(line) for line in self.out.splitlines()]


class Running:
    """A process whose lines are collected while it runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._err: list[str] = []
        self._readers = [
            threading.Thread(target=_collect, args=(stream, into), daemon=True)
            for stream, into in ((process.stdout, self.lines), (process.stderr, self._err))
        ]
        for reader in self._readers:
            reader.start()

    def wait_for(self, condition: Callable[[Sequence[str]], object]) -> None:
        """Until the lines so far fulfil it; fails at once when the process has ended without."""

        def done() -> bool:
            ended = self.process.poll() is not None
            if ended:
                self._join()
            if condition(self.lines):
                return True
            assert not ended, f"ended with {self.process.returncode}: {''.join(self.lines + self._err)}"
            return False

        wait_until(done, DEADLINE_SECONDS)

    def wait_for_lines(self, count: int) -> None:
        """Until there are so many."""
        self.wait_for(lambda lines: len(lines) >= count)

    def tell(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def end(self) -> Ended:
        """Wait for its end."""
        self.process.wait(DEADLINE_SECONDS)
        self._join()
        return Ended(self.process.returncode, "".join(self.lines), "".join(self._err))

    def _join(self) -> None:
        for reader in self._readers:
            reader.join(DEADLINE_SECONDS)


def _collect(stream: IO[str], into: list[str]) -> None:
    into.extend(iter(stream.readline, ""))


def environment(**changes: str) -> dict[str, str]:
    """The environment of a process: this package found whatever the folder, no colour and no width from outside."""
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
    here = str(Path(vifprobe.__file__).parents[1])
    paths = [changes.pop("PYTHONPATH", ""), here, os.environ.get("PYTHONPATH", "")]
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONIOENCODING": "utf-8", **changes}


@contextmanager
def start(*arguments: str, prefix: Sequence[str] = (), **changes: str) -> Iterator[Running]:
    """`vifprobe ARGUMENTS...` while the block runs; prefix: a program that starts it, changes: of the environment."""
    process = subprocess.Popen(
        [*prefix, *COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=environment(**changes),
    )
    with process:
        try:
            yield Running(process)
        finally:
            process.kill()


def run(*arguments: str, prefix: Sequence[str] = (), **changes: str) -> Ended:
    """The same to its end."""
    with start(*arguments, prefix=prefix, **changes) as running:
        return running.end()


def assert_is_error(ended: Ended, code: int, *words: str) -> None:
    """An error as the house shows it: exit code, on stderr only, no traceback, and it says these words."""
    assert ended.code == code, ended
    assert ended.out == ""
    assert "Traceback" not in ended.err, ended.err
    assert "Error: " in ended.err
    for word in words:
        assert word in ended.err, ended.err


def assert_adds_up(found: Object) -> None:
    """Outbound: passed + policed + dropped = offered in every unit; and so do the classes."""
    outbound = found["outbound"]
    for unit, offered in outbound["offered"].items():
        assert sum(outbound[verdict][unit] for verdict in VERDICTS) == offered, (unit, found)
        for verdict in ("offered", *VERDICTS):
            by_class = sum(counts[verdict][unit] for counts in outbound["classes"].values())
            assert by_class == outbound[verdict][unit], (unit, verdict, found)


def total(objects: Sequence[Object], verdict: str, unit: str = "packets") -> int:
    """Outbound packets (or bytes) of some objects together."""
    return sum(found["outbound"][verdict][unit] for found in objects)
