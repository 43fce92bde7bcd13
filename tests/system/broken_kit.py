# SPDX-License-Identifier: Apache-2.0
"""Broken surroundings of a command: `python3 broken_kit.py NAME COMMAND...` makes them and becomes the command."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import resource
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

_CLONE_NEWNS = 0x20000
_CLONE_NEWNET = 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE, _MS_RDONLY, _MS_REMOUNT = 4096, 16384, 1 << 18, 1, 32
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
#: include/uapi/asm/unistd_64.h, and AUDIT_ARCH_X86_64
_BPF_CALL, _ARCHITECTURE = 321, 0xC000003E
_NOBODY = 65534
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _mount(source: str, target: str, kind: str = "", flags: int = 0) -> None:
    _checked(_libc.mount(source.encode(), target.encode(), kind.encode() or None, flags, None))


def enter_netns(fd: int) -> None:
    """Move the calling thread into a network namespace: os.setns came with Python 3.12."""
    _checked(_libc.setns(fd, _CLONE_NEWNET))


def _own_mounts() -> None:
    _checked(_libc.unshare(_CLONE_NEWNS))
    _mount("none", "/", flags=_MS_REC | _MS_PRIVATE)


def _limit(which: int, value: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(which, (value, value))


def _without(*places: str) -> Callable[[], None]:
    """Empty directories, or files, in these places."""

    def hide() -> None:
        _own_mounts()
        for place in places:
            if Path(place).is_dir():
                _mount("none", place, "tmpfs")
            elif Path(place).exists():
                _mount("/dev/null", place, flags=_MS_BIND)

    return hide


def _without_bcc() -> None:
    found = importlib.util.find_spec("bcc")
    _without(*([] if found is None or found.origin is None else [str(Path(found.origin).parent)]))()


def _without_libbpf() -> None:
    _without(*(str(path) for lib in ("/usr/lib", "/lib") for path in Path(lib).glob("*/libbpf.so.1*")))()


def _refuse_bpf() -> None:
    """A seccomp filter as a container's: bpf() gives EPERM, whatever the capabilities are."""

    def step(code: int, yes: int, no: int, value: int) -> bytes:
        return struct.pack("=HBBI", code, yes, no, value)

    # ld arch; jne allow; ld nr; jne allow; ret EPERM; ret ALLOW
    program = step(0x20, 0, 0, 4) + step(0x15, 0, 3, _ARCHITECTURE) + step(0x20, 0, 0, 0)
    program += step(0x15, 0, 1, _BPF_CALL) + step(0x06, 0, 0, 0x00050001) + step(0x06, 0, 0, 0x7FFF0000)
    held = ctypes.create_string_buffer(program)
    filter_words = ctypes.create_string_buffer(struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(held)))
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _checked(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, filter_words, 0, 0))


def _plain_user() -> None:
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)


def _deleted_directory() -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)


def _read_only_directory() -> None:
    """The current directory, with all that is below it."""
    place = str(Path.cwd())
    _own_mounts()
    _mount(place, place, flags=_MS_BIND)
    _mount("none", place, flags=_MS_BIND | _MS_REMOUNT | _MS_RDONLY)
    os.chdir(place)


def _environment(**changes: str | None) -> Callable[[], None]:
    def change() -> None:
        for name, value in changes.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    return change


#: Name -> what breaks it.
SURROUNDINGS: dict[str, Callable[[], None]] = {
    "plain user": _plain_user,
    "seccomp": _refuse_bpf,
    **{f"{count} files": _limit(resource.RLIMIT_NOFILE, count) for count in (8, 24, 48)},
    "little memory": _limit(resource.RLIMIT_AS, 200 << 20),
    "no locked memory": _limit(resource.RLIMIT_MEMLOCK, 0),
    "deleted directory": _deleted_directory,
    "read-only directory": _read_only_directory,
    "no home": _environment(HOME=None, USER=None, LOGNAME=None, PATH=None),
    "ascii": _environment(LANG="C", LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
    "no terminal": _environment(TERM=None, COLUMNS="1", LINES="1"),
    "odd terminal": _environment(TERM="no-such-terminal", COLUMNS="x", LINES="-7"),
    "closed stdin": lambda: os.close(0),
    "no proc": _without("/proc"),
    "no sys": _without("/sys"),
    "no tracefs": _without("/sys/kernel/tracing", "/sys/kernel/debug"),
    "no BTF": _without("/sys/kernel/btf"),
    "no run": _without("/run"),
    "no libbpf": _without_libbpf,
    "no bcc": _without_bcc,
}

if __name__ == "__main__":
    os.environ.setdefault("PATH", os.defpath)
    SURROUNDINGS[sys.argv[1]]()
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - what the test gives
