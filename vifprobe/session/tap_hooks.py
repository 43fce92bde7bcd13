# SPDX-License-Identifier: Apache-2.0
"""The hooks of one tap: attached, kept at the head of the hook's programs, and attached again when they are deleted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import takewhile

from vifprobe.errors import KernelError
from vifprobe.host.net.events import Event
from vifprobe.host.net.links import Link, XdpProgram
from vifprobe.host.tc.reader import TcState
from vifprobe.host.tc.records import TcFilter
from vifprobe.kernel.attach import (
    Attachment,
    FilterAttachment,
    NoHookError,
    TcxAttachment,
    TracepointAttachment,
    attach,
    is_orphan,
    is_own_filter,
    remove_filter,
)
from vifprobe.kernel.first import FirstPlace
from vifprobe.kernel.load import Programs
from vifprobe.model.layout import Direction, TapTrait
from vifprobe.model.ports import Hook, direction_at, hook_of, traces_received, turned, word
from vifprobe.session.coverage import Coverage, without_old
from vifprobe.session.decided_earlier import DeviceCheck, Earlier
from vifprobe.session.tap_events import removal

#: Maximum number of times that vifprobe goes back to the head of a hook's programs.
_REANCHORED_MAX = 8
_TRACED = {Direction.OUTBOUND: TapTrait.TRACED_OUTBOUND, Direction.INBOUND: TapTrait.TRACED_INBOUND}


class TapHooks:
    """Hooks of one tap, and the spans in which they did not count.

    - attachments: hooks by direction.
    - tc: qdiscs and filters of the tap, as they were read last.
    - gaps: unwatched spans.
    - unseen: directions that no hook counts.
    - traced: directions that are counted by tracepoints.
    - earlier, device: programs that run before vifprobe's; comparison with the device's counters.
    - note: called with a note for readers of the counts.
    """

    def __init__(self, link: Link, tc: TcState, note: Callable[[str], object]) -> None:
        self._link = link
        self._note = note
        self.tc = tc
        self.attachments: dict[Direction, Attachment] = {}
        self.gaps: list[Coverage] = []
        self.unseen: tuple[Direction, ...] = ()
        self.traced = TapTrait(0)
        self.earlier, self.device = Earlier(), DeviceCheck(link)
        self._xdp_ns = time.monotonic_ns()
        self._programs: Programs | None = None
        self._places: dict[Direction, FirstPlace] = {}
        self._first_ns: dict[Direction, int] = {}
        self._reanchored: dict[Direction, int] = {}

    def attach(self, programs: Programs, directions: tuple[Direction, ...]) -> None:
        """Attach the programs to the hook of each direction. Raises KernelError where one can't be attached."""
        self._programs = programs
        for direction in directions:
            try:
                self._attach(programs, direction)
            except NoHookError as error:
                if programs.settings.trace is None or len(directions) == 1:
                    raise
                self._leave_unseen(direction, error.message)
        self.see_xdp(self._link.xdp)
        if any(isinstance(made, FilterAttachment) for made in self.attachments.values()):
            programs.load_tracepoints()  # they replace the filter at once when its qdisc is deleted

    def detach(self) -> None:
        """Detach every hook, for good; harmless where the tap or the qdisc is gone."""
        self._programs = None
        for attachment in self.attachments.values():
            attachment.detach()

    def _attach(self, programs: Programs, direction: Direction) -> None:
        at = turned(self._link.kind, direction)
        self._remove_leftover(hook_of(self._link.kind, direction))
        fd, qdisc = programs.tc_program_fd(at), self.tc.ingress
        kind = qdisc.kind if qdisc else None
        self.device.restart()
        try:
            self.attachments[direction] = attach(fd, self._link.name, self._link.ifindex, at, kind)
        except NoHookError:
            if programs.settings.trace is None:
                raise
            if hook_of(self._link.kind, direction) == "ingress" and not traces_received(self._link.kind):
                raise _unseen(self._link, direction) from None
            programs.attach_tracepoints()
            self.traced |= _TRACED[at]
            self.attachments[direction] = TracepointAttachment()

    def _remove_leftover(self, hook: Hook) -> None:
        """Remove the filter of a killed run (kernels without tcx) from this hook."""
        for found in self.tc.filters:
            if found.hook == hook and is_own(found) and found.bpf and found.bpf.id and is_orphan(found.bpf.id):
                remove_filter(self._link.name, self._link.ifindex, hook == "ingress")

    def stay_first(self, looked_ns: int) -> None:
        """Go back to the head of the tcx programs where another program was put before vifprobe's.

        looked_ns: when the tap's limits were last read, monotonic.

        Packets that such a program stops are not seen. The number of tries is limited: two programs that both want to
        be first would never end.
        """
        for direction, attachment in list(self.attachments.items()):
            if not isinstance(attachment, TcxAttachment) or self._programs is None:
                continue
            at = turned(self._link.kind, direction)
            place = self._places.setdefault(direction, FirstPlace(self._link.ifindex, at is Direction.OUTBOUND))
            ahead, since_ns = place.ahead(), self._first_ns.get(direction, looked_ns)
            self.earlier.see(direction, "tcx", [("", one.id) for one in ahead], since_ns)
            if not ahead and attachment.fd >= 0:
                self._is_first(direction)
            elif attachment.fd < 0 or self._reanchored.get(direction, 0) < _REANCHORED_MAX:
                self._reanchor(direction, self._programs, since_ns, [(one.id, one.name) for one in ahead])
            else:
                self._stay_behind(direction, since_ns, "tcx", [(one.id, one.name) for one in ahead])

    def follow_filters(self, events: list[Event], looked_ns: int) -> None:
        """Attach again where vifprobe's filter was deleted with its qdisc, or another filter was put before it.

        - events: events about the tap's limits; `tc` was read after them.
        - looked_ns: when it was read, monotonic.
        """
        for direction, attachment in list(self.attachments.items()):
            if not isinstance(attachment, FilterAttachment) or self._programs is None:
                continue
            if self._is_ours_there(attachment):
                at_ns = events[-1].at_ns if events else looked_ns
                self._filter_first(direction, attachment, at_ns, self._programs)
            elif events:  # else the event of its removal comes next
                self._lost(direction, removal(events), self._programs)

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
        chain = [one for one in self.tc.filters if one.hook == hook and not one.chain]
        ahead = list(takewhile(lambda one: not is_own(one), chain))
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
            self._note(f"not watched any more: {error.message}")
            return
        self.earlier.see(direction, hook, (), since_ns)
        self._is_first(direction)

    def _stay_behind(self, direction: Direction, since_ns: int, hook: str, ahead: Sequence[tuple[int, str]]) -> None:
        """Open a gap where none is open. ahead: id and name of the hook's programs that run first, since since_ns."""
        if any(gap.direction is direction and gap.end_ns is None for gap in self.gaps):
            return
        names = ", ".join(f"{name or '?'} (id {number})" for number, name in ahead[:3])
        self._note(f"{direction.name.lower()} packets may have been decided before they were seen, by {hook} {names}")
        why = f"{hook} {names} was put ahead of vifprobe: packets that it decided were not seen"
        self.gaps = [*without_old(self.gaps, direction), Coverage(self._link.name, direction, since_ns, None, why)]

    def see_xdp(self, found: Sequence[XdpProgram]) -> bool:
        """Record the tap's XDP programs, and return True if they changed. They run before any tc hook.

        A generic one runs after the tracepoint that counts on older kernels (net/core/dev.c, __netif_receive_skb_core:
        trace_netif_receive_skb, then do_xdp_generic). There its drops count as any others.
        """
        direction = direction_at(self._link.kind, "ingress")
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

    def _leave_unseen(self, direction: Direction, why: str) -> None:
        self.unseen = (*self.unseen, direction)
        self._note(why)
        self.gaps.append(Coverage(self._link.name, direction, time.monotonic_ns(), None, why))

    def seen(self, directions: Iterable[Direction]) -> tuple[Direction, ...]:
        """Return the directions that a hook counts."""
        return tuple(one for one in directions if one not in self.unseen)

    def leave_out(self, directions: Iterable[Direction], now_ns: int) -> None:
        """Mark the tap as unwatched: the run was ended before its hooks were attached."""
        why = "the run was ended while it was attaching to taps"
        self._note(f"not watched: {why}")
        self.gaps += [Coverage(self._link.name, direction, now_ns, None, why) for direction in directions]

    def covered(self) -> None:
        """End the gaps of hooks that were attached again: the kernel side has the traits and counts from now on."""
        now_ns = time.monotonic_ns()
        self.gaps = [replace(gap, end_ns=now_ns) if gap.hook and gap.end_ns is None else gap for gap in self.gaps]

    def _is_ours_there(self, attachment: FilterAttachment) -> bool:
        hook = "ingress" if attachment.ingress else "egress"
        return any(found.hook == hook and is_own(found) for found in self.tc.filters)

    def _lost(self, direction: Direction, by: Event, programs: Programs) -> None:
        """Attach again after vifprobe's filter was deleted with its qdisc, and record the gap."""
        open_gap = next((gap for gap in self.gaps if gap.direction == direction and gap.end_ns is None), None)
        if open_gap is None:
            why = f"{by.detail} deleted" if by.kind.endswith("_del") else "its qdisc was deleted or replaced"
            why += f" by {by.by_words}" if by.by_words else ""
            open_gap = Coverage(self._link.name, direction, by.at_ns, None, why, by.by_pid, by.by_comm)
            self.gaps = [*without_old(self.gaps, direction), open_gap]
        # A filter in the new qdisc; without a qdisc, the tracepoints count.
        try:
            self._attach(programs, direction)
        except KernelError as error:
            self._note(f"not watched any more: {error.message}")
            return
        self.gaps[self.gaps.index(open_gap)] = replace(open_gap, hook=self.attachments[direction].hook)


def is_own(found: TcFilter) -> bool:
    """Return True for a filter of this run, or of an earlier one."""
    return is_own_filter(found.pref, found.handle, found.bpf.name if found.bpf else "")


def _unseen(link: Link, direction: Direction) -> NoHookError:
    return NoHookError(
        f"{word(link.kind, direction)} packets of {link.name} are not counted: without tcx (Linux 6.6) and without an "
        f"ingress or clsact qdisc the kernel does not report what a {link.kind} receives.",
        "Add --create-qdisc, which creates a clsact qdisc for the time of the run.",
    )
