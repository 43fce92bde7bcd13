# SPDX-License-Identifier: Apache-2.0
"""Tells whether somebody else can change a file or directory, as sshd's StrictModes does: every component counts."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from contextlib import ExitStack
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]

_LINKS_MAX = 40  # MAXSYMLINKS, include/linux/namei.h
_COMPONENT = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class UntrustedError(PermissionError):
    """Somebody else can change what lies there. strerror: which component, and how."""


def root_uids() -> frozenset[int]:
    """Root and this process's own user. The owner of `/` is root, also where a user namespace shows another number."""
    return frozenset((0, os.geteuid(), Path("/").stat().st_uid))


def trusted_uids() -> frozenset[int]:
    """Users who may own what runs here: root, this process's own user, and the owner of this package.

    A checkout of a plain user that is run with sudo is that user's own code. Root runs what he writes in any case, this
    file included, so his other files (a .venv/) add nothing.
    """
    return root_uids() | {PACKAGE.stat().st_uid}


def problem(path: Path) -> str:
    """Return why a file or directory is not trusted, "" where nobody else can change it. OSError: it is not there."""
    try:
        os.close(open_trusted(path))
    except UntrustedError as error:
        return str(error.strerror)
    return ""


def open_trusted(path: Path, may_be_link: bool = True, uids: frozenset[int] | None = None) -> int:
    """Open what nobody else can change or replace: an fd (O_PATH) of the very file or directory that was checked.

    may_be_link: whether the last component may be a link to it. uids: who may own it, trusted_uids() if None. Raises
    UntrustedError, or another OSError.
    """
    left = _reversed_parts(str(path.absolute()))
    uids, links = trusted_uids() if uids is None else uids, 0
    with ExitStack() as stack:
        fd, walked = _opened(stack, "/", None), "/"
        while left:
            name = left.pop()
            below = _opened(stack, name, fd)
            about, place = os.fstat(below), os.path.normpath(os.path.join(walked, name))  # noqa: PTH118 - and normpath is for texts
            _check(os.fstat(fd), walked, uids, about.st_uid)
            if not stat.S_ISLNK(about.st_mode):
                fd, walked = below, place
                continue
            links += 1
            if about.st_uid not in uids or links > _LINKS_MAX or not (left or may_be_link):
                raise UntrustedError(1, f"{place} is a link, which belongs to {_user(about.st_uid)}")
            target = os.readlink("", dir_fd=below)
            left += _reversed_parts(target)
            if target.startswith("/"):
                fd, walked = _opened(stack, "/", None), "/"
        _check(os.fstat(fd), walked, uids, None)
        return os.dup(fd)


def _reversed_parts(path: str) -> list[str]:
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def _opened(stack: ExitStack, name: str, directory: int | None) -> int:
    fd = os.open(name, _COMPONENT, dir_fd=directory)
    stack.callback(os.close, fd)
    return fd


def _check(about: os.stat_result, place: str, uids: frozenset[int], owner_below: int | None) -> None:
    """Raise UntrustedError where others can change this component. owner_below: of the next one, None for the last."""
    if about.st_uid not in uids:
        raise UntrustedError(1, f"{place} belongs to {_user(about.st_uid)}")
    if stat.S_ISLNK(about.st_mode) or not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return
    # In /tmp others can add names, but not take away or rename what is not theirs (fs/namei.c, check_sticky).
    if about.st_mode & stat.S_ISVTX and owner_below in uids:
        return
    if about.st_mode & stat.S_IWOTH:
        raise UntrustedError(1, f"{place} can be written by everybody")
    if not _members(about.st_gid) <= uids:
        raise UntrustedError(1, f"{place} can be written by group {_group(about.st_gid)}")


@cache
def _members(gid: int) -> frozenset[int]:
    """Users in a group. Where users have groups of their own (Debian, Ubuntu, Fedora), their umask may be 002; Debian's
    /usr/local belongs to a group `staff` without members.
    """
    found = {user.pw_uid for user in pwd.getpwall() if user.pw_gid == gid}
    try:
        names = grp.getgrgid(gid).gr_mem
    except KeyError:
        return frozenset(found | {-1})  # a group that nobody knows may have anybody in it
    for name in names:
        try:
            found.add(pwd.getpwnam(name).pw_uid)
        except KeyError:
            found.add(-1)
    return frozenset(found)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
