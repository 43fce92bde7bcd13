# SPDX-License-Identifier: Apache-2.0
"""How full the table of connection tracking is, of the calling thread's network namespace.

Source: net/netfilter/nf_conntrack_standalone.c (nf_conntrack_count, nf_conntrack_max, ct_cpu_seq_show);
nf_conntrack_core.c (__nf_conntrack_alloc: a new connection beyond the maximum takes the place of one that nobody
answered, else its packet is dropped).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_SETTINGS = Path("/proc/sys/net/netfilter")
_STATISTICS = Path("/proc/thread-self/net/stat/nf_conntrack")


@dataclass(frozen=True)
class Conntrack:
    """The table at one moment.

    - entries, entries_max: connections in it, and how many may be.
    - dropped_packets: dropped since boot because there was no room; None where that is not counted.
    """

    entries: int
    entries_max: int
    dropped_packets: int | None = None


def read_conntrack(settings: Path = _SETTINGS, statistics: Path = _STATISTICS) -> Conntrack | None:
    """Return the table's state; None where connections are not tracked, or their number has no maximum."""
    try:
        entries, most = (int((settings / f"nf_conntrack_{name}").read_text()) for name in ("count", "max"))
    except (OSError, ValueError):  # nf_conntrack is not loaded
        return None
    return Conntrack(entries, most, _dropped(statistics)) if most > 0 else None


def _dropped(statistics: Path) -> int | None:
    """Return the sum of the column `drop`: a row of hexadecimal numbers for each CPU, under a row of names."""
    try:
        names, *rows = (line.split() for line in statistics.read_text().splitlines())
        column = names.index("drop")
        return sum(int(row[column], 16) for row in rows)
    except (OSError, ValueError, IndexError):  # without CONFIG_NF_CONNTRACK_PROCFS
        return None
