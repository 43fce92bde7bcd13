# SPDX-License-Identifier: Apache-2.0
"""Watch taps: joins kernel side and host side into readings. What `vifprobe watch` and `capture` and notebooks use."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import datetime, timezone
from types import TracebackType

import numpy as np
import numpy.typing as npt

from vifprobe.analysis.host_cost import HostCost
from vifprobe.analysis.policer import PolicerRow
from vifprobe.analysis.reading import Cells, Limit, Reading, no_cells, subtract
from vifprobe.analysis.thresholds import FloodThresholds
from vifprobe.analysis.whatif import WhatIf, WhatIfCounts, WhatIfRow, rows_of
from vifprobe.auditor import Auditor, TapAudit, passed_bytes
from vifprobe.coverage import Coverage, GapTeller
from vifprobe.errors import HostError, UsageError
from vifprobe.forensics import Forensics
from vifprobe.host import netns
from vifprobe.host.events import Event, Events
from vifprobe.host.limits import installed_of
from vifprobe.host.links import Link, find_link
from vifprobe.host.tc import waiting_of
from vifprobe.host_cost import HostCollector
from vifprobe.kernel.attach import has_tcx
from vifprobe.kernel.build import make_programs
from vifprobe.kernel.counters import Counters, Snapshot
from vifprobe.kernel.features import Features, read_features, read_trace_fields, require_capabilities
from vifprobe.kernel.settings import Settings, possible_cpus
from vifprobe.layout import SAMPLE, WHAT_IFS_MAX, Charge, Direction, Verdict
from vifprobe.records import SynMeasures
from vifprobe.watched import WatchedTap

BOTH = (Direction.OUTBOUND, Direction.INBOUND)


#: Limits are read again this often even if netlink tells of no change: of tcx programs it never does, and of nft only
#: once nf_tables is there to be listened to.
_REFRESH_NS = 1_000_000_000
#: An interval ends so soon after it was told that a limit came, went or changed, for that to be seen at once; what
#: belongs to the same change (qdisc, then filter) has arrived by then.
_CHANGE_SHOWN_NS = 30_000_000
_END_HEARD_NS = 1_000_000_000
#: So often it is looked whether samples must be taken before the interval ends: a CPU's ring holds half a second of
#: them at least.
_LOOK_NS = 200_000_000
#: Inbound packets that are on their way at the end are looked at so often, for those whose end was not seen.
_LOOKS_AT_END = 4
_LOOK_APART_SECONDS = 0.003


class Probe:
    """Counts what goes through some taps, from entering the ``with`` block to leaving it.

    taps: interface names. directions: which hooks. netns: name, path or pid of the network namespace that the taps are
    in; the calling thread is in it inside the block. bin_ns: width of the timeline's bins, 0 for none. limits: declared
    limits by direction, as given by the user. bracket: called in the taps' namespace with before_attach, after_attach,
    before_detach and after_detach, and the interfaces (see vifprobe.bracket). create_qdisc: on kernels without tcx, add
    a clsact qdisc where there is none (it keeps OVS and libvirt from adding their policer). charge: what the ideal
    bucket with the declared limit takes for a packet. samples: how many packets' headers to keep a second at most, 0
    for none: readings have no flood measures then. host: count what the host does, too (vifprobe.host_cost).
    thresholds: from which numbers on flood measures raise findings. what_ifs: limits to try out, WHAT_IFS_MAX at
    most.

    follow_inbound: follow inbound packets, where they are watched, through the tap's queue to the driver, so that they
    have verdicts; else they are counted as offered alone. Where this kernel can't, readings' notes say so.

    Entering raises VifprobeError (TapError, KernelError, HostError), and nothing is left attached then.
    """

    def __init__(
        self,
        *taps: str,
        directions: tuple[Direction, ...] = BOTH,
        netns: str | None = None,
        bin_ns: int = 0,
        limits: Mapping[Direction, Limit] | None = None,
        bracket: Callable[[str, tuple[Link, ...]], None] | None = None,
        create_qdisc: bool = False,
        charge: Charge = Charge.INSTALLED,
        samples: int = 0,
        host: bool = False,
        thresholds: FloodThresholds | None = None,
        what_ifs: Sequence[WhatIf] = (),
        follow_inbound: bool = True,
    ) -> None:
        if not taps:
            raise UsageError("no tap is named.", "List the taps with `vifprobe taps`.")
        if len(what_ifs) > WHAT_IFS_MAX:
            raise UsageError(f"{len(what_ifs)} limits to try out.", f"At most {WHAT_IFS_MAX}: each costs every packet.")
        self._follow_inbound = follow_inbound
        self._names = tuple(dict.fromkeys(taps))
        self._directions = directions
        self._netns = netns
        self._bin_ns = bin_ns
        self._limits = dict(limits or {})
        self._bracket = bracket
        self._create_qdisc = create_qdisc
        self._charge = charge
        self._samples_per_second = samples
        self._with_host = host
        self._host: HostCollector | None = None
        self._thresholds = thresholds
        self._forensics: Forensics | None = None
        self._what_ifs = tuple(what_ifs)
        self._stack = ExitStack()
        self._watched: list[WatchedTap] = []
        self._seen: list[tuple[str, Event]] = []
        self._gap_teller = GapTeller()
        self._end: Snapshot | None = None
        self._stopped = False
        self._last_bins: npt.NDArray[np.void]
        self._show_by_ns: int | None = None
        self.start_ns = self._last_ns = self._refreshed_ns = 0

    def __enter__(self) -> Probe:
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def features(self) -> Features:
        """What the running kernel can do, drop reason names included."""
        return self._features

    @property
    def links(self) -> tuple[Link, ...]:
        """The watched interfaces, as they were at the start."""
        return tuple(watched.link for watched in self._watched)

    @property
    def hooks(self) -> dict[str, dict[Direction, str]]:
        """Tap name -> direction -> hook in use: tcx, clsact, ingress."""
        return {
            watched.link.name: {direction: found.hook for direction, found in watched.attachments.items()}
            for watched in self._watched
        }

    @property
    def directions(self) -> tuple[Direction, ...]:
        """What is watched."""
        return self._directions

    @property
    def gone(self) -> tuple[str, ...]:
        """Taps that were deleted while they were watched."""
        return tuple(watched.link.name for watched in self._watched if watched.gone)

    def stop(self) -> None:
        """End `readings` early, with the last partial interval and the totals. Safe in a signal handler."""
        self._stopped = True
        with suppress(AttributeError):  # not open yet: the first wait sees the flag
            os.write(self._stop_write, b"x")

    def readings(self, seconds: float = 1.0, duration_seconds: float | None = None) -> Iterator[Reading]:
        """One Reading a tap and interval, until the duration is over, `stop` is called or all taps are gone.

        Then the rest as a shorter interval, then (``final``) the totals of the whole run: everything is detached first,
        so that totals and intervals add up to the packet. seconds: 0.01 and more.
        """
        if seconds < 0.01:
            raise UsageError(f"an interval of {seconds} s is too short.", "Use 10ms or more; a timeline has 1 ms bins.")
        end_ns = None if duration_seconds is None else self.start_ns + round(duration_seconds * 1e9)
        due_ns = self.start_ns + round(seconds * 1e9)
        while True:
            until_ns = due_ns if end_ns is None else min(due_ns, end_ns)
            stopped = self._wait(until_ns)
            is_due = time.monotonic_ns() >= until_ns
            if stopped or (is_due and until_ns == end_ns):
                break
            if is_due:  # what a slow reader is late for is left out, or the end would come late, too
                due_ns = max(due_ns + round(seconds * 1e9), time.monotonic_ns())
            self._write_off()
            yield from self._interval(self._snapshot(patience_seconds=seconds / 2))
        yield from self._interval(self._detach())
        yield from self.totals()

    def totals(self) -> tuple[Reading, ...]:
        """Counts since the start, one Reading a tap, marked ``final``. After the end: the exact totals."""
        snapshot = self._end or self._counters.snapshot()
        return tuple(
            self._reading(watched, self._cells_of(snapshot, watched), snapshot, self.start_ns, final=True)
            for watched in self._watched
        )

    def take_bins(self) -> npt.NDArray[np.void]:
        """Time bins (dtype layout.BIN, tap = place in `links`) that ended since the last call; all after the end."""
        if self._end is not None:
            bins, self._last_bins = self._last_bins, self._last_bins[:0]
            return bins
        bins = self._counters.take_bins()
        self._see_bins(bins)
        return bins

    def _see_bins(self, bins: npt.NDArray[np.void], final: bool = False) -> None:
        for audit in self._auditor.taps.values():
            if audit.forensics is not None:
                audit.forensics.add_bins(bins, {one: audit.bucket(one) for one in self._directions}, final)

    @property
    def lost_bins(self) -> int:
        """Time bins that were overwritten before they were taken."""
        return self._counters.lost_bins

    def take_samples(self) -> npt.NDArray[np.void]:
        """Sampled packets (dtype layout.SAMPLE, tap = place in `links`) since the last call; all after the end."""
        return np.zeros(0, SAMPLE) if self._forensics is None else self._forensics.take_samples()

    @property
    def lost_samples(self) -> int:
        """Samples that were written over before they were taken."""
        return self._counters.lost_samples

    def syn_measures(self) -> SynMeasures | None:
        """SYNs and handshakes of all taps; None where they are not followed. Ends the interval that it is of."""
        return self._counters.syn_measures()

    def take_events(self) -> list[tuple[str, Event]]:
        """What happened to the taps since the last call: (tap name, event)."""
        seen, self._seen = self._seen, []
        return seen

    def audit(self, tap: str) -> TapAudit:
        """What is known of the limits of a watched tap."""
        return next(found for found in self._auditor.taps.values() if found.link.name == tap)

    def policer_rows(self) -> list[PolicerRow]:
        """Every place that declares or enforces a limit of a watched tap."""
        return self._auditor.rows()

    @property
    def gaps(self) -> tuple[Coverage, ...]:
        """Spans in which a tap was not watched, because somebody replaced the qdisc that our filter was in."""
        return tuple(gap for watched in self._watched for gap in watched.gaps)

    def close(self) -> None:
        """Detach everything, free everything; harmless when called again."""
        self._stack.close()

    def _open(self) -> None:
        self._stop_read, self._stop_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._stack.callback(os.close, self._stop_read)
        self._stack.callback(os.close, self._stop_write)
        if self._netns is not None:
            self._stack.callback(netns.return_to, netns.own())
            netns.enter(self._netns)
        links = [find_link(name) for name in self._names]
        require_capabilities()
        self._features = read_features()
        inbound, traced = Direction.INBOUND in self._directions, not has_tcx(links[0].ifindex)
        fields = read_trace_fields() if (self._follow_inbound and inbound) or traced else None
        deep = self._samples_per_second > 0
        settings = Settings(
            taps=len(links),
            bin_ns=self._bin_ns,
            cpus=possible_cpus(),
            trace=fields if traced else None,
            follow=fields if self._follow_inbound and inbound else None,
            samples=deep,
            syn=deep,
            what_ifs=len(self._what_ifs),
        )
        with ThreadPoolExecutor(1) as pool:
            # The compiler runs outside Python's lock: the host side is read meanwhile.
            compiling = pool.submit(make_programs, settings, self._features)
            self._events = self._stack.enter_context(Events(link.ifindex for link in links))
            found = installed_of(links)
            self._programs = compiling.result()
        self._stack.callback(self._programs.close)
        self._counters = Counters(self._programs)
        if self._counters.samples is not None:
            self._counters.samples.per_second = self._samples_per_second
        self._stack.callback(self._counters.close)
        self._watched = [WatchedTap(link, number, found[link.ifindex]) for number, link in enumerate(links)]
        self._auditor = Auditor(links, self._limits, found)
        if self._with_host:
            self._host = HostCollector()
            self._stack.callback(self._host.close)
            if self._bin_ns:  # evidence is whole from its start on; a screen does not wait
                self._host.start()
                self._host.wait()
        if self._samples_per_second:
            self._forensics = Forensics(
                self._counters, self._directions, len(links), self._bin_ns, self._thresholds
            )
            for link, tap in zip(links, self._forensics.taps, strict=True):
                self._auditor.taps[link.ifindex].forensics = tap
        if self._programs.unfollowed:
            for watched in self._watched:
                watched.note(f"what becomes of inbound packets is not known: {self._programs.unfollowed}")
        # Before the clock starts: the verifier takes a tenth of a second and more. Followers count nothing before the
        # kernel side is told of the taps.
        self._programs.load(self._directions)
        if self._programs.settings.follow is not None:
            self._programs.attach_followers()
        self._moment("before_attach")
        self.start_ns = self._last_ns = self._refreshed_ns = time.monotonic_ns()
        self._programs.attach_verdicts()
        self._stack.callback(self._detach)
        for watched in self._watched:
            self._stack.callback(watched.detach)
            watched.attach(self._programs, self._directions, self._create_qdisc)
            watched.tell_apart(self._programs)
            watched.hold_to(self._declared(watched), self._charge, self._programs)
            watched.try_out(self._what_ifs, self._programs)
            self._counters.watch(watched.link.ifindex, watched.number, watched.traits, *watched.charge)
        self._moment("after_attach")
        self._auditor.start()
        self._stack.callback(self._auditor.close)
        if self._host is not None and not self._bin_ns:
            self._host.start()

    def _moment(self, name: str) -> None:
        if self._bracket is not None:
            self._bracket(name, self.links)

    def _wait(self, until_ns: int) -> bool:
        """Sleep until then, following what happens to the taps; True as soon as `stop` was called or all are gone.

        Where a limit came, went or changed, the wait is over at once.
        """
        left_ns, is_cut = until_ns - time.monotonic_ns(), False
        while True:  # once at least: `stop` is heard even where each reading takes longer than the interval
            wait_ns = max(0, min(left_ns, _LOOK_NS) if self._forensics is not None else left_ns)
            ready, _, _ = select.select([self._stop_read, self._events.fileno()], [], [], wait_ns / 1e9)
            if self._stop_read in ready:
                return True
            if self._forensics is not None:
                self._forensics.look_if_due()
            self._follow_events()
            if all(watched.gone for watched in self._watched):
                return True
            if self._show_by_ns is not None:
                until_ns, self._show_by_ns = min(until_ns, self._show_by_ns), None
                is_cut = True
            left_ns = until_ns - time.monotonic_ns()
            if left_ns <= 0:
                if is_cut:  # to take a change in can take longer than that: what has come meanwhile belongs to it
                    self._follow_events()
                    self._show_by_ns = None
                return False

    def _follow_events(self) -> None:
        events = self._events.read()
        now_ns = time.monotonic_ns()
        due = now_ns - self._refreshed_ns > _REFRESH_NS
        if due:
            self._refreshed_ns = now_ns
            self._events.follow_nft()
        snapshot: Snapshot | None = None
        changed = False
        for watched in self._watched:
            own = [event for event in events if event.ifindex in (watched.link.ifindex, 0)]
            if own:
                own = watched.on_events(own, self._programs)
                self._seen += [(watched.link.name, event) for event in own]
            if due and not watched.gone and watched.looked_ns < now_ns:
                watched.refresh()
            changed |= bool(own)
            if (own or due) and not watched.gone:
                watched.tell_apart(self._programs)
                self._counters.watch(watched.link.ifindex, watched.number, watched.traits, *watched.charge)
                watched.covered()
                if own and snapshot is None:
                    snapshot = self._counters.snapshot()
                cells = self._cells_of(snapshot, watched) if own and snapshot else watched.before
                audit = self._auditor.taps[watched.link.ifindex]
                if audit.follow(own, watched.installed, passed_bytes(cells, self._features.reasons)):
                    show_by_ns = (own[0].at_ns if own else now_ns) + _CHANGE_SHOWN_NS
                    self._show_by_ns = min(self._show_by_ns or show_by_ns, show_by_ns)
            self._tell_gaps(watched)
        if not any(watched.droppers.is_ambiguous for watched in self._watched):
            self._programs.unwatch_police()
        if changed:
            self._auditor.poke()

    def _hear_of_ends(self) -> None:
        """A deleted tap can't be found some time before the kernel tells of its end, and who brought it about."""
        until_ns = time.monotonic_ns() + _END_HEARD_NS
        while any(watched.gone and not watched.heard_of_end for watched in self._watched):
            left_ns = until_ns - time.monotonic_ns()
            if left_ns <= 0 or not select.select([self._events.fileno()], [], [], left_ns / 1e9)[0]:
                return
            self._follow_events()

    def _tell_gaps(self, watched: WatchedTap, final: bool = False) -> None:
        link, tracker = watched.link, self._auditor.taps[watched.link.ifindex].tracker
        self._seen += self._gap_teller.news(link.name, link.ifindex, watched.gaps, tracker.gaps, final)

    def _detach(self) -> Snapshot:
        """Take every hook off, once, and read what is then final."""
        if self._end is not None:
            return self._end
        with suppress(OSError):
            self._follow_events()
            self._hear_of_ends()
        self._moment("before_detach")
        for _ in range(_LOOKS_AT_END):
            if not self._write_off():
                break
            time.sleep(_LOOK_APART_SECONDS)
        for watched in self._watched:
            self._tell_gaps(watched, final=True)
            watched.detach()
            if not watched.gone:
                watched.refresh()  # its policers' counters
        self._programs.detach_tracepoints()
        self._programs.detach_followers()
        # Packets that were in the hooks just now still get their verdict before the last tracepoints go, too.
        self._counters.settle()
        self._programs.detach_verdicts()
        self._last_bins = self._counters.take_bins(final=True)
        self._see_bins(self._last_bins, final=True)
        if self._forensics is not None:
            self._forensics.look(final=True)
        self._end = self._snapshot(final=True)
        if self._host is not None:
            self._host.close()
        self._moment("after_detach")
        self._auditor.look()
        return self._end

    def _write_off(self) -> bool:
        """Find inbound packets whose end went by unseen; False where none is on its way."""

        def waiting(numbers: Iterable[int]) -> dict[int, int]:
            taps = {self._watched[number].link.ifindex: number for number in numbers}
            with suppress(HostError):
                return {taps[ifindex]: packets for ifindex, packets in waiting_of(taps).items()}
            return {}

        return self._counters.write_off(waiting)

    def _snapshot(self, final: bool = False, patience_seconds: float | None = None) -> Snapshot:
        """Packets, and beside them what the host did in the same time."""
        if self._host is None:
            return self._counters.snapshot(patience_seconds)
        self._host.turn(self.start_ns, final)
        snapshot = self._counters.snapshot(patience_seconds)
        self._host.read({watched.link.name: self._pid(watched) for watched in self._watched})
        return snapshot

    def _pid(self, watched: WatchedTap) -> int | None:
        return self._auditor.taps[watched.link.ifindex].pid

    def _host_cost(self, watched: WatchedTap, reading: Reading) -> HostCost | None:
        if self._host is None:
            return None
        name, pid = watched.link.name, self._pid(watched)
        if reading.final:
            return self._host.total_of_tap(name, pid)
        packets = sum(reading.offered(direction).packets for direction in self._directions)
        return self._host.of_tap(name, pid, packets, reading.duration_ns)

    def _host_notes(self) -> tuple[str, ...]:
        problem = self._host.problem if self._host is not None else ""
        return (f"what the host does is not counted: {problem}",) if problem else ()

    def take_host(self) -> list[HostCost]:
        """What the host did since the last call, by interval; nothing where it is not counted."""
        return [] if self._host is None else self._host.take()

    def _cells_of(self, snapshot: Snapshot, watched: WatchedTap) -> Cells:
        rows: Cells = snapshot.cells[snapshot.cells["tap"] == watched.number]
        return rows

    def _interval(self, snapshot: Snapshot) -> Iterator[Reading]:
        since_ns, self._last_ns = self._last_ns, snapshot.at_ns
        if self._forensics is not None:
            self._forensics.end_interval()
        for watched in self._watched:
            cells = self._cells_of(snapshot, watched)
            reading = self._reading(watched, subtract(cells, watched.before), snapshot, since_ns)
            ever = int(snapshot.missed_packets[watched.number])
            missed, watched.missed_before = ever - watched.missed_before, ever
            watched.before = cells
            watched.what_ifs_before = None if snapshot.what_ifs is None else snapshot.what_ifs[watched.number]
            yield replace(reading, missed=missed)
            # What libvirt and Open vSwitch declare is known some time after the start, and can change.
            watched.hold_to(self._declared(watched), self._charge, self._programs)
            if not watched.gone:
                self._counters.watch(watched.link.ifindex, watched.number, watched.traits, *watched.charge)

    def _tried_out(self, counts: WhatIfCounts, watched: WatchedTap, final: bool) -> tuple[WhatIfRow, ...]:
        before = None if final else watched.what_ifs_before
        return tuple(rows_of(counts[watched.number], before, watched.link.name, self._what_ifs))

    def _declared(self, watched: WatchedTap) -> dict[Direction, Limit]:
        audit = self._auditor.taps[watched.link.ifindex]
        return {direction: audit.limits(direction) for direction in self._directions}

    def _reading(
        self, watched: WatchedTap, cells: Cells, snapshot: Snapshot, since_ns: int, final: bool = False
    ) -> Reading:
        audit = self._auditor.taps[watched.link.ifindex]
        so_far = self._cells_of(snapshot, watched)
        reading = Reading(
            tap=watched.link.name,
            at=datetime.now(timezone.utc),
            start_ns=since_ns - self.start_ns,
            duration_ns=snapshot.at_ns - since_ns,
            cells=cells,
            missed=int(snapshot.missed_packets[watched.number]),
            verdicts="reason" if self._features.has_drop_reason and not watched.blame.guessed else "inferred",
            limits=watched.limits(self._declared(watched), self._directions),
            notes=(*watched.notes, *self._drop_notes(watched, so_far, snapshot), *self._host_notes()),
            directions=self._directions,
            final=final,
            what_ifs=() if snapshot.what_ifs is None else self._tried_out(snapshot.what_ifs, watched, final),
            queued=so_far[so_far["verdict"] == Verdict.QUEUED] if not final else no_cells(),
            unannounced=int(snapshot.unannounced[watched.number]) if final else 0,
        )
        reading = replace(reading, host=self._host_cost(watched, reading))
        if self._forensics is not None:
            flood = self._forensics.floods(watched.number, cells, reading.duration_ns, final)
            reading = replace(reading, flood=flood)
        return replace(reading, findings=audit.findings(reading, so_far, snapshot.at_ns, self._features.reasons))

    def _drop_notes(self, watched: WatchedTap, so_far: Cells, snapshot: Snapshot) -> list[str]:
        outbound = so_far[so_far["direction"] == Direction.OUTBOUND]
        found = watched.blame.notes(outbound, self._features.reason_number("TC_INGRESS"), watched.installed)
        unplaced = snapshot.unplaced_drops
        return [*found, f"{unplaced:,} netfilter drops count as policed, by an unknown chain"] if unplaced else found
