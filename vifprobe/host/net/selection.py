# SPDX-License-Identifier: Apache-2.0
"""Taps as users name them: names, patterns with `*`, `?` and `[...]`, or nothing for all taps of the host."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from vifprobe.errors import TapError
from vifprobe.host.net import names
from vifprobe.host.net.links import Link, find_link, list_links
from vifprobe.model.ports import is_guest_port


def is_pattern(name: str) -> bool:
    """Return True if it can name several taps. What can't be printed is a name, and refused as one."""
    return name.isprintable() and any(character in name for character in "*?[")


def select_links(wanted: Sequence[str]) -> tuple[Link, ...]:
    """Return the devices that were named, each once, patterns by name. A pattern matches taps (guests' ports) only.

    Nothing named: all taps of the calling thread's network namespace, which can be none. Raises TapError for a name
    without a device and for a pattern without a tap.
    """
    taps = [link for link in list_links() if is_guest_port(link.kind)]
    by_name = {link.name: link for link in sorted(taps, key=lambda one: one.name)}
    if not wanted:
        return tuple(by_name.values())
    found: dict[str, Link] = {}
    for name in wanted:
        if not is_pattern(name):
            names.check(name)
            found[name] = by_name.get(name) or find_link(name)
            continue
        matching = {one: link for one, link in by_name.items() if fnmatchcase(one, name)}
        if not matching:
            count = "1 tap" if len(by_name) == 1 else f"{len(by_name)} taps"
            raise TapError(
                f"{names.shown(name)}: matches no tap in this network namespace.",
                f"Looked at {count}.",
                "List the taps with `vifprobe taps`, or name a namespace with --netns.",
            )
        found |= matching
    return tuple(found.values())
