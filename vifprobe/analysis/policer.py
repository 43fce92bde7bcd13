# SPDX-License-Identifier: Apache-2.0
"""Is the limit that was asked for really there? What is declared for a tap beside what the kernel enforces on it.

Pure: what is compared here was read elsewhere, and each record says what it does not know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from vifprobe.analysis.tolerance import same_burst, same_rate
from vifprobe.model import ports
from vifprobe.model.layout import Direction
from vifprobe.model.limits import DeclaredLimit, InstalledLimit, main_limit
from vifprobe.model.quantities import Foreign


class PolicerRow(NamedTuple):
    """One declared or enforcing place of a limit. Bits and packets per second, bytes of burst."""

    tap: str
    direction: Direction
    source: str
    kind: str
    rate_bps: Foreign | None
    burst_bytes: Foreign | None
    rate_pps: Foreign | None
    protocol: str
    matches_declared: bool | None
    packets: Foreign | None
    bytes: Foreign | None
    drops: Foreign | None


@dataclass(frozen=True)
class SetUp:
    """All that is set on one tap.

    enforced: on the tap itself, in the order in which packets meet it. elsewhere: limits of the tap's packets that are
    enforced past it. earlier: words for what runs before the first policer at ingress and can decide a packet's fate.
    ingress_qdisc: `ingress`, `clsact` or "". declared_unknown, enforced_unknown: why a limit may be there unseen.
    unread: places that can limit packets of a direction and were not read, each with what would read it: no statement
    that nothing limits is made beside them. kind: of the device, see vifprobe.model.ports.
    """

    tap: str
    declared: tuple[DeclaredLimit, ...] = ()
    enforced: tuple[InstalledLimit, ...] = ()
    elsewhere: tuple[InstalledLimit, ...] = ()
    earlier: tuple[str, ...] = ()
    ingress_qdisc: str = ""
    declared_unknown: tuple[str, ...] = ()
    enforced_unknown: tuple[str, ...] = ()
    unread: tuple[tuple[Direction, str], ...] = ()
    kind: str = "tap"
    known_to: tuple[str, ...] = ()

    def word(self, direction: Direction) -> str:
        """What a person reads of a direction: outbound and inbound, or received and sent where there is no guest."""
        return ports.word(self.kind, direction)

    @property
    def not_read(self) -> tuple[str, ...]:
        """All that may be there unseen, in words."""
        return (*self.enforced_unknown, *(words for _, words in self.unread), *self.declared_unknown)

    def unknown_in(self, direction: Direction) -> tuple[str, ...]:
        """Why a limit of this direction may be enforced unseen."""
        return (*self.enforced_unknown, *(words for where, words in self.unread if where is direction))

    def declared_in(self, direction: Direction) -> tuple[DeclaredLimit, ...]:
        """What was asked for on the tap itself."""
        return tuple(one for one in self.declared if one.direction is direction and one.device == self.tap)

    def enforced_in(self, direction: Direction) -> tuple[InstalledLimit, ...]:
        """What is held against unsorted packets of one direction."""
        return tuple(one for one in self.enforced if one.direction is direction and one.default and has_rate(one))

    def main_declared(self, direction: Direction) -> DeclaredLimit | None:
        """What counts: the user's own word, else the lowest rate that was asked for."""
        found = self.declared_in(direction)
        given = [one for one in found if one.source == "user"]
        with_rate = [one for one in given or found if one.rate_bps is not None]
        return min(with_rate, key=lambda one: one.rate_bps or 0, default=None)

    def main_enforced(self, direction: Direction) -> InstalledLimit | None:
        """The lowest bit rate, else the lowest packet rate."""
        return main_limit(self.enforced, direction)


def has_rate(limit: DeclaredLimit | InstalledLimit) -> bool:
    """Whether it limits anything at all."""
    return limit.rate_bps is not None or limit.rate_pps is not None


def burst_differs(declared: DeclaredLimit, enforced: InstalledLimit) -> bool:
    """Whether the burst is neither as asked for nor what passes at once: people name nft's limits either way."""
    readings = [same_burst(declared.burst_bytes, one) for one in (enforced.burst_bytes, enforced.at_once_bytes)]
    return False in readings and True not in readings


def matches(declared: DeclaredLimit, enforced: InstalledLimit) -> bool:
    """Whether the kernel does what was asked for: same direction, place and rate, and burst where both have one."""
    if declared.direction is not enforced.direction or not same_place(declared, enforced):
        return False
    if declared.rate_bps is not None:
        if enforced.rate_bps is None or not same_rate(declared.rate_bps, enforced.rate_bps):
            return False
        return not burst_differs(declared, enforced)
    return declared.rate_pps is not None and declared.rate_pps == enforced.rate_pps


def same_place(declared: DeclaredLimit, enforced: InstalledLimit) -> bool:
    """Whether a limit is where it was asked for. OVN asks for it on the port and sets a meter of the bridge."""
    return declared.device == enforced.device or (declared.source == "ovn" and enforced.kind == "meter")


def enforced_past(set_up: SetUp, direction: Direction) -> list[InstalledLimit]:
    """Limits past the tap that can stand for what was asked for: a packet limit is none for a limit in bits."""
    in_bits = any(one.rate_bps is not None for one in set_up.declared_in(direction))
    found = [one for one in set_up.elsewhere if one.direction is direction and one.default and has_rate(one)]
    return [one for one in found if one.rate_bps is not None] if in_bits else found


def uncovered(set_up: SetUp, direction: Direction) -> str:
    """Which packets no limit of a direction is held against, in words; "" where each packet meets one."""
    every = set_up.enforced_in(direction)
    held = [one for one in every if one.rate_bps is not None] or every
    if not held or any(one.protocol == "all" and one.matches_all in (True, None) for one in held):
        return ""
    whole = sorted({one.protocol for one in held if one.matches_all in (True, None) and one.protocol})
    whole = sorted({part for one in whole for part in one.split("+")})
    return f"all but {', '.join(whole)}" if whole else "all that its conditions leave out"


def policer_rows(set_up: SetUp) -> list[PolicerRow]:
    """DeclaredLimit and enforcing places side by side: by direction, what was asked for first."""
    rows = []
    for direction in Direction:
        rows += [_declared_row(set_up, one) for one in set_up.declared if one.direction is direction]
        held = (*set_up.enforced, *set_up.elsewhere)
        rows += [_enforced_row(set_up, one) for one in held if one.direction is direction]
    return rows


def _declared_row(set_up: SetUp, one: DeclaredLimit) -> PolicerRow:
    held = (*set_up.enforced, *set_up.elsewhere)
    found = any(matches(one, other) for other in held)
    return PolicerRow(
        tap=set_up.tap,
        direction=one.direction,
        source=_source(set_up, one),
        kind=one.kind,
        rate_bps=one.rate_bps,
        burst_bytes=one.burst_bytes,
        rate_pps=one.rate_pps,
        protocol="",
        matches_declared=True if found else None if set_up.unknown_in(one.direction) else False,
        packets=None,
        bytes=None,
        drops=None,
    )


def _enforced_row(set_up: SetUp, one: InstalledLimit) -> PolicerRow:
    asked = [other for other in set_up.declared if other.direction is one.direction and same_place(other, one)]
    found = any(matches(other, one) for other in asked)
    return PolicerRow(
        tap=set_up.tap,
        direction=one.direction,
        source=_source(set_up, one),
        kind=one.kind,
        rate_bps=one.rate_bps,
        burst_bytes=one.burst_bytes,
        rate_pps=one.rate_pps,
        protocol=one.protocol,
        matches_declared=found if asked else None,
        packets=one.packets,
        bytes=one.bytes,
        drops=one.drops,
    )


def _source(set_up: SetUp, one: DeclaredLimit | InstalledLimit) -> str:
    return one.source if one.device == set_up.tap else f"{one.source} {one.device}"
