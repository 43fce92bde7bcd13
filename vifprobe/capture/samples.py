# SPDX-License-Identifier: Apache-2.0
"""samples.pcapng: sampled packets' headers with what became of them, for Wireshark; bounded however long a run is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vifprobe.capture import pcapng
from vifprobe.model.layout import VLAN_TAG_BYTES, Direction, Expected, PacketClass, SampleFlag, Verdict
from vifprobe.model.ports import is_layer_3
from vifprobe.model.records import SAMPLE_HEADER_BYTES
from vifprobe.version import __version__

Samples = npt.NDArray[Any]

#: Of each tap, direction, class and verdict, the first so many samples are written whatever the limit says.
ALWAYS_OF_A_KIND = 16
#: This part of the limit may be used at any time, however early a run ends; the rest in even measure.
_AT_ONCE = 0.1
_DESCRIPTION = "headers of sampled packets; direction as the guest sees it: outbound = sent by the guest"
_FLAGS = {Direction.OUTBOUND: pcapng.FLAG_OUTBOUND, Direction.INBOUND: pcapng.FLAG_INBOUND}
#: A drop is a drop, whoever did it: the comment says who.
_TC_VERDICTS = {
    Verdict.PASSED: pcapng.TC_ACT_OK,
    Verdict.POLICED: pcapng.TC_ACT_SHOT,
    Verdict.DROPPED: pcapng.TC_ACT_SHOT,
}
_TAG_TYPES = {False: 0x8100, True: 0x88A8}


class _Row(NamedTuple):
    """Fields of layout.SAMPLE as a block needs them, and the weight that it gets."""

    header_bytes: int
    tap: int
    direction: int
    packet_class: int
    verdict: int
    expected: int
    reason: int
    at_ns: int
    frame_bytes: int
    charged_bytes: int
    wire_bytes: int
    flags: int
    vlan_tci: int
    weight: int


#: Those of a row that come from it.
_FIELDS = _Row._fields[:-1]


class SampleEncoder:
    """Turns rows of layout.SAMPLE into blocks of one file.

    taps: names in their places, each with the kind of the device. start, start_monotonic_ns: one instant on both
    clocks. limit: about how many are wanted at most in `span_ns`, in even measure over that time. reasons: number ->
    name of the kernel's drop reasons.
    """

    def __init__(
        self,
        taps: Mapping[str, str],
        start: datetime,
        start_monotonic_ns: int,
        limit: int,
        span_ns: int,
        reasons: Mapping[int, str],
    ) -> None:
        self._taps = taps
        self._start_monotonic_ns = start_monotonic_ns
        # Whole seconds apart, or floating point would blur the nanoseconds.
        whole = int(start.replace(microsecond=0).timestamp())
        self._to_wall_ns = whole * 1_000_000_000 + start.microsecond * 1_000 - start_monotonic_ns
        self._limit = limit
        self._span_ns = max(1, span_ns)
        self._reasons = reasons
        self._of_a_kind: Counter[tuple[int, ...]] = Counter()
        self._random = np.random.default_rng()
        self.taken = 0

    def header(self) -> bytes:
        """Return the blocks that begin the file."""
        blocks = [pcapng.section_header("Linux", f"vifprobe {__version__}")]
        most = SAMPLE_HEADER_BYTES + VLAN_TAG_BYTES
        for name, kind in self._taps.items():
            link_type = pcapng.LINKTYPE_RAW if is_layer_3(kind) else pcapng.LINKTYPE_ETHERNET
            blocks.append(pcapng.interface(name, _DESCRIPTION, most, link_type))
        return b"".join(blocks)

    def blocks(self, rows: Samples, written: int, now_ns: int) -> list[bytes]:
        """A block for each row that is to be written. written: how many are in the file. now_ns: monotonic."""
        self.taken += len(rows)
        elapsed = min(1.0, (now_ns - self._start_monotonic_ns) / self._span_ns)
        room = int(self._limit * (_AT_ONCE + (1 - _AT_ONCE) * elapsed)) - written
        return self._blocks(*self._thinned(rows, room))

    def _thinned(self, rows: Samples, room: int) -> tuple[Samples, list[int]]:
        """Return the rows to write, and their weights: all, or the first of each kind and one in k of the others."""
        early = [self._is_early(kind) for kind in rows[["tap", "direction", "packet_class", "verdict"]].tolist()]
        if len(rows) <= room:
            return rows, rows["weight"].tolist()
        always = np.array(early, dtype=np.bool_)  # also where there is none
        others = len(rows) - int(always.sum())
        one_in = -(-others // max(1, room - int(always.sum()))) if others else 1
        # One in k from a random start: the rows are a random choice already.
        place = (np.cumsum(~always) + self._random.integers(one_in)) % one_in
        chosen = always | (place == 0)
        weights = rows["weight"].astype(np.int64) * np.where(always, 1, one_in)
        return rows[chosen], weights[chosen].tolist()

    def _is_early(self, kind: tuple[int, ...]) -> bool:
        self._of_a_kind[kind] += 1
        return self._of_a_kind[kind] <= ALWAYS_OF_A_KIND

    def _blocks(self, rows: Samples, weights: list[int]) -> list[bytes]:
        # Numbers of Python's own: to read a field of a numpy row takes as long as to write all of its block.
        headers = rows["headers"].tobytes()
        fields = rows[list(_FIELDS)].tolist()
        return [
            self._block(_Row._make((*row, weight)), headers[at : at + row[0]])  # row[0]: header_bytes
            for row, weight, at in zip(fields, weights, range(0, len(headers), SAMPLE_HEADER_BYTES), strict=True)
        ]

    def _block(self, row: _Row, kept: bytes) -> bytes:
        frame_bytes = row.frame_bytes
        if row.flags & SampleFlag.TAGGED and not row.flags & SampleFlag.LAYER_3:
            # Back to where the guest, or the network, had it.
            tag_type = _TAG_TYPES[bool(row.flags & SampleFlag.SERVICE_TAG)]
            kept = kept[:12] + tag_type.to_bytes(2, "big") + row.vlan_tci.to_bytes(2, "big") + kept[12:]
            frame_bytes += VLAN_TAG_BYTES
        flags, tc_verdict = _FLAGS[Direction(row.direction)], _TC_VERDICTS.get(Verdict(row.verdict))
        at_ns = row.at_ns + self._to_wall_ns
        return pcapng.packet(row.tap, at_ns, kept, frame_bytes, flags, tc_verdict, self._comment(row))

    def _comment(self, row: _Row) -> str:
        verdict = Verdict(row.verdict)
        words = [f"class={PacketClass(row.packet_class).name.lower()}", f"verdict={verdict.name.lower()}"]
        if verdict in (Verdict.POLICED, Verdict.DROPPED):
            words.append(f"reason={self._reasons.get(row.reason, row.reason)}")
        if row.expected != Expected.NONE:
            words.append(f"expected={Expected(row.expected).name.lower()}")
        sizes = (f"{name}={getattr(row, name)}" for name in ("frame_bytes", "charged_bytes", "wire_bytes"))
        return " ".join([*words, f"weight={row.weight}", *sizes])
