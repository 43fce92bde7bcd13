# SPDX-License-Identifier: Apache-2.0
"""Make readings: the difference of two snapshots of the kernel's counts, with limits, notes and findings."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import NamedTuple

from vifprobe.kernel.tables.counters import Snapshot
from vifprobe.model.host_cost import HostCost
from vifprobe.model.layout import Direction, Verdict
from vifprobe.model.ports import direction_at
from vifprobe.model.reading import Cells, Reading, no_cells, subtract, unsized_notes
from vifprobe.model.whatif import WhatIf, WhatIfCounts, WhatIfRow, rows_of
from vifprobe.session.components import Components
from vifprobe.session.drop_attribution import lost_at, lost_notes
from vifprobe.session.error_counts import ErrorCounts
from vifprobe.session.tap import WatchedTap

#: Interval at which a reading of a tap without packets is made in full; the taps' times are spread.
_WHOLE_NS = 30_000_000_000


class _Idle(NamedTuple):
    """A reading without packets, which is repeated.

    - reading: the reading.
    - known: the data that it depends on; it is repeated while these are the same.
    - due_ns: when a full reading is due, monotonic.
    """

    reading: Reading
    known: tuple[object, ...]
    due_ns: int


class ReadingMaker:
    """Makes the readings of one run.

    - start_ns: start of the run, monotonic.
    - parts: components of the run.
    - directions: watched directions.
    - what_ifs: what-if limits.
    """

    def __init__(
        self, start_ns: int, parts: Components, directions: tuple[Direction, ...], what_ifs: Sequence[WhatIf]
    ) -> None:
        self._start_ns = self._since_ns = self._last_ns = self._began_ns = start_ns
        self._at = datetime.now(timezone.utc)  # wall clock at the end of the interval
        self._directions = directions
        self._watched = parts.watched
        self._counters = parts.counters
        self._features = parts.features
        self._auditor = parts.auditor
        self._host = parts.host
        self._syn_tracker = parts.syn_tracker
        self._what_ifs = what_ifs
        self._idle: dict[int, _Idle] = {}  # by tap number

    def snapshot(self, patience_seconds: float | None = None, final: bool = False) -> Snapshot:
        """Return the counts of packets, and read the host cost of the same time."""
        if self._host is None:
            self._began_ns = time.monotonic_ns()
            return self._counters.snapshot(patience_seconds)
        self._host.turn(self._start_ns, final)
        self._began_ns = time.monotonic_ns()
        snapshot = self._counters.snapshot(patience_seconds)
        self._host.read({one.link.name: self._pid(one) for one in self._watched})
        return snapshot

    def end_interval(self, snapshot: Snapshot) -> None:
        """End an interval with this snapshot; the next calls of `interval` are for this interval."""
        self._since_ns, self._last_ns = self._last_ns, snapshot.at_ns
        self._at = datetime.now(timezone.utc)
        if self._syn_tracker is not None:
            self._syn_tracker.end_interval()

    def has_news(self, watched: WatchedTap, snapshot: Snapshot) -> bool:
        """Return True if anything was counted since the last interval: late verdicts of a deleted tap."""
        is_missed = _missed(watched, snapshot) != watched.missed_before
        return is_missed or len(subtract(snapshot.cells_of(watched.number), watched.before)) > 0

    def interval(self, watched: WatchedTap, snapshot: Snapshot) -> Reading:
        """Return the reading of the interval that ends now; once for each tap."""
        cells = snapshot.cells_of(watched.number)
        counted_missed = int(snapshot.missed_packets[watched.number, Direction.OUTBOUND])
        times = self._began_ns, snapshot.at_ns
        self._auditor.taps[watched.link.ifindex].check_device(cells, counted_missed, times)
        is_silent = self._is_silent(watched, cells, snapshot)
        if is_silent and (same := self._repeated(watched, cells, snapshot)) is not None:
            return same
        added = no_cells() if is_silent else subtract(cells, watched.before)
        reading = self._reading(watched, added, snapshot, self._since_ns)
        self._idle.pop(watched.number, None)
        if is_silent and (known := self._known(watched, snapshot)) is not None:
            due_ns = snapshot.at_ns + _WHOLE_NS // 2 + watched.number * _WHOLE_NS // 2 // len(self._watched)
            if self._auditor.taps[watched.link.ifindex].findings_ns == snapshot.at_ns:
                self._idle[watched.number] = _Idle(reading, known, due_ns)
        watched.missed_before = _missed(watched, snapshot)
        watched.errors_before = ErrorCounts.of(watched.number, snapshot)
        watched.before = cells.copy()  # a view would keep all rows of the snapshot
        watched.what_ifs_before = None if snapshot.what_ifs is None else snapshot.what_ifs[watched.number]
        return reading

    @staticmethod
    def _is_silent(watched: WatchedTap, cells: Cells, snapshot: Snapshot) -> bool:
        """Return True if nothing was counted since the last interval."""
        if len(cells) != len(watched.before) or snapshot.what_ifs is not None:
            return False
        if ErrorCounts.of(watched.number, snapshot) != watched.errors_before:
            return False
        return cells.tobytes() == watched.before.tobytes() and _missed(watched, snapshot) == watched.missed_before

    def _known(self, watched: WatchedTap, snapshot: Snapshot) -> tuple[object, ...] | None:
        """Return what a reading without packets depends on; None if it is not to be repeated."""
        audited = self._auditor.taps[watched.link.ifindex].still_known(snapshot.at_ns)
        if audited is None:
            return None
        earlier = (watched.hooks.earlier.news, watched.hooks.device.dropped, *watched.hooks.gaps[-1:])
        state = (len(watched.notes), earlier, watched.attribution.guessed, watched.gone_ns, snapshot.unplaced_drops)
        return (audited, state, self._host_notes())

    def _repeated(self, watched: WatchedTap, cells: Cells, snapshot: Snapshot) -> Reading | None:
        """Return the previous reading with new times, if no packet came and nothing changed; None otherwise."""
        idle = self._idle.get(watched.number)
        if idle is None or snapshot.at_ns >= idle.due_ns or idle.known != self._known(watched, snapshot):
            return None
        duration_ns = snapshot.at_ns - self._since_ns
        flood = idle.reading.flood
        if self._syn_tracker is not None:
            silent = self._syn_tracker.repeat(watched.number, duration_ns)
            if silent is None:
                return None
            flood = silent
        self._auditor.taps[watched.link.ifindex].repeat(duration_ns, watched.before, snapshot.at_ns)
        host = None
        if self._host is not None:
            host = self._host.of_tap(watched.link.name, self._pid(watched), 0, duration_ns)
        return replace(
            idle.reading,
            at=self._at,
            start_ns=self._since_ns - self._start_ns,
            duration_ns=duration_ns,
            host=host,
            flood=flood,
            repeats=idle.reading,
        )

    def total(self, watched: WatchedTap, snapshot: Snapshot) -> Reading:
        """Return the reading since the start."""
        return self._reading(watched, snapshot.cells_of(watched.number), snapshot, self._start_ns, final=True)

    def _reading(
        self, watched: WatchedTap, cells: Cells, snapshot: Snapshot, since_ns: int, final: bool = False
    ) -> Reading:
        audit = self._auditor.taps[watched.link.ifindex]
        missed = _missed(watched, snapshot)
        if not final:
            missed = {direction: ever - watched.missed_before.get(direction, 0) for direction, ever in missed.items()}
        errors_ever = ErrorCounts.of(watched.number, snapshot)
        errors = errors_ever if final else errors_ever.since(watched.errors_before)
        lost = lost_at(watched.number, snapshot)
        so_far, directions = snapshot.cells_of(watched.number), watched.hooks.seen(self._directions)
        reading = Reading(
            tap=watched.link.name,
            at=datetime.now(timezone.utc),
            start_ns=since_ns - self._start_ns,
            duration_ns=snapshot.at_ns - since_ns,
            cells=cells,
            missed=sum(missed.values()),
            missed_in=missed,
            missed_bytes=errors.missed_bytes,
            late_verdicts=errors.late_verdicts,
            recursion_misses=errors.recursion_misses,
            verdicts="reason" if self._features.has_drop_reason and not watched.attribution.guessed else "inferred",
            limits=watched.limits(audit.declared_limits(directions), directions),
            notes=(
                *watched.notes,
                *audit.notes,
                *unsized_notes(so_far, self._features.has_drop_reason),
                *self._drop_notes(watched, so_far, snapshot),
                *lost_notes(lost, self._features.reasons),
                *errors_ever.notes(),
                *self._host_notes(),
            ),
            directions=directions,
            final=final,
            what_ifs=() if snapshot.what_ifs is None else self._tried_out(snapshot.what_ifs, watched, final),
            queued=so_far[so_far["verdict"] == Verdict.QUEUED] if not final else no_cells(),
            untracked=int(snapshot.untracked[watched.number]) if final else 0,
            kind=watched.link.kind,
            lost_at=lost,
            gone_ns=None if watched.gone_ns is None else watched.gone_ns - self._start_ns,
        )
        reading = replace(reading, host=self._host_cost(watched, reading))
        if self._syn_tracker is not None:
            flood = self._syn_tracker.floods(watched.number, cells, reading.duration_ns, final)
            reading = replace(reading, flood=flood)
        reading = replace(reading, findings=audit.findings(reading, so_far, snapshot.at_ns, self._features.reasons))
        unwatched = {gap.direction for gap in watched.hooks.gaps if gap.touches(since_ns, snapshot.at_ns)}
        states = audit.limit_states.of(reading, audit.set_up(), unwatched, self._features.reasons)
        return replace(reading, limit_states=states)

    def _tried_out(self, counts: WhatIfCounts, watched: WatchedTap, final: bool) -> tuple[WhatIfRow, ...]:
        before = None if final else watched.what_ifs_before
        return tuple(rows_of(counts[watched.number], before, watched.link.name, self._what_ifs))

    def _drop_notes(self, watched: WatchedTap, so_far: Cells, snapshot: Snapshot) -> list[str]:
        received = so_far[so_far["direction"] == direction_at(watched.link.kind, "ingress")]
        found = watched.attribution.notes(received, self._features.reason_number("TC_INGRESS"), watched.installed)
        unplaced = snapshot.unplaced_drops
        return [*found, f"{unplaced:,} netfilter drops count as policed, by an unknown chain"] if unplaced else found

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
        return (f"host cost is not counted: {problem}",) if problem else ()

    def _pid(self, watched: WatchedTap) -> int | None:
        return self._auditor.taps[watched.link.ifindex].pid


def _missed(watched: WatchedTap, snapshot: Snapshot) -> dict[Direction, int]:
    """Return the packets of each direction since the start that are in no cell, with those that no program saw."""
    missed = dict(zip(Direction, snapshot.missed_packets[watched.number].tolist(), strict=True))
    missed[Direction.OUTBOUND] += watched.hooks.device.unseen
    return missed
