# SPDX-License-Identifier: Apache-2.0
"""A process with a guest's thread names that does as it is told, and what /proc says of its threads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vifprobe.testing.waiting import wait_until

_ANSWER_SECONDS = 60.0

#: Threads wait on a pipe each, so that one that has nothing to do has left its CPU. One line in, one line out.
_GUEST = r"""
import ctypes, os, sys, threading, time

libc, orders = ctypes.CDLL(None), {}

def serve(name, pipe):
    libc.prctl(15, name.encode())  # PR_SET_NAME
    while order := os.read(pipe, 64).decode().split():
        globals()[order[0]](*order[1:])

def begin(name):
    read, write = os.pipe()
    orders[name] = write
    threading.Thread(target=serve, args=(name, read), daemon=True).start()

def tell(name, order):
    os.write(orders[name], order.encode().ljust(64))
    os.read(done[0], 1)

def spin(seconds):
    until = time.thread_time() + float(seconds)
    while time.thread_time() < until:
        pass
    os.write(done[1], b"x")

def pong(count):
    for _ in range(int(count)):
        os.write(back[1], os.read(forth[0], 1))

def ping(count):
    os.write(orders["IO iothread1"], f"pong {count}".encode().ljust(64))
    for _ in range(int(count)):
        os.write(forth[1], b"x")
        os.read(back[0], 1)
    os.write(done[1], b"x")

def flood(fd, count):
    frame = bytes.fromhex(sys.argv[1])
    for _ in range(int(count)):
        os.write(int(fd), frame)
    os.write(done[1], b"x")

libc.prctl(15, b"qemu-system-x86")
done, forth, back = os.pipe(), os.pipe(), os.pipe()
vhost = f"vhost-{os.getpid()}"
for name in ("CPU 0/KVM", vhost, "IO iothread1"):
    begin(name)
print("ready", flush=True)
for line in sys.stdin:
    name, order = line.rstrip("\n").split(":")
    tell(name if name != "vhost" else vhost, order)
    print("done", flush=True)
"""


@dataclass(frozen=True)
class Told:
    """What /proc tells of one thread."""

    comm: str
    cpu_ns: int
    voluntary: int
    involuntary: int


class Guest:
    """Holds the descriptors that it was given. Its threads: `CPU 0/KVM`, `vhost` (and its pid), `IO iothread1`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def begin(self, thread: str, order: str) -> None:
        """Have a thread do something: `spin SECONDS`, `ping COUNT` (the iothread answers), `flood FD COUNT`."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{thread}:{order}\n")
        self._process.stdin.flush()

    def end(self) -> None:
        """Wait until it is done, and asleep."""
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "done\n"
        self.wait_asleep()

    def do(self, thread: str, order: str) -> None:
        """Both."""
        self.begin(thread, order)
        self.end()

    def wait_asleep(self) -> None:
        """Until no thread of it is on a CPU or waits for one."""
        states = Path(f"/proc/{self.pid}/task")
        wait_until(lambda: all(b") S " in (task / "stat").read_bytes() for task in states.iterdir()), _ANSWER_SECONDS)

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()

    def told(self) -> dict[int, Told]:
        """Each thread's own counters, exact while they all sleep."""
        found = {}
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            status = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines())
            found[int(task.name)] = Told(
                status["Name"],
                int((task / "schedstat").read_text().split()[0]),
                int(status["voluntary_ctxt_switches"]),
                int(status["nonvoluntary_ctxt_switches"]),
            )
        return found


@contextmanager
def guest(fds: Sequence[int] = (), frame: bytes = b"", cpu: int | None = None) -> Iterator[Guest]:
    """A process like a guest's, asleep; ended with the block."""
    prefix = ["taskset", "-c", str(cpu)] if cpu is not None else []
    process = subprocess.Popen(
        [*prefix, sys.executable, "-I", "-S", "-c", _GUEST, frame.hex()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=tuple(fds),
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            made = Guest(process)
            wait_until(lambda: len(made.told()) == 4, _ANSWER_SECONDS)
            made.wait_asleep()
            yield made
        finally:
            process.kill()
