# SPDX-License-Identifier: Apache-2.0
"""Installed limits of an interface, from tc and nft, in one shape: the rows of policer.csv.

Limits that libvirt, OVS or Neutron declare are in :mod:`vifprobe.host.declared`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypedDict

from vifprobe.errors import HostError
from vifprobe.host.net.links import Link
from vifprobe.host.nft.legacy import LegacyReader
from vifprobe.host.nft.past import PastLimit
from vifprobe.host.nft.reader import NftReader
from vifprobe.host.nft.rules import RateLimit
from vifprobe.host.nft.state import NftPolicer, NftState
from vifprobe.host.tc.reader import TcReader, TcState
from vifprobe.host.tc.records import Shaper, Stats, TcAction, TcFilter
from vifprobe.model import ports
from vifprobe.model.layout import Direction
from vifprobe.model.limits import InstalledLimit, main_limit


@dataclass(frozen=True)
class Installed:
    """All limits of one interface.

    - limits: in the order in which packets pass them.
    - tc, nft: the objects that they were read from.
    - problems: what could not be read, as text, so that "none" and "unknown" differ.
    - kind: of the device, which decides the directions of its hooks (see vifprobe.model.ports).
    - elsewhere: limits of its packets in netfilter chains past it.
    - unread: places that can limit packets of a direction and were not read or not understood, with what shows them.
    """

    limits: tuple[InstalledLimit, ...]
    tc: TcState
    nft: NftState
    problems: tuple[str, ...] = ()
    kind: str = "tap"
    elsewhere: tuple[InstalledLimit, ...] = ()
    unread: tuple[tuple[Direction, str], ...] = ()

    def at(self, hook: ports.Hook) -> tuple[InstalledLimit, ...]:
        """Return the limits at one hook of the device."""
        return self.of(ports.direction_at(self.kind, hook))

    def as_of_a_tap(self) -> Installed:
        """Return the same limits in the directions of a tap: outbound at ingress."""
        return replace(self, kind="tap", limits=_turned(self.kind, self.limits))

    def of(self, direction: Direction) -> tuple[InstalledLimit, ...]:
        """Return the limits of one direction."""
        return tuple(limit for limit in self.limits if limit.direction == direction)

    def main(self, direction: Direction) -> InstalledLimit | None:
        """Return the limit of unclassified packets with the lowest bit rate, else the lowest packet rate; or None."""
        return main_limit(self.limits, direction)


def installed(link: Link) -> Installed:
    """Return the limits of one interface. Raises HostError where tc can't be read at all."""
    return installed_of([link])[link.ifindex]


def installed_of(links: Iterable[Link]) -> dict[int, Installed]:
    """Return ifindex -> limits of many interfaces, from the same few dumps. Raises HostError where tc can't be read."""
    return LimitReader().read(links)


class LimitReader:
    """Reads limits repeatedly, for several threads of one network namespace.

    Unchanged objects are not parsed again. An interface without a change gets the same Installed object.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tc, self._nft, self._legacy = TcReader(), NftReader(), LegacyReader()
        self._made: dict[tuple[int, str], Installed] = {}

    def read(self, links: Iterable[Link]) -> dict[int, Installed]:
        """Return ifindex -> limits, from the same few dumps. Raises HostError where tc can't be read."""
        links = list(links)
        with self._lock:
            tc = self._tc.read(link.ifindex for link in links)
            problems: tuple[str, ...] = ()
            try:
                nft = self._nft.read(links)
            except HostError as error:
                nft, problems = {}, (str(error),)
            return {link.ifindex: self._installed(link, tc[link.ifindex], nft, problems) for link in links}

    def hear_of_nft(self, hears: bool) -> None:
        """Set whether :meth:`forget_nft` is called at each change of rules."""
        self._nft.hears_changes = hears

    def forget_nft(self) -> None:
        """Read all nft rules again at the next read: they were changed, or may have been."""
        with self._lock:
            self._nft.forget()

    def is_nft_changed(self) -> bool:
        """Return True if nft rules changed without a notification; False where that can't be read."""
        with self._lock:
            try:
                return self._nft.is_changed()
            except HostError:
                return False

    def _installed(self, link: Link, tc: TcState, nft: Mapping[str, NftState], problems: tuple[str, ...]) -> Installed:
        key, state = (link.ifindex, link.name), nft.get(link.name, NftState())
        made = self._made.get(key)
        problems += tc.problems
        unread = (*_nft_unread(link.kind, state), *state.past.unread, *self._legacy.unread(link))
        before = (made.problems, made.unread) if made is not None else None
        if made is None or made.tc is not tc or made.nft != state or before != (problems, unread):
            found = (replace(one, device=link.name) for one in (*_tc_limits(tc), *map(_nft_limit, state.policers())))
            made = self._made[key] = Installed(
                _turned(link.kind, tuple(found)),
                tc,
                state,
                problems,
                link.kind,
                tuple(map(_past_limit, state.past.limits)),
                unread,
            )
        return made


def _nft_unread(kind: str, state: NftState) -> Iterator[tuple[Direction, str]]:
    for hook, words in state.unread:
        yield ports.direction_at(kind, "ingress" if hook == "ingress" else "egress"), words


def _turned(kind: str, limits: tuple[InstalledLimit, ...]) -> tuple[InstalledLimit, ...]:
    """Translate limits between the directions of a tap and those of this kind of device."""
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
            # A class borrows from its parent, up to its ceil. Without a parent, its rate is the limit, for any ceil
            # (htb_class_mode, htb_activate_prios).
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
    # Without bucket_bytes: a shaper segments a GSO frame, or sends it with a debt of tokens.
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
    limit, rule, base = found.limit, found.at.rule, found.at.base
    offered = rule.counter_before
    # The ingress hook of family inet sees no other protocols (net/netfilter/nft_chain_filter.c,
    # nft_do_chain_inet_ingress).
    protocol = "ip+ipv6" if base.family == "inet" else "all"
    return InstalledLimit(
        direction=Direction.OUTBOUND if found.hook == "ingress" else Direction.INBOUND,
        source="nft",
        kind="limit per element" if found.per_element else "limit",
        where=found.where,
        **_rates(limit),
        protocol=protocol if found.matches_all else "",
        matches_all=found.matches_all,
        exceed_action="drop" if found.enforces else "",
        packets=offered.packets if offered else None,
        bytes=offered.bytes if offered else None,
        drops=found.drops_packets,
        default=found.enforces and not found.per_element,
        shared=found.shared,
    )


def _past_limit(found: PastLimit) -> InstalledLimit:
    kind = found.what if found.what != "limit" else "limit per element" if found.rule.matches.keyed_by else "limit"
    return InstalledLimit(
        direction=found.direction,
        source="nft",
        kind=kind,
        where=found.where,
        device=found.chain_name,
        **_rates(found.limit or RateLimit()),
        protocol=found.protocol if found.is_whole else "",
        matches_all=found.is_whole,
        exceed_action="drop" if found.is_whole else "",
        drops=found.drops_packets,
        default=found.is_whole,
        shared=found.is_shared,
    )


class _Rates(TypedDict):
    """The fields of an InstalledLimit that are an nft limit's own."""

    rate_bps: int | None
    burst_bytes: int | None
    bucket_bytes: int | None
    rate_pps: int | None
    burst_packets: int | None


def _rates(limit: RateLimit) -> _Rates:
    return {
        "rate_bps": limit.rate_bps,
        "burst_bytes": limit.burst_bytes,
        "bucket_bytes": limit.bucket_bytes,
        "rate_pps": None if limit.rate_pps is None else math.ceil(limit.rate_pps),
        "burst_packets": limit.burst_packets,
    }
