# SPDX-License-Identifier: Apache-2.0
"""Facts that findings are derived from, and numbers as words for their titles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from vifprobe.analysis.ahead import Ahead
from vifprobe.analysis.findings.thresholds import CONNTRACK_SHARE, FloodThresholds
from vifprobe.analysis.flood.addresses import OwnAddresses
from vifprobe.analysis.flood.bursts import Bursts
from vifprobe.analysis.gaps import LimitGap
from vifprobe.analysis.policer import SetUp
from vifprobe.model import ports
from vifprobe.model.flood import Flood
from vifprobe.model.layout import ETHERNET_OVERHEAD_BYTES, ETHERNET_PAD_BYTES, Direction, Verdict
from vifprobe.model.reading import Cells, Reading


@dataclass(frozen=True)
class Growth:
    """Growth of the counters of one limit and of the tap between two reads. None: not counted.

    where: the limit's place. charged_bytes, packets: that came to the limit. tap_charged_bytes, tap_packets: that came
    from (or went to) the guest in that time, by the device's own counters, without L2 headers.
    """

    direction: Direction
    where: str
    seconds: float
    charged_bytes: int | None
    packets: int | None
    tap_charged_bytes: int
    tap_packets: int


@dataclass(frozen=True)
class Sample:
    """One interval of one tap. start_ns: monotonic clock. context_switches: of the host; cpus: busy, of the host."""

    start_ns: int
    duration_ns: int
    offered_packets: int
    policed_packets: int | None
    context_switches: int | None = None
    cpus: float | None = None


@dataclass(frozen=True)
class LinkLoad:
    """CPUs (1.0: one of them, all of the time) that carried packets. None: not known.

    guest: threads of the process that holds the tap. vhost: its vhost threads. softirq: of the host as a whole.
    """

    seconds: float
    guest_cpus: float | None = None
    vhost_cpus: float | None = None
    softirq_cpus: float | None = None


@dataclass(frozen=True)
class Uplink:
    """The device by which the tap's bridge leaves the host, between two reads. speed_bps: of its line.

    sent_bytes: as devices count them, with the L2 header and nothing else that a line carries.
    """

    name: str
    seconds: float
    speed_bps: int
    sent_packets: int
    sent_bytes: int
    dropped_packets: int

    @property
    def line_bps(self) -> float:
        """Lower bound of the line's load in bits per second: no frame is shorter than 60 bytes there, and each comes
        with its checksum, preamble and gap (IEEE 802.3, 3.1.1 and 4.4.2).
        """
        padded = max(self.sent_bytes, ETHERNET_PAD_BYTES * self.sent_packets)
        return 8 * (padded + ETHERNET_OVERHEAD_BYTES * self.sent_packets) / self.seconds


@dataclass(frozen=True)
class ConntrackLoad:
    """The host's table of connections. dropped_packets: for want of room, between two looks; None: not counted.

    most_syns_by, most_syns_pps: which of the watched taps sends the most SYNs; "" where none does.
    """

    entries: int
    entries_max: int
    dropped_packets: int | None = None
    most_syns_by: str = ""
    most_syns_pps: float = 0.0

    @property
    def is_crowded(self) -> bool:
        """Return True if there is little room left."""
        return self.entries >= CONNTRACK_SHARE * self.entries_max

    @property
    def is_full(self) -> bool:
        """Return True if there is room for no more."""
        return self.entries >= self.entries_max


@dataclass(frozen=True)
class Situation:
    """All that is known of one tap when findings are asked for. now_ns: monotonic.

    reading: packets of the interval (or of the whole run). reasons: names of the kernel's drop reasons. installs: when
    a limit came where there had been none, the last ones; installs_before: how many came before those. floods: what the
    SYNs of about a second (or of the run) are like, by direction. bursts: what its timeline shows so far.
    own_addresses: of the port, as far as known. ahead: programs that decided packets before they were counted, in this
    time. unseen, device_dropped: packets of the run that the device counted as received, or as dropped, and that did
    not come to the hook; at least.
    """

    set_up: SetUp
    now_ns: int = 0
    reading: Reading | None = None
    reasons: Mapping[int, str] = field(default_factory=dict)
    growth: tuple[Growth, ...] = ()
    gaps: tuple[LimitGap, ...] = ()
    installs: tuple[tuple[Direction, int], ...] = ()
    installs_before: int = 0
    samples: tuple[Sample, ...] = ()
    load: LinkLoad | None = None
    uplink: Uplink | None = None
    directions: tuple[Direction, ...] = tuple(Direction)
    floods: Mapping[Direction, Flood] = field(default_factory=dict)
    bursts: Mapping[Direction, Bursts] = field(default_factory=dict)
    own_addresses: OwnAddresses = field(default_factory=OwnAddresses)
    flood_thresholds: FloodThresholds = field(default_factory=FloodThresholds)
    ahead: tuple[Ahead, ...] = ()
    unseen: Mapping[Direction, int] = field(default_factory=dict)
    device_dropped: Mapping[Direction, int] = field(default_factory=dict)
    conntrack: ConntrackLoad | None = None

    @property
    def has_guest(self) -> bool:
        """Return True if a guest hangs on the device: only then do texts speak of one."""
        return ports.is_guest_port(self.set_up.kind)


def let_through(cells: Cells, reasons: Mapping[int, str]) -> Cells:
    """Of some cells those that went past the limit: not policed, not still queued. What was dropped later did, too, but
    for what another program took beside the policer, at tc ingress.
    """
    at_tc = [number for number, name in reasons.items() if name == "TC_INGRESS"]
    beside = (cells["verdict"] == Verdict.DROPPED) & np.isin(cells["reason"], at_tc)
    rows: Cells = cells[~np.isin(cells["verdict"], (Verdict.POLICED, Verdict.QUEUED)) & ~beside]
    return rows


def finding_id(pattern: str, direction: Direction, *more: object) -> str:
    """`P1-outbound`: stable, and unique on its tap."""
    return "-".join((pattern, direction.name.lower(), *(str(one) for one in more)))


def bits(value: float) -> str:
    """A rate in words for a title."""
    for unit, size in (("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} bit/s"


def size(value: float) -> str:
    """A number of bytes in words for a title."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= one:
            return f"{value / one:.3g} {unit}"
    return f"{value:.0f} bytes"


def span(ns: float) -> str:
    """A time in words for a title: one decimal below 10."""
    for unit, one in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= one:
            return f"{ns / one:.1f} {unit}" if ns < 10 * one else f"{ns / one:.0f} {unit}"
    return f"{ns:.0f} ns"


def rate_words(rate_bps: int | None, rate_pps: int | None) -> str:
    """`100 Mbit/s`, `50,000 packets/s`, or both."""
    told = [bits(rate_bps)] if rate_bps is not None else []
    told += [f"{rate_pps:,} packets/s"] if rate_pps is not None else []
    return " and ".join(told) or "no rate"
