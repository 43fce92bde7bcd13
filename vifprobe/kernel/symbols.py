# SPDX-License-Identifier: Apache-2.0
"""Names of kernel functions, from /proc/kallsyms."""

from __future__ import annotations

import re
import threading
from bisect import bisect_right
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

KALLSYMS = Path("/proc/kallsyms")
_LINES_BYTES = 4096

_held: list[BinaryIO] = []
_lock = threading.Lock()


def hold() -> None:
    """Open the list now, and keep it open until the process ends.

    The kernel checks CAP_SYSLOG at open time and shows addresses from then on (kallsyms_open of kernel/kallsyms.c).
    """
    with suppress(OSError):
        _held.append(KALLSYMS.open("rb"))


def _text() -> bytes:
    if not _held:
        return KALLSYMS.read_bytes()
    with _lock:
        _held[0].seek(0)
        return _held[0].read()


@cache
def _functions() -> tuple[list[int], list[str]]:
    """Return the low halves of all function addresses, ascending, and the names; empty where they are hidden."""
    found = []
    for line in _text().decode().splitlines():
        address, kind, name = line.split()[:3]
        if kind in "tTwW":
            found.append((int(address, 16) & 0xFFFFFFFF, name))
    found.sort()
    if not found or found[-1][0] == 0:  # kptr_restrict shows zeros
        return [], []
    return [address for address, _ in found], [name for _, name in found]


def function_at(low_address: int) -> str | None:
    """Return the function that contains an address, given by its low 32 bits; None where it is unknown.

    Kernel text lies within 2 GiB.
    """
    addresses, names = _functions()
    place = bisect_right(addresses, low_address) - 1
    return names[place] if place >= 0 else None


def function_ranges(*names: str) -> tuple[tuple[int, int], ...]:
    """Return (start, end) of each function: low halves of the addresses; (0, 0) where unknown.

    Copies that the compiler made for some callers (``name.constprop.0``, ``name.isra.0``) count as the function. The
    kernel lists its own functions by address. The text is searched, which takes half the time of parsing it.
    """
    text = _text()
    return tuple(_range(name.encode(), text) for name in names)


@cache
def generic_xdp() -> tuple[int, ...]:
    """Return the functions that free what generic XDP drops: low half of the address, length << 32; 0 where unknown.

    net/core/dev.c. The compiler inlines the first one into the second one on some kernels.
    """
    found = function_ranges("netif_receive_generic_xdp", "do_xdp_generic", "generic_xdp_tx")
    return tuple(start | (end - start & 0xFFFFFFFF) << 32 for start, end in found)


def _range(name: bytes, text: bytes) -> tuple[int, int]:
    suffix = re.compile(rb"(?:\.(?:constprop|isra)\.\d+)?\n")
    at = -1
    while (at := text.find(b" " + name, at + 1)) >= 0:
        found = suffix.match(text, at + 1 + len(name))
        begin = text.rfind(b"\n", 0, at) + 1
        address, _, kind = text[begin:at].partition(b" ")
        if found is None or kind not in (b"t", b"T", b"w", b"W"):
            continue
        start = int(address, 16)
        ends = (int(line.split()[0], 16) for line in text[found.end() : found.end() + _LINES_BYTES].splitlines()[:-1])
        # Other names for the same come first; kptr_restrict shows zeros.
        end = next((end for end in ends if end > start), 0)
        return (start & 0xFFFFFFFF, end & 0xFFFFFFFF) if start and end else (0, 0)
    return 0, 0
