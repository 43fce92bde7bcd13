# SPDX-License-Identifier: Apache-2.0
"""Reading and writing single files below an open folder; only regular files, and never through a link."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from typing import BinaryIO

_CHUNK_BYTES = 1 << 20


def open_regular(folder_fd: int, name: str, bytes_max: int | None = None) -> BinaryIO:
    """The regular file of that name, for reading. bytes_max: refuse longer ones; None: any.

    Raises OSError; ELOOP where the name is a symbolic link, EFBIG where the file is too long.
    """
    # Before it is opened: opening a device can have effects of its own.
    _check_regular(name, os.stat(name, dir_fd=folder_fd, follow_symlinks=False).st_mode)
    # O_NONBLOCK: a fifo that has come in its place must not stop us.
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder_fd)
    try:
        found = os.fstat(fd)
        _check_regular(name, found.st_mode)
        if bytes_max is not None and found.st_size > bytes_max:
            raise OSError(errno.EFBIG, f"{found.st_size} bytes long, and at most {bytes_max} are read", name)
    except OSError:
        os.close(fd)
        raise
    return os.fdopen(fd, "rb")


def _check_regular(name: str, mode: int) -> None:
    if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):  # of a link, opening it says what is wrong
        raise OSError(errno.EINVAL, "not a regular file", name)


def read_regular(folder_fd: int, name: str, bytes_max: int) -> bytes | None:
    """Content of a regular file, None where there is none of that name. Raises OSError, as open_regular does."""
    try:
        with open_regular(folder_fd, name, bytes_max) as file:
            # As long as it is now and not as it may be: what is asked for is allocated at once.
            content = file.read(min(os.fstat(file.fileno()).st_size, bytes_max) + 1)
    except FileNotFoundError:
        return None
    if len(content) > bytes_max:  # it has grown since
        raise OSError(errno.EFBIG, f"more than {bytes_max} bytes long", name)
    return content


def digest(folder_fd: int, name: str, sync: bool = False, bytes_max: int | None = None) -> str:
    """sha256 of a regular file, in hex; `sync`: after bringing it to the disk. bytes_max: see open_regular.

    Raises OSError; with `sync` also because some file systems say only then that they are full.
    """
    found = hashlib.sha256()
    with open_regular(folder_fd, name, bytes_max) as file:
        if sync:
            os.fsync(file.fileno())
        left = os.fstat(file.fileno()).st_size  # one that grows meanwhile must not keep us
        while left > 0 and (chunk := file.read(min(left, _CHUNK_BYTES))):
            found.update(chunk)
            left -= len(chunk)
    return found.hexdigest()


def write_all(fd: int, content: bytes) -> None:
    """Write all of it: a single write may take only a part. Raises OSError."""
    written = 0
    while written < len(content):
        written += os.write(fd, memoryview(content)[written:])
