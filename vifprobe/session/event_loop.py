# SPDX-License-Identifier: Apache-2.0
"""Event loop of a run: waits for events of the watched taps, applies them at once, and lists them."""

from __future__ import annotations

import select
import time
from collections.abc import Sequence
from typing import Protocol

from vifprobe.analysis.recent import Recent
from vifprobe.errors import HostError
from vifprobe.host.net.events import Event
from vifprobe.host.net.links import Link, list_links
from vifprobe.kernel.tcx import NewLinks
from vifprobe.model.reading import Cells
from vifprobe.session.audit.limit_events import limit_events
from vifprobe.session.audit.tap_audit import passed_bytes
from vifprobe.session.components import Components
from vifprobe.session.coverage import GapTeller, LinkTeller
from vifprobe.session.tap import WatchedTap
from vifprobe.session.tap_events import is_about_limits

#: Poll interval for changes that netlink does not report: of tcx programs never, of nft only once nf_tables is loaded.
_REFRESH_NS = 1_000_000_000
#: Interval at which all limits are read again, with or without events.
_ALL_NS = 10_000_000_000
#: An interval ends this time after the event of a changed limit or a deleted tap, so that the change is shown at once.
#: All events of one change (qdisc, then filter) have arrived by then.
_CHANGE_SHOWN_NS = 30_000_000
_END_HEARD_NS = 1_000_000_000
#: Poll interval for samples that must be read before the interval ends: a CPU's ring holds at least half a second.
_LOOK_NS = 200_000_000
#: Maximum number of unread events.
KEPT = 20_000


class Sink(Protocol):
    """Consumer of the readings of a run, which can be slower than the run."""

    def fileno(self) -> int:
        """Descriptor that is writable when `push` can go on."""

    def push(self) -> bool:
        """Write as much as possible without waiting; return True when nothing is left. Raises nothing."""


class EventLoop:
    """Applies netlink events to hooks and audits, and keeps a list of them.

    - parts: components of the run.
    - stop_fd: readable as soon as the run must end.
    """

    def __init__(self, parts: Components, stop_fd: int) -> None:
        self._events = parts.events
        self._hooks = parts.hooks
        self._auditor = parts.auditor
        self._reasons = parts.features.reasons
        self._syn_tracker = parts.syn_tracker  # checked while waiting
        self._limits = parts.limits
        self._all_looked_ns = time.monotonic_ns()
        self._stop_fd = stop_fd
        self._new_links = NewLinks()
        self._seen: Recent[tuple[str, Event]] = Recent(KEPT)
        self._gap_teller, self._link_teller = GapTeller(), LinkTeller()
        self._show_by_ns: int | None = None
        self._refreshed_ns = time.monotonic_ns()

    def wait(self, until_ns: int, sinks: Sequence[Sink] = ()) -> bool:
        """Apply events until a time. Return True as soon as the run must end or all taps are gone.

        Where a limit was added, removed or changed, the wait ends at once. sinks: pushed while waiting.
        """
        left_ns, is_cut = until_ns - time.monotonic_ns(), False
        while True:  # at least once: a stop is seen even where each reading takes longer than the interval
            wait_ns = max(0, min(left_ns, _LOOK_NS) if self._syn_tracker is not None else left_ns)
            blocked = [sink for sink in sinks if not sink.push()]
            ready, _, _ = select.select([self._stop_fd, self._events.fileno()], blocked, [], wait_ns / 1e9)
            if self._stop_fd in ready:
                return True
            if self._syn_tracker is not None:
                self._syn_tracker.look_if_due()
            self.follow()
            if all(watched.gone for watched in self._hooks.watched):
                return True
            if self._show_by_ns is not None:
                until_ns, self._show_by_ns = min(until_ns, self._show_by_ns), None
                is_cut = True
            left_ns = until_ns - time.monotonic_ns()
            if left_ns <= 0:
                if is_cut:  # applying a change can take longer than the wait: later events belong to the same change
                    self.follow()
                    self._show_by_ns = None
                return False

    def follow(self, final: bool = False) -> None:
        """Apply all events up to now; with `final`, also changes that no event reports."""
        events = self._events.read()
        now_ns = time.monotonic_ns()
        is_due = self._is_refresh_due(now_ns) or final
        if not events and not is_due:
            self._tell_link_messages()
            return
        owns = {watched.number: self._own(watched, events) for watched in self._hooks.watched}
        was_gone = {watched.number for watched in self._hooks.watched if watched.gone}
        news = self._look(owns, events, now_ns, is_due)
        cells: Cells | None = None
        changed = False
        for watched in self._hooks.watched:
            own = owns[watched.number]
            was_there = watched.number not in was_gone
            if own:
                own = watched.on_events(own)
                self._tell(watched, own)
            changed |= bool(own)
            if (own or watched.number in news) and not watched.gone:
                watched.tell_apart(self._hooks.programs)
                self._hooks.count(watched)
                watched.hooks.covered()
                if cells is None and (own or watched.attribution.has_new):
                    # Without waiting for verdicts, which can take long: packets that pass in the meantime count.
                    cells = self._hooks.counters.cells_now()
                if cells is not None:
                    of_tap = cells[cells["tap"] == watched.number]
                    watched.attribution.see_late(watched.before, of_tap, self._reasons)
                if self._audit(watched, own, cells):
                    show_by_ns = (own[0].at_ns if own else now_ns) + _CHANGE_SHOWN_NS
                    self._show_by_ns = min(self._show_by_ns or show_by_ns, show_by_ns)
            has_xdp = any(watched.hooks.see_xdp(event.record.xdp) for event in own if isinstance(event.record, Link))
            if (was_there and watched.gone) or (has_xdp and not watched.gone):
                show_by_ns = now_ns + _CHANGE_SHOWN_NS
                self._show_by_ns = min(self._show_by_ns or show_by_ns, show_by_ns)
            self._tell_gaps(watched)
        if not any(watched.drop_sources.is_ambiguous for watched in self._hooks.watched):
            self._hooks.programs.unwatch_police()
        if not any(watched.needs_chains_watched for watched in self._hooks.watched):
            self._hooks.programs.unwatch_chains()
        self._tell_link_messages()
        if changed:
            self._auditor.poke()

    def end(self) -> None:
        """Apply the last events and changes, just before the hooks are detached."""
        self.follow(final=True)
        self._hear_of_ends()

    def tell_last_gaps(self) -> None:
        """List the gaps that last until the end, too."""
        self._tell_link_messages(final=True)
        for watched in self._hooks.watched:
            self._tell_gaps(watched, final=True)

    def take(self) -> list[tuple[str, Event]]:
        """Return the events since the last call: (tap name, event).

        At most the newest KEPT are returned; an `overflow` event before them has the number of the others.
        """
        left_out, seen = self._seen.left_out, self._seen.take()
        if left_out:
            tap, oldest = seen[0]
            words = f"{left_out:,} events before this one were dropped: they were not read in time"
            seen.insert(0, (tap, Event(oldest.at_ns, 0, "overflow", words)))
        return seen

    def _look(self, owns: dict[int, list[Event]], events: list[Event], now_ns: int, is_due: bool) -> set[int]:
        """Read limits again of the taps that need it, with the same few dumps for all.

        Return the numbers of the taps with changes.
        """
        if any(event.kind in ("nft_change", "overflow") for event in events):
            self._limits.forget_nft()
        there = [watched for watched in self._hooks.watched if not watched.gone]
        wanted = [watched for watched in there if is_about_limits(owns[watched.number])]
        news: set[int] = set()
        if is_due:
            news |= {watched.number for watched in there if watched.look_ahead()}
            news |= self._look_at_xdp(there)
            # While a limit is missing, or drops are attributed by guess, limits are read without a change, too.
            uneasy = [watched for watched in there if watched.attribution.guessed or self._is_away(watched)]
            news |= {watched.number for watched in uneasy}
            if now_ns - self._all_looked_ns > _ALL_NS or self._limits.is_nft_changed():
                self._all_looked_ns, uneasy = now_ns, there
            wanted += [watched for watched in uneasy if watched not in wanted]
        if not wanted:
            return news
        try:
            found = self._limits.read(watched.link for watched in wanted)
        except HostError as error:
            for watched in wanted:
                watched.note(f"limits could not be read again: {error.message}")
            return news
        return news | {watched.number for watched in wanted if watched.take(found[watched.link.ifindex])}

    def _look_at_xdp(self, there: Sequence[WatchedTap]) -> set[int]:
        """Check XDP programs of all links, and return the numbers of taps with a change.

        netlink does not report XDP programs that are attached by a BPF link (net/core/dev.c, bpf_xdp_link_attach).
        """
        if not (self._new_links.is_new() or any(watched.hooks.earlier.is_there("xdp") for watched in there)):
            return set()
        try:
            xdp = {link.ifindex: link.xdp for link in list_links()}
        except HostError:  # the next poll tries again
            return set()
        found = [watched for watched in there if watched.link.ifindex in xdp]
        return {watched.number for watched in found if watched.hooks.see_xdp(xdp[watched.link.ifindex])}

    def _is_away(self, watched: WatchedTap) -> bool:
        tracker = self._auditor.taps[watched.link.ifindex].tracker
        return any(gap.end_ns is None for gap in tracker.gaps)

    def _own(self, watched: WatchedTap, events: list[Event]) -> list[Event]:
        """Return the events for which a tap must be checked.

        Link messages without a change are not among them. They are counted and recorded, because other programs react
        to them.
        """
        own = [event for event in events if event.ifindex in (watched.link.ifindex, 0)]
        if not own or not all(event.says_nothing for event in own):
            return own
        self._tell(watched, own)
        for limit_event in limit_events(own[-1:]):
            self._auditor.taps[watched.link.ifindex].tracker.note_link_change(limit_event)
        return []

    def _tell(self, watched: WatchedTap, own: list[Event]) -> None:
        for event in own:
            listed = self._link_teller.news(event) if event.says_nothing else [event]
            self._seen.extend((watched.link.name, one) for one in listed)

    def _tell_link_messages(self, final: bool = False) -> None:
        """List the number of link messages without a change, for each series that has ended."""
        names = {watched.link.ifindex: watched.link.name for watched in self._hooks.watched}
        over = self._link_teller.over(time.monotonic_ns(), final)
        self._seen.extend((names[event.ifindex], event) for event in over)

    def _is_refresh_due(self, now_ns: int) -> bool:
        is_due = now_ns - self._refreshed_ns > _REFRESH_NS
        if is_due:
            self._refreshed_ns = now_ns
            self._limits.hear_of_nft(self._events.follow_nft())
        return is_due

    def _audit(self, watched: WatchedTap, own: list[Event], cells: Cells | None) -> bool:
        """Pass the tap's events to its audit; return True if a limit was added, removed or changed.

        cells: of all taps, read after the events; None where there are no events.
        """
        counted = watched.before if cells is None or not own else cells[cells["tap"] == watched.number]
        audit = self._auditor.taps[watched.link.ifindex]
        return audit.follow(own, watched.installed, passed_bytes(counted, self._reasons))

    def _hear_of_ends(self) -> None:
        """Wait for the kernel's message about each deleted tap, which names the process that deleted it.

        The tap can be missing some time before that message comes.
        """
        until_ns = time.monotonic_ns() + _END_HEARD_NS
        while any(watched.gone and not watched.heard_of_end for watched in self._hooks.watched):
            left_ns = until_ns - time.monotonic_ns()
            if left_ns <= 0 or not select.select([self._events.fileno()], [], [], left_ns / 1e9)[0]:
                return
            self.follow()

    def _tell_gaps(self, watched: WatchedTap, final: bool = False) -> None:
        link, tracker = watched.link, self._auditor.taps[watched.link.ifindex].tracker
        self._seen.extend(self._gap_teller.news(link.name, link.ifindex, watched.hooks.gaps, tracker.gaps, final))
