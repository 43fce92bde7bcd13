# SPDX-License-Identifier: Apache-2.0
"""Limits of a tap's packets: as somebody declares them, and as the kernel enforces them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vifprobe.model.layout import Direction


@dataclass(frozen=True)
class DeclaredLimit:
    """One limit that somebody asked for. None: not set.

    source: `user`, `libvirt` or `ovs`. kind: in what form (`option`, `bandwidth`, `policing`, `qos linux-htb`). device:
    the interface that it is declared on, which may be another than the tap. rate_bps: bits per second. burst_bytes: as
    whoever declares it hands it to the kernel.
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

    source: `tc`, `nft` or `ovs`. kind: `police`, `htb`, `tbf`, `limit` or `meter`. where: which object, in a form that
    stays the same while the object does. device: the interface that it is on. protocol: of the packets that it is held
    against, as tc writes it; nft knows no such field, and `all` stands for a rule without conditions there, "" for one
    with some. matches_all: whether all packets of that protocol come to it. rate_pps: rounded up. burst_bytes: as it
    is set. bucket_bytes: what passes at once after silence, where a longer packet never conforms (nft: a unit of the
    rate and its burst); None: no bound, or unknown. packets, bytes: offered to it; drops: packets, 32 bit from tc.
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
    def at_once_bytes(self) -> int | None:
        """What passes at once after silence."""
        return self.burst_bytes if self.bucket_bytes is None else self.bucket_bytes


def main_limit(limits: Iterable[InstalledLimit], direction: Direction) -> InstalledLimit | None:
    """The lowest bit rate that unsorted packets of this direction are held to, else the lowest packet rate."""
    found = [one for one in limits if one.direction is direction and one.default]
    in_bits = [one for one in found if one.rate_bps is not None]
    if in_bits:
        return min(in_bits, key=lambda one: one.rate_bps or 0)
    return min((one for one in found if one.rate_pps is not None), key=lambda one: one.rate_pps or 0, default=None)
