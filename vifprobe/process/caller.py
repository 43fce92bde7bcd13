# SPDX-License-Identifier: Apache-2.0
"""User who became root (sudo), and the environment variables that are taken from this user."""

from __future__ import annotations

import os
from collections.abc import Mapping

from vifprobe.errors import UsageError

#: Set by sudo(8), pkexec(1) and doas(1) to the user who called them.
_CALLERS = ("SUDO_UID", "PKEXEC_UID", "DOAS_USER")


def foreign_caller(environment: Mapping[str, str] = os.environ) -> str:
    """Return how another user became root, such as "SUDO_UID=1000"; "" for root and for plain users."""
    if os.geteuid() != 0:
        return ""
    if os.getuid() != 0:
        return f"user {os.getuid()}"
    named = ((name, environment.get(name, "")) for name in _CALLERS)
    return next((f"{name}={value}" for name, value in named if value not in ("", "0", "root")), "")


def setting(name: str, default: str = "") -> str:
    """Return an environment variable. Raises UsageError if another user sets it for root.

    An empty value only turns something off, so it is taken from every user.
    """
    value = os.environ.get(name, default)
    caller = foreign_caller()
    if value not in ("", default) and caller:
        raise UsageError(
            f"{name}={value}: not taken from the user who called root ({caller}).",
            "It decides which code root runs or which files root writes. Unset it, or start as root (`sudo -i`).",
        )
    return value
