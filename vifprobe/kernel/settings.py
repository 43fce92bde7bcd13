# SPDX-License-Identifier: Apache-2.0
"""What `bpf/*.c` are compiled for: the sizes of their tables, and what of them is wanted on this kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from vifprobe.kernel.features import (
    IP_COUNTER_MEMBERS,
    Features,
    TraceFields,
    takes_cmpxchg,
    takes_kernel_reads,
)
from vifprobe.model.layout import FLOW_WAYS, INFLIGHT_WAYS, OVERFLOW_SHAPE, Direction

#: Cells of one tap on one CPU, powers of two: as many as fit into so many bytes for all taps and CPUs, within these
#: bounds; and a part of them beside, for keys without a size. See bpf/README.md for what they add up to.
CELLS = (128, 2048)
CELLS_BYTES = 16 << 20
CELL_BYTES = 64
UNSIZED_CELLS_MIN = 32
UNSIZED_SHARE = 8
#: CPUs that share a place for what finds no cell, and how many such places there are at most: see `overflow_parts`.
CPUS_PER_OVERFLOW = 32
OVERFLOW_PARTS_MAX = 4
BIN_LOG_ENTRIES = 4096
#: Up to so many tap_cpu_states (320 bytes each) are in the table `shared`. More have their own table, because older
#: kernels take no value above 4 MiB (KMALLOC_MAX_SIZE; kernel/bpf/arraymap.c, array_map_alloc_check).
TAP_CPU_STATES_SHARED = 4096
#: Up to so many taps have their syn_states (96 KiB each) in `shared`.
SYN_STATES_SHARED = 16
#: Samples of all CPUs that wait for the reader, 192 bytes each, and how many of them are one CPU's.
SAMPLES_WAITING = 16384
SAMPLES_PER_CPU = (1024, 8192)
#: Samples of each class and verdict that are taken first, per tap, direction and CPU; a byte counts them.
SAMPLE_FIRST = 16
#: Handshakes of a tap that can be followed at once, 32 bytes each; of all taps together.
FLOWS_PER_TAP = (256, 16384)
FLOWS = 262144
#: When so many flows have taken the place of living ones, half as many new ones are followed; a power of two.
FLOW_CROWD = 1024
#: Entries for inbound packets in flight, all CPUs together: the queue of a tap is 1000 packets long.
INFLIGHT_PER_TAP = 2048
INFLIGHT_MIN = 8192
INFLIGHT_MAX = 262_144


@dataclass(frozen=True)
class Settings:
    """What the C source is compiled for.

    taps: how many are watched. bin_ns: width of the timeline's bins, 0 for no timeline. cpus: of this machine. trace:
    where the tracepoint way is wanted too, for taps that no tc hook can be had on. follow: where inbound packets are
    followed to their end; else they are counted as offered, their outcome unknown. tstamp_clock: packets come at their
    skb->tstamp (BPF_PROG_TEST_RUN), not now. samples: whether headers of some packets are kept.
    syn: whether addresses, ports and handshakes of TCP are measured.
    replay: whether the program for a file's frames is wanted.
    no_cmpxchg: the ideal bucket as on kernels before 5.12, though this one has better. what_ifs: how many limits
    are tried out. layer_3: whether the devices are tuns, whose packets have no Ethernet header (see
    vifprobe.model.ports).
    """

    taps: int = 1
    bin_ns: int = 0
    cpus: int = 0
    trace: TraceFields | None = None
    follow: TraceFields | None = None
    tstamp_clock: bool = False
    samples: bool = False
    syn: bool = False
    replay: bool = False
    no_cmpxchg: bool = False
    what_ifs: int = 0
    layer_3: bool = False

    @property
    def cells(self) -> int:
        """Slots of each tap on each CPU for cells with a size, a power of two."""
        least, most = CELLS
        return min(most, max(least, _power_of_two_within(CELLS_BYTES // (CELL_BYTES * self.cpus * self.taps))))

    @property
    def unsized_cells(self) -> int:
        """Slots beside these for cells without a size, a power of two."""
        return max(UNSIZED_CELLS_MIN, self.cells // UNSIZED_SHARE)

    @property
    def overflow_parts(self) -> int:
        """Places for what finds no cell, a power of two. Some CPUs share one: too many would wait for each other."""
        return min(OVERFLOW_PARTS_MAX, _power_of_two(-(-self.cpus // CPUS_PER_OVERFLOW)))

    @property
    def tap_cpu_states(self) -> int:
        """One a CPU, tap and direction."""
        return self.cpus * self.taps * len(Direction)

    @property
    def tap_slots(self) -> int:
        """Slots of the table of watched taps, a power of two."""
        return _power_of_two(max(64, 8 * self.taps))

    @property
    def samples_per_cpu(self) -> int:
        """Places of each CPU's ring of samples, a power of two; 0 for none."""
        least, most = SAMPLES_PER_CPU
        return min(most, max(least, _power_of_two(SAMPLES_WAITING // max(self.cpus, 1)))) if self.samples else 0

    @property
    def flows(self) -> int:
        """Handshakes of each tap that can be followed at once, a power of two."""
        least, most = FLOWS_PER_TAP
        return min(most, max(least, _power_of_two_within(FLOWS // self.taps)))

    @property
    def inflight_rows(self) -> int:
        """Rows of the table of inbound packets in flight: a power of two."""
        return _power_of_two(min(INFLIGHT_MAX, max(INFLIGHT_MIN, self.taps * INFLIGHT_PER_TAP))) // INFLIGHT_WAYS

    def flags(self, features: Features) -> list[str]:
        """The compiler's -D flags."""
        values: dict[str, int | str] = {
            "CPUS": self.cpus,
            "CPU_STATES": _power_of_two(self.cpus),
            "TAPS": self.taps,
            "BUCKETS": _power_of_two(self.taps * len(Direction)),
            "SYN_STATES": _power_of_two(self.taps * len(Direction)),
            "SYN_STATES_SHARED": int(self.syn and self.taps <= SYN_STATES_SHARED),
            "TAP_CPU_STATES": _power_of_two(self.tap_cpu_states),
            "TAP_CPU_STATES_SHARED": int(
                bool(self.bin_ns or self.samples) and self.tap_cpu_states <= TAP_CPU_STATES_SHARED
            ),
            "TAP_SLOTS": self.tap_slots,
            "CELLS": self.cells,
            "UNSIZED_CELLS": self.unsized_cells,
            "CELL_SLOTS": self.cells + self.unsized_cells,
            "OVERFLOW_PARTS": self.overflow_parts,
            "OVERFLOW_KEYS": math.prod(OVERFLOW_SHAPE),
            "BIN_NS": self.bin_ns,
            "BIN_LOG": BIN_LOG_ENTRIES,
            "SAMPLES": self.samples_per_cpu,
            "SYN_MEASURES": int(self.syn),
            "FLOW_ROWS": self.flows // FLOW_WAYS,
            "FLOW_CROWD": FLOW_CROWD,
            "SAMPLE_FIRST": SAMPLE_FIRST,
            "CLOCK_IS_TSTAMP": int(self.tstamp_clock),
            "HAS_REASON": int(features.has_drop_reason),
            "WHAT_IFS": self.what_ifs,
            "LAYER_3": int(self.layer_3),
            "HAS_CMPXCHG": int(not self.no_cmpxchg and takes_cmpxchg()),
            "HAS_IP_COUNTERS": int(
                min(features.offsets_bytes[name] for name in IP_COUNTER_MEMBERS) >= 0 and takes_kernel_reads()
            ),
            **{f"{member}_OFFSET": offset for member, offset in features.offsets_bytes.items()},
            # -1: this kernel has no such reason, or none at all.
            "REASON_TC_INGRESS": _or_none(features.reason_number("TC_INGRESS")),
            "REASON_NETFILTER_DROP": _or_none(features.reason_number("NETFILTER_DROP")),
            "TC_INGRESS_FROM": f"{features.tc_ingress[0]}u",
            "TC_INGRESS_END": f"{features.tc_ingress[1]}u",
            "NETFILTER_FROM": f"{features.netfilter[0]}u",
            "NETFILTER_END": f"{features.netfilter[1]}u",
        }
        if self.replay:
            values["REPLAY"] = 1
        values |= {"TRACEPOINTS": int(self.trace is not None), "FOLLOW_INBOUND": int(self.follow is not None)}
        fields = self.follow or self.trace
        if fields is not None:
            values |= fields.offsets_bytes
        if self.follow is not None:
            values |= {"INFLIGHT_ROWS": self.inflight_rows, **_inbound_values(features)}
        return [f"-D{name}={value}" for name, value in values.items()]


def _inbound_values(features: Features) -> dict[str, int | str]:
    """What bpf/progs/kfree_skb.c needs to know to say whose the drop of an inbound packet is."""
    bits = sum(1 << number for number in features.qdisc_reasons)
    return {
        "HAS_QDISC_REASON": int(bits != 0),
        "QDISC_REASONS_LOW": f"{bits & (1 << 64) - 1}ull",
        "QDISC_REASONS_HIGH": f"{bits >> 64 & (1 << 64) - 1}ull",
        "REASON_TC_EGRESS": _or_none(features.reason_number("TC_EGRESS")),
        "TC_EGRESS_FROM": f"{features.tc_egress[0]}u",
        "TC_EGRESS_END": f"{features.tc_egress[1]}u",
        "FREE_LIST_FROM": f"{features.free_list[0]}u",
        "FREE_LIST_END": f"{features.free_list[1]}u",
    }


def possible_cpus() -> int:
    """Highest CPU number that this kernel can ever use, plus one."""
    ranges = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(ranges.split(",")[-1].split("-")[-1]) + 1


def _or_none(number: int | None) -> int:
    return -1 if number is None else number


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _power_of_two_within(most: int) -> int:
    """The largest one; 1 where there is none."""
    return 1 << max(most.bit_length() - 1, 0)
