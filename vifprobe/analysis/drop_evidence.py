# SPDX-License-Identifier: Apache-2.0
"""Counted drops as evidence of a limit that was not recognized: nobody can say beside them that nothing limits."""

from __future__ import annotations

from collections.abc import Mapping

from vifprobe.analysis.findings import thresholds
from vifprobe.model.layout import Verdict
from vifprobe.model.reading import Cells, count

#: Drop reasons that a limit gives, and who gave them. Others (FULL_RING, IP_INHDR, NO_TX_TARGET ...) are no limit's.
WHO = {
    "NETFILTER_DROP": "netfilter",
    "TC_INGRESS": "a program or action at tc ingress",
    "TC_EGRESS": "a program or action at tc egress",
    "XDP": "an XDP program",
    "OVS_DROP_CONNTRACK": "conntrack of Open vSwitch",
    "OVS_DROP_METER": "a meter of Open vSwitch",
    **dict.fromkeys(
        (
            *("QDISC_DROP", "QDISC_OVERLIMIT", "QDISC_CONGESTED", "DUALPI2_STEP_DROP"),
            *("CAKE_FLOOD", "FQ_BAND_LIMIT", "FQ_FLOW_LIMIT", "FQ_HORIZON_LIMIT"),
            # include/net/dropreason-qdisc.h
            *("QDISC_DROP_CAKE_FLOOD", "QDISC_DROP_CONGESTED", "QDISC_DROP_FLOW_LIMIT", "QDISC_DROP_FQ_BAND_LIMIT"),
            *("QDISC_DROP_FQ_HORIZON_LIMIT", "QDISC_DROP_GENERIC", "QDISC_DROP_MAXFLOWS", "QDISC_DROP_OVERLIMIT"),
        ),
        "a queueing discipline",
    ),
}


def limit_like_drops(cells: Cells, reasons: Mapping[int, str]) -> dict[str, int]:
    """Return who dropped packets as a limit does -> packets, the most first.

    - cells: of one direction. Packets of the tap's own limit (POLICED) do not count here.
    - reasons: names of the kernel's drop reasons. Without any, each drop can be a limit's.
    """
    dropped = cells[cells["verdict"] == Verdict.DROPPED]
    found: dict[str, int] = {}
    for code in {int(code) for code in dropped["reason"]}:
        who = WHO.get(reasons.get(code, "")) if reasons else "something"
        if who is not None:
            found[who] = found.get(who, 0) + count(dropped[dropped["reason"] == code]).packets
    return dict(sorted(found.items(), key=lambda one: -one[1]))


def is_limit_like(cells: Cells, reasons: Mapping[int, str]) -> bool:
    """Return True if so many packets of one direction were dropped this way that a limit may have done it."""
    dropped = sum(limit_like_drops(cells, reasons).values())
    return dropped > 0 and dropped >= thresholds.LIMIT_LIKE_SHARE * count(cells).packets
