# SPDX-License-Identifier: Apache-2.0
"""A recording through the kernel's own program: packet file and kernel side joined into a Reading."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from itertools import islice
from types import TracebackType

import numpy as np
import numpy.typing as npt

from vifprobe.analysis.findings.raised import findings
from vifprobe.analysis.findings.situation import Situation
from vifprobe.analysis.findings.thresholds import FloodThresholds
from vifprobe.analysis.flood.addresses import OwnAddresses
from vifprobe.analysis.flood.syn_tracker import SynTracker
from vifprobe.analysis.limit_state import answers_of
from vifprobe.analysis.policer import SetUp
from vifprobe.errors import CaptureError, UsageError
from vifprobe.kernel.features import read_features, require_capabilities
from vifprobe.kernel.load import Programs
from vifprobe.kernel.settings import BIN_LOG_ENTRIES, Settings, possible_cpus
from vifprobe.kernel.tables.counters import Counters
from vifprobe.kernel.testrun import LOOPBACK, SKB_MAX_BYTES, SKB_MIN_BYTES, FrameRunner, is_refused, on_one_cpu
from vifprobe.model.layout import LIMIT_TRAITS, SAMPLE, WHAT_IFS_MAX, Bucket, Charge, Direction
from vifprobe.model.reading import Limit, Reading, unsized_notes
from vifprobe.model.whatif import WhatIf, rows_of
from vifprobe.replay.notes import MAC_BYTES, WIRE_MAX_BYTES, Answers, ReplayNotes
from vifprobe.replay.packet import Packet
from vifprobe.replay.recording import PacketFile

HOOK = "test_run"
#: Packets at most between two looks at the time bins: each could end one, and the kernel's log must not run over.
_BATCH = BIN_LOG_ENTRIES // 2
#: What the first packet's time becomes in the kernel, about (a multiple of the bin): far from 0, which would be "no
#: time", and far enough below 2^63 for whatever a file can hold after it.
_ORIGIN_NS = 10**18
_SPAN_NS = 10**18

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class Replay:
    """One run through one file, in a `with` block. Counts in tables of its own; nothing of the host is touched.

    direction: which way the packets are taken to have gone. guest_macs: of a recording of both directions; what one of
    them sent is outbound, all else inbound, whatever `direction` says. limit: the declared one of each direction, as
    given by the user. charge: what the ideal bucket takes for a packet. bin_ns: width of time bins, 0 for none.
    samples: work the SYN measures out, and keep headers for take_samples(). thresholds: from which numbers on they
    raise findings. what_ifs: limits to try out, WHAT_IFS_MAX at most. Entering raises KernelError.
    """

    def __init__(
        self,
        file: PacketFile,
        direction: Direction = Direction.OUTBOUND,
        *,
        guest_macs: Sequence[bytes] = (),
        limit: Limit | None = None,
        charge: Charge = Charge.INSTALLED,
        bin_ns: int = 0,
        samples: bool = False,
        thresholds: FloodThresholds | None = None,
        what_ifs: Sequence[WhatIf] = (),
    ) -> None:
        self.file = file
        self.directions = tuple(Direction) if guest_macs else (direction,)
        self._guest_macs = tuple(guest_macs)
        self.limit = limit or Limit()
        self.notes = ReplayNotes()
        self.stopped = False
        self.problem: CaptureError | None = None
        self._charge = charge
        self.bin_ns = bin_ns
        self._with_samples = samples
        self._thresholds = thresholds
        if len(what_ifs) > WHAT_IFS_MAX:
            raise UsageError(
                f"{len(what_ifs)} --what-if limits: at most {WHAT_IFS_MAX} are possible.",
                "Each one adds work for every packet.",
            )
        self._what_ifs = tuple(what_ifs)
        self._syn_tracker: SynTracker | None = None
        self._answers = Answers()
        self._stack = ExitStack()
        self._origin_ns = _ORIGIN_NS if not bin_ns else _ORIGIN_NS - _ORIGIN_NS % bin_ns
        self._before_ns = self._shift_ns = 0
        self._batch = _BATCH

    def __enter__(self) -> Replay:
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    @property
    def origin_ns(self) -> int:
        """The first packet's time, cut off to microseconds as wall_clock() has it, on the clock of `take_bins`."""
        return self._origin_ns

    def stop(self) -> None:
        """End `run` early. Safe in a signal handler."""
        self.stopped = True
        self.file.stop()

    def run(self, batch: Callable[[], None] = lambda: None) -> None:
        """Count all packets. batch: called after each batch of them; take_bins and take_samples are to be called in it.

        A damaged file ends the run: what came before it is counted, and `problem` says it.
        """
        packets = self.file.packets()
        try:
            with on_one_cpu():
                more = True
                while more and not self.stopped:
                    more = self._run_batch(packets)
                    if self._syn_tracker is not None:
                        self._answers.look(self._syn_tracker.look())
                    batch()
        except CaptureError as error:
            self.problem = error

    def take_bins(self, final: bool = False) -> npt.NDArray[np.void]:
        """Time bins that ended since the last call, as Probe.take_bins gives them; with `final` the last ones too."""
        return self._counters.take_bins(final)

    def take_samples(self) -> npt.NDArray[np.void]:
        """Headers of the packets since the last call (rows of layout.SAMPLE); none without `samples`."""
        return np.zeros(0, SAMPLE) if self._syn_tracker is None else self._syn_tracker.take_samples()

    @property
    def lost_samples(self) -> int:
        """Packets whose headers found no place."""
        return self._counters.lost_samples

    def reading(self) -> Reading:
        """Counts so far, from the first packet's time to the latest, and what they show."""
        snapshot = self._counters.snapshot()
        missed = int(snapshot.missed_packets[0].sum())
        reading = Reading(
            tap=self.file.name,
            at=self.wall_clock(self.notes.last_ns),
            start_ns=0,
            duration_ns=self.notes.last_ns - self.notes.first_ns,
            cells=snapshot.cells,
            missed=missed,
            missed_in={direction: int(snapshot.missed_packets[0, direction]) for direction in self.directions},
            missed_bytes=int(snapshot.missed_bytes[0].sum()),
            verdicts="",
            limits=dict.fromkeys(self.directions, self.limit),
            notes=(*self._notes(missed), *unsized_notes(snapshot.cells)),
            final=True,
            directions=self.directions,
        )
        if snapshot.what_ifs is not None:
            rows = rows_of(snapshot.what_ifs[0], None, reading.tap, self._what_ifs)
            reading = replace(reading, what_ifs=tuple(rows))
        reading = replace(reading, limit_states=answers_of(reading))
        if self._syn_tracker is None:
            return reading
        self._syn_tracker.end_interval()
        flood = self._syn_tracker.floods(0, reading.cells, reading.duration_ns, final=True)
        situation = Situation(
            SetUp(self.file.name),
            reading=reading,
            directions=reading.directions,
            floods=flood,
            own_addresses=self._syn_tracker.taps[0].own_addresses,
            flood_thresholds=self._syn_tracker.taps[0].thresholds,
        )
        return replace(reading, flood=flood, findings=findings(situation))

    @staticmethod
    def wall_clock(at_ns: int) -> datetime:
        """A packet's time."""
        return (_EPOCH + timedelta(microseconds=at_ns // 1000)).astimezone()

    def _open(self) -> None:
        require_capabilities()
        settings = Settings(cpus=possible_cpus(), bin_ns=self.bin_ns, replay=True, samples=self._with_samples)
        settings = replace(settings, what_ifs=len(self._what_ifs))
        self._programs = Programs(settings, read_features())
        self._stack.callback(self._programs.close)
        self._counters = Counters(self._programs)
        self._stack.callback(self._counters.close)
        if self._counters.samples is not None:
            # A recording has time: all of them, so that what is worked out from them is exact, and the same each time.
            self._counters.samples.take_one_in(1)
            self._batch = min(self._batch, settings.samples_per_cpu // 2)
            self._syn_tracker = SynTracker(self._counters, self.directions, 1, 0, self._thresholds)
            macs = frozenset(int.from_bytes(mac, "big") for mac in self._guest_macs)
            self._syn_tracker.taps[0].tracker.know(OwnAddresses(macs, sources=("--guest-mac",) if macs else ()))
        memory = self.file.window.memory
        self._shows = {one: FrameRunner(self._programs, one, memory).show for one in self.directions}
        bytes_per_second = (self.limit.declared_bps or 0) // 8
        traits = 0
        for direction in self.directions:
            for place, limit in enumerate(self._what_ifs):
                self._programs.set_what_if(0, direction, place, limit.bucket)
            if bytes_per_second:
                bucket = Bucket(bytes_per_second, self.limit.burst_bytes or bytes_per_second, self._charge)
                self._programs.set_bucket(0, direction, bucket)
                traits |= LIMIT_TRAITS[direction]
        self._counters.watch(LOOPBACK, 0, traits)

    def _run_batch(self, packets: Iterator[Packet]) -> bool:
        """Show the next packets; False: there are no more."""
        notes, memory, before, macs = self.notes, self.file.window.memory, self.notes.packets, self._guest_macs
        show = self._shows[self.directions[0]]
        for at_ns, at, captured, length in islice(packets, self._batch):
            if not notes.packets:
                notes.first_ns = notes.last_ns = self._before_ns = at_ns
                self._shift_ns = self._origin_ns - at_ns + at_ns % 1000
            if not self._before_ns <= at_ns <= notes.first_ns + _SPAN_NS:
                at_ns = self._odd_time(at_ns)
            self._before_ns = at_ns
            if not SKB_MIN_BYTES <= captured <= SKB_MAX_BYTES and is_refused(memory[at : at + 14], captured):
                notes.refused += 1
            if captured < length:
                notes.cut += 1
            if length > WIRE_MAX_BYTES:
                notes.long += 1
            if macs:
                show = self._shows[self._direction_of(at, captured)]
            show(at, captured, length, at_ns + self._shift_ns)
            notes.packets += 1
        notes.last_ns = max(notes.last_ns, self._before_ns if notes.packets else 0)
        return notes.packets - before == self._batch

    def _direction_of(self, at: int, captured: int) -> Direction:
        """By the MACs of the frame that begins at memory[at]."""
        memory, macs = self.file.window.memory, self._guest_macs
        if captured >= 2 * MAC_BYTES and memory.startswith(macs, at + MAC_BYTES):
            return Direction.OUTBOUND
        is_to_group = memory[at] & 1  # IEEE 802: the first bit on the wire
        if captured >= MAC_BYTES and not is_to_group and not memory.startswith(macs, at):
            self.notes.strangers += 1
        return Direction.INBOUND

    def _odd_time(self, at_ns: int) -> int:
        """Return the time to use for one that is not after the last one."""
        notes = self.notes
        if abs(at_ns - notes.first_ns) > _SPAN_NS:
            notes.wild += 1
            return self._before_ns
        notes.backwards += 1
        notes.last_ns = max(notes.last_ns, self._before_ns)
        return at_ns

    def _notes(self, missed: int) -> Iterator[str]:
        if self.stopped:
            yield f"stopped after {self.notes.packets:,} packets: the rest of the file was not read"
        if len(self.directions) == 1:
            yield from self._answers.notes(self.directions[0].name.lower())
        yield from self.notes.notes(self.file.remarks, missed)
        if self.limit.declared_bps and not self.limit.burst_bytes:
            yield "no burst was given: the ideal bucket holds what the rate passes in a second, as with libvirt"
