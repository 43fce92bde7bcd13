# SPDX-License-Identifier: Apache-2.0
"""Reading and writing single files below an open folder; only regular files, and never through a link."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from typing import BinaryIO

_CHUNK_BYTES = 1 << 20


def open_regular(folder_fd: int, name: str) -> BinaryIO:
    """The regular file of that name, for reading. Raises OSError; ELOOP where the name is a symbolic link."""
    # O_NONBLOCK: a fifo of that name must not stop us.
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder_fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", name)
    return os.fdopen(fd, "rb")


def read_regular(folder_fd: int, name: str) -> bytes | None:
    """Content of a regular file, None where there is none of that name. Raises OSError."""
    try:
        with open_regular(folder_fd, name) as file:
            return file.read()
    except FileNotFoundError:
        return None


def digest(folder_fd: int, name: str, sync: bool = False) -> str:
    """sha256 of a regular file, in hex; `sync`: after bringing it to the disk.

    Raises OSError; with `sync` also because some file systems say only then that they are full.
    """
    found = hashlib.sha256()
    with open_regular(folder_fd, name) as file:
        if sync:
            os.fsync(file.fileno())
        while chunk := file.read(_CHUNK_BYTES):
            found.update(chunk)
    return found.hexdigest()


def write_all(fd: int, content: bytes) -> None:
    """Write all of it: a single write may take only a part. Raises OSError."""
    written = 0
    while written < len(content):
        written += os.write(fd, memoryview(content)[written:])
