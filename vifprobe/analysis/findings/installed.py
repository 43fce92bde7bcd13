# SPDX-License-Identifier: Apache-2.0
"""P19, P20, P23: what an installed limit or the kind of a port shows by itself, traffic or not."""

from __future__ import annotations

from collections.abc import Iterator

from vifprobe.analysis.findings import thresholds
from vifprobe.analysis.findings.back_ends import SOURCES
from vifprobe.analysis.findings.set_up import installed_evidence
from vifprobe.analysis.findings.situation import Situation, bits, finding_id, rate_words, size, span
from vifprobe.model import ports
from vifprobe.model.layout import Direction
from vifprobe.model.reading import Finding

#: Limits that drop what exceeds at once. A shaper queues it: its burst matters little.
_DROPPING = ("police", "limit", "meter")


def of(situation: Situation, direction: Direction) -> Iterator[Finding]:
    """The findings of one direction."""
    yield from _p19(situation, direction)
    yield from _p20(situation, direction)
    yield from _p23(situation, direction)


def _p19(situation: Situation, direction: Direction) -> Iterator[Finding]:
    """A burst so small that TCP can't come near the rate: it sends in bursts of its window."""
    main = situation.set_up.main_enforced(direction)
    if main is None or main.kind not in _DROPPING or not main.rate_bps or not main.at_once_bytes:
        return
    lasts_ns = main.at_once_bytes * 8e9 / main.rate_bps
    if lasts_ns >= thresholds.BURST_NS:
        return
    wanted = round(thresholds.BURST_WANTED * main.rate_bps / 8)
    yield Finding(
        finding_id("P19", direction),
        "P19",
        "warning",
        f"{situation.set_up.word(direction)}: a burst of {size(main.at_once_bytes)} at {bits(main.rate_bps)} lasts "
        f"{span(lasts_ns)}: TCP will stay far below the rate",
        {"installed": installed_evidence(main), "lasts_ns": round(lasts_ns), "wanted_bytes": wanted},
        f"Give it a burst of about {size(wanted)}: Open vSwitch and Neutron advise 80 % of what the rate passes in a "
        "second.",
    )


def _p20(situation: Situation, direction: Direction) -> Iterator[Finding]:
    """A limit that no source which knows the tap declares: said only where all of them were read."""
    set_up = situation.set_up
    main = set_up.main_enforced(direction)
    if main is None or set_up.declared_unknown or not set_up.known_to or set_up.declared_in(direction):
        return
    sources = " and ".join(SOURCES.get(one, one) for one in set_up.known_to)
    yield Finding(
        finding_id("P20", direction),
        "P20",
        "info",
        f"{set_up.word(direction)}: {rate_words(main.rate_bps, main.rate_pps)} installed by {main.source} {main.kind}, "
        f"but {sources} {'declares' if len(set_up.known_to) == 1 else 'declare'} none",
        {"installed": installed_evidence(main), "known_to": list(set_up.known_to)},
        "It was set by hand, by an agent whose settings vifprobe does not read, or is left from an earlier flavor. It "
        "goes when the guest is started again; nobody will restore it.",
    )


def _p23(situation: Situation, direction: Direction) -> Iterator[Finding]:
    """A port whose packets do not pass this kernel."""
    set_up, kind = situation.set_up, situation.set_up.kind
    if kind not in ports.WITHOUT_TAP:
        return
    yield Finding(
        finding_id("P23", direction),
        "P23",
        "info",
        f"{set_up.tap}: a port of kind {kind}: none of its {set_up.word(direction)} packets is seen",
        {"kind": kind, "why": ports.WITHOUT_TAP[kind]},
        "Its limits and packets can be read only where they are handled: in the switch in user space, or in the card.",
    )
