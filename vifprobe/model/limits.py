# SPDX-License-Identifier: Apache-2.0
"""Limits of a tap's packets: as somebody declares them, and as the kernel enforces them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from vifprobe.model.layout import Direction


@dataclass(frozen=True)
class DeclaredLimit:
    """One limit that somebody asked for. None: not set.

    source: `user`, `libvirt`, `nova`, `proxmox`, `ovs` or `ovn`. kind: in what form (`option`, `bandwidth`, `quota`,
    `rate`, `policing`, `qos linux-htb`; for OVN `qos` and the conditions of the rule). device: the interface that it is
    declared on, which may be another than the tap. rate_bps: bits per second. burst_bytes: as whoever declares it hands
    it to the kernel.
    """

    direction: Direction
    source: str
    kind: str
    device: str
    rate_bps: int | None = None
    burst_bytes: int | None = None
    rate_pps: int | None = None
    burst_packets: int | None = None


@dataclass(frozen=True)
class InstalledLimit:
    """One limit as the kernel (or Open vSwitch) enforces it. None: not set, or not counted.

    source: `tc`, `nft` or `ovs`. kind: `police`, `htb`, `tbf`, `limit`, `meter`, ... where: which object, in a form
    that stays the same while the object does. device: the interface that it is on, or the nft chain past it. protocol:
    of the packets that it is held against, as tc writes it; for nft, all that its chain sees, and "" for a rule with
    other conditions. matches_all: whether all packets of that protocol come to it. rate_pps: rounded up. burst_bytes:
    as it is set. bucket_bytes: what passes at once after silence, where a longer packet never conforms (nft: a unit of
    the rate and its burst); None: no bound, or unknown. packets, bytes: offered to it; drops: packets, 32 bit from tc.
    default: of several classes the one for unsorted packets. overhead_bytes: added to a packet's charge. mpu_bytes: and
    no packet is charged less than that. shared: other interfaces use the same bucket or counter.
    """

    direction: Direction
    source: str
    kind: str
    where: str
    device: str = ""
    rate_bps: int | None = None
    burst_bytes: int | None = None
    rate_pps: int | None = None
    protocol: str = "all"
    matches_all: bool | None = True
    packets: int | None = None
    bytes: int | None = None
    drops: int | None = None
    default: bool = True
    bucket_bytes: int | None = None
    burst_packets: int | None = None
    exceed_action: str = "drop"
    overhead_bytes: int = 0
    mpu_bytes: int = 0
    shared: bool = False

    @property
    def place(self) -> str:
        """The interface, or the nft chain, in words."""
        return f"the nft chain {self.device}" if self.source == "nft" and " " in self.device else self.device

    @property
    def at_once_bytes(self) -> int | None:
        """Bytes that pass at once after silence; None: no bound, or unknown."""
        return self.burst_bytes if self.bucket_bytes is None else self.bucket_bytes


def main_limit(limits: Iterable[InstalledLimit], direction: Direction) -> InstalledLimit | None:
    """The lowest bit rate that unsorted packets of this direction are held to, else the lowest packet rate."""
    found = [one for one in limits if one.direction is direction and one.default]
    in_bits = [one for one in found if one.rate_bps is not None]
    if in_bits:
        return min(in_bits, key=lambda one: one.rate_bps or 0)
    return min((one for one in found if one.rate_pps is not None), key=lambda one: one.rate_pps or 0, default=None)


class LimitState(Enum):
    """State of the limit that was asked for. The values are the words of `--json` and of a capture."""

    THERE = "there"  # installed as it was declared
    UNDECLARED = "undeclared"  # installed, and nobody is known to have declared it
    NOT_HELD = "not_held"  # nothing is wrong with how it is set, and yet more passed
    ABSENT = "absent"  # declared, and nothing is installed
    DIFFERS = "differs"  # another one than declared is installed
    HOLES = "holes"  # some kinds of packets meet no limit
    BYPASSED = "bypassed"  # packets are decided before they come to it
    ELSEWHERE = "elsewhere"  # installed on another interface, past the tap
    POLICED = "policed"  # packets are policed, by a limit that is not known
    NONE = "none"  # neither declared nor installed
    UNKNOWN = "unknown"
    GONE = "gone"  # the tap was deleted


class Traffic(Enum):
    """Evidence of the packets about a limit."""

    HOLDS = "holds"  # some were policed, and no more passed than the limit lets through
    UNDER = "under"  # no more passed, and none had to be policed
    IDLE = "idle"
    EXCEEDS = "exceeds"  # more passed than the limit lets through
    UNKNOWN = "unknown"


class Doubt(Enum):
    """Reason for which a state or the evidence of the packets is not known."""

    NOT_READ = "not_read"  # a place where a limit can be was not read
    NOT_SEEN = "not_seen"  # packets were not looked at
    DROPPED = "dropped"  # others drop packets as a limit does, and no such limit was read
    VERDICTS = "verdicts"  # what becomes of packets is not known
    MISSED = "missed"  # packets that no figure holds (P16)
    DECIDED_EARLIER = "decided_earlier"  # by programs that run before they are counted (P17)
    UNWATCHED = "unwatched"  # a time without coverage
    CHANGED = "changed"  # the limit was away, or another one, for a part of the time


@dataclass(frozen=True)
class LimitAnswer:
    """The state of one direction's limit. doubt: None where nothing is in doubt. missed_packets: see Doubt.MISSED."""

    state: LimitState = LimitState.UNKNOWN
    traffic: Traffic = Traffic.UNKNOWN
    doubt: Doubt | None = None
    missed_packets: int = 0
