# SPDX-License-Identifier: Apache-2.0
"""A file seen through a window of fixed size that moves along it: memory stays the same, however long the file is."""

from __future__ import annotations

import os
from typing import Protocol

WINDOW_BYTES = 1 << 22
#: Bytes that may be looked at behind the last one read, so that whoever takes a few more finds memory there.
SLACK_BYTES = 4096


class ByteStream(Protocol):
    """An open file, or the reading end of a pipe."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Read what is there into the buffer; 0 at the end."""


class Window:
    """memory: what is read into. at, end: of what was read and is not done with. seekable_fd: of a regular file that
    `source` reads from its descriptor's own position; None: what is skipped has to be read.
    """

    def __init__(self, source: ByteStream, seekable_fd: int | None = None) -> None:
        self._source = source
        self._fd = seekable_fd
        self.memory = bytearray(WINDOW_BYTES + SLACK_BYTES)
        self._view = memoryview(self.memory)
        self.at = self.end = 0
        self.read_bytes = 0
        self._is_over = False

    @property
    def left(self) -> int:
        """Bytes read and not done with."""
        return self.end - self.at

    @property
    def position(self) -> int:
        """Of `at`, from the beginning of the file."""
        return self.read_bytes - self.left

    def need(self, count: int) -> bool:
        """Have that many bytes (at most WINDOW_BYTES) from `at` on, which may move. False: the file ends before."""
        if count <= self.left:
            return True
        self._view[: self.left] = self._view[self.at : self.end]
        self.at, self.end = 0, self.left
        while self.end < count and not self._is_over:
            got = self._source.readinto(self._view[self.end : WINDOW_BYTES]) or 0
            self._is_over = got == 0
            self.end += got
            self.read_bytes += got
        return count <= self.left

    def skip(self, count: int) -> bool:
        """Be done with that many bytes, however many. False: the file ends before."""
        if self._fd is not None and count > self.left:
            return self._seek(self._fd, count - self.left)
        while count > self.left:
            count -= self.left
            self.at = self.end
            if not self.need(1):
                return False
        self.at += count
        return True

    def _seek(self, fd: int, beyond: int) -> bool:
        """Be done with all that was read and so many bytes behind it, which a hole of the file can be."""
        self.at = self.end
        if os.lseek(fd, 0, os.SEEK_CUR) + beyond > os.fstat(fd).st_size:
            return False
        os.lseek(fd, beyond, os.SEEK_CUR)
        self.read_bytes += beyond
        return True
