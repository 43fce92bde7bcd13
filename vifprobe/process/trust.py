# SPDX-License-Identifier: Apache-2.0
"""Checks whether another user can change a file or directory. As in sshd's StrictModes, every component counts."""

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
    """Another user can change this file or directory. strerror: which component, and how."""


def root_uids() -> frozenset[int]:
    """Return root and this process's user. The owner of `/` counts as root: a user namespace may change the number."""
    return frozenset((0, os.geteuid(), Path("/").stat().st_uid))


def trusted_uids() -> frozenset[int]:
    """Return the users who may own code that runs here: root, this process's own user, the owner of this package.

    A plain user's checkout that is run with sudo is that user's own code. Root runs it in any case, this file included.
    So trusting the user's other files (a .venv/) adds no risk.
    """
    return root_uids() | {PACKAGE.stat().st_uid}


def problem(path: Path) -> str:
    """Return why a file or directory is not trusted; "" if nobody else can change it. OSError: it is missing."""
    try:
        os.close(open_trusted(path))
    except UntrustedError as error:
        return str(error.strerror)
    return ""


def open_trusted(path: Path, may_be_link: bool = True, uids: frozenset[int] | None = None) -> int:
    """Open a file or directory that nobody else can change or replace. Return an fd (O_PATH) of the checked object.

    - may_be_link: True if the last component may be a symbolic link;
    - uids: users who may own it; None: trusted_uids().

    Raises UntrustedError, or another OSError.
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
    """Raise UntrustedError if others can change this component. owner_below: owner of the next, None for the last."""
    if about.st_uid not in uids:
        raise UntrustedError(1, f"{place} belongs to {_user(about.st_uid)}")
    if stat.S_ISLNK(about.st_mode) or not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return
    # In /tmp others can add names, but cannot remove or rename files of other users (fs/namei.c, check_sticky).
    if about.st_mode & stat.S_ISVTX and owner_below in uids:
        return
    if about.st_mode & stat.S_IWOTH:
        raise UntrustedError(1, f"{place} can be written by everybody")
    if not _members(about.st_gid) <= uids:
        raise UntrustedError(1, f"{place} can be written by group {_group(about.st_gid)}")


@cache
def _members(gid: int) -> frozenset[int]:
    """Return the users in a group; -1 stands for an unknown user.

    If each user has a private group (Debian, Ubuntu, Fedora), the umask may be 002. Debian's /usr/local belongs to a
    group `staff` without members.
    """
    found = {user.pw_uid for user in pwd.getpwall() if user.pw_gid == gid}
    try:
        names = grp.getgrgid(gid).gr_mem
    except KeyError:
        return frozenset(found | {-1})  # an unknown group may have any members
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
