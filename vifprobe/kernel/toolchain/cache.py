# SPDX-License-Identifier: Apache-2.0
"""Cache of compiled code on disk: compiling with bcc takes most of the time to the first screen.

Entries are loaded into the kernel. So only root may be able to change the directory and its parents, and entries must
be owned by root. An invalid entry is ignored. Key: hash of everything that the result of compiling depends on.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vifprobe.kernel.toolchain import placement
from vifprobe.kernel.toolchain.compiled import Compiled, declared_in
from vifprobe.kernel.toolchain.compiler import compile_apart
from vifprobe.process.caller import setting
from vifprobe.process.trust import open_trusted, root_uids

#: Set to another directory, or to nothing for no cache.
VARIABLE = "VIFPROBE_CACHE"
_DEFAULT = "/var/cache/vifprobe"
_KEPT = 128  # most recently used entries; one for each number of taps, bin width and version: 10 MB in all
_ENTRY_BYTES_MAX = 64 << 20  # 40 to 90 kB are usual
_ENTRY_NAME = re.compile(r"[0-9a-f]{64}\.json|\.[0-9a-f]{16}\.new")
_COMPILERS = ("/usr/lib/python3/dist-packages/bcc/version.py", "/usr/lib/python3/site-packages/bcc/version.py")


def compiled(text: str, directory: Path, flags: list[str]) -> Compiled:
    """Return the code from the cache, else compile and cache it. Raises KernelError as compile_apart does.

    - text: the C text.
    - directory: of the C text, with `include/` in it.
    - flags: -D flags.
    """
    with _place() as place:
        if place is None:
            return compile_apart(text, directory, flags)
        key = _key(text, directory, flags)
        found = _read(place, key)
        if found is None or not declared_in(text, flags) <= found.names:
            found = compile_apart(text, directory, flags)
            with suppress(OSError):
                _write(place, key, found)
        else:
            with suppress(OSError):  # mtime is the time of the last use
                os.utime(f"{key}.json", dir_fd=place, follow_symlinks=False)
        return found


@contextmanager
def _place() -> Iterator[int | None]:
    """Open the cache directory, created if needed; None where it is not trusted or can't be opened.

    All accesses use this fd, so the directory that was checked is the one that is used.
    """
    name = setting(VARIABLE, _DEFAULT)
    try:
        place = _open(Path(name)) if name else None
    except OSError:
        place = None
    try:
        yield place
    finally:
        if place is not None:
            os.close(place)


def _open(path: Path) -> int:
    if not os.path.lexists(path):
        above = open_trusted(path.parent, uids=root_uids())
        try:
            with suppress(FileExistsError):
                os.mkdir(path.name, 0o700, dir_fd=above)
        finally:
            os.close(above)
    checked = open_trusted(path, may_be_link=False, uids=root_uids())
    try:
        place = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=checked)
    finally:
        os.close(checked)
    about = os.fstat(place)
    if about.st_uid != os.geteuid() or about.st_mode & 0o022:
        os.close(place)
        raise PermissionError(errno.EPERM, "not owned by this user, or writable by others", str(path))
    return place


def _key(text: str, directory: Path, flags: list[str]) -> str:
    parts = [text, *sorted(flags), os.uname().machine]
    parts += [path.read_text() for path in (*sorted(directory.glob("**/*.h")), Path(placement.__file__))]
    for path in map(Path, _COMPILERS):
        with suppress(OSError):
            parts.append(f"{path} {path.stat().st_mtime_ns}")
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _read(place: int, key: str) -> Compiled | None:
    try:
        digest, content = _own_text(place, f"{key}.json").split("\n", 1)
        return Compiled.from_json(content) if digest == _digest(key, content) else None
    except (OSError, ValueError):
        return None


def _own_text(place: int, name: str) -> str:
    """Return the content of a regular file that only this user can write. Raises OSError, ValueError."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    with os.fdopen(os.open(name, flags, dir_fd=place), encoding="utf-8") as stream:
        about = os.fstat(stream.fileno())
        is_own = stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid() and not about.st_mode & 0o022
        if not is_own or about.st_size > _ENTRY_BYTES_MAX:
            raise PermissionError(errno.EPERM, "not a regular file that only this user can write", name)
        return stream.read(about.st_size + 1)


def _digest(key: str, content: str) -> str:
    """Return the digest of an entry with its key, so that an entry copied from another key is invalid."""
    return hashlib.sha256(f"{key}\n{content}".encode()).hexdigest()


def _write(place: int, key: str, found: Compiled) -> None:
    """Write an entry atomically, and delete the least recently used entries."""
    new, name = f".{secrets.token_hex(8)}.new", f"{key}.json"
    try:
        with os.fdopen(
            os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=place), "w"
        ) as stream:
            content = found.to_json()
            stream.write(f"{_digest(key, content)}\n{content}")
        with suppress(OSError):
            os.rmdir(name, dir_fd=place)  # only a directory prevents the rename
        os.rename(new, name, src_dir_fd=place, dst_dir_fd=place)
    except BaseException:
        with suppress(OSError):
            os.unlink(new, dir_fd=place)
        raise
    # These include unfinished files of a killed run.
    entries = [entry for entry in os.scandir(place) if _ENTRY_NAME.fullmatch(entry.name)]
    entries.sort(key=lambda entry: entry.stat(follow_symlinks=False).st_mtime)
    for entry in entries[:-_KEPT]:
        with suppress(OSError):
            os.unlink(entry.name, dir_fd=place)
