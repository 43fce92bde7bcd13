# SPDX-License-Identifier: Apache-2.0
"""The kernel's counters as numpy arrays: mapped once, read without a system call for each cell.

A packet is counted when its verdict is known. The last packet of each CPU is pending on that CPU.

Epochs show whether the call chain of a pending packet has ended. The reader increments the epoch (odd: packets belong
to the next even one). It waits until all earlier chains have ended, and increments the epoch again. From then on the
kernel side does not change the verdict of an earlier packet. So every count read here is final, and the difference of
any two readings is exact.

Inbound packets are counted when their verdict is known. Those in flight are listed in a separate table: they are the
queue.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vifprobe.errors import KernelError
from vifprobe.kernel.barrier import Grace
from vifprobe.kernel.load import Programs
from vifprobe.kernel.tables.cells import COUNTERS, CellTable, decoded, single
from vifprobe.kernel.tables.device_losses import DeviceLosses
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
from vifprobe.model.records import DEVICE_LOSS, SynMeasures

#: Covers the few instructions of the kernel side between reading the epoch and counting, for a passed packet that
#: another chain (the end of a queue, for example) drops at this moment. Later drops are refused: see `late_verdicts`.
LATE_VERDICT_SECONDS = 0.001
_RETRIES = 100
_VERDICT_SHIFT = cell_key_shifts()["verdict"][0]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Snapshot:
    """Cumulative counts since the tables were made.

    - at_ns: monotonic clock.
    - cells: rows of layout.CELL, every key once. All verdicts are final but QUEUED: inbound packets in flight.
    - missed_packets, missed_bytes: packets whose header could not be read, or whose end was not observed (see
      Inflight); by tap number and direction.
    - late_verdicts: packets dropped after they had been settled as passed.
    - recursion_misses: events for which the kernel did not run the programs, see Programs.
    - untracked: inbound packets of which only the end was observed, by tap number. They were queued before the start,
      or are segments of a longer frame.
    - unplaced_drops: netfilter drops counted as policed although the chain that dropped is unknown.
    - what_ifs: packets and frame bytes (passed, stopped) by tap, direction, limit and class. None where no what-if
      limit is set.
    - device_losses: rows of records.DEVICE_LOSS.
    """

    at_ns: int
    cells: Array
    missed_packets: Array
    missed_bytes: Array
    late_verdicts: int
    recursion_misses: int
    untracked: Array
    unplaced_drops: int = 0
    what_ifs: Array | None = None
    device_losses: Array = field(default_factory=lambda: np.zeros(0, DEVICE_LOSS))

    def cells_of(self, number: int) -> Array:
        """Return the cells of one tap, by its number."""
        begin, end = np.searchsorted(self.cells["tap"], (number, number + 1))
        rows: Array = self.cells[begin:end]
        return rows


class Counters:
    """Reader of the tables that bpf/lib/tables.c declares. Fills some of them at the start.

    All results are in the guest's directions. swapped: numbers of the taps whose egress is outbound.
    """

    def __init__(self, programs: Programs, swapped: Collection[int] = ()) -> None:
        settings, self._programs = programs.settings, programs
        self._swapped = Swapped(swapped)
        self._cells = CellTable(programs)
        self._cpu_states = programs.table("cpu_states", writable=True)[: settings.cpus]
        self._misses = programs.table("misses").reshape(settings.cpus, settings.taps, len(Direction))
        self._taps = programs.table("taps", writable=True)
        self._inflight = Inflight(programs)
        self._device_losses = DeviceLosses(programs)
        self._bins = Bins(programs) if settings.bin_ns else None
        self._what_ifs = _by_what_if(programs) if settings.what_ifs else None
        self._samples = Samples(programs) if settings.samples else None
        self._syn = SynReader(programs) if settings.syn else None
        self._grace = Grace()

    def close(self) -> None:
        """Unmap the tables, which frees them in the kernel. After this only `lost_bins` and `lost_samples` work."""
        for reader in (self._samples, self._syn, self._bins, self._inflight, self._device_losses, self._cells):
            if reader is not None:
                reader.close()
        for table in ("_cpu_states", "_misses", "_taps", "_what_ifs"):
            self.__dict__.pop(table, None)
        self._grace.close()

    def watch(self, ifindex: int, number: int, traits: int, overhead_bytes: int = 0, mpu_bytes: int = 0) -> None:
        """Count the device from now on, under this tap number. A later call with the same ifindex changes the rest.

        - ifindex: of the device.
        - number: tap number.
        - traits: bits of layout.TapTrait.
        - overhead_bytes: added by the outbound policer to the charge of each packet.
        - mpu_bytes: minimum charge of the outbound policer.
        """
        slots = (ifindex + np.arange(TAP_PROBES)) & (len(self._taps) - 1)
        for slot in slots:
            if self._taps["ifindex"][slot] in (0, ifindex):
                self._taps["number"][slot] = number
                self._taps["traits"][slot] = traits
                self._taps["overhead"][slot], self._taps["mpu"][slot] = overhead_bytes, mpu_bytes
                self._taps["ifindex"][slot] = ifindex  # last: the kernel side compares it first
                return
        raise KernelError(f"no free place for ifindex {ifindex} in the table of watched taps.")

    def snapshot(self, patience_seconds: float | None = None) -> Snapshot:
        """Return all counts, every one final.

        Waits for 5 to 20 ms (see wait_for_call_chains) and uses hardly any CPU time. Where the wait would exceed
        `patience_seconds` (None: no limit), the last packet of a CPU can be left to a later snapshot.
        """
        self._turn_epoch(patience_seconds)
        for _ in range(_RETRIES):
            before = self._cpu_states.copy()
            # Read before the entries written off: when such an entry is reused, it is counted here, and would be
            # counted twice.
            misses = self._misses.copy()
            ended = self._inflight.look().ended
            cells = self._cells.read()
            settled = self._settled(before)
            # Read after the cells: a packet that ends in between is in neither, and comes with the next reading.
            inflight = self._inflight.look()
            # A settled packet that left its slot in between can be in neither, too: read again.
            if np.array_equal(settled["sequence"], self._cpu_states["sequence"][settled["cpu"]]) and np.array_equal(
                ended, inflight.ended
            ):
                break
        else:
            raise KernelError(
                f"the counters could not be read: a pending packet changed during each of {_RETRIES} reads."
            )
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
            untracked=misses["untracked"].sum((0, 2)).astype(np.int64),
            unplaced_drops=int(cpu_states["unplaced_drops"].sum()),
            what_ifs=self._what_ifs_now(),
            device_losses=self._device_losses.read(),
        )

    def _what_ifs_now(self) -> Array | None:
        """Return the what-if counts by tap, direction, limit and class; None without what-if limits."""
        if self._what_ifs is None:
            return None
        counts = self._what_ifs
        summed = np.zeros(counts.shape[1:], [(name, np.int64, (2,)) for name in ("packets", "frame_bytes")])
        for name in summed.dtype.names or ():
            summed[name] = counts[name].sum(axis=0)
        return self._swapped.table(summed)

    def write_off(self, waiting: Callable[[Iterable[int]], Mapping[int, int]]) -> bool:
        """Find inbound packets whose end was not observed: see Inflight.write_off."""
        return self._inflight.write_off(waiting)

    def cells_now(self) -> Array:
        """Return the current cells as rows of layout.CELL, without waiting; packets without a verdict are left out."""
        return self._swapped.rows(decoded(self._cells.read()))

    def take_bins(self, final: bool = False) -> Array:
        """Return time bins that ended since the last call, as rows of layout.BIN; with `final`, the open ones too.

        The same bin can come in parts (one for each CPU). Use `final` only once, after detaching.
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
        """Return the number of time bins that were overwritten before they were read."""
        return self._bins.lost if self._bins is not None else 0

    def settle(self) -> None:
        """Wait until all packets now in the hooks have their verdict."""
        self._turn_epoch()

    def take_samples(self, final: bool = False) -> Array:
        """Return the samples since the last call, as rows of layout.SAMPLE ordered by time.

        Returns none without `samples` in the settings. Adapts the means, so that the samples until the next call fit
        into the rings. `final`: see take_bins.
        """
        if self._samples is None:
            return np.zeros(0, SAMPLE)
        if final:
            self._turn_epoch()
        cpus = self._settled(self._cpu_states.copy())["cpu"] if final else ()
        return self._swapped.rows(self._samples.take(self._cpu_states, cpus))

    def adapt_samples(self) -> float:
        """Adapt the means, as take_samples does. Return the used fraction of the fullest CPU's ring, 0 to 1."""
        if self._samples is None:
            return 0.0
        self._samples.adapt()
        return self._samples.waiting(self._cpu_states)

    @property
    def lost_samples(self) -> int:
        """Return the number of samples that were overwritten before they were read."""
        return self._samples.lost if self._samples is not None else 0

    def syn_measures(self) -> SynMeasures | None:
        """Return the SYN measures and end their interval; None without `syn` in the settings."""
        return None if self._syn is None else self._swapped.measures(self._syn.take())

    @property
    def samples(self) -> Samples | None:
        """The reader of samples, on which sampling rates are set; None without `samples` in the settings."""
        return self._samples

    def _turn_epoch(self, patience_seconds: float | None = None) -> None:
        """Increment the epoch: packets that were pending before are EPOCHS_IN_FLIGHT old, their chains have ended.

        Where that takes longer than `patience_seconds` they stay pending: a later call continues the same wait.
        """
        if not self._grace.is_pending:
            self._cpu_states["now"] += 1
        if self._grace.wait(patience_seconds):
            self._cpu_states["now"] += 1
            time.sleep(LATE_VERDICT_SECONDS)

    def _settled(self, cpu_states: Array) -> Array:
        """Return pending packets whose verdict is final: passed. Each row has its CPU."""
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
    """Return packets and frame bytes of single packets, by tap number and direction."""
    key = take_apart(packets["key"])
    numbers, bytes_ = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    np.add.at(numbers, (key["tap"], key["direction"]), 1)
    np.add.at(bytes_, (key["tap"], key["direction"]), packets["frame_bytes"].astype(np.int64))
    return numbers, bytes_


def _by_what_if(programs: Programs) -> Array:
    """Return the kernel's table, by CPU, tap, direction, limit and class."""
    settings = programs.settings
    shape = (settings.cpus, settings.taps, len(Direction), settings.what_ifs, len(PacketClass))
    return programs.table("what_if_counts").reshape(shape)


def _verdict_bits(verdict: int) -> np.uint64:
    return np.uint64(verdict << _VERDICT_SHIFT)
