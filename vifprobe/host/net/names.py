# SPDX-License-Identifier: Apache-2.0
"""Interface names as users type them: check a name, and find the closest existing one."""

from __future__ import annotations

from collections.abc import Iterable

from vifprobe.errors import TapError

NAME_BYTES_MAX = 15  # IFNAMSIZ - 1, include/uapi/linux/if.h


def shown(name: str) -> str:
    """Return the user's value, safe to print: unchanged where it is plain, else quoted with escapes; shortened."""
    short = name if len(name) <= 80 else name[:77] + "..."
    if short and short.isprintable() and " " not in short:
        return short
    return ascii(short)


def check(name: str) -> None:
    """Raise TapError for a name that an interface can't have (net/core/dev.c, dev_valid_name)."""
    hint = "List the taps with `vifprobe taps`."
    if not name:
        raise TapError("The interface name is empty.", hint)
    try:
        raw = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise TapError(f"{name!a}: not an interface name: it contains an incomplete character.", hint) from None
    if not name.isprintable():
        raise TapError(f"{shown(name)}: not an interface name: it contains a character that can't be printed.", hint)
    if any(character.isspace() for character in name):
        raise TapError(f"{shown(name)}: not an interface name: it contains a space.", hint)
    for forbidden in "/:":
        if forbidden in name:
            raise TapError(f"{shown(name)}: not an interface name: it contains {forbidden!r}.", hint)
    if name in (".", ".."):
        raise TapError(f"{name}: not an interface name: the kernel reserves it.", hint)
    if len(raw) > NAME_BYTES_MAX:
        raise TapError(
            f"{shown(name)}: not an interface name: {len(raw)} bytes long; the kernel allows at most {NAME_BYTES_MAX}.",
            "A Neutron port's tap is called `tap` and the first 11 characters of the port id.",
        )


def closest(name: str, among: Iterable[str]) -> str | None:
    """Return the closest name; None where none is similar."""
    from difflib import get_close_matches  # only on the way to an error

    near = get_close_matches(name, sorted(set(among)), n=1, cutoff=0.5)
    return near[0] if near else None
