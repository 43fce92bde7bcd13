# SPDX-License-Identifier: Apache-2.0
"""One watched tap: its limits as they change, and what the kernel side has to know of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from vifprobe.errors import HostError, KernelError
from vifprobe.host.limits import Installed, installed
from vifprobe.host.net.events import Event
from vifprobe.host.net.links import Link, is_there
from vifprobe.kernel.attach import OwnQdisc
from vifprobe.kernel.load import Programs
from vifprobe.kernel.tcx import tcx_program_ids, tcx_programs
from vifprobe.model.layout import LIMIT_TRAITS, Bucket, Charge, Direction, TapTrait
from vifprobe.model.ports import direction_at, turned, warning
from vifprobe.model.reading import Cells, Limit, no_cells
from vifprobe.model.whatif import WhatIf, WhatIfCounts
from vifprobe.session.drop_attribution import DropAttribution, DropSources, drop_sources_of
from vifprobe.session.error_counts import ErrorCounts
from vifprobe.session.tap_events import is_about_limits, own_events
from vifprobe.session.tap_hooks import TapHooks, is_own

#: Maximum delay of the event of an nft change after the change is visible.
_TOLD_AFTER_NS = 1_000_000_000
_NOTES_MAX = 32


class WatchedTap:
    """A tap, its number in the kernel's tables, its limits and its hooks.

    - link, number: the interface as at the start, and its tap number.
    - installed, looked_ns: installed limits, and when they were last read, monotonic.
    - hooks: its hooks, and the spans in which they did not count.
    - before, missed_before, errors_before, what_ifs_before: counts up to the last reading.
    - notes: for people.
    - gone_ns: when the tap was found to be deleted, monotonic; None while it exists.
    - heard_of_end: the kernel's message about the deletion was read.
    - ended: an interval's reading has reported the deletion.
    """

    def __init__(self, link: Link, number: int, found: Installed) -> None:
        self.link = link
        self.number = number
        self.installed = found
        self.before: Cells = no_cells()
        self.missed_before: Mapping[Direction, int] = dict.fromkeys(Direction, 0)
        self.errors_before = ErrorCounts()
        self.what_ifs_before: WhatIfCounts | None = None
        self.notes = [one for one in [warning(link.name, link.kind)] if one]
        self.hooks = TapHooks(link, found.tc, self.note)
        self.looked_ns = time.monotonic_ns()
        self._nft_before, self._nft_changed_ns = found.nft, 0
        self.gone_ns: int | None = None
        self.heard_of_end = self.ended = False
        self._ahead: tuple[int, ...] = ()
        self.drop_sources = self._drop_sources()
        self.attribution = DropAttribution(found, self.drop_sources)
        self._apart = TapTrait(0)
        self._follows = False
        self._qdisc: OwnQdisc | None = None
        self._buckets: dict[Direction, Bucket] = {}

    @property
    def gone(self) -> bool:
        """Return True if the tap was deleted, or moved to another network namespace."""
        return self.gone_ns is not None

    def _check_gone(self) -> bool:
        if self.gone_ns is None and not is_there(self.link):
            self.gone_ns = time.monotonic_ns()
        return self.gone

    @property
    def traits(self) -> int:
        """Traits of this tap that the kernel side needs to attribute a drop to its policer."""
        traits = self.hooks.traced | self._apart
        for direction in self._buckets:
            traits |= LIMIT_TRAITS[turned(self.link.kind, direction)]
        if self.drop_sources.nft:
            traits |= TapTrait.NFT_POLICER
        if any(found.hook == "ingress" and not is_own(found) for found in self.installed.tc.filters):
            traits |= TapTrait.TC_POLICER
        if self.drop_sources.others and not self.drop_sources.policers:
            traits |= TapTrait.TC_FOREIGN
        if self._follows:
            traits |= TapTrait.INBOUND
        if self.drop_sources.egress_policers:
            traits |= TapTrait.EGRESS_POLICER
        return int(traits)

    @property
    def is_guessing(self) -> bool:
        """Return True if drops at tc ingress count as policed although other programs there can have dropped."""
        return self.drop_sources.is_ambiguous and not self._apart & TapTrait.TC_MARKED

    @property
    def needs_chains_watched(self) -> bool:
        """Return True if nf_hook_slow must be watched to know which chain dropped: there is no tc hook."""
        return self.drop_sources.nft_shared and bool(self.hooks.traced & TapTrait.TRACED_OUTBOUND)

    def tell_apart(self, programs: Programs) -> None:
        """Attach further programs where several sources can drop; add a note where that is not possible."""
        self._apart = TapTrait(0)
        if self.drop_sources.is_ambiguous:
            try:
                programs.watch_police()
                self._apart |= TapTrait.TC_MARKED
            except KernelError as error:
                others = ", ".join(self.drop_sources.others)
                self.note(f"drops at tc ingress count as policed, but can be by {others}: {error.message}")
        if self.drop_sources.nft_shared:
            try:
                if self.needs_chains_watched:
                    programs.watch_chains()
                self._apart |= TapTrait.NFT_SHARED
            except KernelError as error:
                self.note(f"netfilter drops count as policed, but can be by other chains: {error.message}")
        self.attribution.follow(self.drop_sources, self.is_guessing)

    @property
    def charge(self) -> tuple[int, int]:
        """Return overhead and minimum charge (mpu) of the policer at ingress, in bytes."""
        main = self.installed.main(direction_at(self.link.kind, "ingress"))
        return (main.overhead_bytes, main.mpu_bytes) if main else (0, 0)

    def attach(self, programs: Programs, directions: tuple[Direction, ...], create_qdisc: bool = False) -> None:
        """Attach the programs. Raises KernelError where one can't be attached.

        create_qdisc: where the kernel has no tcx and the tap no qdisc for a filter, create a clsact qdisc.
        """
        if create_qdisc and programs.settings.trace is not None and self.installed.tc.ingress is None:
            self._qdisc = OwnQdisc(self.link.name, self.link.ifindex)
            self.refresh()
        self._follows = direction_at(self.link.kind, "egress") in directions and programs.settings.follow is not None
        self.hooks.attach(programs, directions)

    def detach(self) -> None:
        """Detach every hook; harmless where the tap or the qdisc is gone."""
        self.hooks.detach()
        if self._qdisc is not None and is_there(self.link):
            self.refresh()
            self._qdisc.remove(is_empty=not self.installed.tc.filters)
            self._qdisc = None

    def refresh(self) -> None:
        """Read the installed limits again. Limits that can't be read, or of a deleted tap, stay as they were."""
        try:
            self.take(installed(self.link))
        except HostError as error:
            self.note(f"limits could not be read again: {error.message}")

    def take(self, found: Installed) -> bool:
        """Take the current limits, and return True if they changed. Those of a deleted tap are kept."""
        before, self.looked_ns = self.installed, time.monotonic_ns()
        if found is not before:
            if before.limits and not found.limits and self._check_gone():
                return False
            self.installed, self.hooks.tc = found, found.tc
            if found.nft.settings != before.nft.settings:
                self._nft_before, self._nft_changed_ns = before.nft, self.looked_ns
        if not self.look_ahead() and found is not before:
            self.drop_sources = self._drop_sources()
        return found is not before

    def look_ahead(self) -> bool:
        """Return True if the tcx programs before the qdiscs changed. Polled by one system call: no event reports it."""
        self.hooks.stay_first(self.looked_ns)
        before = self._ahead
        try:
            self._ahead = tcx_program_ids(self.link.ifindex, ingress=True)
        except OSError:  # the tap is gone
            self._ahead = ()
        if self._ahead != before:
            self.drop_sources = self._drop_sources()
        return self._ahead != before

    def _drop_sources(self) -> DropSources:
        try:
            programs = tcx_programs(self.link.ifindex, ingress=True)
        except OSError:  # the tap is gone
            programs = ()
        return drop_sources_of(self.installed, programs)

    def note(self, text: str) -> None:
        """Add a note for readers of the counts, once."""
        if text not in self.notes and len(self.notes) < _NOTES_MAX:
            self.notes.append(text if len(self.notes) < _NOTES_MAX - 1 else "more notes were left out")

    def on_events(self, events: list[Event]) -> list[Event]:
        """Apply events: the tap was deleted, limits changed, or vifprobe's filter was deleted with its qdisc.

        The limits installed after the events must have been taken before. Return the events that concern this tap:
        those of nft can concern any.
        """
        self.heard_of_end = self.heard_of_end or any(event.kind == "link_del" for event in events)
        if self._check_gone() or not is_about_limits(events):
            return events
        # The limits may have been read just after the change, before its event came.
        is_late = self.looked_ns - self._nft_changed_ns < _TOLD_AFTER_NS
        events = own_events(events, self._nft_before if is_late else self.installed.nft, self.installed.nft)
        self.hooks.follow_filters(events, self.looked_ns)
        return events

    def try_out(self, limits: Sequence[WhatIf], programs: Programs) -> None:
        """Set the --what-if limits for the packets of both directions."""
        for direction in Direction:
            for place, limit in enumerate(limits):
                programs.set_what_if(self.number, turned(self.link.kind, direction), place, limit.bucket)

    def hold_to(self, declared: Mapping[Direction, Limit], charge: Charge, programs: Programs) -> None:
        """Compare the packets of each direction with its declared limit from now on, with a full ideal bucket.

        Without a declared burst, it is the installed one, else the bytes of one second at the rate, as in libvirt. The
        kernel side uses a bucket only once it has the traits.
        """
        for direction, limit in declared.items():
            main = self.installed.main(direction)
            burst_bytes = limit.burst_bytes or (main.at_once_bytes if main else None)
            bytes_per_second = (limit.declared_bps or 0) // 8
            if not bytes_per_second:
                continue
            bucket = Bucket(bytes_per_second, burst_bytes or bytes_per_second, charge)
            if self._buckets.get(direction) != bucket:
                programs.set_bucket(self.number, turned(self.link.kind, direction), bucket)
                self._buckets[direction] = bucket

    def limits(self, declared: Mapping[Direction, Limit], directions: tuple[Direction, ...]) -> dict[Direction, Limit]:
        """Return the declared and installed limit of each direction."""
        return {direction: self._limit(declared.get(direction, Limit()), direction) for direction in directions}

    def _limit(self, declared: Limit, direction: Direction) -> Limit:
        main = self.installed.main(direction)
        if main is None:
            return declared
        burst_bytes = main.at_once_bytes if declared.burst_bytes is None else declared.burst_bytes
        return replace(declared, installed_bps=main.rate_bps, installed_pps=main.rate_pps, burst_bytes=burst_bytes)


def at_hooks(links: Iterable[Link], directions: Iterable[Direction]) -> tuple[Direction, ...]:
    """Return the directions of the kernel side (its hooks) that are needed to watch these directions of the devices."""
    wanted = tuple(directions)
    return tuple(sorted({turned(link.kind, direction) for link in links for direction in wanted}))
