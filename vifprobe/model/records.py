# SPDX-License-Identifier: Apache-2.0
"""Shapes of what the kernel side tells: cells, time bins, sampled packets, SYN measures, tasks. Codes: layout.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntFlag
from typing import Any

import numpy as np
import numpy.typing as npt

SAMPLE_HEADER_BYTES = 128  # of a sampled packet; longer headers (IP and TCP options, extension headers) are cut

#: One counted cell as Python sees it, its key taken apart; counters are sums over all CPUs. `size` is a bucket number,
#: `location` the low 32 bits of the kernel address that freed the packet (0 where it was not dropped).
CELL = np.dtype(
    [
        ("tap", np.uint16),
        ("direction", np.uint8),
        ("ethertype", np.uint8),
        ("packet_class", np.uint8),
        ("size", np.uint8),
        ("expected", np.uint8),
        ("verdict", np.uint8),
        ("reason", np.uint32),
        ("location", np.uint32),
        ("packets", np.int64),
        ("frame_bytes", np.int64),
        ("charged_bytes", np.int64),
        ("wire_bytes", np.int64),
    ]
)

#: Packets of one tap that one device lost for one reason (its ring or queue was full). `dropped`: these count as
#: dropped. `copies`: copies of packets that count as passed, and packets that count as passed and were lost later, in a
#: queue. ifindex and reason 0: devices and reasons for which there was no room.
DEVICE_LOSS = np.dtype(
    [
        ("tap", np.uint16),
        ("ifindex", np.uint32),
        ("reason", np.uint32),
        ("dropped", np.int64),
        ("copies", np.int64),
    ]
)

#: One time bin of one tap, direction and verdict. `start_ns` is on the monotonic clock (ktime), a multiple of the bin.
BIN = np.dtype(
    [
        ("tap", np.uint16),
        ("direction", np.uint8),
        ("verdict", np.uint8),
        ("start_ns", np.int64),
        ("packets", np.int64),
        ("frame_bytes", np.int64),
        ("syn_packets", np.int64),
    ]
)


class SampleFlag(IntFlag):
    """Bits of a sample's `flags`. SERVICE_TAG: the tag next to the bytes was of type 0x88a8, else 0x8100.

    LAYER_3: a tun's packet, whose bytes begin with the L3 header.
    """

    TAGGED = 1  # an outer VLAN tag was beside the bytes, not in them: vlan_tci
    SERVICE_TAG = 2
    LAYER_3 = 4


#: One sampled packet. `at_ns`: arrival, monotonic clock. `gap_ns`: since the packet before it of the same tap and
#: direction on the same CPU, -1 where that one's time was not taken. `weight`: how many packets it stands for, so that
#: weighted sums are unbiased: 1 for the first of a class and verdict, M for one in M of all others. `headers`: the
#: first `header_bytes` bytes, L2 up to the transport header with its options, never payload; zero behind them.
SAMPLE = np.dtype(
    [
        ("tap", np.uint16),
        ("direction", np.uint8),
        ("ethertype", np.uint8),
        ("packet_class", np.uint8),
        ("size", np.uint8),
        ("expected", np.uint8),
        ("verdict", np.uint8),
        ("reason", np.uint32),
        ("location", np.uint32),
        ("at_ns", np.int64),
        ("gap_ns", np.int64),
        ("frame_bytes", np.uint32),
        ("charged_bytes", np.uint32),
        ("wire_bytes", np.uint32),
        ("weight", np.uint32),
        ("header_bytes", np.uint16),
        ("flags", np.uint16),
        ("vlan_tci", np.uint16),
        ("headers", np.uint8, (SAMPLE_HEADER_BYTES,)),
    ]
)


#: Registers of a HyperLogLog: a standard error of 1.04 / sqrt(4096) = 1.6 % (Flajolet et al. 2007, section 1).
HLL_REGISTERS = 4096
PORTS = 65536
#: A handshake without an end: Linux gives up after some 63 s by default (tcp(7), tcp_synack_retries).
FLOW_EXPIRES_NS = 60_000_000_000
#: Ages of handshakes: bucket 0 is under 1 us, bucket i holds 2**(i-1) <= us < 2**i, the last one is open-ended.
AGE_BUCKETS = 40

#: Handshakes since the start. All of them are followed, or one flow in 2, 4, …, by a hash of its addresses and ports,
#: while a flood fills the table: `every` is the most that one has stood for so far, `followed` how many there were. The
#: others are weighted sums: estimates of all flows, exact where `every` is 1. A SYN that is sent again starts none.
#: started = completed + reset + expired + evicted + open. `answered`: a SYN-ACK came back. `reset`: a RST came from
#: either side. `expired`: no end for a minute. `evicted`: another one took its place, so that its end was not seen.
HANDSHAKES = np.dtype(
    [
        ("every", np.int64),
        ("followed", np.int64),
        ("started", np.int64),
        ("answered", np.int64),
        ("completed", np.int64),
        ("reset", np.int64),
        ("expired", np.int64),
        ("evicted", np.int64),
        ("open", np.int64),
    ]
)


#: What was different in the SYNs of one tap and direction. sources, destinations: HyperLogLog registers of the
#: addresses (IPv4 and IPv6 together), HLL_REGISTERS bytes; source_ports, destination_ports: a bit each.
SynSets = Mapping[str, npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Distinct:
    """Different addresses and ports in a set of SYNs, by the direction of the SYN.

    sides: by tap and direction, those that had any. shape: how many taps and directions there are. The arrays of all
    begin with that shape.
    """

    sides: Mapping[tuple[int, int], SynSets]
    shape: tuple[int, int]

    @property
    def sources(self) -> npt.NDArray[np.uint8]:
        """HyperLogLog registers, (…, HLL_REGISTERS)."""
        return self._all("sources", HLL_REGISTERS)

    @property
    def destinations(self) -> npt.NDArray[np.uint8]:
        """HyperLogLog registers, (…, HLL_REGISTERS)."""
        return self._all("destinations", HLL_REGISTERS)

    @property
    def source_ports(self) -> npt.NDArray[np.bool_]:
        """Each port seen, (…, PORTS): exact."""
        return np.unpackbits(self._all("source_ports", PORTS // 8), axis=-1, bitorder="little").astype(bool)

    @property
    def destination_ports(self) -> npt.NDArray[np.bool_]:
        """Each port seen, (…, PORTS): exact."""
        return np.unpackbits(self._all("destination_ports", PORTS // 8), axis=-1, bitorder="little").astype(bool)

    def _all(self, name: str, length: int) -> npt.NDArray[np.uint8]:
        whole = np.zeros((*self.shape, length), np.uint8)
        for side, sets in self.sides.items():
            whole[side] = sets[name]
        return whole


@dataclass(frozen=True)
class SynMeasures:
    """SYN measures of the kernel side for all taps, besides their number, which is in the cells.

    since_ns, at_ns: monotonic clock; the interval that `interval` is of, since the call before. total: since the start.
    The packet that a CPU is at when an interval ends can be in neither interval; it is in the total.
    handshakes: dtype HANDSHAKES, shape (taps, directions), the direction of the SYN; inbound: the guest as a server.
    open_age: int64, (taps, directions, AGE_BUCKETS): how old those are that are open now, i.e. how long ago the SYN
    came. completed_age: the same of those that completed, since the start: SYN to ACK.
    """

    since_ns: int
    at_ns: int
    interval: Distinct
    total: Distinct
    handshakes: npt.NDArray[Any]
    open_age: npt.NDArray[np.int64]
    completed_age: npt.NDArray[np.int64]


class HostScope(Enum):
    """Scope of the time and context switches in a row of host.csv. Each says if it cannot be added up.

    TOTAL: all tasks and all switches, those from the idle task as well, as `ctxt` of /proc/stat counts them. CPU: the
    same of one CPU. IDLE: switches from the idle task to another, which the kernel counts as involuntary. The QEMU_
    scopes: threads of the process that holds a watched tap; VHOST: kernel threads `vhost-<pid>` of any guest (before
    6.4; then they are QEMU_VHOST). OTHER: everybody else, by name. These (but for TOTAL and CPU) add up to TOTAL.
    SOFTIRQ_NET_*: time spent in that softirq on one CPU; it ran on top of some task, or in ksoftirqd, and is in its
    time too unless the kernel accounts interrupts apart (CONFIG_IRQ_TIME_ACCOUNTING).
    """

    TOTAL = "total"
    CPU = "cpu"
    IDLE = "idle"
    QEMU_VCPU = "qemu_vcpu"
    QEMU_VHOST = "qemu_vhost"
    QEMU_IOTHREAD = "qemu_iothread"
    QEMU_EMULATOR = "qemu_emulator"
    VHOST = "vhost"
    KSOFTIRQD = "ksoftirqd"
    OVS = "ovs"
    OTHER = "other"
    SOFTIRQ_NET_RX = "softirq_net_rx"
    SOFTIRQ_NET_TX = "softirq_net_tx"


#: What one task did in an interval, sums over all CPUs. pid: of the thread; tgid: of its process. is_kernel: a kernel
#: thread. cpu_ns: as the kernel accounts it (se.sum_exec_runtime, /proc/PID/schedstat). comm, process: names of the
#: thread and of its process's first thread, as bytes.
HOST_TASK = np.dtype(
    [
        ("pid", np.int64),
        ("tgid", np.int64),
        ("is_kernel", np.bool_),
        ("voluntary", np.int64),
        ("involuntary", np.int64),
        ("cpu_ns", np.int64),
        ("comm", "S16"),
        ("process", "S16"),
    ]
)
