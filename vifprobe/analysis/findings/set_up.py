# SPDX-License-Identifier: Apache-2.0
"""P1, P4, P11, P12, P13: what the set-up itself proves, traffic or not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction

import numpy as np

from vifprobe.analysis.drop_evidence import is_limit_like
from vifprobe.analysis.findings import thresholds
from vifprobe.analysis.findings.back_ends import SOURCES, set_again
from vifprobe.analysis.findings.situation import Situation, bits, finding_id, let_through, rate_words, size
from vifprobe.analysis.policer import burst_differs, enforced_past, matches, uncovered
from vifprobe.analysis.tolerance import same_rate
from vifprobe.model.layout import Direction, Ethertype, PacketClass
from vifprobe.model.limits import DeclaredLimit, InstalledLimit
from vifprobe.model.ports import direction_at, is_swapped
from vifprobe.model.reading import Cells, Finding, count

#: Where a limit of a direction belongs.
_SIDES = {
    "tap": "Seen from the guest, outbound packets come in at the tap: they are limited by a policer at its ingress; "
    "its root qdisc limits what goes to the guest.",
    "macvtap": "What the guest behind a macvtap sends leaves by the device: its root qdisc limits it; a policer at its "
    "ingress limits what goes to the guest.",
}
# Ethertypes by the protocols that tc writes.
_ETHERTYPES = {
    "ip": (Ethertype.IPV4,),
    "ipv6": (Ethertype.IPV6,),
    "arp": (Ethertype.ARP,),
    "802.1Q": (Ethertype.VLAN,),
    "802.1ad": (Ethertype.VLAN,),
}
#: Mistakes of units that are easily made: installed over declared.
_UNITS = {
    Fraction(8): "bytes were taken for bits",
    Fraction(1, 8): "bits were taken for bytes",
    Fraction(1000): "1000 times too high",
    Fraction(1, 1000): "1000 times too low",
    Fraction(8000): "kilobytes were taken for bits",
    Fraction(1, 8000): "bits were taken for kilobytes",
    Fraction(1024, 1000): "1024 instead of 1000",
    Fraction(1000, 1024): "1000 instead of 1024",
}


def of(situation: Situation, direction: Direction) -> Iterator[Finding]:
    """The findings of one direction."""
    blocked = [*_p13(situation, direction)]
    yield from blocked
    wrong_place = [*_p12(situation, direction)]
    yield from wrong_place
    if not blocked and not any(finding.severity != "info" for finding in wrong_place):
        yield from _p1(situation, direction)
    yield from _p4(situation, direction)
    yield from _p11(situation, direction)


def _p1(situation: Situation, direction: Direction) -> Iterator[Finding]:
    """Declared, and no limit was read. Not where a place was not read, and not beside drops that may be a limit's."""
    set_up, reading = situation.set_up, situation.reading
    if set_up.unknown_in(direction):
        return
    if reading is not None and is_limit_like(reading.where(direction), situation.reasons):
        return
    by_device: dict[str, list[DeclaredLimit]] = {}
    for one in set_up.declared:
        if one.direction is direction:
            by_device.setdefault(one.device, []).append(one)
    for device, asked in by_device.items():
        own = device == set_up.tap
        past = [one for one in set_up.elsewhere if one.direction is direction and one.device == device]
        if (set_up.enforced_in(direction) or enforced_past(set_up, direction)) if own else past:
            continue
        first = asked[0]
        rate = rate_words(first.rate_bps, first.rate_pps)
        sources = " and ".join(dict.fromkeys(_who(one) for one in asked))
        at = "" if own else f" on {device}"
        yield Finding(
            finding_id("P1", direction, *([] if own else [device])),
            "P1",
            "critical",
            f"{sources} declare{'s' if sources.count(' and ') == 0 else ''} {rate} {set_up.word(direction)}{at}, "
            "but the kernel enforces nothing",
            {
                "declared": [_told(one) for one in asked],
                "installed": [],
                "device": device,
                "ingress_qdisc": set_up.ingress_qdisc or None,
                **_passing(situation, direction),
            },
            f"Who declares a limit does not check that it is installed. Set it again by "
            f"{set_again(one.source for one in asked)}. If it vanishes again, `vifprobe watch` names who removes it.",
        )


def _passing(situation: Situation, direction: Direction) -> dict[str, object]:
    reading = situation.reading
    if reading is None or direction not in reading.directions or reading.duration_ns <= 0:
        return {}
    offered = reading.offered(direction)
    seconds = reading.duration_ns / 1e9
    return {"offered_charged_bps": round(8 * offered.charged_bytes / seconds), "seconds": round(seconds, 3)}


def _p4(situation: Situation, direction: Direction) -> Iterator[Finding]:
    """Some kinds of packets meet no limit; worse where such packets do pass."""
    set_up = situation.set_up
    left_out = uncovered(set_up, direction)
    if not left_out:
        return
    held = set_up.enforced_in(direction)
    evidence: dict[str, object] = {"limits": [installed_evidence(one) for one in held]}
    past, share = _beside(situation, direction, held)
    beside = None if past is None else count(past).frame_bytes
    if past is not None:
        classes = {PacketClass(code): count(past[past["packet_class"] == code]) for code in set(past["packet_class"])}
        by_class = {code.name.lower(): classes[code].packets for code in sorted(classes)}
        evidence |= {"passed_beside_frame_bytes": beside, "share_of_passed": share}
        evidence |= {"passed_beside_packets_by_class": by_class}
    seen = beside is not None and beside > 0
    grave = seen and (share or 0) >= thresholds.HOLE_SHARE
    words = "" if beside is None else ": none passed meanwhile"
    if seen:
        words = f": {size(beside or 0)} passed without meeting it"
    yield Finding(
        finding_id("P4", direction),
        "P4",
        "critical" if grave else "warning",
        f"the {set_up.word(direction)} limit leaves out {left_out}{words}",
        evidence,
        "Install it for all protocols: `protocol all` in the tc filter (libvirt before 2015 wrote `protocol ip`).",
    )


def of_protocols(held: Iterable[InstalledLimit]) -> list[Ethertype]:
    """The ethertypes that the protocols of some limits stand for."""
    names = [name for one in held for name in one.protocol.split("+")]
    return [code for name in names for code in _ETHERTYPES.get(name, ())]


def _beside(
    situation: Situation, direction: Direction, held: tuple[InstalledLimit, ...]
) -> tuple[Cells | None, float | None]:
    """Return packets of other protocols than the limits' that passed, and their share of frame bytes; None: unknown."""
    reading = situation.reading
    if reading is None or direction not in reading.directions or any(one.matches_all is False for one in held):
        return None, None
    if not reading.knows_verdicts(direction):
        return None, None
    passed = let_through(reading.where(direction), situation.reasons)
    every = count(passed).frame_bytes
    past = passed[~np.isin(passed["ethertype"], of_protocols(held))]
    return past, round(count(past).frame_bytes / every, 4) if every else 0.0


def _p11(situation: Situation, direction: Direction) -> Iterator[Finding]:
    """Each declared limit of the tap, where there are limits and none of them is it."""
    set_up = situation.set_up
    held = set_up.enforced_in(direction)
    asked = set_up.declared_in(direction)
    lowest = min((one.rate_bps for one in asked if one.rate_bps is not None), default=None)
    for one in asked:
        if not held or any(matches(one, other) for other in held):
            continue
        stricter = lowest is not None and one.rate_bps is not None and lowest < one.rate_bps
        if stricter and any(other.rate_bps and same_rate(lowest or 0, other.rate_bps) for other in held):
            continue  # somebody asked for less, and that is there
        yield from _differs(situation, direction, one, held)


def _differs(
    situation: Situation, direction: Direction, asked: DeclaredLimit, held: tuple[InstalledLimit, ...]
) -> Iterator[Finding]:
    main = situation.set_up.main_enforced(direction)
    if main is None:
        return
    evidence: dict[str, object] = {"declared": _told(asked), "installed": [installed_evidence(one) for one in held]}
    if asked.rate_bps is None or main.rate_bps is None:
        found, severity = rate_words(main.rate_bps, main.rate_pps), "warning"
        title = f"{_who(asked)} declares {rate_words(asked.rate_bps, asked.rate_pps)}, the kernel enforces {found}"
    elif not same_rate(asked.rate_bps, main.rate_bps):
        ratio = main.rate_bps / asked.rate_bps
        unit = next((words for one, words in _UNITS.items() if abs(ratio / float(one) - 1) < 0.003), None)
        evidence |= {"installed_over_declared": round(ratio, 4), "unit_mistake": unit}
        severity = "critical" if ratio > 1 else "warning"
        title = f"{_who(asked)} declares {bits(asked.rate_bps)}, the kernel enforces {bits(main.rate_bps)}"
        title += f" ({unit})" if unit else ""
    elif burst_differs(asked, main):
        evidence |= {"installed_over_declared": round((main.burst_bytes or 0) / (asked.burst_bytes or 1), 4)}
        severity = "warning"
        title = (
            f"{_who(asked)} declares a burst of {size(asked.burst_bytes or 0)}, "
            f"the kernel has {size(main.burst_bytes or 0)}"
        )
    else:
        return
    yield Finding(
        finding_id("P11", direction, asked.source),
        "P11",
        severity,
        f"{situation.set_up.word(direction)}: {title}",
        evidence,
        "Check the units: libvirt and Nova take kilobytes (1000) a second and kilobytes (1024) of burst, Open vSwitch "
        "kbit/s and kbit, tc's `kbit` is bits and `kbps` bytes. A later change by another program looks the same.",
    )


def _p12(situation: Situation, direction: Direction) -> Iterator[Finding]:
    """The limit is enforced past the tap, or on the other direction's side."""
    set_up = situation.set_up
    if set_up.enforced_in(direction):
        return
    asked = set_up.declared_in(direction)
    beyond = enforced_past(set_up, direction)
    if beyond:
        past = beyond[0]
        what = f"an OpenFlow meter of {past.device}" if past.kind == "meter" else f"{past.place}, not by {set_up.tap}"
        yield Finding(
            finding_id("P12", direction, past.device),
            "P12",
            "warning" if [one for one in asked if not any(matches(one, other) for other in beyond)] else "info",
            f"{set_up.word(direction)} packets are limited by {what}: {rate_words(past.rate_bps, past.rate_pps)}",
            {"limits": [installed_evidence(other) for other in beyond], "declared": [_told(other) for other in asked]},
            _past_advice(set_up.tap, past),
        )
        return
    other = Direction.INBOUND if direction is Direction.OUTBOUND else Direction.OUTBOUND
    swapped = [
        (one, held)
        for one in asked
        for held in set_up.enforced_in(other)
        if one.rate_bps is not None and held.rate_bps is not None and same_rate(one.rate_bps, held.rate_bps)
    ]
    if swapped and not set_up.declared_in(other) and not set_up.unknown_in(direction):
        one, held = swapped[0]
        yield Finding(
            finding_id("P12", direction, "swapped"),
            "P12",
            "critical",
            f"the {set_up.word(direction)} limit of {bits(one.rate_bps or 0)} is installed {set_up.word(other)}",
            {"declared": _told(one), "installed": installed_evidence(held)},
            _SIDES["macvtap" if is_swapped(set_up.kind) else "tap"],
        )


def _past_advice(tap: str, past: InstalledLimit) -> str:
    if past.source == "nft":
        return (
            "What it drops, vifprobe counts as dropped by netfilter. "
            f"`nft list chain {past.device}` shows the rule and its own counters."
        )
    words = f"The counters of {tap}, and what vifprobe calls passed there, are from before that limit"
    return words + (f"; watch {past.device} to see what it does." if past.kind != "meter" else ".")


def _p13(situation: Situation, direction: Direction) -> Iterator[Finding]:
    """Open vSwitch can't add its `ingress` qdisc next to a `clsact` one: "File exists"."""
    set_up = situation.set_up
    asked = [one for one in set_up.declared_in(direction) if one.source == "ovs"]
    police = [one for one in set_up.enforced_in(direction) if one.kind == "police"]
    is_blocked = set_up.ingress_qdisc == "clsact" and not police and not set_up.unknown_in(direction)
    if direction is direction_at(set_up.kind, "ingress") and asked and is_blocked:
        rate = rate_words(asked[0].rate_bps, asked[0].rate_pps)
        yield Finding(
            finding_id("P13", direction),
            "P13",
            "critical",
            f"a clsact qdisc keeps Open vSwitch from policing this port: {rate} declared, no policer there",
            {"declared": [_told(one) for one in asked], "ingress_qdisc": "clsact", "installed": []},
            "The program that added it (a monitoring agent, a CNI) blocks the `ingress` qdisc of Open vSwitch; its log "
            "says `adding policing qdisc failed: File exists`. Remove the clsact qdisc, then set the rate again.",
        )


def _who(one: DeclaredLimit) -> str:
    return SOURCES.get(one.source, one.source)


def _told(one: DeclaredLimit) -> dict[str, object]:
    return {
        "source": one.source,
        "kind": one.kind,
        "device": one.device,
        "rate_bps": one.rate_bps,
        "burst_bytes": one.burst_bytes,
        "rate_pps": one.rate_pps,
    }


def installed_evidence(one: InstalledLimit) -> dict[str, object]:
    """A limit as evidence of a finding."""
    return {
        "source": one.source,
        "kind": one.kind,
        "device": one.device,
        "where": one.where,
        "rate_bps": one.rate_bps,
        "burst_bytes": one.burst_bytes,
        "rate_pps": one.rate_pps,
        "protocol": one.protocol,
    }
