# SPDX-License-Identifier: Apache-2.0
"""A folder that only its owner can read, in a parent that others may write to; and what happens on a full disk.

All files are reached through the folder's own descriptor, so that renaming it or its parents midway changes nothing,
and each is created anew (O_EXCL, O_NOFOLLOW), so that a link laid there beforehand is never written through.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path

from vifprobe.capture.bounds import JSON_BYTES_MAX
from vifprobe.capture.files import digest, read_regular, write_all
from vifprobe.capture.jsonio import load
from vifprobe.capture.manifest import FILES, MANIFEST
from vifprobe.errors import CaptureError

_FOLDER_MODE = 0o700
_FILE_MODE = 0o600
_FULL = (errno.ENOSPC, errno.EDQUOT)
_RESERVE = ".vifprobe-reserve"
_ELSEWHERE = "Name a folder that doesn't exist yet with -o."


def _temporary(name: str) -> str:
    return f".{name}.new"


#: What --force may remove: a capture's own files, and what a killed writer may have left beside them.
OWN_NAMES = frozenset({*FILES, *map(_temporary, FILES), _RESERVE})


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _last_end(ends: Sequence[int], written: int) -> int:
    """Return the bytes of whole rows among the first `written`."""
    found = bisect_right(ends, written)
    return ends[found - 1] if found else 0


class Stream:
    """A file that grows while the capture runs. What :meth:`append` has returned from survives the process."""

    def __init__(self, folder: Folder, name: str, header: bytes) -> None:
        self.name = name
        self.rows = 0
        self._folder = folder
        self._fd = folder.create(name, append=True)
        self.size_bytes = 0
        self.append(header)
        self.rows = 0  # the header is none

    def append_blocks(self, blocks: Sequence[bytes]) -> None:
        """The same as `append`, of rows that are no lines."""
        self.append(b"".join(blocks), list(accumulate(map(len, blocks))))

    def append(self, lines: bytes, ends: Sequence[int] | None = None) -> None:
        """Add whole lines; where that fails midway, those that were written whole stay. Raises CaptureError.

        ends: where each row ends, if not with a line.
        """
        written = 0
        try:
            while written < len(lines):
                written += os.write(self._fd, memoryview(lines)[written:])
        except BaseException as error:
            written = lines.rfind(b"\n", 0, written) + 1 if ends is None else _last_end(ends, written)
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.size_bytes + written)
            if isinstance(error, OSError):
                raise self._folder.failure(self.name, error) from error
            raise
        finally:
            self.size_bytes += written
            self.rows += lines.count(b"\n", 0, written) if ends is None else bisect_right(ends, written)

    def close(self) -> None:
        """Nothing is added any more."""
        os.close(self._fd)


class Folder:
    """A capture folder being written, locked against a second writer. Its methods raise CaptureError.

    reserve_bytes: space set aside at the start, so that the totals and the manifest still fit on a disk that the
    growing files have filled.
    """

    def __init__(self, path: Path, force: bool, reserve_bytes: int) -> None:
        self.path = path
        self._created: set[str] = set()
        self._reserve_fd: int | None = None
        self._made = self._make()
        self._fd = self._open()
        try:
            self._claim(force)
            self._set_aside(reserve_bytes)
        except BaseException:
            self.abandon()
            raise

    def _make(self) -> bool:
        try:
            self.path.mkdir(_FOLDER_MODE)
        except FileExistsError:
            return False
        except FileNotFoundError:
            raise CaptureError(f"{self.path}: no such folder {self.path.parent}.", "Make it first.") from None
        except OSError as error:
            raise CaptureError(f"{self.path}: {_why(error)}.", "Name a folder that can be made with -o.") from error
        return True

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            # O_DIRECTORY with O_NOFOLLOW gives ENOTDIR for a link as well.
            why = "a symbolic link, which is not followed" if self.path.is_symlink() else _why(error)
            raise CaptureError(f"{self.path}: {why}.", _ELSEWHERE) from error

    def _claim(self, force: bool) -> None:
        """Make sure that the folder is ours alone and empty of an older capture."""
        owner = os.fstat(self._fd).st_uid
        if owner != os.geteuid():
            raise CaptureError(
                f"{self.path}: belongs to user {owner}, who could change what is written there.", _ELSEWHERE
            )
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CaptureError(f"{self.path}: another vifprobe is writing there.", _ELSEWHERE) from None
        except OSError:
            pass  # a file system without locks: O_EXCL still keeps two writers apart
        if present := os.listdir(self._fd):  # noqa: PTH208 - a descriptor, not a path
            self._make_room(present, force)
        os.fchmod(self._fd, _FOLDER_MODE)  # whatever the umask, or its maker, gave it

    def _make_room(self, present: list[str], force: bool) -> None:
        if not force:
            raise CaptureError(
                f"{self.path}: not empty ({len(present)} entries).",
                "Name another folder with -o, or replace the capture in it with --force.",
            )
        if not self._holds_capture():
            raise CaptureError(
                f"{self.path}: not empty, and not a capture that --force can replace.",
                f"Looked for a {MANIFEST} with a schema and taps among {len(present)} entries.",
                _ELSEWHERE,
            )
        # The manifest last: until then an interrupted clean-up is still known as a capture's folder.
        for name in sorted(OWN_NAMES.intersection(present), key=lambda name: name == MANIFEST):
            try:
                os.unlink(name, dir_fd=self._fd)
            except OSError as error:
                raise self.failure(name, error) from error

    def _holds_capture(self) -> bool:
        try:
            content = load(MANIFEST, read_regular(self._fd, MANIFEST, JSON_BYTES_MAX) or b"")
        except (CaptureError, OSError):
            return False
        return isinstance(content, dict) and {"schema", "taps"} <= content.keys()

    def _set_aside(self, reserve_bytes: int) -> None:
        # Without a name it is gone when the process is, however that ends.
        self._reserve_fd = self.create(_RESERVE)
        self._unlink(_RESERVE)
        try:
            os.posix_fallocate(self._reserve_fd, 0, reserve_bytes)
        except OSError as error:
            # A file system that can't set space aside only loses that safety.
            if error.errno in _FULL:
                raise self.failure(MANIFEST, error) from error

    def release_reserve(self) -> bool:
        """Give the space set aside back; False where that was done before."""
        if self._reserve_fd is None:
            return False
        os.close(self._reserve_fd)
        self._reserve_fd = None
        return True

    def create(self, name: str, append: bool = False) -> int:
        """A new file of that name, opened for writing; it must not be there yet. The caller closes it."""
        try:
            return self._create(name, os.O_APPEND if append else 0)
        except OSError as error:
            raise self.failure(name, error) from error

    def _create(self, name: str, more_flags: int = 0) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC | more_flags
        fd = os.open(name, flags, _FILE_MODE, dir_fd=self._fd)
        self._created.add(name)
        os.fchmod(fd, _FILE_MODE)  # whatever the umask
        return fd

    def replace(self, name: str, content: bytes) -> None:
        """Give a file a new content, all of it or nothing: a reader or a crash never sees half."""
        try:
            self._replace(name, content)
        except OSError as error:
            if error.errno not in _FULL or not self.release_reserve():
                raise self.failure(name, error) from error
            try:
                self._replace(name, content)
            except OSError as again:
                raise self.failure(name, again) from again

    def _replace(self, name: str, content: bytes) -> None:
        temporary = _temporary(name)
        self._unlink(temporary)
        fd = self._create(temporary)
        try:
            write_all(fd, content)
            os.fsync(fd)
            os.replace(temporary, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except BaseException:
            self._unlink(temporary)
            raise
        finally:
            os.close(fd)
        self._created.add(name)
        os.fsync(self._fd)

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._fd)

    def digests(self, names: Iterable[str]) -> dict[str, str]:
        """Bring those of these files that are there to the disk; name -> sha256 in hex."""
        found = {}
        for name in names:
            try:
                found[name] = digest(self._fd, name, sync=True)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise self.failure(name, error) from error
        return found

    def failure(self, name: str, error: OSError) -> CaptureError:
        """Return the error to show for one of the files."""
        state = os.fstatvfs(self._fd)
        free = f"Free there: {state.f_bavail * state.f_frsize} bytes, {state.f_ffree} files."
        return CaptureError(f"{self.path}/{name}: {_why(error)}.", *([free] if error.errno in _FULL else []))

    def abandon(self) -> None:
        """Leave no trace of a capture that could not begin: only what was made here goes."""
        for name in self._created:
            self._unlink(name)
        self.close()
        if self._made:
            with contextlib.suppress(OSError):
                self.path.rmdir()

    def close(self) -> None:
        """Let go of the folder."""
        self.release_reserve()
        os.close(self._fd)
