# SPDX-License-Identifier: Apache-2.0
"""Private network namespaces, entered with setns(2).

`ip netns exec` would mount a fresh /sys and so hide tracefs and bpffs (ip-netns(8)); setns leaves the mounts alone.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from vifprobe.errors import KernelError

CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
Result = TypeVar("Result")

# os.setns and os.unshare came with Python 3.12; this package runs from 3.10 on.
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Netns:
    """An open network namespace. It lives as long as a thread, a device's owner or this descriptor holds it."""

    fd: int

    @property
    def path(self) -> str:
        """A path that other processes can open while this one lives, as in `nsenter --net=PATH`."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    @property
    def inode(self) -> int:
        """The number in `net:[4026531840]`, by which /proc and lsns(8) name a namespace."""
        return os.fstat(self.fd).st_ino

    @contextmanager
    def entered(self) -> Iterator[Netns]:
        """The calling thread is in the namespace within the block, and so are processes and threads started there."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(self.fd)
            try:
                yield self
            finally:
                _setns(before)
        finally:
            os.close(before)

    def run(self, function: Callable[[], Result]) -> Result:
        """What `function()` gives or raises, called in a thread of its own inside the namespace."""

        def inside() -> Result:
            _setns(self.fd)
            return function()

        return _in_thread(inside)


@contextmanager
def private_netns(*, enter: bool = True) -> Iterator[Netns]:
    """A new network namespace, gone after the block; the calling thread is in it within the block.

    With enter=False the calling thread stays where it is and uses `run` or `entered`. The kernel takes a namespace
    apart some milliseconds after the last reference is dropped: taps opened in it must be closed before.

    Raises KernelError where namespaces can't be made (no CAP_SYS_ADMIN, or no CONFIG_NET_NS).
    """
    fd = _in_thread(_unshare)
    try:
        netns = Netns(fd)
        if enter:
            with netns.entered():
                yield netns
        else:
            yield netns
    finally:
        os.close(fd)


def _unshare() -> int:
    if _libc.unshare(CLONE_NEWNET) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise KernelError(f"unshare(CLONE_NEWNET): {reason}.", "Private network namespaces need CAP_SYS_ADMIN.")
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        raise KernelError(f"setns: {os.strerror(ctypes.get_errno())}.", "Entering a namespace needs CAP_SYS_ADMIN.")


def _in_thread(function: Callable[[], Result]) -> Result:
    results: list[Result] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function())
        except BaseException as error:  # handed to the caller's thread
            errors.append(error)

    thread = threading.Thread(target=call, name="netns")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
