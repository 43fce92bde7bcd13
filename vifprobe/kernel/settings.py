# SPDX-License-Identifier: Apache-2.0
"""Compile-time settings of `bpf/*.c`: the sizes of the tables, and the parts that are enabled."""

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

#: Bounds of the number of cells of one tap on one CPU, a power of two: as many as fit into CELLS_BYTES for all taps and
#: CPUs. One in UNSIZED_SHARE is added for keys without a size. bpf/README.md has the total memory.
CELLS = (128, 2048)
CELLS_BYTES = 16 << 20
CELL_BYTES = 64
UNSIZED_CELLS_MIN = 32
UNSIZED_SHARE = 8
#: CPUs that share a part of the overflow table, and the maximum number of parts: see `overflow_parts`.
CPUS_PER_OVERFLOW = 32
OVERFLOW_PARTS_MAX = 4
BIN_LOG_ENTRIES = 4096
#: Up to this number, tap_cpu_states (320 bytes each) are in the table `shared`. More have their own table, because
#: older kernels limit a value to 4 MiB (KMALLOC_MAX_SIZE; kernel/bpf/arraymap.c, array_map_alloc_check).
TAP_CPU_STATES_SHARED = 4096
#: Up to this number of taps, syn_states (96 KiB each) are in `shared`.
SYN_STATES_SHARED = 16
#: Ring entries of all CPUs for unread samples, 192 bytes each, and the bounds of one CPU's share.
SAMPLES_WAITING = 16384
SAMPLES_PER_CPU = (1024, 8192)
#: Number of first packets of each class and verdict that are always sampled, per tap, direction and CPU; fits a byte.
SAMPLE_FIRST = 16
#: Handshakes of a tap that can be followed at once, 32 bytes each; of all taps together.
FLOWS_PER_TAP = (256, 16384)
FLOWS = 262144
#: After this number of evictions of live flows, half as many new ones are followed; a power of two.
EVICTIONS_PER_RAISE = 1024
#: Entries for inbound packets in flight, all CPUs together: the queue of a tap is 1000 packets long.
INFLIGHT_PER_TAP = 2048
INFLIGHT_MIN = 8192
INFLIGHT_MAX = 262_144


@dataclass(frozen=True)
class Settings:
    """Compile-time settings of the C source.

    - taps: number of watched taps.
    - bin_ns: width of the timeline's bins; 0 for no timeline.
    - cpus: number of possible CPUs of this machine.
    - trace: fields for the tracepoint programs, for taps without a usable tc hook; None to leave the programs out.
    - follow: fields for following inbound packets to their end. None: they count as offered, their outcome is unknown.
    - tstamp_clock: packets arrive at their skb->tstamp (BPF_PROG_TEST_RUN) instead of now.
    - samples: sample packet headers.
    - syn: measure addresses, ports and handshakes of TCP.
    - replay: include the program for a file's frames.
    - no_cmpxchg: use the ideal bucket of kernels before 5.12, even where cmpxchg exists.
    - what_ifs: number of what-if limits.
    - layer_3: the devices are tuns, whose packets have no Ethernet header (see vifprobe.model.ports).
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
        """Return the number of cells with a size of each tap on each CPU, a power of two."""
        least, most = CELLS
        return min(most, max(least, _power_of_two_within(CELLS_BYTES // (CELL_BYTES * self.cpus * self.taps))))

    @property
    def unsized_cells(self) -> int:
        """Return the number of additional cells without a size, a power of two."""
        return max(UNSIZED_CELLS_MIN, self.cells // UNSIZED_SHARE)

    @property
    def overflow_parts(self) -> int:
        """Return the number of parts of the overflow table, a power of two.

        Some CPUs share a part. With too many CPUs on one part, they would wait for each other.
        """
        return min(OVERFLOW_PARTS_MAX, _power_of_two(-(-self.cpus // CPUS_PER_OVERFLOW)))

    @property
    def tap_cpu_states(self) -> int:
        """Return the number of tap_cpu_states: one for each CPU, tap and direction."""
        return self.cpus * self.taps * len(Direction)

    @property
    def tap_slots(self) -> int:
        """Return the number of slots of the table of watched taps, a power of two."""
        return _power_of_two(max(64, 8 * self.taps))

    @property
    def samples_per_cpu(self) -> int:
        """Return the number of entries of each CPU's ring of samples, a power of two; 0 without sampling."""
        least, most = SAMPLES_PER_CPU
        return min(most, max(least, _power_of_two(SAMPLES_WAITING // max(self.cpus, 1)))) if self.samples else 0

    @property
    def flows(self) -> int:
        """Return the number of handshakes that can be followed at once on each tap, a power of two."""
        least, most = FLOWS_PER_TAP
        return min(most, max(least, _power_of_two_within(FLOWS // self.taps)))

    @property
    def inflight_rows(self) -> int:
        """Return the number of rows of the table of inbound packets in flight, a power of two."""
        return _power_of_two(min(INFLIGHT_MAX, max(INFLIGHT_MIN, self.taps * INFLIGHT_PER_TAP))) // INFLIGHT_WAYS

    def flags(self, features: Features) -> list[str]:
        """Return the compiler's -D flags."""
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
            "EVICTIONS_PER_RAISE": EVICTIONS_PER_RAISE,
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
            # -1: this kernel does not have this reason, or has no drop reasons.
            "REASON_TC_INGRESS": _or_none(features.reason_number("TC_INGRESS")),
            "REASON_NETFILTER_DROP": _or_none(features.reason_number("NETFILTER_DROP")),
            "REASON_NOT_SPECIFIED": _or_none(features.reason_number("NOT_SPECIFIED")),
            "REASON_XDP": _or_none(features.reason_number("XDP")),
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
    """Return the constants with which bpf/progs/kfree_skb.c attributes the drop of an inbound packet."""
    bits = sum(1 << number for number in features.qdisc_reasons)
    return {
        "HAS_QDISC_REASON": int(bits != 0),
        "REASON_FULL_RING": _or_none(features.reason_number("FULL_RING")),
        "QDISC_SUBSYSTEM": _or_none(features.qdisc_subsystem),
        "QDISC_REASONS_LOW": f"{bits & (1 << 64) - 1}ull",
        "QDISC_REASONS_HIGH": f"{bits >> 64 & (1 << 64) - 1}ull",
        "REASON_TC_EGRESS": _or_none(features.reason_number("TC_EGRESS")),
        "TC_EGRESS_FROM": f"{features.tc_egress[0]}u",
        "TC_EGRESS_END": f"{features.tc_egress[1]}u",
        "FREE_LIST_FROM": f"{features.free_list[0]}u",
        "FREE_LIST_END": f"{features.free_list[1]}u",
    }


def possible_cpus() -> int:
    """Return the highest possible CPU number of this kernel, plus one."""
    ranges = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(ranges.split(",")[-1].split("-")[-1]) + 1


def _or_none(number: int | None) -> int:
    return -1 if number is None else number


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _power_of_two_within(most: int) -> int:
    """Return the largest power of two that is not above `most`; 1 where there is none."""
    return 1 << max(most.bit_length() - 1, 0)
