# SPDX-License-Identifier: Apache-2.0
"""P21: the table of connection tracking is nearly full."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vifprobe.analysis.findings.situation import ConntrackLoad, Situation, finding_id
from vifprobe.model.layout import Direction, Verdict
from vifprobe.model.reading import Finding, count


def of(situation: Situation, direction: Direction) -> Iterator[Finding]:
    """The finding, once for a tap: in the first of its directions."""
    table = situation.conntrack
    if table is None or direction is not situation.directions[0]:
        return
    if not table.is_crowded and not table.dropped_packets:
        return
    netfilter = _netfilter_drops(situation)
    is_full = bool(table.dropped_packets) or (table.dropped_packets is None and table.is_full and netfilter > 0)
    words = f"{table.entries:,} of {table.entries_max:,} connections"
    yield Finding(
        finding_id("P21", direction),
        "P21",
        "critical" if is_full else "warning",
        f"the conntrack table is full: packets of new connections are dropped ({words})"
        if is_full
        else f"the conntrack table is {math.floor(100 * table.entries / table.entries_max)} % full: {words}",
        {
            "entries": table.entries,
            "entries_max": table.entries_max,
            "dropped_packets": table.dropped_packets,
            "netfilter_drops": netfilter,
            "most_syns_by": table.most_syns_by or None,
            "most_syns_pps": round(table.most_syns_pps) if table.most_syns_by else None,
        },
        _advice(table),
    )


def _advice(table: ConntrackLoad) -> str:
    most = f"Of the watched taps {table.most_syns_by} sends the most SYNs. " if table.most_syns_by else ""
    return (
        f"{most}`conntrack -L -o extended` shows whose connections they are. Limit the guest's new connections, or "
        "raise net.netfilter.nf_conntrack_max."
    )


def _netfilter_drops(situation: Situation) -> int:
    """Packets of the tap that netfilter dropped, in all directions that were counted."""
    if situation.reading is None:
        return 0
    cells = situation.reading.cells
    codes = [code for code, name in situation.reasons.items() if name == "NETFILTER_DROP"]
    dropped = cells[cells["verdict"] == Verdict.DROPPED]
    return sum(count(dropped[dropped["reason"] == code]).packets for code in codes)
