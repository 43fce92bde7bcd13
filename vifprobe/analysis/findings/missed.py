# SPDX-License-Identifier: Apache-2.0
"""P16: packets that no program could count, so that no figure of this tap is the whole truth."""

from __future__ import annotations

from collections.abc import Iterator

from vifprobe.analysis.findings import thresholds as t
from vifprobe.analysis.findings.situation import Situation, finding_id
from vifprobe.model.layout import Direction
from vifprobe.model.reading import Finding


def of(situation: Situation, direction: Direction) -> Iterator[Finding]:
    """Packets of one direction that are in no cell; critical above MISSED_SHARE of them all."""
    reading = situation.reading
    missed = 0 if reading is None else reading.missed_of(direction)
    if reading is None or not missed:
        return
    counted = reading.offered(direction).packets
    share = missed / (counted + missed)
    yield Finding(
        finding_id("P16", direction),
        "P16",
        "critical" if share > t.MISSED_SHARE else "warning",
        f"{missed:,} {situation.set_up.word(direction)} packets are not counted: figures are too low",
        {"missed_packets": missed, "counted_packets": counted, "missed_share": round(share, 6)},
        "Their headers could not be read, or another program took them on a way that is not watched. Compare with the "
        "device's own counters (`ip -s link`, reconcile.csv); `vifprobe doctor` says what this kernel can do.",
    )
