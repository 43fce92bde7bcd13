# SPDX-License-Identifier: Apache-2.0
"""The kernel's counters as numpy arrays: mapped once, read without a system call a cell.

A packet is counted when its verdict is known. The last packet of each CPU is pending on that CPU; whether its
call chain has ended is told by epochs: the reader counts the epoch up (odd: packets belong to the next even one), waits
until all chains of before have ended, counts it up again, and from then on the kernel side leaves the verdict of a
packet from before alone. So every count read here is final, and any two readings subtract exactly.

Inbound packets are counted at their end; those on their way are listed in a table of their own, and are the queue.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vifprobe.errors import KernelError
from vifprobe.kernel.barrier import Grace
from vifprobe.kernel.load import Programs
from vifprobe.kernel.tables.cells import COUNTERS, CellTable, decoded, single
from vifprobe.kernel.tables.inflight import Inflight
from vifprobe.kernel.tables.samples import Samples
from vifprobe.kernel.tables.swapped import Swapped
from vifprobe.kernel.tables.syn import SynReader
from vifprobe.kernel.tables.timeline import Bins
from vifprobe.model.layout import (
    BIN,
    EPOCHS_IN_FLIGHT,
    SAMPLE,
    TAP_PROBES,
    Direction,
    PacketClass,
    Verdict,
    cell_key_shifts,
    take_apart,
)
from vifprobe.model.records import SynMeasures

#: For the kernel side's few instructions between asking for the epoch and counting, when a packet that had passed is
#: dropped in another chain (a queue's end, say) at this very moment. Later ones it refuses, see `late_verdicts`.
LATE_VERDICT_SECONDS = 0.001
_RETRIES = 100
_VERDICT_SHIFT = cell_key_shifts()["verdict"][0]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Snapshot:
    """Cumulative counts since the tables were made.

    cells: rows of layout.CELL, every key once, all verdicts final but QUEUED: inbound packets that have no verdict yet.
    unannounced: inbound packets of which only the end was seen, by tap number: they waited since before the start, or
    were cut from a longer frame. missed_packets, missed_bytes: a header could not be read, or the packet's end went by
    unseen (see Inflight); by tap number and direction. late_verdicts: dropped after they had been settled as passed.
    recursion_misses: events that the kernel kept from the programs, see Programs. unplaced_drops: netfilter drops
    counted as policed although which chain did it could not be told. what_ifs: None where no limit is tried out, else
    packets and frame bytes (passed, stopped) by tap, direction, limit and class.
    """

    at_ns: int
    cells: Array
    missed_packets: Array
    missed_bytes: Array
    late_verdicts: int
    recursion_misses: int
    unannounced: Array
    unplaced_drops: int = 0
    what_ifs: Array | None = None

    def cells_of(self, number: int) -> Array:
        """One tap's cells, by its number."""
        begin, end = np.searchsorted(self.cells["tap"], (number, number + 1))
        rows: Array = self.cells[begin:end]
        return rows


class Counters:
    """Reads (and at the start fills) the tables that bpf/lib/tables.c declares.

    swapped: numbers of the taps whose egress is outbound; all that is read here is in the guest's directions.
    """

    def __init__(self, programs: Programs, swapped: Collection[int] = ()) -> None:
        settings, self._programs = programs.settings, programs
        self._swapped = Swapped(swapped)
        self._cells = CellTable(programs)
        self._cpu_states = programs.table("cpu_states", writable=True)[: settings.cpus]
        self._misses = programs.table("misses").reshape(settings.cpus, settings.taps, len(Direction))
        self._taps = programs.table("taps", writable=True)
        self._inflight = Inflight(programs)
        self._bins = Bins(programs) if settings.bin_ns else None
        self._what_ifs = _by_what_if(programs) if settings.what_ifs else None
        self._samples = Samples(programs) if settings.samples else None
        self._syn = SynReader(programs) if settings.syn else None
        self._grace = Grace()

    def close(self) -> None:
        """Give the tables' memory back, which keeps them in the kernel; only what is lost can be asked for after it."""
        for reader in (self._samples, self._syn, self._bins, self._inflight, self._cells):
            if reader is not None:
                reader.close()
        for table in ("_cpu_states", "_misses", "_taps", "_what_ifs"):
            self.__dict__.pop(table, None)
        self._grace.close()

    def watch(self, ifindex: int, number: int, traits: int, overhead_bytes: int = 0, mpu_bytes: int = 0) -> None:
        """Count the device from now on, under this tap number. May be called again to change the rest.

        overhead_bytes, mpu_bytes: what its outbound policer adds to a packet's charge, and the least that it charges.
        """
        slots = (ifindex + np.arange(TAP_PROBES)) & (len(self._taps) - 1)
        for slot in slots:
            if self._taps["ifindex"][slot] in (0, ifindex):
                self._taps["number"][slot] = number
                self._taps["traits"][slot] = traits
                self._taps["overhead"][slot], self._taps["mpu"][slot] = overhead_bytes, mpu_bytes
                self._taps["ifindex"][slot] = ifindex  # last: the kernel side looks at it first
                return
        raise KernelError(f"no free place for ifindex {ifindex} in the table of watched taps.")

    def snapshot(self, patience_seconds: float | None = None) -> Snapshot:
        """All counts, every one final. Takes 5 to 20 ms of waiting (see wait_for_call_chains), next to no CPU time.

        Where it would take longer than `patience_seconds`, the last packet of a CPU can be left to a later snapshot.
        """
        self._turn_epoch(patience_seconds)
        for _ in range(_RETRIES):
            before = self._cpu_states.copy()
            # Before what was written off: that is counted here when its place is taken, and would be counted twice.
            misses = self._misses.copy()
            ended = self._inflight.look().ended
            cells = self._cells.read()
            settled = self._settled(before)
            # After the cells: a packet that ends meanwhile is in neither, and comes with the next reading.
            inflight = self._inflight.look()
            # A settled packet that left its slot meanwhile may be in neither, too: look again.
            if np.array_equal(settled["sequence"], self._cpu_states["sequence"][settled["cpu"]]) and np.array_equal(
                ended, inflight.ended
            ):
                break
        else:
            raise KernelError("the counters could not be read: a pending packet changed at every look.")
        cpu_states = self._cpu_states.copy()
        open_ones = (settled, inflight.queued, inflight.ended)
        lost_packets, lost_bytes = _by_direction(inflight.lost, misses.shape[1:])
        return Snapshot(
            at_ns=time.monotonic_ns(),
            cells=self._swapped.rows(decoded(cells, *map(single, open_ones))),
            missed_packets=self._swapped.table(misses["packets"].sum(0).astype(np.int64) + lost_packets),
            missed_bytes=self._swapped.table(misses["frame_bytes"].sum(0).astype(np.int64) + lost_bytes),
            late_verdicts=int(cpu_states["late_verdicts"].sum()),
            recursion_misses=self._programs.recursion_misses,
            unannounced=misses["unannounced"].sum((0, 2)).astype(np.int64),
            unplaced_drops=int(cpu_states["unplaced_drops"].sum()),
            what_ifs=self._what_ifs_now(),
        )

    def _what_ifs_now(self) -> Array | None:
        """Counts by tap, direction, limit and class."""
        if self._what_ifs is None:
            return None
        counts = self._what_ifs
        summed = np.zeros(counts.shape[1:], [(name, np.int64, (2,)) for name in ("packets", "frame_bytes")])
        for name in summed.dtype.names or ():
            summed[name] = counts[name].sum(axis=0)
        return self._swapped.table(summed)

    def write_off(self, waiting: Callable[[Iterable[int]], Mapping[int, int]]) -> bool:
        """Find inbound packets whose end was not seen: see Inflight.write_off."""
        return self._inflight.write_off(waiting)

    def cells_now(self) -> Array:
        """The cells as they are, without waiting, as rows of layout.CELL; without packets whose verdict is open."""
        return self._swapped.rows(decoded(self._cells.read()))

    def take_bins(self, final: bool = False) -> Array:
        """Time bins that ended since the last call, as rows of layout.BIN; with `final`, the current ones too.

        The same bin can come in parts (one a CPU). `final` only once, after detaching.
        """
        if self._bins is None:
            return np.zeros(0, BIN)
        if not final:
            return self._swapped.rows(self._bins.take(self._cpu_states))
        self._turn_epoch()
        rows = self._bins.take(self._cpu_states, final)
        pending = self._bins.pending(self._settled(self._cpu_states.copy()))
        inflight = self._inflight.look()
        ongoing = self._bins.ongoing(np.concatenate([inflight.queued, inflight.ended]))
        return self._swapped.rows(np.concatenate([rows, pending, ongoing]))

    @property
    def lost_bins(self) -> int:
        """Time bins that were written over before they were taken."""
        return self._bins.lost if self._bins is not None else 0

    def settle(self) -> None:
        """Wait until packets that are in the hooks now have their verdict."""
        self._turn_epoch()

    def take_samples(self, final: bool = False) -> Array:
        """Samples since the last call, as rows of layout.SAMPLE in the order of their time; none without `samples` in
        the settings. Sets the means anew, so that what comes until the next call fits. `final`: see take_bins.
        """
        if self._samples is None:
            return np.zeros(0, SAMPLE)
        if final:
            self._turn_epoch()
        cpus = self._settled(self._cpu_states.copy())["cpu"] if final else ()
        return self._swapped.rows(self._samples.take(self._cpu_states, cpus))

    def adapt_samples(self) -> float:
        """Set the means anew, as take_samples does; how full the fullest CPU's ring is of samples not taken yet."""
        if self._samples is None:
            return 0.0
        self._samples.adapt()
        return self._samples.waiting(self._cpu_states)

    @property
    def lost_samples(self) -> int:
        """Samples that were written over before they were taken."""
        return self._samples.lost if self._samples is not None else 0

    def syn_measures(self) -> SynMeasures | None:
        """What is known of SYNs beyond their number, None without `syn` in the settings; ends an interval."""
        return None if self._syn is None else self._swapped.measures(self._syn.take())

    @property
    def samples(self) -> Samples | None:
        """To say how many samples to take; None without `samples` in the settings."""
        return self._samples

    def _turn_epoch(self, patience_seconds: float | None = None) -> None:
        """After it, packets pending from before are EPOCHS_IN_FLIGHT old, and their chains have ended.

        Where that takes longer than `patience_seconds` they stay pending: a later call goes on waiting for the same.
        """
        if not self._grace.is_pending:
            self._cpu_states["now"] += 1
        if self._grace.wait(patience_seconds):
            self._cpu_states["now"] += 1
            time.sleep(LATE_VERDICT_SECONDS)

    def _settled(self, cpu_states: Array) -> Array:
        """Pending packets whose verdict is final: passed. With their CPU."""
        age = (cpu_states["now"] - cpu_states["epoch"]).astype(np.int32)  # wraps as the kernel's does
        where = np.flatnonzero((cpu_states["skb"] != 0) & (age >= EPOCHS_IN_FLIGHT))
        names = [*COUNTERS[1:], "key", "sequence"]
        settled = np.zeros(
            len(where), [("cpu", np.int64), ("drop_key", np.uint64), *((name, np.uint64) for name in names)]
        )
        settled["cpu"] = where
        for name in names:
            settled[name] = cpu_states[name][where]
        settled["key"] |= _verdict_bits(Verdict.PASSED)
        return settled


def _by_direction(packets: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Packets and frame bytes of single packets, by tap number and direction."""
    key = take_apart(packets["key"])
    numbers, bytes_ = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    np.add.at(numbers, (key["tap"], key["direction"]), 1)
    np.add.at(bytes_, (key["tap"], key["direction"]), packets["frame_bytes"].astype(np.int64))
    return numbers, bytes_


def _by_what_if(programs: Programs) -> Array:
    """The kernel's table, by CPU, tap, direction, limit and class."""
    settings = programs.settings
    shape = (settings.cpus, settings.taps, len(Direction), settings.what_ifs, len(PacketClass))
    return programs.table("what_if_counts").reshape(shape)


def _verdict_bits(verdict: int) -> np.uint64:
    return np.uint64(verdict << _VERDICT_SHIFT)
