# SPDX-License-Identifier: Apache-2.0
"""Watch taps: join kernel side and host side into readings, for `vifprobe watch`, `capture` and notebooks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from types import TracebackType

import numpy as np
import numpy.typing as npt

from vifprobe.analysis.findings.thresholds import FloodThresholds
from vifprobe.analysis.policer import PolicerRow
from vifprobe.errors import UsageError
from vifprobe.host.net import netns
from vifprobe.host.net.events import Event
from vifprobe.host.net.links import Link
from vifprobe.kernel.features import Features
from vifprobe.kernel.tables.counters import Snapshot
from vifprobe.model.host_cost import HostCost
from vifprobe.model.layout import SAMPLE, WHAT_IFS_MAX, Charge, Direction
from vifprobe.model.reading import Limit, Reading
from vifprobe.model.records import SynMeasures
from vifprobe.model.whatif import WhatIf
from vifprobe.session.audit.tap_audit import TapAudit
from vifprobe.session.components import Components, ProbeConfig, make_components
from vifprobe.session.coverage import Coverage
from vifprobe.session.event_loop import EventLoop, Sink
from vifprobe.session.readings import ReadingMaker
from vifprobe.session.tap import WatchedTap

BOTH = (Direction.OUTBOUND, Direction.INBOUND)


class Probe:
    """Count the packets of some taps, from entering the ``with`` block to leaving it.

    Entering raises VifprobeError (TapError, KernelError, HostError); nothing stays attached then.

    - taps: interface names.
    - directions: counted directions.
    - netns: name, path or pid of the taps' network namespace; inside the block the calling thread is in it. None: the
      current one.
    - bin_ns: width of the timeline's bins; 0 for no timeline.
    - limits: declared limits by direction, as given by the user; None for none.
    - counter_check: called in the taps' namespace with before_attach, after_attach, before_detach and after_detach, and
      the interfaces (see vifprobe.session.counter_check); None for no check.
    - create_qdisc: on kernels without tcx, add a clsact qdisc where there is none (it keeps OVS and libvirt from adding
      their policer).
    - charge: bytes of a packet that the ideal bucket of the declared limit charges.
    - samples: maximum number of sampled headers per second; 0: none, and readings have no flood measures.
    - host: count the host's CPU time, too (vifprobe.session.host_cost).
    - thresholds: values from which flood measures raise findings; None for the defaults.
    - what_ifs: what-if limits, at most WHAT_IFS_MAX.
    - follow_inbound: follow inbound packets through the tap's queue to the driver, which gives them verdicts. Else they
      are only counted as offered. Where the kernel can't follow them, the readings' notes say so.
    - progress: called with "attaching to" or "detaching from", the number of finished taps, and that of all taps.
    """

    def __init__(
        self,
        *taps: str,
        directions: tuple[Direction, ...] = BOTH,
        netns: str | None = None,
        bin_ns: int = 0,
        limits: Mapping[Direction, Limit] | None = None,
        counter_check: Callable[[str, tuple[Link, ...]], None] | None = None,
        create_qdisc: bool = False,
        charge: Charge = Charge.INSTALLED,
        samples: int = 0,
        host: bool = False,
        thresholds: FloodThresholds | None = None,
        what_ifs: Sequence[WhatIf] = (),
        follow_inbound: bool = True,
        progress: Callable[[str, int, int], object] | None = None,
    ) -> None:
        if not taps:
            raise UsageError("no tap given.", "List the taps with `vifprobe taps`.")
        if len(what_ifs) > WHAT_IFS_MAX:
            raise UsageError(
                f"{len(what_ifs)} --what-if limits: at most {WHAT_IFS_MAX} are possible.",
                "Each one adds work for every packet.",
            )
        self._wanted = ProbeConfig(
            names=tuple(dict.fromkeys(taps)),
            directions=directions,
            bin_ns=bin_ns,
            limits=dict(limits or {}),
            create_qdisc=create_qdisc,
            charge=charge,
            samples_per_second=samples,
            host=host,
            thresholds=thresholds,
            what_ifs=tuple(what_ifs),
            follow_inbound=follow_inbound,
        )
        self._netns = netns
        self._counter_check = counter_check
        self._progress = progress
        self._stack = ExitStack()
        self._watched: tuple[WatchedTap, ...] = ()
        self._end: Snapshot | None = None
        self._stopped = False
        self._stop_write: int | None = None
        self._last_bins: npt.NDArray[np.void]
        self.start_ns = 0

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
        """Features of the running kernel, names of drop reasons included."""
        return self._parts.features

    @property
    def links(self) -> tuple[Link, ...]:
        """The watched interfaces, as they were at the start."""
        return tuple(watched.link for watched in self._watched)

    @property
    def hooks(self) -> dict[str, dict[Direction, str]]:
        """Return tap name -> direction -> hook in use: tcx, clsact, ingress or tracepoint."""
        return {
            watched.link.name: {direction: found.hook for direction, found in watched.hooks.attachments.items()}
            for watched in self._watched
        }

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Watched directions."""
        return self._wanted.directions

    @property
    def gone(self) -> tuple[str, ...]:
        """Taps that were deleted while they were watched."""
        return tuple(watched.link.name for watched in self._watched if watched.gone)

    def stop(self) -> None:
        """End `readings` early, with the last partial interval and the totals. Safe in a signal handler."""
        self._stopped = True
        if self._stop_write is not None:  # None: not open yet, entering checks the flag
            with suppress(BlockingIOError):  # the pipe is full: the stop is already in it
                os.write(self._stop_write, b"x")

    def readings(self, seconds: float = 1.0, duration_seconds: float | None = None) -> Iterator[Reading]:
        """Yield one Reading for each tap and interval.

        The run ends when the duration is over, `stop` is called or all taps are gone. Then follow a last, shorter
        interval and (``final``) the totals of the whole run. Everything is detached first, so that intervals add up to
        the totals exactly.

        A tap that is deleted ends the interval at once. Its reading is marked `gone`. Only the totals, and packets with
        a later verdict, follow it.

        - seconds: length of an interval, 0.01 or more.
        - duration_seconds: of the run; None: until `stop`.
        """
        for batch in self.intervals(seconds, duration_seconds):
            yield from batch

    def intervals(
        self, seconds: float = 1.0, duration_seconds: float | None = None, sinks: Sequence[Sink] = ()
    ) -> Iterator[tuple[Reading, ...]]:
        """Yield the readings of all taps of one interval together, as `readings` does; the totals come last.

        sinks: while one of them has not written the previous readings, an interval does not end: it gets longer, and
        no packet is lost. The end of the run does not wait for them.
        """
        if seconds < 0.01:
            raise UsageError(f"an interval of {seconds} s is too short.", "Use 10ms or more; a timeline has 1 ms bins.")
        end_ns = None if duration_seconds is None else self.start_ns + round(duration_seconds * 1e9)
        due_ns = self.start_ns + round(seconds * 1e9)
        while True:
            until_ns = due_ns if end_ns is None else min(due_ns, end_ns)
            stopped = self._event_loop.wait(until_ns, sinks)
            is_due = time.monotonic_ns() >= until_ns
            if stopped or (is_due and until_ns == end_ns):
                break
            if is_due:  # intervals that a slow reader missed are skipped, else the end would be late, too
                due_ns = max(due_ns + round(seconds * 1e9), time.monotonic_ns())
            self._parts.hooks.write_off()
            if all(sink.push() for sink in sinks):
                yield self._interval(self._maker.snapshot(patience_seconds=seconds / 2))
            else:
                for watched in self._watched:
                    if not watched.gone:
                        self._parts.hooks.renew(watched)
        yield self._interval(self._detach())
        yield self.totals()

    def totals(self) -> tuple[Reading, ...]:
        """Return the counts since the start, one Reading for each tap, marked ``final``. Exact after the end."""
        snapshot = self._end or self._parts.counters.snapshot()
        return tuple(self._maker.total(watched, snapshot) for watched in self._watched)

    def take_bins(self) -> npt.NDArray[np.void]:
        """Return the time bins that ended since the last call; all after the end.

        dtype layout.BIN; tap: index of `links`.
        """
        if self._end is not None:
            bins, self._last_bins = self._last_bins, self._last_bins[:0]
            return bins
        bins = self._parts.counters.take_bins()
        self._see_bins(bins)
        return bins

    @property
    def lost_bins(self) -> int:
        """Return the number of time bins that were overwritten before they were read."""
        return self._parts.counters.lost_bins

    def take_samples(self) -> npt.NDArray[np.void]:
        """Return the samples since the last call; all after the end. dtype layout.SAMPLE, tap: index of `links`."""
        return np.zeros(0, SAMPLE) if self._parts.syn_tracker is None else self._parts.syn_tracker.take_samples()

    @property
    def lost_samples(self) -> int:
        """Return the number of samples that were overwritten before they were read."""
        return self._parts.counters.lost_samples

    def syn_measures(self) -> SynMeasures | None:
        """Return the SYN measures of all taps and end their interval; None where they are not measured."""
        return self._parts.counters.syn_measures()

    def take_events(self) -> list[tuple[str, Event]]:
        """Return the events of the taps since the last call: (tap name, event)."""
        return self._event_loop.take()

    def take_host(self) -> list[HostCost]:
        """Return the host cost since the last call, by interval; nothing if it is not counted."""
        return [] if self._parts.host is None else self._parts.host.take()

    def audit(self, tap: str) -> TapAudit:
        """Return the audit of a watched tap's limits."""
        return next(found for found in self._parts.auditor.taps.values() if found.link.name == tap)

    def policer_rows(self) -> list[PolicerRow]:
        """Return every place that declares or enforces a limit of a watched tap."""
        return self._parts.auditor.rows()

    @property
    def gaps(self) -> tuple[Coverage, ...]:
        """Return the spans in which a tap was unwatched, because the qdisc with vifprobe's filter was replaced."""
        return tuple(gap for watched in self._watched for gap in watched.hooks.gaps)

    def close(self) -> None:
        """Detach and free everything; harmless when called again."""
        self._stack.close()

    def _open(self) -> None:
        self._stop_read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._stack.callback(os.close, self._stop_read)
        self._stack.callback(os.close, write)
        self._stack.callback(setattr, self, "_stop_write", None)
        self._stop_write = write
        if self._stopped:
            self.stop()
        if self._netns is not None:
            self._stack.callback(netns.return_to, netns.own())
            netns.enter(self._netns)
        self._parts = make_components(self._wanted, self._stack)
        self._watched = self._parts.watched
        self._start(self._parts)

    def _start(self, parts: Components) -> None:
        """Start the clock, and count from then on."""
        wanted = self._wanted
        parts.hooks.load()  # before the clock starts, because it is slow
        self._moment("before_attach")
        self.start_ns = time.monotonic_ns()
        self._maker = ReadingMaker(self.start_ns, parts, wanted.directions, wanted.what_ifs)
        self._event_loop = EventLoop(parts, self._stop_read)
        parts.programs.attach_verdicts()
        self._stack.callback(self._detach)
        parts.hooks.attach(self._stack, wanted.create_qdisc, wanted.what_ifs, partial(self._goes_on, "attaching to"))
        self._moment("after_attach")
        parts.auditor.start()
        self._stack.callback(parts.auditor.close)
        if parts.host is not None and not wanted.bin_ns:  # with time bins it was started before
            parts.host.start()

    def _goes_on(self, doing: str, done: int) -> bool:
        if self._progress is not None:
            self._progress(doing, done, len(self._watched))
        return not self._stopped

    def _moment(self, name: str) -> None:
        if self._counter_check is not None:
            self._counter_check(name, self.links)

    def _detach(self) -> Snapshot:
        """Detach every hook, once, and read the final counts."""
        if self._end is not None:
            return self._end
        with suppress(OSError):
            self._event_loop.end()
        self._moment("before_detach")
        self._parts.hooks.write_off_at_end()
        self._event_loop.tell_last_gaps()
        self._parts.hooks.detach(partial(self._goes_on, "detaching from"))
        self._last_bins = self._parts.counters.take_bins(final=True)
        self._see_bins(self._last_bins, final=True)
        if self._parts.syn_tracker is not None:
            self._parts.syn_tracker.look(final=True)
        self._end = self._maker.snapshot(final=True)
        if self._parts.host is not None:
            self._parts.host.close()
        self._moment("after_detach")
        self._parts.auditor.look()
        return self._end

    def _interval(self, snapshot: Snapshot) -> tuple[Reading, ...]:
        self._maker.end_interval(snapshot)
        readings = []
        for watched in self._watched:
            if watched.ended and not self._maker.has_news(watched, snapshot):
                continue
            readings.append(self._maker.interval(watched, snapshot))
            watched.ended = watched.gone
            if not watched.gone and readings[-1].repeats is None:
                self._parts.hooks.renew(watched)
        return tuple(readings)

    def _see_bins(self, bins: npt.NDArray[np.void], final: bool = False) -> None:
        for audit in self._parts.auditor.taps.values():
            if audit.syn_tracker is not None:
                audit.syn_tracker.add_bins(bins, {one: audit.bucket(one) for one in self._wanted.directions}, final)
