# SPDX-License-Identifier: Apache-2.0
"""P2, P3, P9: a limit went or came, and what followed."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from vifprobe.analysis.findings import thresholds
from vifprobe.analysis.findings.situation import Sample, Situation, finding_id, rate_words, size, span
from vifprobe.analysis.gaps import LimitGap
from vifprobe.model.layout import Direction
from vifprobe.model.ports import Hook, hook_of
from vifprobe.model.reading import Finding

_NAMES: dict[Hook, str] = {"ingress": "ingress policer", "egress": "shaper"}


def of(situation: Situation, direction: Direction) -> Iterator[Finding]:
    """The findings of one direction."""
    for gap in situation.gaps:
        if gap.direction is direction:
            yield from _p2(gap, situation.now_ns, _NAMES[hook_of(situation.set_up.kind, direction)])
            yield from _p3(gap, situation.now_ns, situation.set_up.word(direction))
    yield from _p9(situation, direction)


def _p2(gap: LimitGap, now_ns: int, name: str) -> Iterator[Finding]:
    """Somebody took the limit away: told for one that is still away, and for one that went right after a link change.

    A limit that is deleted and set again by its owner is a gap (P3), no more.
    """
    removal, change = gap.removal, gap.link_change
    if removal is None or (gap.end_ns is not None and change is None):
        return
    who = removal.by or "a process that has ended, or the kernel,"
    after = ""
    if change is not None:
        after = f" {span(removal.at_ns - change.at_ns)} after a link change"
        after += f" ({change.detail})" if change.detail else ""
    evidence = {
        "by_comm": removal.by or None,
        "by_pid": removal.by_pid,
        "removed": removal.detail,
        "link_change": None if change is None else change.detail or "no visible change",
        "after_link_change_ns": None if change is None else removal.at_ns - change.at_ns,
        "ago_ns": now_ns - removal.at_ns,
        "back": gap.end_ns is not None,
        **_lost(gap),
        "passed_since_bytes": gap.passed_bytes,
    }
    yield Finding(
        finding_id("P2", gap.direction, gap.number),
        "P2",
        "warning" if gap.end_ns is not None else "critical",
        f"{who} removed the {name}{after}",
        evidence,
        _advice(gap),
    )


def _advice(gap: LimitGap) -> str:
    if gap.removal is not None and gap.removal.by.startswith("ovs-vswitchd"):
        return (
            "Open vSwitch deletes a policer that it did not set itself whenever a link message of its port comes. Let "
            "it set the limit: Neutron's qos-policy, or `ovs-vsctl set interface TAP ingress_policing_rate=KBIT`."
        )
    return "Set the limit again, and let one program alone manage the qdiscs of this tap."


def _p3(gap: LimitGap, now_ns: int, word: str) -> Iterator[Finding]:
    """Raise P3: the time without a limit, and what passed. Not while a program replaces a limit."""
    exceeded, lasted_ns = gap.exceeded(now_ns), gap.duration_ns(now_ns)
    if not exceeded and (gap.end_ns is None or lasted_ns < thresholds.GAP_NS):
        return
    passed = "" if gap.passed_bytes is None else f": {size(gap.passed_bytes)} passed unpoliced"
    state = "there has been no" if gap.end_ns is None else "there was no"
    yield Finding(
        finding_id("P3", gap.direction, gap.number),
        "P3",
        ("critical" if gap.end_ns is None else "warning") if exceeded else "info",
        f"{state} {word} limit for {span(lasted_ns)}{passed}",
        {
            "gap_ns": lasted_ns,
            "over": gap.end_ns is not None,
            "passed_charged_bytes": gap.passed_bytes,
            "limit_would_have_passed_bytes": gap.allowed_bytes(now_ns),
            "removed_by": gap.removal.by or None if gap.removal else None,
            "restored_by": gap.restored_by or None,
            **_lost(gap),
        },
        "A restart, a re-plug or a change of the limit leaves the tap without a limit for this long.",
    )


def _lost(gap: LimitGap) -> dict[str, object]:
    limit = gap.limit
    return {
        "limit_rate_bps": limit.rate_bps if limit else None,
        "limit_burst_bytes": limit.burst_bytes if limit else None,
        "limit_where": limit.where if limit else None,
    }


def _p9(situation: Situation, direction: Direction) -> Iterator[Finding]:
    """The guest offers more since a policer drops early, for a drop costs its host less than forwarding."""
    if direction is not Direction.OUTBOUND:
        return
    for number, (where, at_ns) in enumerate(situation.installs, 1 + situation.installs_before):
        if where is not direction:
            continue
        side = thresholds.AMPLIFIED_SIDE_NS
        whole = [one for one in situation.samples if one.duration_ns >= thresholds.AMPLIFIED_INTERVAL_NS]
        before = [one for one in whole if at_ns - side <= one.start_ns and _end(one) <= at_ns]
        after = [one for one in whole if one.start_ns >= at_ns and _end(one) <= at_ns + side]
        if min(len(before), len(after)) < thresholds.AMPLIFIED_INTERVALS:
            continue
        pps, later_pps = _offered_pps(before), _offered_pps(after)
        policed = sum(one.policed_packets or 0 for one in after)
        offered = sum(one.offered_packets for one in after)
        if pps < thresholds.AMPLIFIED_PPS or later_pps < thresholds.AMPLIFIED * pps:
            continue
        if policed < thresholds.POLICED_SHARE * offered:
            continue
        limit = situation.set_up.main_enforced(direction)
        rate = f" of {rate_words(limit.rate_bps, limit.rate_pps)}" if limit else ""
        yield Finding(
            finding_id("P9", direction, number),
            "P9",
            "info",
            f"{'the guest offers' if situation.has_guest else 'there are'} {later_pps / pps:.1f} times as many packets "
            f"since the policer{rate} came",
            {
                "offered_before_pps": round(pps),
                "offered_after_pps": round(later_pps),
                "policed_after_share": round(policed / offered, 4),
                "context_switches_before_per_second": _switches(before),
                "context_switches_after_per_second": _switches(after),
                "cpus_before": _cpus(before),
                "cpus_after": _cpus(after),
            },
            "The limit works: the tap counts what the guest offers, and dropping a packet early costs less than "
            "forwarding it, so a flooding guest sends faster. Look at passed, not at the tap's counters."
            if situation.has_guest
            else "The limit works: the device counts all that comes, and dropping a packet early costs less than "
            "forwarding it, so a sender on this host sends faster. Look at passed, not at the device's counters.",
        )


def _end(sample: Sample) -> int:
    return sample.start_ns + sample.duration_ns


def _offered_pps(samples: list[Sample]) -> float:
    return median(one.offered_packets * 1e9 / one.duration_ns for one in samples)


def _switches(samples: list[Sample]) -> int | None:
    known = [one.context_switches * 1e9 / one.duration_ns for one in samples if one.context_switches is not None]
    return round(median(known)) if known else None


def _cpus(samples: list[Sample]) -> float | None:
    known = [(one.cpus, one.duration_ns) for one in samples if one.cpus is not None]
    total = sum(length for _, length in known)
    return round(sum(cpus * length for cpus, length in known) / total, 3) if total else None
