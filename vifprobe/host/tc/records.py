# SPDX-License-Identifier: Apache-2.0
"""Records of tc objects on an interface, and handles as tc writes them.

All counters are the kernel's own. Those it keeps in 32 bits start over at 2**32: a drop counter of a flooded policer
does so after an hour at a million packets a second. Subtract with :func:`vifprobe.host.counters.growth`.
"""

from __future__ import annotations

from dataclasses import dataclass

# include/uapi/linux/pkt_sched.h
TC_H_ROOT = 0xFFFFFFFF
TC_H_INGRESS = 0xFFFFFFF1
INGRESS_HANDLE = 0xFFFF0000
CLSACT_INGRESS = 0xFFFFFFF2
CLSACT_EGRESS = 0xFFFFFFF3


@dataclass(frozen=True)
class Stats:
    """Statistics of a qdisc, class or action; None where the kernel sent none.

    - bytes: as the object charges them (without the L2 header at ingress).
    - packets: a GSO frame counts as its segments, and as 0 where a guest wrote it to a tap (gso_segs is 0 then); 32 bit
      before Linux 5.5.
    - drops, overlimits, requeues: 32 bit in all kernels. overlimits of a policer: packets that exceeded.
    """

    bytes: int | None = None
    packets: int | None = None
    drops: int | None = None
    overlimits: int | None = None
    requeues: int | None = None
    backlog_bytes: int | None = None
    queue_packets: int | None = None


@dataclass(frozen=True)
class PoliceAction:
    """One police action's settings (net/sched/act_police.c). None: not set; a policer limits bits or packets.

    - burst_bytes, burst_packets: computed from the time that the kernel stores instead of a size, rounded down as tc
      prints it.
    - peak_bps: rate of a second bucket of one mtu.
    - mtu_bytes: longer packets always exceed; of GSO frames, each segment is compared with it. None: no bound.
    - overhead_bytes: added to each packet's charge.
    - linklayer: 2 is ATM, which charges by cells.
    - bindings: number of filters that share this action, and its bucket.
    - age_seconds, idle_seconds: since it was installed, since it last saw a packet (in steps of 0.01).
    """

    index: int
    rate_bps: int | None = None
    burst_bytes: int | None = None
    rate_pps: int | None = None
    burst_packets: int | None = None
    peak_bps: int | None = None
    mtu_bytes: int | None = None
    overhead_bytes: int = 0
    mpu_bytes: int = 0
    linklayer: int = 0
    average_rate_bps: int | None = None
    exceed_action: str = ""
    conform_action: str = ""
    bindings: int = 1
    age_seconds: float | None = None
    idle_seconds: float | None = None


@dataclass(frozen=True)
class TcAction:
    """One action of a filter, in the order in which they run.

    - control: its verdict (`pass`, `drop`, `pipe`, `continue`, ...); "" where this kind's options are unknown here.
    - policer: for kind `police`, else None.
    - legacy: set by the filter's own `police` option, as libvirt does; the statistics are those of the filter then.
    """

    kind: str
    index: int = 0
    control: str = ""
    policer: PoliceAction | None = None
    stats: Stats = Stats()
    legacy: bool = False


@dataclass(frozen=True)
class BpfProgram:
    """The program of a `bpf` filter.

    - id, tag: None for a classic BPF program.
    - direct_action: its return value is the verdict.
    """

    name: str = ""
    id: int | None = None
    tag: str | None = None
    direct_action: bool = False


@dataclass(frozen=True)
class TcFilter:
    """One filter.

    - hook: `ingress`, `egress` (clsact), or `root` (in a qdisc of the egress tree).
    - parent, handle: as tc prints them.
    - pref: lower ones run first; filters of equal pref share protocol and kind.
    - protocol: `all`, `ip`, `ipv6`, `arp`, `802.1Q`, `802.1ad`, else hexadecimal.
    - matches_all: it matches every packet of that protocol; None where a program or unknown options decide.
    - block: number of its shared block, which other interfaces use, too; None without one.
    """

    ifindex: int
    hook: str
    parent: str
    kind: str
    pref: int
    protocol: str
    handle: str
    chain: int = 0
    class_id: str | None = None
    matches_all: bool | None = None
    actions: tuple[TcAction, ...] = ()
    bpf: BpfProgram | None = None
    block: int | None = None

    @property
    def where(self) -> str:
        """Return a short and stable text that identifies the filter on its interface."""
        chain = f" chain {self.chain}" if self.chain else ""
        return f"{self.hook}{chain} pref {self.pref} {self.kind} {self.handle}"


@dataclass(frozen=True)
class Shaper:
    """Rate and burst of an HTB class or a TBF qdisc. Bursts are computed from psched ticks, rounded down.

    - ceil_bps, ceil_burst_bytes: HTB's `ceil` and `cburst`; TBF's peak rate (without a size).
    - limit_bytes: length of TBF's queue.
    - overhead_bytes: added to each packet's charge.
    """

    rate_bps: int
    burst_bytes: int
    ceil_bps: int | None = None
    ceil_burst_bytes: int | None = None
    limit_bytes: int | None = None
    overhead_bytes: int = 0
    level: int | None = None
    priority: int | None = None


@dataclass(frozen=True)
class TcQdisc:
    """One queueing discipline.

    - hook: `ingress` (kinds ingress and clsact) or `root`.
    - handle, parent: as tc prints them.
    - shaper: of `tbf`, else None.
    - default_class: of `htb`, as tc prints it.
    - ingress_block, egress_block: shared filter blocks.
    - size_table: `stab` changes the charge of packets.
    - copies: a `netem` that duplicates packets.
    """

    ifindex: int
    hook: str
    kind: str
    handle: str
    parent: str
    shaper: Shaper | None = None
    default_class: str | None = None
    ingress_block: int | None = None
    egress_block: int | None = None
    size_table: bool = False
    copies: bool = False
    stats: Stats = Stats()


@dataclass(frozen=True)
class TcClass:
    """One class of a classful qdisc.

    - leaf: handle of its qdisc; None without one.
    - shaper: of `htb`, else None.
    """

    ifindex: int
    kind: str
    handle: str
    parent: str
    leaf: str | None = None
    shaper: Shaper | None = None
    stats: Stats = Stats()


def handle_text(handle: int) -> str:
    """A qdisc's or class's handle as tc writes it: `1:`, `1:a`, `ffff:`, `root`, `ingress`."""
    if handle == TC_H_ROOT:
        return "root"
    if handle == TC_H_INGRESS:
        return "ingress"
    major, minor = handle >> 16, handle & 0xFFFF
    if not minor:
        return f"{major:x}:"
    return f"{major:x}:{minor:x}" if major else f":{minor:x}"


def filter_handle_text(kind: str, handle: int) -> str:
    """A filter's handle as tc writes it: `800::800` (table, bucket, node) for u32, `0x1` for the others."""
    if kind != "u32":
        return f"{handle:#x}"
    bucket = handle >> 12 & 0xFF
    return f"{handle >> 20:x}:{f'{bucket:x}' if bucket else ''}:{handle & 0xFFF:x}"
