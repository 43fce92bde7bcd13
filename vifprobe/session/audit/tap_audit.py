# SPDX-License-Identifier: Apache-2.0
"""The audit of one watched tap: its limits, its changes, its findings."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from vifprobe.analysis.findings.raised import findings
from vifprobe.analysis.findings.situation import Sample, Situation, let_through, span
from vifprobe.analysis.flood.bursts import BurstBucket
from vifprobe.analysis.flood.syn_tracker import TapSynTracker
from vifprobe.analysis.gaps import GapTracker
from vifprobe.analysis.limit_state import Seen
from vifprobe.analysis.policer import SetUp
from vifprobe.host.declared import Declared
from vifprobe.host.limits import Installed
from vifprobe.host.net.events import Event
from vifprobe.host.net.links import Link
from vifprobe.host.ovs.meters import Meter
from vifprobe.model.layout import Direction, PacketClass, Verdict
from vifprobe.model.limits import DeclaredLimit, InstalledLimit
from vifprobe.model.reading import Cells, Finding, Limit, Reading, count, no_cells, subtract
from vifprobe.session.audit import audit
from vifprobe.session.audit.audit import Look
from vifprobe.session.audit.limit_events import limit_events
from vifprobe.session.audit.limit_states import LimitStates
from vifprobe.session.decided_earlier import DeviceCheck, Earlier

#: Time span that findings are based on; minimum time between two computations of findings.
_WINDOW_NS = 5_000_000_000
_FINDINGS_NS = 100_000_000
#: Minimum time between two looks at counters that are compared.
_GROWTH_NS = 800_000_000
_SAMPLES = 128
#: Findings that traffic has proved in any part of a run are findings of the whole run.
_REMEMBERED = ("P4", "P5", "P6", "P7", "P8", "P10", "P14", "P15", "P17", "P21", "S1", "S2", "S3", "S4", "S5", "S6")


class TapAudit:
    """Audit of one tap: limits, changes and findings. Two threads write it; each attribute has one writer."""

    def __init__(self, link: Link, limits: Mapping[Direction, Limit], found: Installed) -> None:
        self.link = link
        self.given = audit.given_limits(limits, link.name)
        self.installed = found
        self.declared: Declared | None = None
        self.meters: tuple[Meter, ...] = ()
        self.pid: int | None = None
        self.looks: tuple[Look, ...] = ()
        self._limits = _main(self._set_up())
        self.tracker = GapTracker(self._limits)
        self.limit_states = LimitStates()
        self._window: deque[tuple[int, Cells]] = deque([(time.monotonic_ns(), no_cells())])
        self._samples: deque[Sample] = deque(maxlen=_SAMPLES)
        self._last: tuple[Finding, ...] = ()
        self._last_ns = self._changed_ns = 0
        self._remembered: dict[str, Finding] = {}
        self.syn_tracker: TapSynTracker | None = None
        self.syns_pps: dict[str, float] = {}
        self.gone = False
        self._busy_ns, self._begun_ns = 0, time.monotonic_ns()
        self._received_ns = 0
        self.earlier = Earlier()
        self.device = DeviceCheck(link)
        # Each is incremented by one of the threads when new data arrive.
        self._followed_news = self._looked_news = 0

    def _set_up(self) -> SetUp:
        seen = self.looks[-1] if self.looks else None
        by_host = self.declared or Declared(problems=("not read yet",))
        declared = replace(by_host, limits=(*self._given(by_host), *by_host.limits))
        return audit.set_up(self.link, self.installed, declared, seen, self.meters)

    def _given(self, by_host: Declared) -> list[DeclaredLimit]:
        """Return the user's limits. by_host: declared by libvirt and Open vSwitch.

        One rate for both directions applies to outbound packets, unless inbound ones are limited as well: most set-ups
        police outbound packets only.
        """
        limited = {Direction.OUTBOUND, *(limit.direction for limit in by_host.limits)}
        limited |= {limit.direction for limit in self.installed.limits}
        both = len({one.direction for one in self.given}) > 1
        return [one for one in self.given if not both or one.direction in limited]

    def take(self, look: Look) -> None:
        """Take a new look. The first one and those of the last seconds are kept, also after the tap is deleted."""
        if look.gone:
            self.gone = True
            return
        before = self.looks[-1] if self.looks else Look(0, problems=("not read yet",))
        if before.counters and look.counters and look.counters.rx_packets != before.counters.rx_packets:
            self._received_ns = look.at_ns
        kept = [one for one in self.looks[1:] if look.at_ns - one.at_ns < _WINDOW_NS]
        self.looks = (*self.looks[:1], *kept, look)
        if _news_in(before) != _news_in(look):
            self._looked_news += 1

    def follow(self, events: Sequence[Event], found: Installed, passed: Mapping[Direction, int | None]) -> bool:
        """Apply events. Return True if a limit was added, removed or changed.

        - events: of this tap.
        - found: limits installed after the events.
        - passed: charged bytes that no policer dropped since the start, by direction; None where unknown.
        """
        self._followed_news += 1
        self.installed = found
        about_limits = limit_events(events, self.link.kind)
        before, now, gaps = self._limits, _main(self._set_up()), self._gaps()
        changed = self.tracker.follow(about_limits, now, time.monotonic_ns(), passed)
        self.limit_states.follow(before, now, [direction for direction, *_ in self._gaps() - gaps])
        self._limits = now
        if changed:
            self._window.clear()
            self._last_ns, self._changed_ns = 0, time.monotonic_ns()
        return changed

    def _gaps(self) -> set[tuple[Direction, int, int | None]]:
        return {(gap.direction, gap.number, gap.end_ns) for gap in self.tracker.gaps}

    def learn(self, declared: Declared, meters: tuple[Meter, ...], pid: int | None) -> None:
        """Take the declared limits, the meters, and the process that holds the tap."""
        if (self.declared, self.meters, self.pid) != (declared, meters, pid):
            self.declared, self.meters, self.pid = declared, meters, pid
            self._looked_news += 1

    def still_known(self, snapshot_ns: int) -> tuple[int, int] | None:
        """Return a value that stays equal while the findings of a tap without packets are the same.

        None where the findings must not be reused: because of packets or changes in the last seconds, or an open gap.
        """
        lasts = any(gap.end_ns is None for gap in self.tracker.gaps)
        is_settled = self.limit_states.is_settled
        if lasts or not is_settled or snapshot_ns - max(self._busy_ns, self.earlier.ended_ns) < 2 * _WINDOW_NS:
            return None
        return self._followed_news, self._looked_news

    def is_busy(self, now_ns: int) -> bool:
        """Return True if packets came in the last seconds, or can have come.

        They can have come if the run just began, the device counted some, or programs run before vifprobe's.
        """
        if any(map(self.earlier.is_there, ("tcx", "xdp", "filter"))):
            return True
        return now_ns - max(self._busy_ns, self._begun_ns, self._received_ns) < _WINDOW_NS

    def check_device(self, cells: Cells, missed: int, snapshot: tuple[int, int]) -> None:
        """Compare the counts since the start with the device's counters.

        - cells, missed: counts, and missed outbound packets.
        - snapshot: monotonic times of its begin and end.
        """
        device = self.device.is_wanted(self.looks, snapshot[0])
        if device is None:
            return
        rows = cells[cells["direction"] == Direction.OUTBOUND]
        counted = count(rows).packets + missed
        dropped = count(rows[rows["verdict"] == Verdict.DROPPED]).packets + missed
        self.device.see(device, snapshot, counted, dropped)

    @property
    def findings_ns(self) -> int:
        """Return the time of the snapshot for which findings were last computed, monotonic."""
        return self._last_ns

    def repeat(self, duration_ns: int, cells: Cells, snapshot_ns: int) -> None:
        """Record an interval without packets, which has the findings of the previous one."""
        self._samples.append(Sample(snapshot_ns - duration_ns, duration_ns, 0, 0, None, None))
        self._slide(cells, snapshot_ns)

    def _slide(self, cells: Cells, snapshot_ns: int) -> None:
        self._window.append((snapshot_ns, cells))
        while len(self._window) > 1 and snapshot_ns - self._window[0][0] > _WINDOW_NS:
            self._window.popleft()

    def limits(self, direction: Direction) -> Limit:
        """Return the declared limit of one direction: the user's, else that of libvirt and Open vSwitch."""
        given = next((one for one in self.given if one.direction is direction), None)
        main = given or self._set_up().main_declared(direction)
        return Limit() if main is None else Limit(declared_bps=main.rate_bps, burst_bytes=main.burst_bytes)

    def declared_limits(self, directions: Iterable[Direction]) -> dict[Direction, Limit]:
        """Return the declared limits of several directions."""
        return {direction: self.limits(direction) for direction in directions}

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for a reader of the findings."""
        return tuple(
            f"the first {one.number:,} times without a limit ({direction.name.lower()}, {span(one.duration_ns)} in all)"
            " have no separate finding: only the newest ones have one"
            for direction, one in self.tracker.earlier.items()
            if one.number
        )

    @property
    def declared_known(self) -> bool:
        """Return True if every place that could declare a limit was read."""
        return self.declared is not None and not self.declared.problems

    @property
    def installed_known(self) -> bool:
        """Return True if each place that could enforce a limit was read."""
        return not self.installed.problems

    def findings(
        self, reading: Reading, cells: Cells, snapshot_ns: int, reasons: Mapping[int, str]
    ) -> tuple[Finding, ...]:
        """Return the findings of a reading that ends at `snapshot_ns`.

        - cells: counts since the start of the run.
        - reasons: names of the kernel's drop reasons.
        """
        self.tracker.progress(passed_bytes(cells, reasons))
        if not reading.final:
            self._sample(reading, snapshot_ns)
            self._slide(cells, snapshot_ns)
            if len(reading.cells) or reading.missed:
                self._busy_ns = snapshot_ns
            if snapshot_ns - self._last_ns < _FINDINGS_NS:
                return self._last
        self._last, self._last_ns = findings(self._situation(reading, cells, snapshot_ns, reasons)), snapshot_ns
        now = {one.id for one in self._last}
        self._remembered |= {one.id: one for one in self._last if one.pattern in _REMEMBERED}
        if reading.final:
            earlier = [one for key, one in self._remembered.items() if key not in now]
            return (*self._last, *(one for one in earlier if not _disproved(one, reading)))
        return self._last

    def _situation(self, reading: Reading, cells: Cells, now_ns: int, reasons: Mapping[int, str]) -> Situation:
        changed = bool(self.tracker.gaps or self.tracker.installs)
        seen: Reading | None = reading
        if not reading.final or changed:
            # Packets from before a change are no evidence about the current limits.
            since_ns, before = self._window[0] if self._window else (now_ns, cells)
            seen = replace(reading, cells=subtract(cells, before), duration_ns=now_ns - since_ns)
        if seen is not None and seen.duration_ns > 0:
            syns = seen.offered(Direction.OUTBOUND, PacketClass.TCP_SYN).packets
            self.syns_pps[self.link.name] = syns / seen.duration_ns * 1e9
        known = self.situation_without_packets(reading.directions, reading.final and not changed)
        known = replace(known, reading=seen, reasons=reasons, samples=tuple(self._samples))
        if not reading.final:
            since_ns = now_ns - (seen.duration_ns if seen else 0)
            known = replace(known, ahead=tuple(one for one in known.ahead if (one.end_ns or now_ns) >= since_ns))
        if self.syn_tracker is None:
            return known
        return replace(
            known,
            floods=reading.flood if reading.final else self.syn_tracker.tracker.judged,
            bursts=self.syn_tracker.bursts,
            own_addresses=self.syn_tracker.own_addresses,
            flood_thresholds=self.syn_tracker.thresholds,
        )

    def bucket(self, direction: Direction) -> BurstBucket | None:
        """Return the installed limit as a bucket of bytes; None without a bit rate or burst."""
        limit = self._set_up().main_enforced(direction)
        if limit is None or not limit.rate_bps or not limit.at_once_bytes:
            return None
        return BurstBucket(limit.rate_bps / 8, limit.at_once_bytes)

    def situation_without_packets(self, directions: tuple[Direction, ...], whole: bool = True) -> Situation:
        """Return the situation without packets. whole: of the whole run, else of its last second."""
        then, now = self._pair(whole)
        return Situation(
            set_up=self._set_up(),
            now_ns=time.monotonic_ns(),
            growth=audit.growth(then, now) if then and now else (),
            gaps=tuple(self.tracker.gaps),
            installs=tuple(self.tracker.installs),
            installs_before=self.tracker.installs_before,
            load=audit.load(then, now) if then and now else None,
            uplink=audit.uplink(then, now) if then and now else None,
            conntrack=audit.conntrack(then, self.looks[-1], self.syns_pps) if self.looks else None,
            directions=directions,
            ahead=self.earlier.all,
            unseen={Direction.OUTBOUND: self.device.unseen},
            device_dropped={Direction.OUTBOUND: self.device.dropped if self.earlier.is_there("xdp") else 0},
        )

    def counted(self, direction: Direction) -> tuple[tuple[Seen, ...], int | None]:
        """Return what the kernel's counters show of the run, without a count of packets.

        The counts for the state of the limit, empty where the counters don't tell; and the drops of the limits, None
        where they are not counted.
        """
        then, now = self._pair(True)
        if then is None or now is None:
            return (), None
        seen = audit.counted(then, now, direction)
        return (() if seen is None else (seen,)), audit.dropped_by_limits(then, now, direction)

    def _pair(self, whole: bool) -> tuple[Look | None, Look | None]:
        """Return two looks to compare: the last one, and an earlier one (whole: the first one); None without them."""
        # A limit that was replaced counts from 0 on.
        looks = [one for one in self.looks if one.at_ns > self._changed_ns]
        if len(looks) < 2:
            return None, None
        now = looks[-1]
        if whole:
            return looks[0], now
        apart = [one for one in looks[:-1] if _GROWTH_NS <= now.at_ns - one.at_ns < _WINDOW_NS]
        return (apart[-1], now) if apart else (None, None)

    def _sample(self, reading: Reading, now_ns: int) -> None:
        direction = Direction.OUTBOUND
        policed = reading.counts(direction, Verdict.POLICED)
        loads = [one.load for one in self.looks[-2:] if one.load is not None]
        switches, cpus = None, None
        if len(loads) == 2 and loads[1].at_ns > loads[0].at_ns:
            seconds = (loads[1].at_ns - loads[0].at_ns) / 1e9
            switched = loads[1].context_switches - loads[0].context_switches
            switches = round(switched / seconds * reading.duration_ns / 1e9)
            cpus = (loads[1].busy_seconds - loads[0].busy_seconds) / seconds
        packets = reading.offered(direction).packets
        started = now_ns - reading.duration_ns
        self._samples.append(
            Sample(started, reading.duration_ns, packets, policed.packets if policed else None, switches, cpus)
        )

    def set_up(self) -> SetUp:
        """Return the declared and installed limits as they were read last."""
        return self._set_up()


def _disproved(finding: Finding, whole: Reading) -> bool:
    """Return True if the whole run, with all its addresses, disproves an interval's finding of spoofed addresses.

    The packet that proves an address may have been pending on another CPU in that interval.
    """
    flood = whole.flood.get(Direction.OUTBOUND)
    if finding.pattern != "S2" or flood is None:
        return False
    shares = [flood.value(f"{name}_share") for name in ("unknown_source", "foreign_mac", "impossible_source")]
    known = [share for share in shares if share is not None]
    return bool(known) and not any(known)


def passed_bytes(cells: Cells, reasons: Mapping[int, str]) -> dict[Direction, int | None]:
    """Return the charged bytes that no policer dropped, by direction; None where any outcome is unknown."""
    found: dict[Direction, int | None] = {}
    for direction in Direction:
        rows = cells[cells["direction"] == direction]
        known = not (rows["verdict"] == Verdict.UNKNOWN).any()
        found[direction] = count(let_through(rows, reasons)).charged_bytes if known else None
    return found


def _news_in(look: Look) -> tuple[object, ...]:
    """Return what findings of a tap without packets depend on."""
    table = audit.conntrack(None, look, {})
    return look.tcx, look.beyond, look.problems, table is not None and table.is_crowded


def _main(set_up: SetUp) -> dict[Direction, InstalledLimit | None]:
    return {direction: set_up.main_enforced(direction) for direction in Direction}
