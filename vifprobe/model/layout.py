# SPDX-License-Identifier: Apache-2.0
"""The one definition of what is counted: packet classes, ethertypes, verdicts, size buckets, and how a cell is keyed.

Values go from here to the kernel side through :func:`c_header` (``python3 -m vifprobe.model.layout > bpf/layout.h``);
nothing of it is typed a second time. Struct shapes go the other way, from the C maps' own leaf types.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag

import numpy as np
import numpy.typing as npt

from vifprobe.model.records import AGE_BUCKETS, FLOW_EXPIRES_NS, HLL_REGISTERS, PORTS, SAMPLE_HEADER_BYTES
from vifprobe.model.records import BIN as BIN
from vifprobe.model.records import CELL as CELL
from vifprobe.model.records import SAMPLE as SAMPLE
from vifprobe.model.records import SampleFlag as SampleFlag


class Direction(IntEnum):
    """As the guest sees it, like libvirt and Nova: outbound = guest -> network = tap ingress = the tap's rx.

    Of other kinds of device see vifprobe.model.ports. In the kernel's tables OUTBOUND is any device's ingress.
    """

    OUTBOUND = 0
    INBOUND = 1


class Ethertype(IntEnum):
    """The outermost EtherType, which a tc filter's ``protocol`` matches."""

    IPV4 = 0
    IPV6 = 1
    ARP = 2
    VLAN = 3
    OTHER = 4


class PacketClass(IntEnum):
    """Packet classes, in the order in which screens list them."""

    TCP_SYN = 0
    TCP_SYNACK = 1
    TCP_RST = 2
    TCP_FIN = 3
    TCP_DATA = 4
    TCP_ACK = 5
    TCP_ODD = 6
    UDP = 7
    ICMP = 8
    ICMPV6 = 9
    FRAGMENT = 10
    IP_OTHER = 11
    ARP = 12
    OTHER = 13
    MALFORMED = 14


class Verdict(IntEnum):
    """Outcome of a packet. UNKNOWN: offered, but this hook cannot learn the outcome (shown as empty or null)."""

    UNKNOWN = 0
    PASSED = 1
    POLICED = 2
    DROPPED = 3
    QUEUED = 4


class Expected(IntEnum):
    """Answer of an ideal token bucket with the declared limit for a packet. NONE: no limit to compare with."""

    NONE = 0
    CONFORM = 1
    EXCEED = 2


class Charge(IntEnum):
    """Bytes that the ideal bucket charges for a packet. INSTALLED: as the installed policer (without L2 at ingress)."""

    INSTALLED = 0
    L2 = 1
    L3 = 2
    WIRE = 3
    PACKET = 4  # 1 each: a limit of packets, not bytes (act_police's pkts_rate)


NSEC_PER_SEC = 1_000_000_000


@dataclass(frozen=True)
class Bucket:
    """The limit that an ideal token bucket holds packets to. ValueError for one that holds nothing back, or everything.

    With Charge.PACKET, packets stand where it says bytes. Tokens are nanoseconds, as in act_police.
    """

    bytes_per_second: int
    burst_bytes: int
    charge: Charge = Charge.INSTALLED

    def __post_init__(self) -> None:
        if self.bytes_per_second <= 0 or self.burst_bytes <= 0 or self.burst_ns >= 2**62:
            raise ValueError(f"no bucket: {self.bytes_per_second} byte/s, burst of {self.burst_bytes} bytes")

    @property
    def burst_ns(self) -> int:
        """Return the time that the empty bucket takes to fill."""
        return self.burst_bytes * NSEC_PER_SEC // self.bytes_per_second

    @property
    def ratio(self) -> tuple[int, int]:
        """(mult, shift): a packet costs bytes * mult >> shift nanoseconds.

        Source: net/sched/sch_generic.c, psched_ratecfg_precompute__().
        """
        factor, shift = NSEC_PER_SEC, 0
        while True:
            mult = factor // self.bytes_per_second & 0xFFFFFFFF
            if mult & 1 << 31 or factor & 1 << 63:
                return mult, shift
            factor, shift = factor << 1, shift + 1

    def cost_ns(self, charged_bytes: int) -> int:
        """Return the tokens that a packet takes (psched_l2t_ns, include/net/sch_generic.h)."""
        mult, shift = self.ratio
        return charged_bytes * mult >> shift


class TapTrait(IntFlag):
    """Traits of a tap that the kernel side needs to attribute a drop."""

    NFT_POLICER = 1  # an nft netdev ingress chain hangs on it: a netfilter drop there is its policer's
    TC_POLICER = 2  # something that can drop is at its tc ingress; asked only where the kernel gives no drop reason
    TRACED_OUTBOUND = 4  # counted by the tracepoints, where no tc hook can be had
    TRACED_INBOUND = 8
    LIMIT_OUTBOUND = 16  # held against an ideal bucket
    LIMIT_INBOUND = 32
    TC_FOREIGN = 64  # no policer is at its tc ingress, and something else that can drop
    TC_MARKED = 128  # both are, and the police action is watched (bpf/progs/police_exit.c)
    INBOUND = 256  # its inbound packets are followed to their end
    EGRESS_POLICER = 512  # a police action hangs at its tc egress: what is shot there is policed
    NFT_SHARED = 1024  # netfilter chains behind its own can drop its packets, too (bpf/lib/chains.c)


#: The trait of a tap of which a direction is held against an ideal bucket.
LIMIT_TRAITS = {Direction.OUTBOUND: TapTrait.LIMIT_OUTBOUND, Direction.INBOUND: TapTrait.LIMIT_INBOUND}


# Size buckets: log-linear, lower edges from 32 bytes, four per octave. The first bucket holds what is shorter than
# 32 bytes (a tap takes frames from 14 bytes on), the last one is open-ended: BIG TCP frames go beyond 64 KiB.
SIZE_FIRST_EDGE_BYTES = 32
SIZE_LAST_EDGE_BYTES = 65536
SIZE_STEPS_PER_OCTAVE = 4
#: In the place of a bucket's number: counted without its size, because the tap's cells had no room for another size.
SIZE_UNKNOWN = 255


def _size_edges() -> npt.NDArray[np.int64]:
    edges = [0]
    octave = SIZE_FIRST_EDGE_BYTES
    while octave < SIZE_LAST_EDGE_BYTES:
        edges += [octave + octave * step // SIZE_STEPS_PER_OCTAVE for step in range(SIZE_STEPS_PER_OCTAVE)]
        octave *= 2
    return np.array([*edges, SIZE_LAST_EDGE_BYTES], dtype=np.int64)


#: Lower edge of each size bucket in bytes, ascending; bucket i holds edge[i] <= frame bytes < edge[i + 1].
SIZE_EDGES_BYTES = _size_edges()


def size_bucket(frame_bytes: int) -> int:
    """Bucket number of a frame length in bytes: the same sum that ``bpf/lib/frame.h`` does."""
    return int(np.searchsorted(SIZE_EDGES_BYTES, frame_bytes, side="right")) - 1


def size_range_bytes(bucket: int) -> tuple[int | None, int | None]:
    """Both edges of a bucket, the upper one inclusive; None for the last one's upper edge, and both of SIZE_UNKNOWN."""
    if bucket == SIZE_UNKNOWN:
        return None, None
    lower = int(SIZE_EDGES_BYTES[bucket])
    if bucket + 1 == len(SIZE_EDGES_BYTES):
        return lower, None
    return lower, int(SIZE_EDGES_BYTES[bucket + 1]) - 1


#: Fields of a cell's 64-bit ``key``, from bit 0 up: (name, width in bits). `tap` is the tap's number + 1, so that
#: a key in use is never 0. The second key word, ``drop_key``: the drop reason (upper half) and the low 32 bits of the
#: kernel address that dropped it (lower half); 0 for what was not dropped.
CELL_KEY_FIELDS = (
    ("size", 8),
    ("packet_class", 8),
    ("ethertype", 4),
    ("expected", 4),
    ("verdict", 4),
    ("direction", 4),
    ("tap", 16),
)

#: What is counted apart of packets that find no cell, and how many there are of each: no packet is counted as QUEUED.
OVERFLOW_KEY_FIELDS = ("direction", "verdict", "expected", "ethertype", "packet_class")
OVERFLOW_SHAPE = (len(Direction), int(Verdict.QUEUED), len(Expected), len(Ethertype), len(PacketClass))


class Loaded(IntEnum):
    """Constants that vifprobe writes into the compiled programs as it loads them; in C, LOADED(name).

    One compilation serves every run, direction and namespace so. The values stand in the code until then.
    """

    SHARED = 0x76707001  # address of the only value of the table `shared`
    PER_CPU_PLACE = 0x76707061  # address of the map `per_cpu_place`
    DIRECTION = 0x76707064  # of the packets that the program is attached for
    CELL_FACTOR = 0x76707066  # factor of the hash of cells' keys, drawn anew for each run
    NETNS = 0x7670706E  # number of the taps' network namespace
    XDP_RUN = 0x76707078  # a kernel function of generic XDP: low half of its address, length << 32; 0: unknown
    XDP_DO = 0x76707079  # another one
    XDP_TX = 0x7670707A  # another one


PENDING_SAMPLED = 0x4000  # beside a tap's traits in a CPU's state: the pending packet's headers are staged
TAPS_MAX = 1024  # watched taps; the kernel's table of them is searched by ifindex
TAP_PROBES = 8  # slots tried in that table before a packet is taken for a foreign one
CELL_PROBES = 16  # places tried for a cell before the packet is counted without its size
VLAN_TAGS_MAX = 2
EXTENSION_HEADERS_MAX = 8  # IPv6 extension headers and AH followed before a packet is `ip_other` ...
EXTENSION_REACH_BYTES = 1024  # ... and how long all of them are at most
HEAD_PLACES = 2048  # of a frame's first bytes, which are copied to be read; a power of two
ETHERNET_PAD_BYTES = 60  # IEEE 802.3: shortest frame without FCS
ETHERNET_OVERHEAD_BYTES = 24  # FCS 4, preamble and start delimiter 8, inter-packet gap 12
VLAN_TAG_BYTES = 4
ETH_HEADER_BYTES = 14
SAMPLE_PROBE_MASK = 127  # a class whose first packets were looked at is probed for new verdicts 1 in 64.5 at random
SAMPLE_EAGER_LOOKS = 1024  # packets of a class, each CPU, whose headers are kept in vain until then
SAMPLE_MEAN_MAX = 1 << 20  # one in so many at most: of 2**32 packets/s still thousands a second
SAMPLE_RAISES = 10  # how often the kernel side makes that four times as many before user space sets it again
REPLAY_WINDOW_BYTES = 32768  # of a replayed frame: all headers lie there
WHAT_IFS_MAX = 8  # limits tried out at once: each costs every packet some 10 ns
BUCKET_SLACK_NS = 50_000  # an installed policer looks at the clock that much later than the ideal bucket, at most
FLOW_WAYS = 4  # handshakes that share a row: two cache lines
INFLIGHT_WAYS = 8  # inbound packets on their way that share a row: their addresses fill one cache line
DEVICE_LOSSES = 8  # devices and reasons of one tap's packets lost behind it that are told apart, for each CPU
EPOCHS_IN_FLIGHT = 2  # a packet whose slot is this many epochs old has its verdict: its call chain has ended


def cell_key_shifts() -> dict[str, tuple[int, int]]:
    """Field name -> (shift, mask) within the ``key`` word of a cell key."""
    shifts, at = {}, 0
    for name, width in CELL_KEY_FIELDS:
        shifts[name] = (at, (1 << width) - 1)
        at += width
    return shifts


def take_apart(key: npt.NDArray[np.uint64]) -> dict[str, npt.NDArray[np.int64]]:
    """Fields of cell key words, by name; tap back to its number."""
    fields = {
        name: (key >> np.uint64(shift) & np.uint64(mask)).astype(np.int64)
        for name, (shift, mask) in cell_key_shifts().items()
    }
    fields["tap"] -= 1
    return fields


def cell_key(**fields: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """The reverse: key words from all their fields, of equal lengths; `tap` is the tap's number."""
    fields["tap"] = fields["tap"] + 1
    key = np.zeros(len(fields["tap"]), np.uint64)
    for name, (shift, _) in cell_key_shifts().items():
        key |= fields[name].astype(np.uint64) << np.uint64(shift)
    return key


def _defines(prefix: str, codes: type[IntEnum]) -> list[str]:
    return [f"#define {prefix}_{code.name} {int(code)}" for code in codes]


def c_header() -> str:
    """The text of ``bpf/layout.h``. A unit test fails when the committed file differs."""
    lines = [
        "/* SPDX-License-Identifier: GPL-2.0-only */",
        "/* Generated: python3 -m vifprobe.model.layout > bpf/layout.h. Change it there. */",
        "#ifndef VIFPROBE_LAYOUT_H",
        "#define VIFPROBE_LAYOUT_H",
        "",
    ]
    for prefix, codes in (
        ("DIRECTION", Direction),
        ("ETHERTYPE", Ethertype),
        ("CLASS", PacketClass),
        ("VERDICT", Verdict),
        ("EXPECTED", Expected),
        ("CHARGE", Charge),
    ):
        lines += [*_defines(prefix, codes), f"#define {prefix}_COUNT {len(codes)}", ""]
    lines += [f"#define TRAIT_{trait.name} {int(trait)}" for trait in TapTrait]
    lines += [f"#define SAMPLE_{flag.name} {int(flag)}" for flag in SampleFlag] + [""]
    lines += [f"#define KEY_{name.upper()}_SHIFT {shift}" for name, (shift, _) in cell_key_shifts().items()]
    lines += [
        "",
        f"#define SIZE_FIRST_EDGE {SIZE_FIRST_EDGE_BYTES}",
        f"#define SIZE_FIRST_EDGE_LOG2 {SIZE_FIRST_EDGE_BYTES.bit_length() - 1}",
        f"#define SIZE_LAST_EDGE {SIZE_LAST_EDGE_BYTES}",
        f"#define SIZE_STEPS_PER_OCTAVE {SIZE_STEPS_PER_OCTAVE}",
        f"#define SIZE_STEPS_LOG2 {SIZE_STEPS_PER_OCTAVE.bit_length() - 1}",
        f"#define SIZE_BUCKETS {len(SIZE_EDGES_BYTES)}",
        f"#define SIZE_UNKNOWN {SIZE_UNKNOWN}",
        "",
        *(f"#define LOADED_{name.name} {int(name):#x}" for name in Loaded),
        f"#define TAP_PROBES {TAP_PROBES}",
        f"#define CELL_PROBES {CELL_PROBES}",
        f"#define VLAN_TAGS_MAX {VLAN_TAGS_MAX}",
        f"#define EXTENSION_HEADERS_MAX {EXTENSION_HEADERS_MAX}",
        f"#define EXTENSION_REACH {EXTENSION_REACH_BYTES}",
        f"#define HEAD_PLACES {HEAD_PLACES}",
        f"#define ETHERNET_PAD {ETHERNET_PAD_BYTES}",
        f"#define ETHERNET_OVERHEAD {ETHERNET_OVERHEAD_BYTES}",
        f"#define VLAN_TAG_LEN {VLAN_TAG_BYTES}",
        f"#define FLOW_WAYS {FLOW_WAYS}",
        f"#define INFLIGHT_WAYS {INFLIGHT_WAYS}",
        f"#define DEVICE_LOSSES {DEVICE_LOSSES}",
        f"#define EPOCHS_IN_FLIGHT {EPOCHS_IN_FLIGHT}",
        f"#define HLL_REGISTERS {HLL_REGISTERS}",
        f"#define HLL_BITS {HLL_REGISTERS.bit_length() - 1}",
        f"#define PORTS {PORTS}",
        f"#define AGE_BUCKETS {AGE_BUCKETS}",
        f"#define FLOW_EXPIRES_NS {FLOW_EXPIRES_NS}ULL",
        f"#define PENDING_SAMPLED {PENDING_SAMPLED:#x}",
        f"#define SAMPLE_HEADER_BYTES {SAMPLE_HEADER_BYTES}",
        f"#define SAMPLE_PROBE_MASK {SAMPLE_PROBE_MASK}",
        f"#define SAMPLE_EAGER_LOOKS {SAMPLE_EAGER_LOOKS}",
        f"#define SAMPLE_MEAN_MAX {SAMPLE_MEAN_MAX}U",
        f"#define SAMPLE_RAISES {SAMPLE_RAISES}",
        f"#define REPLAY_WINDOW {REPLAY_WINDOW_BYTES}",
        f"#define BUCKET_SLACK_NS {BUCKET_SLACK_NS}",
        "",
        "#endif",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(c_header(), end="")
