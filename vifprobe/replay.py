# SPDX-License-Identifier: Apache-2.0
"""A recording through the kernel's own program: joins packet file and kernel side into a Reading, as probe.py does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from itertools import islice
from types import TracebackType

import numpy as np
import numpy.typing as npt

from vifprobe.analysis.findings import findings
from vifprobe.analysis.policer import SetUp
from vifprobe.analysis.reading import Limit, Reading
from vifprobe.analysis.situation import Situation
from vifprobe.analysis.thresholds import FloodThresholds
from vifprobe.analysis.whatif import WhatIf, rows_of
from vifprobe.errors import CaptureError, UsageError
from vifprobe.forensics import Forensics
from vifprobe.kernel.build import BIN_LOG_ENTRIES, Programs, Settings, possible_cpus
from vifprobe.kernel.counters import Counters
from vifprobe.kernel.features import read_features, require_capabilities
from vifprobe.kernel.testrun import LOOPBACK, SKB_MAX_BYTES, SKB_MIN_BYTES, FrameRunner, is_refused, on_one_cpu
from vifprobe.layout import LIMIT_TRAITS, SAMPLE, WHAT_IFS_MAX, Bucket, Charge, Direction
from vifprobe.pcap.file import PacketFile
from vifprobe.pcap.packet import Packet

HOOK = "test_run"
#: Packets at most between two looks at the time bins: each could end one, and the kernel's log must not run over.
_BATCH = BIN_LOG_ENTRIES // 2
#: What the first packet's time becomes in the kernel, about (a multiple of the bin): far from 0, which would be "no
#: time", and far enough below 2^63 for whatever a file can hold after it.
_ORIGIN_NS = 10**18
_SPAN_NS = 10**18
#: IEEE 802.3: longest frame without FCS, with two tags. What is longer was put together by the sender or on the way.
_WIRE_MAX_BYTES = 1522

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass
class Tally:
    """What was noticed of the packets of a file.

    first_ns, last_ns: earliest and latest time, since 1970. backwards: earlier than the one before. wild: with a time
    years away from the first's, taken as the one before. cut: of which the file does not have all bytes. refused: that
    TEST_RUN takes only with their length beside them. long: that no wire carries in one piece.
    """

    packets: int = 0
    first_ns: int = 0
    last_ns: int = 0
    backwards: int = 0
    wild: int = 0
    cut: int = 0
    refused: int = 0
    long: int = 0


class Replay:
    """One run through one file, in a `with` block. Counts in tables of its own; nothing of the host is touched.

    direction: which way the packets are taken to have gone. limit: the declared one, as given by the user. charge: what
    the ideal bucket takes for a packet. bin_ns: width of time bins, 0 for none. samples: work the SYN measures out, and
    keep headers for take_samples(). thresholds: from which numbers on they raise findings. what_ifs: limits to try out,
    WHAT_IFS_MAX at most. Entering raises KernelError.
    """

    def __init__(
        self,
        file: PacketFile,
        direction: Direction = Direction.OUTBOUND,
        *,
        limit: Limit | None = None,
        charge: Charge = Charge.INSTALLED,
        bin_ns: int = 0,
        samples: bool = False,
        thresholds: FloodThresholds | None = None,
        what_ifs: Sequence[WhatIf] = (),
    ) -> None:
        self.file = file
        self.direction = direction
        self.limit = limit or Limit()
        self.tally = Tally()
        self.stopped = False
        self.problem: CaptureError | None = None
        self._charge = charge
        self.bin_ns = bin_ns
        self._with_samples = samples
        self._thresholds = thresholds
        if len(what_ifs) > WHAT_IFS_MAX:
            raise UsageError(f"{len(what_ifs)} limits to try out.", f"At most {WHAT_IFS_MAX}: each costs every packet.")
        self._what_ifs = tuple(what_ifs)
        self._forensics: Forensics | None = None
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
                    if self._forensics is not None:
                        self._forensics.look()
                    batch()
        except CaptureError as error:
            self.problem = error

    def take_bins(self, final: bool = False) -> npt.NDArray[np.void]:
        """Time bins that ended since the last call, as Probe.take_bins gives them; with `final` the last ones too."""
        return self._counters.take_bins(final)

    def take_samples(self) -> npt.NDArray[np.void]:
        """Headers of the packets since the last call (rows of layout.SAMPLE); none without `samples`."""
        return np.zeros(0, SAMPLE) if self._forensics is None else self._forensics.take_samples()

    @property
    def lost_samples(self) -> int:
        """Packets whose headers found no place."""
        return self._counters.lost_samples

    def reading(self) -> Reading:
        """Counts so far, from the first packet's time to the latest, and what they show."""
        snapshot = self._counters.snapshot()
        missed = int(snapshot.missed_packets[0])
        reading = Reading(
            tap=self.file.name,
            at=self.wall_clock(self.tally.last_ns),
            start_ns=0,
            duration_ns=self.tally.last_ns - self.tally.first_ns,
            cells=snapshot.cells,
            missed=missed,
            verdicts="",
            limits={self.direction: self.limit},
            notes=tuple(self._notes(missed)),
            final=True,
            directions=(self.direction,),
        )
        if snapshot.what_ifs is not None:
            rows = rows_of(snapshot.what_ifs[0], None, reading.tap, self._what_ifs)
            reading = replace(reading, what_ifs=tuple(rows))
        if self._forensics is None:
            return reading
        self._forensics.end_interval()
        flood = self._forensics.floods(0, reading.cells, reading.duration_ns, final=True)
        situation = Situation(
            SetUp(self.file.name),
            reading=reading,
            directions=reading.directions,
            floods=flood,
            own_addresses=self._forensics.taps[0].own_addresses,
            flood_thresholds=self._forensics.taps[0].thresholds,
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
            self._forensics = Forensics(self._counters, (self.direction,), 1, 0, self._thresholds)
        self._runner = FrameRunner(self._programs, self.direction, self.file.window.memory)
        for place, limit in enumerate(self._what_ifs):
            self._programs.set_what_if(0, self.direction, place, limit.bucket)
        bytes_per_second = (self.limit.declared_bps or 0) // 8
        if bytes_per_second:
            bucket = Bucket(bytes_per_second, self.limit.burst_bytes or bytes_per_second, self._charge)
            self._programs.set_bucket(0, self.direction, bucket)
        self._counters.watch(LOOPBACK, 0, int(LIMIT_TRAITS[self.direction]) if bytes_per_second else 0)

    def _run_batch(self, packets: Iterator[Packet]) -> bool:
        """Show the next packets; False: there are no more."""
        tally, show, memory, before = self.tally, self._runner.show, self.file.window.memory, self.tally.packets
        for at_ns, at, captured, length in islice(packets, self._batch):
            if not tally.packets:
                tally.first_ns = tally.last_ns = self._before_ns = at_ns
                self._shift_ns = self._origin_ns - at_ns + at_ns % 1000
            if not self._before_ns <= at_ns <= tally.first_ns + _SPAN_NS:
                at_ns = self._odd_time(at_ns)
            self._before_ns = at_ns
            if not SKB_MIN_BYTES <= captured <= SKB_MAX_BYTES and is_refused(memory[at : at + 14], captured):
                tally.refused += 1
            if captured < length:
                tally.cut += 1
            if length > _WIRE_MAX_BYTES:
                tally.long += 1
            show(at, captured, length, at_ns + self._shift_ns)
            tally.packets += 1
        tally.last_ns = max(tally.last_ns, self._before_ns if tally.packets else 0)
        return tally.packets - before == self._batch

    def _odd_time(self, at_ns: int) -> int:
        """What to take a time for that is not after the last one."""
        tally = self.tally
        if abs(at_ns - tally.first_ns) > _SPAN_NS:
            tally.wild += 1
            return self._before_ns
        tally.backwards += 1
        tally.last_ns = max(tally.last_ns, self._before_ns)
        return at_ns

    def _notes(self, missed: int) -> Iterator[str]:
        tally, remarks = self.tally, self.file.remarks
        if self.stopped:
            yield f"stopped after {tally.packets:,} packets: the rest of the file was not read"
        if remarks.cut_bytes:
            yield f"the file ends within a packet: its last {remarks.cut_bytes:,} bytes were left out"
        if remarks.lost_packets:
            yield f"whoever recorded it says that {remarks.lost_packets:,} packets were lost on the way into the file"
        if tally.cut:
            yield (
                f"{tally.cut:,} frames were recorded cut short: they count with their whole length, and by their "
                f"headers as far as those are there; of {missed:,} too little is there, they are missed"
            )
        if tally.refused:
            yield (
                f"{tally.refused:,} frames are too short or too long for BPF_PROG_TEST_RUN as they are: the same "
                "program was told their length and saw no other byte"
            )
        if tally.long:
            yield (
                f"{tally.long:,} frames are longer than Ethernet's {_WIRE_MAX_BYTES} bytes (TSO, or a larger MTU): in "
                "which segments they were sent the file does not say, each counts as one on the wire"
            )
        if tally.backwards:
            yield f"{tally.backwards:,} packets are older than the one before them: the ideal bucket saw no time pass"
        if tally.wild:
            yield f"{tally.wild:,} packets have a time years away from the first one's: taken as that of the one before"
        if remarks.without_time:
            yield f"{remarks.without_time:,} packets have no time: taken as that of the one before"
        if self.limit.declared_bps and not self.limit.burst_bytes:
            yield "no burst was given: the ideal bucket holds what the rate passes in a second, as with libvirt"
