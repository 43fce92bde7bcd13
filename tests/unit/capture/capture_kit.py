# SPDX-License-Identifier: Apache-2.0
"""Cells, bins and readings with prime counts, for the tests of the capture folder."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import settings
from hypothesis import strategies as st

from vifprobe.capture.manifest import Manifest, TapEntry, begin
from vifprobe.capture.tables import Bins
from vifprobe.model.layout import (
    BIN,
    CELL,
    SIZE_EDGES_BYTES,
    SIZE_UNKNOWN,
    Direction,
    Ethertype,
    Expected,
    PacketClass,
    Verdict,
    size_bucket,
)
from vifprobe.model.reading import Cells, Finding, Limit, Reading, merge

# A busy machine is no reason to fail.
settings.register_profile("vifprobe", deadline=None)
settings.load_profile("vifprobe")

OUT = Direction.OUTBOUND
BIN_NS = 10_000_000
TAPS = ("tap0", "tap834d76e9-5f")
REASONS = {6: "TC_INGRESS", 9: "NETFILTER_DROP"}
SYMBOLS = {0x81A2B3C4: "nf_hook_slow", 0x81A2B3C8: "nf_hook_slow"}

counts = st.integers(1, 2**53)
codes = {
    "direction": st.sampled_from(Direction),
    "ethertype": st.sampled_from(Ethertype),
    "packet_class": st.sampled_from(PacketClass),
    "size": st.integers(0, len(SIZE_EDGES_BYTES) - 1) | st.just(SIZE_UNKNOWN),
    "expected": st.sampled_from(Expected),
    "verdict": st.sampled_from(Verdict),
}


def cell(packets: int, frame: int = 60, **fields: Any) -> tuple[Any, ...]:
    """One row of a cell table: frames of one length."""
    what = {"size": size_bucket(frame), **fields}
    sums = (packets, packets * frame, packets * (frame - 14), packets * (max(frame, 60) + 24))
    return (*(int(what.get(name, 0)) for name in (CELL.names or ())[:-4]), *sums)


def cells(*rows: tuple[Any, ...]) -> Cells:
    """A cell table, merged as live readings are."""
    return merge(np.array(list(rows), dtype=CELL))


@st.composite
def random_cells(draw: st.DrawFn) -> Cells:
    """Any cells, merged; reasons only where something was lost."""
    rows = []
    for _ in range(draw(st.integers(0, 30))):
        what = {name: draw(strategy) for name, strategy in codes.items()}
        if what["verdict"] in (Verdict.POLICED, Verdict.DROPPED):
            what["reason"] = draw(st.integers(0, 2**32 - 1))
            what["location"] = draw(st.integers(0, 2**32 - 1))
        row = (*(int(what.get(name, 0)) for name in (CELL.names or ())[:-4]), *(draw(counts) for _ in range(4)))
        rows.append(row)
    return cells(*rows)


#: What one tap's flood left behind: SYNs over a limit, some data, and what a firewall dropped. 100,003 SYNs + 6,131.
FLOOD = cells(
    cell(31_259, 54, packet_class=PacketClass.TCP_SYN, verdict=Verdict.PASSED, expected=Expected.CONFORM),
    cell(68_741, 54, packet_class=PacketClass.TCP_SYN, verdict=Verdict.POLICED, reason=6, location=0x81A2B3C4),
    cell(3, 54, packet_class=PacketClass.TCP_SYN, verdict=Verdict.POLICED, reason=6, location=0x81A2B3C8),
    cell(5_003, 1514, packet_class=PacketClass.TCP_DATA, verdict=Verdict.PASSED, ethertype=Ethertype.IPV6),
    cell(1_009, 70_001, packet_class=PacketClass.TCP_DATA, verdict=Verdict.PASSED),
    cell(113, 98, packet_class=PacketClass.ICMP, verdict=Verdict.DROPPED, reason=9, location=0x99),
    cell(6, 42, packet_class=PacketClass.ARP, ethertype=Ethertype.ARP, verdict=Verdict.UNKNOWN),
)
FLOOD_PACKETS = 31_259 + 68_741 + 3 + 5_003 + 1_009 + 113 + 6


def bins_like(table: Cells, tap: int, run_start_ns: int, spread: int = 7) -> Bins:
    """Time bins that hold exactly the packets of a cell table, spread over some bins from before the run's start on."""
    rows = []
    first = run_start_ns // BIN_NS * BIN_NS
    for each in table:
        syn = each["packet_class"] == PacketClass.TCP_SYN
        for i in range(spread):
            total = int(each["packets"])
            packets = total // spread + (total % spread if i == 0 else 0)
            size = packets * (int(each["frame_bytes"]) // total)
            start_ns = first + i * BIN_NS
            rows.append((tap, each["direction"], each["verdict"], start_ns, packets, size, packets if syn else 0))
    return np.array(rows, dtype=BIN)


def reading(tap: str = TAPS[0], table: Cells = FLOOD, **fields: Any) -> Reading:
    """A final reading of a run of 30 s."""
    given: dict[str, Any] = {
        "at": datetime(2026, 11, 22, 5, 12, 44, 123456, tzinfo=timezone.utc),
        "start_ns": 0,
        "duration_ns": 30_000_000_011,
        "missed": 17,
        "missed_bytes": 1_009,
        "late_verdicts": 19,
        "recursion_misses": 23,
        "verdicts": "reason",
        "limits": {Direction.OUTBOUND: Limit(100_000_000, None, None, 3_200_000)},
        "findings": (
            Finding("small-packets", "P6", "warning", "Wire rate above the limit", {"ratio": 1.5}, "Add pps"),
        ),
        "notes": ("tap0 was re-attached once",),
        "final": True,
    }
    return Reading(tap=tap, cells=table, **{**given, **fields})


def manifest(*names: str) -> Manifest:
    """The manifest of a run that starts."""
    return begin(
        [TapEntry(name, 7 + i, hooks={Direction.OUTBOUND: "tcx"}) for i, name in enumerate(names or TAPS)],
        BIN_NS,
        {"duration": "30s"},
    )


def plain(table: npt.NDArray[np.void]) -> list[tuple[Any, ...]]:
    """A structured table as comparable rows, in a total order."""
    return sorted(table.tolist())
