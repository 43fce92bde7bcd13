# SPDX-License-Identifier: Apache-2.0
"""Compiled code kept on disk: bcc takes most of the time to the first screen.

Only root's own directory is trusted, since what is read here is loaded into the kernel. Anything wrong with it is as if
it were not there. Key: hash of all that compiling depends on.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from vifprobe.kernel import placement
from vifprobe.kernel.compile import Compiled
from vifprobe.kernel.compiler import compile_apart
from vifprobe.process.caller import setting

#: Set to another directory, or to nothing for no cache.
VARIABLE = "VIFPROBE_CACHE"
_DEFAULT = "/var/cache/vifprobe"
_KEPT = 32  # newest entries; one a number of taps, bin width and version
_COMPILERS = ("/usr/lib/python3/dist-packages/bcc/version.py", "/usr/lib/python3/site-packages/bcc/version.py")


def compiled(text: str, directory: Path, flags: list[str]) -> Compiled:
    """From the cache, else from bcc (and then into the cache). Raises KernelError as compile_apart."""
    place = _place()
    if place is None:
        return compile_apart(text, directory, flags)
    file = place / f"{_key(text, directory, flags)}.json"
    found = _read(file)
    if found is None:
        found = compile_apart(text, directory, flags)
        with suppress(OSError):
            _write(file, found)
    return found


def _place() -> Path | None:
    """The cache directory, made if need be; None where it is not to be trusted or can't be had."""
    name = setting(VARIABLE, _DEFAULT)
    if not name:
        return None
    place = Path(name)
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        about = place.lstat()
    except OSError:
        return None
    own = about.st_uid == os.geteuid() and stat.S_ISDIR(about.st_mode) and not about.st_mode & 0o022
    return place if own else None


def _key(text: str, directory: Path, flags: list[str]) -> str:
    parts = [text, *sorted(flags), os.uname().machine]
    parts += [path.read_text() for path in (*sorted(directory.glob("**/*.h")), Path(placement.__file__))]
    for path in map(Path, _COMPILERS):
        with suppress(OSError):
            parts.append(f"{path} {path.stat().st_mtime_ns}")
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _read(file: Path) -> Compiled | None:
    try:
        told, content = _own_text(file).split("\n", 1)
        if told != _digest(content):
            return None
        return Compiled.from_json(content)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _own_text(file: Path) -> str:
    """Content of a plain file that nobody else could have written; OSError."""
    with os.fdopen(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)) as stream:
        about = os.fstat(stream.fileno())
        if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o022:
            raise PermissionError(errno.EPERM, "not a file of our own", str(file))
        return stream.read()


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def _write(file: Path, found: Compiled) -> None:
    """Whole or not at all; the oldest entries go."""
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=".")  # 0600
    try:
        with os.fdopen(handle, "w") as stream:
            content = found.to_json()
            stream.write(f"{_digest(content)}\n{content}")
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    entries = sorted(file.parent.glob("*.json"), key=lambda entry: entry.stat().st_mtime)
    for entry in entries[:-_KEPT]:
        entry.unlink(missing_ok=True)
