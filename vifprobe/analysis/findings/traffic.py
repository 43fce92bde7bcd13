# SPDX-License-Identifier: Apache-2.0
"""P5, P6, P7, P8, P10, P14, P15: what the packets of an interval prove."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vifprobe.analysis import tolerance
from vifprobe.analysis.findings import thresholds as t
from vifprobe.analysis.findings.back_ends import packet_limit
from vifprobe.analysis.findings.set_up import of_protocols
from vifprobe.analysis.findings.situation import Growth, Situation, bits, finding_id, let_through, size
from vifprobe.model.layout import SIZE_UNKNOWN, Direction, Verdict
from vifprobe.model.limits import InstalledLimit
from vifprobe.model.ports import hook_of
from vifprobe.model.reading import Cells, Counts, Finding, Reading, count

#: By kind of device, what its rx counters count.
_RECEIVED = {"tap": "what the guest offers", "macvtap": "what is sent to the guest"}


def of(situation: Situation, direction: Direction) -> Iterator[Finding]:
    """The findings of one direction."""
    for growth in situation.growth:
        if growth.direction is direction:
            yield from _p5(situation, growth)
    reading = situation.reading
    if reading is not None and reading.duration_ns > 0 and direction in reading.directions:
        limit = situation.set_up.main_enforced(direction)
        yield from _p6(situation, reading, direction, limit)
        yield from _p7(situation, reading, direction)
        yield from _p8(situation, reading, direction, limit)
        yield from _p10(situation, reading, direction)
        yield from _p14(situation, reading, direction)
    yield from _p15(situation, direction)


def _p5(situation: Situation, growth: Growth) -> Iterator[Finding]:
    """A limit that sees few of the packets that come, while nothing about it says that it should."""
    limit = next((one for one in situation.set_up.enforced if one.where == growth.where), None)
    if limit is None or limit.matches_all is False or growth.tap_packets < t.SHADOW_PACKETS:
        return
    share = _covered(situation, limit)
    if share is None:
        return
    if growth.charged_bytes is not None:
        seen, came, unit = growth.charged_bytes, growth.tap_charged_bytes * share, "bytes"
    elif growth.packets is not None:
        seen, came, unit = growth.packets, growth.tap_packets * share, "packets"
    else:
        return
    if came <= 0 or growth.tap_packets * share < t.SHADOW_PACKETS or seen >= t.SHADOW_SHARE * came:
        return
    earlier = list(situation.set_up.earlier)
    several = f"{len(earlier)} programs or filters ahead of it" if earlier else "something unknown"
    by = earlier[0] if len(earlier) == 1 else several
    yield Finding(
        finding_id("P5", growth.direction),
        "P5",
        "critical",
        f"the {situation.set_up.word(growth.direction)} limit sees {100 * seen / came:.0f} % of the {unit}: "
        f"the rest is decided by {by}",
        {
            "limit": limit.where,
            "seen": round(seen),
            "came": round(came),
            "unit": unit,
            "seconds": round(growth.seconds, 3),
            "tap_packets": growth.tap_packets,
            "earlier": earlier,
        },
        "A program or filter that runs before the policer and returns `ok`, `redirect` or the like ends the decision. "
        "Have it return `unspec` (TCX_NEXT) or `continue`, or put the policer ahead of it.",
    )


def _covered(situation: Situation, limit: InstalledLimit) -> float | None:
    """Share of the charged bytes that is of the limit's protocol; None where it is not known."""
    if limit.protocol == "all":
        return 1.0
    reading, codes = situation.reading, of_protocols([limit])
    if reading is None or limit.direction not in reading.directions or not codes:
        return None
    rows = reading.where(limit.direction)
    every = count(rows).charged_bytes
    return count(rows[np.isin(rows["ethertype"], codes)]).charged_bytes / every if every else None


def _within(
    situation: Situation, reading: Reading, direction: Direction, limit: InstalledLimit
) -> tuple[int, float] | None:
    """(bits that passed as charged, bits that the limit lets pass in this time); None where not known or above."""
    if not reading.knows_verdicts(direction) or limit.rate_bps is None or limit.at_once_bytes is None:
        return None
    passed = count(let_through(reading.where(direction), situation.reasons))
    allowed = tolerance.most(limit.rate_bps, reading.duration_ns / 1e9, 8 * limit.at_once_bytes)
    charged = 8 * passed.charged_bytes
    return (charged, allowed) if charged <= allowed else None


def _p6(
    situation: Situation, reading: Reading, direction: Direction, limit: InstalledLimit | None
) -> Iterator[Finding]:
    """The limit holds as it counts, and the wire carries much more."""
    within = None if limit is None else _within(situation, reading, direction, limit)
    passed = reading.counts(direction, Verdict.PASSED)
    if limit is None or limit.rate_bps is None or within is None or passed is None or not passed.packets:
        return
    wire, seconds = 8 * passed.wire_bytes, reading.duration_ns / 1e9
    if wire <= t.WIRE_OVER_RATE * within[1]:
        return
    mean = passed.charged_bytes / passed.packets
    yield Finding(
        finding_id("P6", direction),
        "P6",
        "warning",
        f"small packets: {bits(wire / seconds)} on the wire under a limit of {bits(limit.rate_bps)}",
        {
            "rate_bps": limit.rate_bps,
            "passed_charged_bps": round(within[0] / seconds),
            "passed_wire_bps": round(wire / seconds),
            "passed_packets": passed.packets,
            "mean_charged_bytes": round(mean, 1),
            "wire_over_charged": round(wire / within[0], 3),
            "seconds": round(seconds, 3),
        },
        f"Each packet is charged {mean:.0f} bytes on average; Ethernet adds header, checksum, preamble and gap. Limit "
        "packets a second as well, or give the policer an `overhead`.",
    )


def _p7(situation: Situation, reading: Reading, direction: Direction) -> Iterator[Finding]:
    """Within the bit limit, and too many packets for the host all the same."""
    set_up, load = situation.set_up, situation.load
    held = set_up.enforced_in(direction)
    asked = set_up.main_declared(direction)
    rates = [one.rate_bps for one in held if one.rate_bps is not None]
    rates += [asked.rate_bps] if asked is not None and asked.rate_bps is not None else []
    offered, seconds = reading.offered(direction), reading.duration_ns / 1e9
    if not rates or any(one.rate_pps is not None for one in held) or load is None or not offered.packets:
        return
    cpus = sum(one for one in (load.guest_cpus, load.vhost_cpus, load.softirq_cpus) if one is not None)
    pps, mean = offered.packets / seconds, offered.charged_bytes / offered.packets
    rate = min(rates)
    is_under = 8 * offered.charged_bytes <= tolerance.most(rate, seconds, 0)
    if not is_under or pps < t.OVERLOAD_PPS or mean > t.OVERLOAD_MEAN_BYTES or cpus < t.OVERLOAD_CPUS:
        return
    yield Finding(
        finding_id("P7", direction),
        "P7",
        "warning",
        f"{pps:,.0f} packets/s take {cpus:.1f} CPUs while staying under the limit of {bits(rate)}",
        {
            "offered_pps": round(pps),
            "offered_charged_bps": round(8 * offered.charged_bytes / seconds),
            "mean_charged_bytes": round(mean, 1),
            "rate_bps": rate,
            "rate_pps": None,
            "guest_cpus": load.guest_cpus,
            "vhost_cpus": load.vhost_cpus,
            "softirq_cpus": load.softirq_cpus,
            "seconds": round(seconds, 3),
        },
        "A limit in bits does not bound packets, and a packet costs the host the same whatever its size. Limit "
        f"packets, too: {packet_limit(set_up)}",
    )


def _p8(
    situation: Situation, reading: Reading, direction: Direction, limit: InstalledLimit | None
) -> Iterator[Finding]:
    """The limit works; only the tap's own counters look as if it did not."""
    within = None if limit is None else _within(situation, reading, direction, limit)
    policed, offered = reading.counts(direction, Verdict.POLICED), reading.offered(direction)
    kind = situation.set_up.kind
    if hook_of(kind, direction) != "ingress" or limit is None or limit.rate_bps is None or within is None:
        return
    if policed is None or policed.packets < t.POLICED_SHARE * max(1, offered.packets):
        return
    seconds = reading.duration_ns / 1e9
    counted = 8 * offered.frame_bytes / seconds
    if counted < t.COUNTED_OVER_RATE * limit.rate_bps:
        return
    yield Finding(
        finding_id("P8", direction),
        "P8",
        "info",
        f"the tap counts {bits(counted)} as received, {bits(within[0] / seconds)} passed: policed packets are in it",
        {
            "tap_received_bps": round(counted),
            "passed_charged_bps": round(within[0] / seconds),
            "rate_bps": limit.rate_bps,
            "offered_packets": offered.packets,
            "policed_packets": policed.packets,
            "seconds": round(seconds, 3),
        },
        f"The tap's rx counters (/proc/net/dev, monitoring) grow by {_RECEIVED.get(kind, 'all that comes')}, policed "
        "or not; its rx_dropped stays 0. The limit holds.",
    )


def _p10(situation: Situation, reading: Reading, direction: Direction) -> Iterator[Finding]:
    """Frames longer than the bucket: each one is policed, however slowly they come."""
    for limit in situation.set_up.enforced_in(direction):
        bucket = limit.bucket_bytes
        if bucket is None:
            continue
        policed = _never_conforming(reading.where(direction), bucket)
        if policed.packets < t.NEVER_CONFORM_PACKETS:
            continue
        mean = policed.charged_bytes / policed.packets
        yield Finding(
            finding_id("P10", direction),
            "P10",
            "warning",
            f"{policed.packets:,} long (TSO) frames were all policed: {size(mean)} each, the bucket: {size(bucket)}",
            {
                "bucket_bytes": bucket,
                "limit": limit.where,
                "policed_packets": policed.packets,
                "passed_packets": 0,
                "mean_charged_bytes": round(mean),
                "limit_drops": limit.drops,
            },
            "A frame is charged whole, up to 64 KiB with TSO. Give the policer a burst of at least 64 KiB, better "
            "of 100 ms of its rate.",
        )
        return


def _never_conforming(rows: Cells, bucket_bytes: int) -> Counts:
    """Sum of the size buckets whose frames are longer than the limit's in the mean and were policed to the last one."""
    total = Counts()
    for bucket in np.unique(rows["size"][rows["size"] != SIZE_UNKNOWN]):
        these = rows[rows["size"] == bucket]
        counted = count(these)
        if counted.charged_bytes > bucket_bytes * counted.packets and (these["verdict"] == Verdict.POLICED).all():
            total += counted
    return total


def _p14(situation: Situation, reading: Reading, direction: Direction) -> Iterator[Finding]:
    """The guest does not take its packets in time: the kernel's own reason says so."""
    if direction is not Direction.INBOUND or not situation.has_guest:
        return
    codes = [code for code, name in situation.reasons.items() if name.removeprefix("SKB_DROP_REASON_") == "FULL_RING"]
    rows = reading.where(direction, Verdict.DROPPED)
    full = count(rows[np.isin(rows["reason"], codes)])
    offered = reading.offered(direction)
    if full.packets < max(t.RING_PACKETS, t.RING_SHARE * offered.packets):
        return
    yield Finding(
        finding_id("P14", direction),
        "P14",
        "warning",
        f"the guest reads too slowly: {full.packets:,} packets found the tap's ring full",
        {
            "full_ring_packets": full.packets,
            "full_ring_frame_bytes": full.frame_bytes,
            "offered_packets": offered.packets,
        },
        "More queues (virtio multiqueue), a longer tx queue of the tap, or more CPU for the guest and its vhost.",
    )


def _p15(situation: Situation, direction: Direction) -> Iterator[Finding]:
    """The line out of the host is full, and packets are lost there."""
    uplink = situation.uplink
    if direction is not Direction.OUTBOUND or uplink is None or uplink.seconds <= 0 or uplink.speed_bps <= 0:
        return
    sent = uplink.line_bps
    if sent < t.UPLINK_SHARE * uplink.speed_bps or uplink.dropped_packets < t.UPLINK_DROPS:
        return
    yield Finding(
        finding_id("P15", direction, uplink.name),
        "P15",
        "warning",
        f"the uplink {uplink.name} is full: {bits(sent)} of {bits(uplink.speed_bps)}, packets are dropped there",
        {
            "uplink": uplink.name,
            "line_bps": round(sent),
            "sent_packets": uplink.sent_packets,
            "sent_bytes": uplink.sent_bytes,
            "speed_bps": uplink.speed_bps,
            "dropped_packets": uplink.dropped_packets,
            "seconds": round(uplink.seconds, 3),
        },
        "What all taps of this host pass together is more than the line carries: each limit "
        "holds, but together they are too high.",
    )
