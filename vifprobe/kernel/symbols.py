# SPDX-License-Identifier: Apache-2.0
"""Names of kernel functions, from /proc/kallsyms."""

from __future__ import annotations

from bisect import bisect_right
from functools import cache
from pathlib import Path

KALLSYMS = Path("/proc/kallsyms")


@cache
def _functions() -> tuple[list[int], list[str]]:
    """Low halves of the addresses of all functions, ascending, and their names; empty where they are hidden."""
    found = []
    for line in KALLSYMS.read_text().splitlines():
        address, kind, name = line.split()[:3]
        if kind in "tTwW":
            found.append((int(address, 16) & 0xFFFFFFFF, name))
    found.sort()
    if not found or found[-1][0] == 0:  # kptr_restrict shows zeros
        return [], []
    return [address for address, _ in found], [name for _, name in found]


def function_at(low_address: int) -> str | None:
    """The function around an address, by its low 32 bits (kernel text lies within 2 GiB); None where not known."""
    addresses, names = _functions()
    place = bisect_right(addresses, low_address) - 1
    return names[place] if place >= 0 else None


def function_range(name: str) -> tuple[int, int]:
    """Low halves of a function's first address and of the one behind it, (0, 0) where not known.

    Copies that the compiler made for some callers (``name.constprop.0``, ``name.isra.0``) are the function, too.
    """
    addresses, names = _functions()
    for place, found in enumerate(names[:-1]):
        if found == name or found.startswith((f"{name}.constprop.", f"{name}.isra.")):
            return addresses[place], addresses[place + 1]
    return 0, 0
