# SPDX-License-Identifier: Apache-2.0
"""Real TCP connections by the running kernel, for traffic that looks busy and is harmless.

`serving` and `working` run this file as a script in a network namespace; each tells at its end what it did.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

_GRACE_SECONDS = 60.0
_CHUNK = bytes(65_536)
_REQUEST = b"GET / HTTP/1.0\r\n\r\n"
_AT_ONCE = 128  # connections that are being opened at the same time: a tap's ring holds 500 frames
_PATIENCE_SECONDS = 0.5  # for an answer


@dataclass(frozen=True)
class Done:
    """What a client did: connections that were answered, others, bytes sent, how long it took."""

    connected: int
    failed: int
    sent_bytes: int
    seconds: float


class Work:
    """A client in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], seconds: float) -> None:
        self._process = process
        self._seconds = seconds

    def wait(self) -> Done:
        """What it did, once it has ended."""
        out, err = self._process.communicate(timeout=self._seconds + _GRACE_SECONDS)
        if self._process.returncode:
            raise OSError(f"client: {err.strip()[-300:]}")
        return Done(**json.loads(out))


@contextmanager
def serving(netns: str, *ports: int) -> Iterator[None]:
    """A server in a namespace (its path) that takes connections to these ports, and all that they send."""
    with _script(netns, {"serve": ports}) as process:
        if process.stdout is None or process.stdout.readline() != "ready\n":
            raise OSError(f"server: {process.communicate(timeout=_GRACE_SECONDS)[1][-300:]}")
        yield


@contextmanager
def working(
    netns: str,
    targets: list[tuple[str, int]],
    *,
    seconds: float,
    per_second: float = 0.0,
    flows: int = 0,
) -> Iterator[Work]:
    """A client in a namespace, ready to go for so long: new connections to the targets in turn, `per_second` of them
    (each sends a request and is closed), or `flows` that send all they can.
    """
    order = {"targets": targets, "seconds": seconds, "per_second": per_second, "flows": flows}
    with _script(netns, order) as process:
        yield Work(process, seconds)


@contextmanager
def _script(netns: str, order: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    command = ["nsenter", f"--net={netns}", sys.executable, "-I", "-S", __file__, json.dumps(order)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def _serve(ports: list[int]) -> None:
    """A request is taken and the connection closed, as HTTP/1.0 does it; what is no request is taken until its end."""
    poll = select.epoll()
    listeners: dict[int, socket.socket] = {}
    going_on: dict[int, socket.socket] = {}
    for port in ports:
        listener = socket.create_server(("", port), family=socket.AF_INET6, backlog=4_096, dualstack_ipv6=True)
        listener.setblocking(False)
        poll.register(listener, select.EPOLLIN)
        listeners[listener.fileno()] = listener
    print("ready", flush=True)
    while True:
        for fd, _ in poll.poll():
            if fd not in listeners:
                if _is_over(going_on[fd]):
                    going_on.pop(fd).close()
                continue
            with suppress(OSError):
                for _ in range(_AT_ONCE):
                    made, _ = listeners[fd].accept()
                    if _is_over(made):  # mostly the request is there already
                        made.close()
                        continue
                    going_on[made.fileno()] = made
                    poll.register(made, select.EPOLLIN)


def _is_over(made: socket.socket) -> bool:
    """Take what is there; whether that was all."""
    try:
        got = made.recv(len(_CHUNK), socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return not got or got == _REQUEST


def _connect(targets: list[list[Any]], seconds: float, per_second: float) -> Done:
    """Open at the asked rate or as fast as it goes, never more than some at once: a slow server slows this down."""
    poll, begun, opened = select.epoll(), time.monotonic(), 0
    waiting: dict[int, tuple[socket.socket, float]] = {}
    kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
    connected = failed = sent = 0
    while (now := time.monotonic()) < begun + seconds:
        for _ in range(min(_AT_ONCE - len(waiting), int((now - begun) * per_second) - opened)):
            host, port = targets[opened % len(targets)]
            opened += 1
            made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)
            made.connect_ex((host, port))
            poll.register(made, select.EPOLLOUT)
            waiting[made.fileno()] = (made, now)
        for fd, _ in poll.poll(0.001):
            made, _ = waiting.pop(fd)
            if made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                failed += 1
            else:
                connected += 1
                sent += made.send(_REQUEST)
            made.close()
        while waiting:
            made, since = next(iter(waiting.values()))  # the oldest
            if now - since < _PATIENCE_SECONDS:
                break
            del waiting[made.fileno()]
            made.close()
            failed += 1
    return Done(connected, failed, sent, time.monotonic() - begun)


def _pour(target: list[Any], seconds: float, flows: int) -> Done:
    poll, begun, sent = select.epoll(), time.monotonic(), 0
    flowing: dict[int, socket.socket] = {}
    for _ in range(flows):
        made = socket.create_connection((target[0], target[1]), timeout=5.0)
        made.setblocking(False)
        # Closed with a reset: what still waits to be sent is not sent after the end.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        poll.register(made, select.EPOLLOUT)
        flowing[made.fileno()] = made
    while time.monotonic() < begun + seconds:
        for fd, _ in poll.poll(0.01):
            with suppress(BlockingIOError):
                sent += flowing[fd].send(_CHUNK)
    return Done(flows, 0, sent, time.monotonic() - begun)


def _main(order: dict[str, Any]) -> None:
    if "serve" in order:
        _serve(order["serve"])
    elif order["flows"]:
        print(json.dumps(vars(_pour(order["targets"][0], order["seconds"], order["flows"]))))
    else:
        print(json.dumps(vars(_connect(order["targets"], order["seconds"], order["per_second"]))))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
