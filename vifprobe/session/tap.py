# SPDX-License-Identifier: Apache-2.0
"""One watched tap: its hooks, its limits as they change, and the gaps in its coverage."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

from vifprobe.errors import HostError, KernelError
from vifprobe.host.limits import Installed, installed
from vifprobe.host.net.events import Event
from vifprobe.host.net.links import Link, XdpProgram, is_there
from vifprobe.host.nft.events import NftChange
from vifprobe.host.nft.reader import NftState
from vifprobe.host.tc.records import TcAction, TcFilter, TcQdisc
from vifprobe.kernel.attach import (
    Attachment,
    FilterAttachment,
    NoHookError,
    OwnQdisc,
    TcxAttachment,
    TracepointAttachment,
    attach,
    is_own_filter,
)
from vifprobe.kernel.first import FirstPlace
from vifprobe.kernel.leftovers import is_orphan, remove_filter
from vifprobe.kernel.load import Programs
from vifprobe.kernel.tcx import tcx_program_ids, tcx_programs
from vifprobe.model.layout import LIMIT_TRAITS, Bucket, Charge, Direction, TapTrait
from vifprobe.model.ports import Hook, direction_at, hook_of, traces_received, turned, warning, word
from vifprobe.model.reading import Cells, Limit, no_cells
from vifprobe.model.whatif import WhatIf, WhatIfCounts
from vifprobe.session.coverage import Coverage, without_old
from vifprobe.session.decided_earlier import DeviceCheck, Earlier
from vifprobe.session.drop_attribution import DropAttribution, DropSources, drop_sources_of
from vifprobe.session.error_counts import ErrorCounts

#: Maximum number of times that vifprobe goes back to the head of a hook's programs.
_REANCHORED_MAX = 8
#: Prefixes of the kinds of events after which limits are read again; "over": events were lost.
_ABOUT_LIMITS = ("qdisc", "filter", "class", "nft", "over")
#: Maximum delay of the event of an nft change after the change is visible.
_TOLD_AFTER_NS = 1_000_000_000
_NOTES_MAX = 32
_TRACED = {Direction.OUTBOUND: TapTrait.TRACED_OUTBOUND, Direction.INBOUND: TapTrait.TRACED_INBOUND}


class WatchedTap:
    """A tap, its number in the kernel's tables, and the programs attached to it.

    - link, number: the interface as at the start, and its tap number.
    - installed, looked_ns: installed limits, and when they were last read, monotonic.
    - attachments: hooks by direction.
    - before, missed_before, errors_before, what_ifs_before: counts up to the last reading.
    - notes, gaps: for people; unwatched spans.
    - unseen: directions that no hook counts.
    - gone_ns: when the tap was found to be deleted, monotonic; None while it exists.
    - heard_of_end: the kernel's message about the deletion was read.
    - ended: an interval's reading has reported the deletion.
    - earlier, device: programs that run before vifprobe's; comparison with the device's counters.
    """

    def __init__(self, link: Link, number: int, found: Installed) -> None:
        self.link = link
        self.number = number
        self.installed = found
        self.attachments: dict[Direction, Attachment] = {}
        self.before: Cells = no_cells()
        self.missed_before: Mapping[Direction, int] = dict.fromkeys(Direction, 0)
        self.errors_before = ErrorCounts()
        self.what_ifs_before: WhatIfCounts | None = None
        self.notes = [one for one in [warning(link.name, link.kind)] if one]
        self.gaps: list[Coverage] = []
        self.unseen: tuple[Direction, ...] = ()
        self.looked_ns = time.monotonic_ns()
        self._nft_before, self._nft_changed_ns = found.nft, 0
        self.gone_ns: int | None = None
        self.heard_of_end = self.ended = False
        self._ahead: tuple[int, ...] = ()
        self.earlier, self.device = Earlier(), DeviceCheck(link)
        self._xdp_ns = time.monotonic_ns()
        self.drop_sources = self._drop_sources()
        self.attribution = DropAttribution(found, self.drop_sources)
        self._apart = self._traced = TapTrait(0)
        self._follows = False
        self._qdisc: OwnQdisc | None = None
        self._programs: Programs | None = None
        self._places: dict[Direction, FirstPlace] = {}
        self._first_ns: dict[Direction, int] = {}
        self._reanchored: dict[Direction, int] = {}
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
        traits = self._traced | self._apart
        for direction in self._buckets:
            traits |= LIMIT_TRAITS[turned(self.link.kind, direction)]
        if self.drop_sources.nft:
            traits |= TapTrait.NFT_POLICER
        if any(found.hook == "ingress" and not _is_own(found) for found in self.installed.tc.filters):
            traits |= TapTrait.TC_POLICER
        if self.drop_sources.others and not self.drop_sources.policers:
            traits |= TapTrait.TC_FOREIGN
        if self._follows:
            traits |= TapTrait.INBOUND
        if any(found.hook == "egress" and any(map(_polices, found.actions)) for found in self.installed.tc.filters):
            traits |= TapTrait.EGRESS_POLICER
        return int(traits)

    @property
    def is_guessing(self) -> bool:
        """Return True if drops at tc ingress count as policed although other programs there can have dropped."""
        return self.drop_sources.is_ambiguous and not self._apart & TapTrait.TC_MARKED

    @property
    def needs_chains_watched(self) -> bool:
        """Return True if nf_hook_slow must be watched to know which chain dropped: there is no tc hook."""
        return self.drop_sources.nft_shared and bool(self._traced & TapTrait.TRACED_OUTBOUND)

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
        self._programs = programs
        self._follows = direction_at(self.link.kind, "egress") in directions and programs.settings.follow is not None
        for direction in directions:
            try:
                self._attach(programs, direction)
            except NoHookError as error:
                if programs.settings.trace is None or len(directions) == 1:
                    raise
                self._leave_unseen(direction, error.message)
        self.see_xdp(self.link.xdp)
        if any(isinstance(made, FilterAttachment) for made in self.attachments.values()):
            programs.load_tracepoints()  # they replace the filter at once when its qdisc is deleted

    def _attach(self, programs: Programs, direction: Direction) -> None:
        at = turned(self.link.kind, direction)
        self._remove_leftover(hook_of(self.link.kind, direction))
        fd, qdisc = programs.tc_program_fd(at), self.installed.tc.ingress
        kind = qdisc.kind if qdisc else None
        self.device.restart()
        try:
            self.attachments[direction] = attach(fd, self.link.name, self.link.ifindex, at, kind)
        except NoHookError:
            if programs.settings.trace is None:
                raise
            if hook_of(self.link.kind, direction) == "ingress" and not traces_received(self.link.kind):
                raise _unseen(self.link, direction) from None
            programs.attach_tracepoints()
            self._traced |= _TRACED[at]
            self.attachments[direction] = TracepointAttachment()

    def _remove_leftover(self, hook: Hook) -> None:
        """Remove the filter of a killed run (kernels without tcx) from this hook."""
        for found in self.installed.tc.filters:
            if found.hook == hook and _is_own(found) and found.bpf and found.bpf.id and is_orphan(found.bpf.id):
                remove_filter(self.link.name, self.link.ifindex, hook == "ingress")

    def detach(self) -> None:
        """Detach every hook; harmless where the tap or the qdisc is gone."""
        self._programs = None  # nothing is attached again
        for attachment in self.attachments.values():
            attachment.detach()
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
            self.installed = found
            if found.nft.settings != before.nft.settings:
                self._nft_before, self._nft_changed_ns = before.nft, self.looked_ns
        if not self.look_ahead() and found is not before:
            self.drop_sources = self._drop_sources()
        return found is not before

    def look_ahead(self) -> bool:
        """Return True if the tcx programs before the qdiscs changed. Polled by one system call: no event reports it."""
        self._stay_first()
        before = self._ahead
        try:
            self._ahead = tcx_program_ids(self.link.ifindex, ingress=True)
        except OSError:  # the tap is gone
            self._ahead = ()
        if self._ahead != before:
            self.drop_sources = self._drop_sources()
        return self._ahead != before

    def _stay_first(self) -> None:
        """Go back to the head of the tcx programs where another program was put before vifprobe's.

        Packets that such a program stops are not seen. The number of tries is limited: two programs that both want to
        be first would never end.
        """
        for direction, attachment in list(self.attachments.items()):
            if not isinstance(attachment, TcxAttachment) or self._programs is None:
                continue
            at = turned(self.link.kind, direction)
            place = self._places.setdefault(direction, FirstPlace(self.link.ifindex, at is Direction.OUTBOUND))
            ahead, since_ns = place.ahead(), self._first_ns.get(direction, self.looked_ns)
            self.earlier.see(direction, "tcx", [("", one.id) for one in ahead], since_ns)
            if not ahead and attachment.fd >= 0:
                self._is_first(direction)
            elif attachment.fd < 0 or self._reanchored.get(direction, 0) < _REANCHORED_MAX:
                self._reanchor(direction, self._programs, since_ns, [(one.id, one.name) for one in ahead])
            else:
                self._stay_behind(direction, since_ns, "tcx", [(one.id, one.name) for one in ahead])

    def _filter_first(self, direction: Direction, attachment: FilterAttachment, at_ns: int, programs: Programs) -> None:
        """Go back to the head of a hook's filters. netlink reports changes of filters at once; at_ns: when it did.

        Only a bpf filter of the same pref can be before vifprobe's, with another handle: cls_bpf puts each new one in
        front (net/sched/cls_bpf.c, cls_bpf_change: list_add_rcu), and dumps them in that order. No pref is below 1: for
        0 the kernel chooses one from 0xC000 on. For one pref it refuses other kinds and protocols
        (net/sched/cls_api.c, tc_new_tfilter, tcf_chain_tp_find). Nothing else of tc comes before the filters of chain
        0, and netfilter's ingress hook comes after them (net/core/dev.c, __netif_receive_skb_core: sch_handle_ingress,
        then nf_ingress).
        """
        hook = "ingress" if attachment.ingress else "egress"
        chain = [one for one in self.installed.tc.filters if one.hook == hook and not one.chain]
        ahead = list(takewhile(lambda one: not _is_own(one), chain))
        ids = [one.bpf.id or 0 if one.bpf else 0 for one in ahead]
        self.earlier.see(direction, "filter", [("", number) for number in ids], at_ns)
        if not ahead:
            self._is_first(direction)
            return
        names = [one.bpf.name.partition(":[")[0] if one.bpf else one.kind for one in ahead]
        named = list(zip(ids, names, strict=True))
        if self._reanchored.get(direction, 0) < _REANCHORED_MAX:
            self._first_ns[direction] = at_ns
            self._reanchor(direction, programs, at_ns, named)
        else:
            self._stay_behind(direction, at_ns, "filter", named)

    def _is_first(self, direction: Direction) -> None:
        """Record that the program of a direction is at the head of its hook, which ends an open gap."""
        self._first_ns[direction] = now_ns = time.monotonic_ns()
        self.gaps = [
            replace(gap, end_ns=now_ns, hook=self.attachments[direction].hook)
            if gap.direction is direction and gap.end_ns is None
            else gap
            for gap in self.gaps
        ]

    def _reanchor(
        self, direction: Direction, programs: Programs, since_ns: int, ahead: Sequence[tuple[int, str]]
    ) -> None:
        """Attach again, at the head. ahead: id and name of the programs that run first, since since_ns."""
        attachment = self.attachments[direction]
        hook = "tcx" if isinstance(attachment, TcxAttachment) else "filter"
        if ahead:
            self._reanchored[direction] = self._reanchored.get(direction, 0) + 1
            self._stay_behind(direction, since_ns, hook, ahead)
        attachment.detach()  # before attaching again, else a packet could be counted twice
        try:
            self._attach(programs, direction)
        except KernelError as error:
            self.note(f"not watched any more: {error.message}")
            return
        self.earlier.see(direction, hook, (), since_ns)
        self._is_first(direction)

    def _stay_behind(self, direction: Direction, since_ns: int, hook: str, ahead: Sequence[tuple[int, str]]) -> None:
        """Open a gap where none is open. ahead: id and name of the hook's programs that run first, since since_ns."""
        if any(gap.direction is direction and gap.end_ns is None for gap in self.gaps):
            return
        names = ", ".join(f"{name or '?'} (id {number})" for number, name in ahead[:3])
        self.note(f"{direction.name.lower()} packets may have been decided before they were seen, by {hook} {names}")
        why = f"{hook} {names} was put ahead of vifprobe: packets that it decided were not seen"
        self.gaps = [*without_old(self.gaps, direction), Coverage(self.link.name, direction, since_ns, None, why)]

    def see_xdp(self, found: Sequence[XdpProgram]) -> bool:
        """Record the tap's XDP programs, and return True if they changed. They run before any tc hook.

        A generic one runs after the tracepoint that counts on older kernels (net/core/dev.c, __netif_receive_skb_core:
        trace_netif_receive_skb, then do_xdp_generic). There its drops count as any others.
        """
        direction = direction_at(self.link.kind, "ingress")
        attachment, since_ns = self.attachments.get(direction), self._xdp_ns
        self._xdp_ns = time.monotonic_ns()
        if attachment is None:
            return False
        is_traced = isinstance(attachment, TracepointAttachment)
        before = [(one.mode, one.id) for one in found if not (is_traced and one.mode == "generic")]
        is_new = self.earlier.see(direction, "xdp", before, since_ns)
        if is_new:
            self.device.restart_dropped()
        return is_new

    def _drop_sources(self) -> DropSources:
        try:
            programs = tcx_programs(self.link.ifindex, ingress=True)
        except OSError:  # the tap is gone
            programs = ()
        return drop_sources_of(self.installed, programs)

    def _leave_unseen(self, direction: Direction, why: str) -> None:
        self.unseen = (*self.unseen, direction)
        self.note(why)
        self.gaps.append(Coverage(self.link.name, direction, time.monotonic_ns(), None, why))

    def seen(self, directions: Iterable[Direction]) -> tuple[Direction, ...]:
        """Return the directions that a hook counts."""
        return tuple(one for one in directions if one not in self.unseen)

    def leave_out(self, directions: Iterable[Direction], now_ns: int) -> None:
        """Mark the tap as unwatched: the run was ended before its hooks were attached."""
        why = "the run was ended while it was attaching to taps"
        self.note(f"not watched: {why}")
        self.gaps += [Coverage(self.link.name, direction, now_ns, None, why) for direction in directions]

    def note(self, text: str) -> None:
        """Add a note for readers of the counts, once."""
        if text not in self.notes and len(self.notes) < _NOTES_MAX:
            self.notes.append(text if len(self.notes) < _NOTES_MAX - 1 else "more notes were left out")

    def on_events(self, events: list[Event], programs: Programs) -> list[Event]:
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
        for direction, attachment in list(self.attachments.items()):
            if not isinstance(attachment, FilterAttachment):
                continue
            if self._is_ours_there(attachment):
                self._filter_first(direction, attachment, events[-1].at_ns if events else self.looked_ns, programs)
            else:
                self._lost(direction, _removal(events), programs)
        return events

    def _is_ours_there(self, attachment: FilterAttachment) -> bool:
        hook = "ingress" if attachment.ingress else "egress"
        return any(found.hook == hook and _is_own(found) for found in self.installed.tc.filters)

    def _lost(self, direction: Direction, by: Event, programs: Programs) -> None:
        """Attach again after vifprobe's filter was deleted with its qdisc, and record the gap."""
        open_gap = next((gap for gap in self.gaps if gap.direction == direction and gap.end_ns is None), None)
        if open_gap is None:
            why = f"{by.detail} deleted" if by.kind.endswith("_del") else "its qdisc was deleted or replaced"
            why += f" by {by.by_words}" if by.by_words else ""
            open_gap = Coverage(self.link.name, direction, by.at_ns, None, why, by.by_pid, by.by_comm)
            self.gaps = [*without_old(self.gaps, direction), open_gap]
        # A filter in the new qdisc; without a qdisc, the tracepoints count.
        try:
            self._attach(programs, direction)
        except KernelError as error:
            self.note(f"not watched any more: {error.message}")
            return
        self.gaps[self.gaps.index(open_gap)] = replace(open_gap, hook=self.attachments[direction].hook)

    def covered(self) -> None:
        """End the gaps of hooks that were attached again: the kernel side has the traits and counts from now on."""
        now_ns = time.monotonic_ns()
        self.gaps = [replace(gap, end_ns=now_ns) if gap.hook and gap.end_ns is None else gap for gap in self.gaps]

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


def _unseen(link: Link, direction: Direction) -> NoHookError:
    return NoHookError(
        f"{word(link.kind, direction)} packets of {link.name} are not counted: without tcx (Linux 6.6) and without an "
        f"ingress or clsact qdisc the kernel does not report what a {link.kind} receives.",
        "Add --create-qdisc, which creates a clsact qdisc for the time of the run.",
    )


def is_about_limits(events: list[Event]) -> bool:
    """Return True if limits must be read again after these events."""
    return any(event.kind.startswith(_ABOUT_LIMITS) for event in events)


def at_hooks(links: Iterable[Link], directions: Iterable[Direction]) -> tuple[Direction, ...]:
    """Return the directions of the kernel side (its hooks) that are needed to watch these directions of the devices."""
    wanted = tuple(directions)
    return tuple(sorted({turned(link.kind, direction) for link in links for direction in wanted}))


def own_events(events: list[Event], before: NftState, after: NftState) -> list[Event]:
    """Return the events without nft changes that do not concern the tap. before, after: nft's state on the tap."""
    changed = before.settings != after.settings
    return [
        event
        for event in events
        if not isinstance(event.record, NftChange) or changed or before.holds_any(event.record.deleted)
    ]


def _removal(events: list[Event]) -> Event:
    """Return the event that removed a filter: the end of its qdisc, else of the filter, else the first event."""
    for kind in ("qdisc_del", "filter_del"):
        for event in events:
            is_other = isinstance(event.record, TcQdisc) and event.record.kind not in ("ingress", "clsact")
            if event.kind == kind and not is_other:
                return event
    return events[0]


def _polices(action: TcAction) -> bool:
    return action.kind == "police"


def _is_own(found: TcFilter) -> bool:
    return is_own_filter(found.pref, found.handle, found.bpf.name if found.bpf else "")
