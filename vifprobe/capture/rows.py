# SPDX-License-Identifier: Apache-2.0
"""The tables of a capture folder: one row type a CSV file, whose fields are the columns, in order.

Nothing else names a column: header, writer, reader and tests take names, order and types from here. Columns are only
ever added, at the end. What a whole number may be: model.quantities. None, "" and the codes in `codecs.EMPTY_CODES`
are an empty cell: unknown.
"""

from __future__ import annotations

from typing import NamedTuple

from vifprobe.analysis.policer import PolicerRow
from vifprobe.analysis.reconcile import ReconcileRow
from vifprobe.model.layout import Direction, Ethertype, Expected, PacketClass, Verdict
from vifprobe.model.quantities import Code, Moment
from vifprobe.model.whatif import WhatIfRow

__all__ = [
    "DropRow",
    "EventRow",
    "FloodRow",
    "HistogramRow",
    "HostRow",
    "LostRow",
    "Moment",
    "PolicerRow",
    "ReconcileRow",
    "TimelineRow",
    "TopRow",
    "WhatIfRow",
]


class HistogramRow(NamedTuple):
    """Packets of one kind, size bucket and fate. `size_max_bytes` is inclusive, None for the open-ended bucket.

    Both edges are None for packets that were counted without their size.
    """

    tap: str
    direction: Direction
    ethertype: Ethertype
    packet_class: PacketClass
    size_min_bytes: int | None
    size_max_bytes: int | None
    verdict: Verdict
    expected: Expected
    packets: int
    frame_bytes: int
    charged_bytes: int
    wire_bytes: int


class TimelineRow(NamedTuple):
    """Packets of one time bin. Rows of the same bin add up: a late verdict comes as a row of its own.

    A bin starts at a multiple of its length on the monotonic clock, so the first one starts before the capture does.
    """

    tap: str
    direction: Direction
    start_ns: Moment
    duration_ns: int
    verdict: Verdict
    packets: int
    frame_bytes: int
    syn_packets: int


class DropRow(NamedTuple):
    """Packets that were policed or dropped, by the kernel's reason and the function that freed them."""

    tap: str
    direction: Direction
    reason: str
    location: str
    packets: int
    frame_bytes: int


class LostRow(NamedTuple):
    """Packets of one kind that were policed or dropped for one reason: which packets did the firewall drop?

    reason_code: the kernel's number of the reason, which differs between kernels; 0 rows (no reason known) are left
    out. The kernel address is left out too: captures are sent to others, and it would give away where the kernel lies.
    """

    tap: str
    direction: Direction
    ethertype: Ethertype
    packet_class: PacketClass
    size_min_bytes: int | None
    size_max_bytes: int | None
    verdict: Verdict
    expected: Expected
    reason_code: Code
    reason: str
    packets: int
    frame_bytes: int
    charged_bytes: int
    wire_bytes: int


class FloodRow(NamedTuple):
    """One SYN-flood measure in the unit it names; an estimate's bound is a row of its own (see capture.flood)."""

    tap: str
    direction: Direction
    measure: str
    value: int | float | None
    unit: str


class TopRow(NamedTuple):
    """One of the most frequent keys of a kind (destination, port, source, fingerprint).

    `error_max`: by how much `packets` can be off; so many of them may belong to other keys. 0: exact.
    """

    tap: str
    direction: Direction
    kind: str
    key: str
    packets: int
    frame_bytes: int
    error_max: int | None


class HostRow(NamedTuple):
    """CPU time and context switches of one scope of the host (thread, vhost worker, softirq) in one interval."""

    start_ns: Moment
    duration_ns: int
    scope: str
    name: str
    pid: int | None
    context_switches_voluntary: int | None
    context_switches_involuntary: int | None
    cpu_ns: int | None


class EventRow(NamedTuple):
    """A change during the capture: link, qdisc, filter, re-attachment, gap; and who made it, where that is known."""

    at_ns: Moment
    tap: str
    kind: str
    detail: str
    by_pid: int | None
    by_comm: str
