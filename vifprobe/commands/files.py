# SPDX-License-Identifier: Apache-2.0
"""Files whose names the user gives.

A written file is private. It never replaces another file without --force, and is never written through a symbolic link.
A file that is read has a maximum length, and the wait for its writer has a time limit.
"""

from __future__ import annotations

import errno
import os
import re
import select
import stat
import time
from pathlib import Path

from vifprobe.commands.signals import STOP
from vifprobe.errors import CaptureError

_MODE = 0o600
_FLAGS = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = _FLAGS | os.O_CREAT | os.O_EXCL
#: A shell's names for descriptors that the shell has opened: `>(gzip > rows.gz)` becomes /dev/fd/63.
_OWN_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d+)|/dev/std(out|err)")
#: Wait for a fifo's reader or writer, which may start at the same time.
_READER_SECONDS = 5.0
_LOOK_AGAIN_SECONDS = 0.02
#: Errors of link(2) on file systems without hard links.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def read_text(name: str, bytes_max: int) -> str:
    """Return the content of a regular file, fifo or pipe (`<(...)` of a shell). Raises OSError.

    EINVAL: another kind of file. EFBIG: longer than `bytes_max`. ENXIO: no process has written to the fifo.
    """
    mode = os.stat(name).st_mode  # noqa: PTH116 - Path takes /dev/fd/N apart no better
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):  # before it is opened, which can have effects of its own
        raise OSError(errno.EINVAL, os.strerror(errno.EISDIR) if stat.S_ISDIR(mode) else "not a regular file", name)
    fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        content = _read_to_end(fd, bytes_max)
    finally:
        os.close(fd)
    if len(content) > bytes_max:
        raise OSError(errno.EFBIG, f"longer than {bytes_max} bytes", name)
    return content.decode(errors="replace")


def _read_to_end(fd: int, bytes_max: int) -> bytes:
    """Return the content, at most one byte more than `bytes_max`."""
    content, is_fifo = b"", stat.S_ISFIFO(os.fstat(fd).st_mode)
    ready = select.poll()
    ready.register(fd, select.POLLIN)
    until = time.monotonic() + _READER_SECONDS
    while len(content) <= bytes_max:
        # For a fifo that no writer has opened yet, poll(2) reports nothing, and read(2) reports its end.
        if is_fifo and not ready.poll(max(0.0, until - time.monotonic()) * 1e3):
            raise OSError(errno.ENXIO, "no process writes to this fifo")
        part = os.read(fd, bytes_max + 1 - len(content))
        if not part:
            break
        content += part
    return content


def write_file(path: Path, content: bytes, force: bool, option: str) -> None:
    """Write a file completely or not at all. option: the option that names the file. Raises CaptureError."""
    part = _part_of(path)
    try:
        with os.fdopen(_create(part), "wb") as file:
            file.write(content)
        _put_in_place(part, path, force)
    except OSError as error:
        raise failure(path, error, option) from error
    finally:
        _remove(part)


def check_free(path: Path, force: bool, option: str) -> None:
    """Raise CaptureError if `write_file` could not use this name."""
    try:
        _check_free(path, force)
    except OSError as error:
        raise failure(path, error, option) from error


def open_for_rows(name: str, force: bool, option: str) -> int:
    """Open a file for rows that are written during a run; the caller closes it. Raises CaptureError.

    The file is new, or replaces another one with `force`. A fifo or device is opened as it is, if it belongs to root or
    to this user. /dev/fd/N is opened as it is, too.
    """
    path = Path(name)
    try:
        if found := _OWN_DESCRIPTOR.fullmatch(name):
            return os.dup(int(found[1]) if found[1] else 1 if found[2] == "out" else 2)
        if _is_special(path):
            return _open_special(path)
        return _open_new(path, force)
    except OSError as error:
        raise failure(path, error, option) from error


def failure(path: Path, error: OSError, option: str) -> CaptureError:
    """Return the error to show for a file that cannot be opened or written."""
    if error.errno == errno.EEXIST:
        return CaptureError(f"{path}: {_occupied(path)}.", f"Name another with {option}, or replace it with --force.")
    if error.errno == errno.ENXIO:
        return CaptureError(f"{path}: no process reads this fifo.", "Start its reader first.")
    return CaptureError(f"{path}: {error.strerror or error}.", f"Name another place with {option}.")


def _occupied(path: Path) -> str:
    """Return the reason why the name cannot be used."""
    if path.is_symlink():
        return "a symbolic link, which is not followed"
    return "file exists" if path.is_file() else "not a regular file"


def _part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def _create(path: Path) -> int:
    fd = os.open(path, _NEW, _MODE)
    os.fchmod(fd, _MODE)  # whatever the umask
    return fd


def _check_free(path: Path, force: bool) -> None:
    """Raise FileExistsError if a name cannot be used; with `force`, only files and links are replaced."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not force or not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


def _put_in_place(part: Path, path: Path, force: bool) -> None:
    """Give a file its name; without `force`, only if nothing has that name."""
    if not force:
        try:
            os.link(part, path, follow_symlinks=False)
            return
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
        _check_free(path, force)
    part.replace(path)


def _open_new(path: Path, force: bool) -> int:
    if not force:
        return _create(path)
    _check_free(path, force)
    part = _part_of(path)
    fd = _create(part)
    try:
        part.replace(path)
    except OSError:
        os.close(fd)
        _remove(part)
        raise
    return fd


def _remove(part: Path) -> None:
    part.unlink(missing_ok=True)


def _is_special(path: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISCHR(found.st_mode) or (stat.S_ISFIFO(found.st_mode) and found.st_uid in (0, os.geteuid()))


def _open_special(path: Path) -> int:
    """Open a fifo or device without blocking. Wait a few seconds for a fifo's reader."""
    until = time.monotonic() + _READER_SECONDS
    while True:
        try:
            fd = os.open(path, _FLAGS | os.O_NONBLOCK | os.O_NOCTTY)
            break
        except OSError as error:
            if error.errno != errno.ENXIO or STOP.is_set or time.monotonic() > until:
                raise
        select.select([STOP], [], [], _LOOK_AGAIN_SECONDS)
    opened = os.fstat(fd)
    if stat.S_ISREG(opened.st_mode) or opened.st_uid not in (0, os.geteuid()):
        os.close(fd)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    return fd
