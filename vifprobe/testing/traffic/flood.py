# SPDX-License-Identifier: Apache-2.0
"""A writer of prebuilt frames, always bounded in frames and in seconds, that knows exactly how many it wrote.

`flood` writes in the calling thread. `writer` is the same in a process of its own, pinned to a CPU if wanted: it runs
this file as a script, without the package and without `site`, so it is ready within some 20 ms and never shares the
interpreter lock with whoever watches.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import cycle, islice

CLOCK_EVERY_FRAMES = 64  # how often the clock is read: at 1 µs a frame, an end by time is late by some 60 µs
PACED_BURST_SECONDS = 0.001  # a paced writer sleeps between bursts of this length
GRACE_SECONDS = 10.0  # for a writer to start and to stop, beyond its own bound


@dataclass(frozen=True)
class Written:
    """What a flood did: frames written in all and by descriptor (in the order given), and how long it took."""

    frames: int
    seconds: float
    by_fd: tuple[int, ...]

    @property
    def frames_per_second(self) -> float:
        """Mean rate of the whole flood."""
        return self.frames / self.seconds if self.seconds else 0.0


def flood(
    fds: Sequence[int],
    frames: Sequence[bytes],
    *,
    count: int,
    seconds: float,
    packets_per_second: float | None = None,
) -> Written:
    """Write frames to descriptors in turn until `count` are written or `seconds` are over, whichever comes first.

    Frame i is frames[i % len(frames)] and goes to fds[i % len(fds)]. The kernel takes a tap's frame whole or not at
    all, so a write that returns is one frame. Raises OSError as write(2) does, EIO for one when the tap is down.
    """
    if not fds or not frames or count < 0 or seconds <= 0:
        raise ValueError("a flood needs a descriptor, a frame, a count of 0 or more and seconds above 0")
    pairs = zip(cycle(fds), cycle(frames))  # both endless: each step is one frame
    written = 0
    start = time.monotonic()
    deadline = start + seconds
    now = start
    while written < count and now < deadline:
        due = CLOCK_EVERY_FRAMES
        if packets_per_second is not None:
            due = min(due, int((now - start) * packets_per_second) + 1 - written)
        if due > 0:
            due = min(due, count - written)
            _write_all(islice(pairs, due))
            written += due
        else:
            next_at = start + written / packets_per_second if packets_per_second else now
            time.sleep(max(0.0, min(max(next_at - now, PACED_BURST_SECONDS), deadline - now)))
        now = time.monotonic()
    each, rest = divmod(written, len(fds))
    return Written(written, time.monotonic() - start, tuple(each + (place < rest) for place in range(len(fds))))


def _write_all(pairs: Iterable[tuple[int, bytes]], write: Callable[[int, bytes], int] = os.write) -> None:
    # A default argument is a local name: at this rate looking up os.write for each frame would be seen.
    for fd, frame in pairs:
        write(fd, frame)


class Writer:
    """A flood in a process of its own, waiting for `start`."""

    def __init__(self, process: subprocess.Popen[str], seconds: float) -> None:
        self._process = process
        self._seconds = seconds
        self._is_started = False

    @property
    def pid(self) -> int:
        """The writer's process id."""
        return self._process.pid

    def start(self) -> None:
        """Let it write; returns at once."""
        self._is_started = True
        self.tell("go\n")

    def wait(self) -> Written:
        """What it wrote, once it has ended. Raises OSError with its message when a write failed."""
        if not self._is_started:
            raise ValueError("the writer has not been started")
        out, err = self._process.communicate(timeout=self._seconds + GRACE_SECONDS)
        if self._process.returncode:
            raise OSError(f"writer: {err.strip().splitlines()[-1] if err.strip() else 'ended without a word'}")
        told = json.loads(out)
        return Written(told["frames"], told["seconds"], tuple(told["by_fd"]))

    def tell(self, line: str) -> None:
        """Send a line to the process."""
        if self._process.stdin is None:
            raise ValueError("the writer has no input")
        self._process.stdin.write(line)
        self._process.stdin.flush()


@contextmanager
def writer(
    fds: Sequence[int],
    frames: Sequence[bytes],
    *,
    count: int,
    seconds: float,
    cpu: int | None = None,
    packets_per_second: float | None = None,
) -> Iterator[Writer]:
    """A process that is ready to `flood` with these arguments, on CPU `cpu` only; ended with the block at the latest.

    Start several and each begins within microseconds of its `start()`.
    """
    if not fds or not frames or count < 0 or seconds <= 0:
        raise ValueError("a flood needs a descriptor, a frame, a count of 0 or more and seconds above 0")
    order = {
        "fds": list(fds),
        "frames": [frame.hex() for frame in frames],
        "count": count,
        "seconds": seconds,
        "cpu": cpu,
        "packets_per_second": packets_per_second,
    }
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=tuple(set(fds)),
    )
    with process:
        try:
            made = Writer(process, seconds)
            made.tell(json.dumps(order) + "\n")
            if process.stdout is None or process.stdout.readline() != "ready\n":
                raise OSError(f"writer: {process.communicate(timeout=GRACE_SECONDS)[1].strip()[-200:]}")
            yield made
        finally:
            if process.poll() is None:
                process.kill()


def _serve() -> None:
    """The writer's side: one line of JSON in, "ready" out, one line in to start, one line of JSON out."""
    order = json.loads(sys.stdin.readline())
    if order["cpu"] is not None:
        os.sched_setaffinity(0, {order["cpu"]})
    frames = [bytes.fromhex(frame) for frame in order["frames"]]
    print("ready", flush=True)
    if sys.stdin.readline() == "go\n":
        done = flood(
            order["fds"],
            frames,
            count=order["count"],
            seconds=order["seconds"],
            packets_per_second=order["packets_per_second"],
        )
        print(json.dumps(asdict(done)))


if __name__ == "__main__":
    _serve()
