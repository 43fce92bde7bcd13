# SPDX-License-Identifier: Apache-2.0
"""P17: programs that decide packets before they are counted, so that nothing is known of those."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vifprobe.analysis.ahead import Ahead
from vifprobe.analysis.findings.situation import Situation, finding_id
from vifprobe.model.layout import Direction
from vifprobe.model.reading import Finding

PATTERN = "P17"
_NAMED = 3


def of(situation: Situation, direction: Direction) -> Iterator[Finding]:
    """One a hook that such programs are at; critical where the device's counters prove that packets are missing."""
    for hook in ("tcx", "xdp", "filter"):
        found = [one for one in situation.ahead if one.direction is direction and one.hook == hook]
        if found:
            yield _finding(situation, direction, hook, list({one.id: one for one in found}.values()))


def _finding(situation: Situation, direction: Direction, hook: str, found: Sequence[Ahead]) -> Finding:
    unseen = situation.unseen.get(direction, 0)
    dropped = situation.device_dropped.get(direction, 0) if hook == "xdp" else 0
    names = ", ".join(one.words for one in found[:_NAMED])
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    word = situation.set_up.word(direction)
    are = "are" if unseen or dropped else "may be"
    return Finding(
        finding_id(PATTERN, direction, hook),
        PATTERN,
        "critical" if unseen or dropped else "warning",
        f"{word} packets {are} decided before vifprobe sees them, by the {names}{more}",
        {
            "hook": hook,
            "programs": [_evidence(one, situation.now_ns) for one in found],
            "unseen_packets": unseen,
            "device_rx_dropped": dropped,
        },
        _advice(situation.set_up.tap, hook),
    )


def _evidence(one: Ahead, now_ns: int) -> Mapping[str, Any]:
    seconds = ((now_ns if one.end_ns is None else one.end_ns) - one.since_ns) / 1e9
    return {
        "id": one.id,
        "name": one.name,
        "mode": one.mode,
        "held_by": list(one.held_by),
        "seconds": round(max(0.0, seconds), 3),
        "is_there": one.end_ns is None,
    }


def _advice(tap: str, hook: str) -> str:
    show = f"`bpftool net show dev {tap}`"
    if hook == "xdp":
        return (
            f"See {show} and `ip -details link show dev {tap}`. What such a program drops or redirects reaches neither "
            "vifprobe nor any policer of the tap. Compare with what the guest says it sent (`ip -s link` in the guest)."
        )
    return (
        f"See {show}, `bpftool link` and `tc filter show dev {tap} ingress`. vifprobe moves back to the head a "
        "few times, then leaves the head to the other program. To see all packets, stop the process that attaches that "
        "program again and again."
    )
