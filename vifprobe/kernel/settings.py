# SPDX-License-Identifier: Apache-2.0
"""What `bpf/*.c` are compiled for: the sizes of their tables, and what of them is wanted on this kernel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vifprobe.kernel.features import Features, TraceFields, takes_cmpxchg
from vifprobe.layout import FLIGHT_WAYS, Direction

#: Table sizes of one watched tap, per CPU; see bpf/README.md for what they add up to.
CELLS_PER_TAP = 256
CELLS_MIN = 2048
BIN_LOG_ENTRIES = 4096
#: Desks that share a table of one value with what else every packet touches, 320 bytes each; more have one of their
#: own: older kernels take no value above 4 MiB (KMALLOC_MAX_SIZE; kernel/bpf/arraymap.c, array_map_alloc_check).
DESKS_SHARED = 4096
#: Taps whose SYN measures do, 96 KiB each.
SIDES_SHARED = 16
#: Samples of all CPUs that wait for the reader, 192 bytes each, and how many of them are one CPU's.
SAMPLES_WAITING = 16384
SAMPLES_PER_CPU = (1024, 8192)
#: Samples of each class and verdict that are taken first, per tap, direction and CPU; a byte counts them.
SAMPLE_FIRST = 16
#: Handshakes that can be followed at once, 32 bytes each.
FLOWS_PER_TAP = 16384
FLOWS = (16384, 262144)
#: When so many flows have taken the place of living ones, half as many new ones are followed; a power of two.
FLOW_CROWD = 1024
#: Inbound packets on their way that are remembered, all CPUs together: a tap's queue is 1000 packets long.
FLIGHTS_PER_TAP = 2048
FLIGHTS_MIN = 8192
FLIGHTS_MAX = 262_144


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
    are tried out.
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

    @property
    def cells_per_cpu(self) -> int:
        """Slots of each CPU's cell table: a power of two, roomy, so that a cell is found in the first slots."""
        return _power_of_two(max(CELLS_MIN, self.taps * CELLS_PER_TAP))

    @property
    def desks(self) -> int:
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
        """Handshakes of all taps that can be followed at once, a power of two."""
        least, most = FLOWS
        return min(most, max(least, _power_of_two(self.taps * FLOWS_PER_TAP)))

    @property
    def flight_rows(self) -> int:
        """Rows of the memory of inbound packets on their way: a power of two."""
        return _power_of_two(min(FLIGHTS_MAX, max(FLIGHTS_MIN, self.taps * FLIGHTS_PER_TAP))) // FLIGHT_WAYS

    def flags(self, features: Features) -> list[str]:
        """The compiler's -D flags."""
        values: dict[str, int | str] = {
            "CPUS": self.cpus,
            "LANES": _power_of_two(self.cpus),
            "TAPS": self.taps,
            "BUCKETS": _power_of_two(self.taps * len(Direction)),
            "SIDES": _power_of_two(self.taps * len(Direction)),
            "SIDES_SHARED": int(self.syn and self.taps <= SIDES_SHARED),
            "DESKS": _power_of_two(self.desks),
            "DESKS_SHARED": int(bool(self.bin_ns or self.samples) and self.desks <= DESKS_SHARED),
            "TAP_SLOTS": self.tap_slots,
            "CELLS_PER_CPU": self.cells_per_cpu,
            "BIN_NS": self.bin_ns,
            "BIN_LOG": BIN_LOG_ENTRIES,
            "SAMPLES": self.samples_per_cpu,
            "SYN_MEASURES": int(self.syn),
            "FLOWS": self.flows,
            "FLOW_CROWD": FLOW_CROWD,
            "SAMPLE_FIRST": SAMPLE_FIRST,
            "CLOCK_IS_TSTAMP": int(self.tstamp_clock),
            "HAS_REASON": int(features.has_drop_reason),
            "WHAT_IFS": self.what_ifs,
            "HAS_CMPXCHG": int(not self.no_cmpxchg and takes_cmpxchg()),
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
            values |= {"FLIGHT_ROWS": self.flight_rows, **_inbound_values(features)}
        return [f"-D{name}={value}" for name, value in values.items()]


def _inbound_values(features: Features) -> dict[str, int | str]:
    """What bpf/verdict.c needs to know to say whose the drop of an inbound packet is."""
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
