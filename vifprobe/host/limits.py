# SPDX-License-Identifier: Apache-2.0
"""Every limit that the kernel holds an interface to, from tc and nft, in one shape: the rows of policer.csv.

Only what is installed: what libvirt, OVS or Neutron say that they want is theirs to tell.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from vifprobe.errors import HostError
from vifprobe.host.net.links import Link
from vifprobe.host.nft.reader import NftPolicer, NftReader, NftState
from vifprobe.host.tc.reader import TcReader, TcState
from vifprobe.host.tc.records import Shaper, Stats, TcAction, TcFilter
from vifprobe.model import ports
from vifprobe.model.layout import Direction
from vifprobe.model.limits import InstalledLimit, main_limit


@dataclass(frozen=True)
class Installed:
    """All limits of one interface, in the order in which packets meet them, and what they were read from.

    kind: of the device, which decides the direction of what is at its hooks (see vifprobe.model.ports). problems: what
    could not be read, so that "none" and "don't know" stay apart.
    """

    limits: tuple[InstalledLimit, ...]
    tc: TcState
    nft: NftState
    problems: tuple[str, ...] = ()
    kind: str = "tap"

    def at(self, hook: ports.Hook) -> tuple[InstalledLimit, ...]:
        """Those at one hook of the device."""
        return self.of(ports.direction_at(self.kind, hook))

    def as_of_a_tap(self) -> Installed:
        """The same in the directions of a tap: outbound for what is at ingress."""
        return replace(self, kind="tap", limits=_turned(self.kind, self.limits))

    def of(self, direction: Direction) -> tuple[InstalledLimit, ...]:
        """Those of one direction."""
        return tuple(limit for limit in self.limits if limit.direction == direction)

    def main(self, direction: Direction) -> InstalledLimit | None:
        """The lowest bit rate that unsorted packets of this direction are held to, else the lowest packet rate."""
        return main_limit(self.limits, direction)


def installed(link: Link) -> Installed:
    """The limits of one interface. Raises HostError where tc can't be read at all."""
    return installed_of([link])[link.ifindex]


def installed_of(links: Iterable[Link]) -> dict[int, Installed]:
    """Ifindex -> limits, for many interfaces from the same few dumps. Raises HostError where tc can't be read."""
    return LimitReader().read(links)


class LimitReader:
    """Reads limits again and again, for several threads of one network namespace: what is the same is not taken apart
    anew, and the same Installed is given for an interface as long as nothing about it is different.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tc, self._nft = TcReader(), NftReader()
        self._made: dict[tuple[int, str], Installed] = {}

    def read(self, links: Iterable[Link]) -> dict[int, Installed]:
        """Ifindex -> limits, from the same few dumps. Raises HostError where tc can't be read."""
        links = list(links)
        with self._lock:
            tc = self._tc.read(link.ifindex for link in links)
            problems: tuple[str, ...] = ()
            try:
                nft = self._nft.read(link.name for link in links)
            except HostError as error:
                nft, problems = {}, (str(error),)
            return {link.ifindex: self._installed(link, tc[link.ifindex], nft, problems) for link in links}

    def hear_of_nft(self, hears: bool) -> None:
        """Whether :meth:`forget_nft` is called when somebody changed rules."""
        self._nft.hears_changes = hears

    def forget_nft(self) -> None:
        """Rules of nft were changed, or may have been."""
        with self._lock:
            self._nft.forget()

    def is_nft_changed(self) -> bool:
        """Whether rules of nft were changed of which nobody has told; what can't be asked for is left to a read."""
        with self._lock:
            try:
                return self._nft.is_changed()
            except HostError:
                return False

    def _installed(self, link: Link, tc: TcState, nft: Mapping[str, NftState], problems: tuple[str, ...]) -> Installed:
        key, state = (link.ifindex, link.name), nft.get(link.name, NftState())
        made = self._made.get(key)
        told = tc.problems + problems
        if made is None or made.tc is not tc or made.nft != state or made.problems != told:
            found = (replace(one, device=link.name) for one in (*_tc_limits(tc), *map(_nft_limit, state.policers())))
            made = self._made[key] = Installed(_turned(link.kind, tuple(found)), tc, state, told, link.kind)
        return made


def _turned(kind: str, limits: tuple[InstalledLimit, ...]) -> tuple[InstalledLimit, ...]:
    """Limits in a tap's directions, in those of this kind of device; and the other way round."""
    if not ports.is_swapped(kind):
        return limits
    return tuple(replace(limit, direction=ports.turned(kind, limit.direction)) for limit in limits)


def _tc_limits(state: TcState) -> Iterator[InstalledLimit]:
    for at, action in state.police():
        yield _police(at, action)
    root = state.root
    for found in state.classes:
        if found.shaper is not None:
            default = root is not None and root.default_class == found.handle
            # A class borrows up to its ceil, and one without a parent has nobody to borrow from (htb_class_mode,
            # htb_activate_prios): its rate is the limit, whatever ceil says.
            borrows = found.parent != "root"
            yield _shaped(f"root htb {found.handle}", "htb", found.shaper, found.stats, default, borrows)
    for qdisc in state.qdiscs:
        if qdisc.shaper is not None:
            default = qdisc.parent == "root" or (root is not None and qdisc.parent == root.default_class)
            yield _shaped(f"root {qdisc.kind} {qdisc.handle}", qdisc.kind, qdisc.shaper, qdisc.stats, default)


def _police(at: TcFilter, action: TcAction) -> InstalledLimit:
    policer, stats = action.policer, action.stats
    return InstalledLimit(
        direction=Direction.OUTBOUND if at.hook == "ingress" else Direction.INBOUND,
        source="tc",
        kind="police",
        where=f"{at.where} police {action.index}",
        rate_bps=policer.rate_bps if policer else None,
        burst_bytes=policer.burst_bytes if policer else None,
        bucket_bytes=policer.burst_bytes if policer else None,
        rate_pps=policer.rate_pps if policer else None,
        burst_packets=policer.burst_packets if policer else None,
        protocol=at.protocol,
        matches_all=at.matches_all,
        exceed_action=policer.exceed_action if policer else "",
        packets=stats.packets,
        bytes=stats.bytes,
        drops=stats.drops,
        overhead_bytes=policer.overhead_bytes if policer else 0,
        mpu_bytes=policer.mpu_bytes if policer else 0,
        shared=at.block is not None or (policer is not None and policer.bindings > 1),
    )


def _shaped(
    where: str, kind: str, shaper: Shaper, stats: Stats, default: bool, borrows: bool = False
) -> InstalledLimit:
    # Without a bucket: a shaper cuts a GSO frame into its segments, or sends it in debt.
    return InstalledLimit(
        direction=Direction.INBOUND,
        source="tc",
        kind=kind,
        where=where,
        rate_bps=shaper.ceil_bps if borrows else shaper.rate_bps,
        burst_bytes=shaper.ceil_burst_bytes if borrows else shaper.burst_bytes,
        packets=stats.packets,
        bytes=stats.bytes,
        drops=stats.drops,
        default=default,
    )


def _nft_limit(found: NftPolicer) -> InstalledLimit:
    limit, rule = found.limit, found.at.rule
    offered = rule.counter_before
    return InstalledLimit(
        direction=Direction.OUTBOUND if found.hook == "ingress" else Direction.INBOUND,
        source="nft",
        kind="limit",
        where=found.where,
        rate_bps=limit.rate_bps,
        burst_bytes=limit.burst_bytes,
        bucket_bytes=limit.bucket_bytes,
        rate_pps=None if limit.rate_pps is None else math.ceil(limit.rate_pps),
        burst_packets=limit.burst_packets,
        protocol="all" if rule.matches_all else "",
        matches_all=rule.matches_all,
        exceed_action="drop" if rule.drops or found.drops_packets is not None else "",
        packets=offered.packets if offered else None,
        bytes=offered.bytes if offered else None,
        drops=found.drops_packets,
        shared=found.shared,
    )
