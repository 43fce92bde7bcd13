# SPDX-License-Identifier: Apache-2.0
"""Totals that a run writes to its capture folder, at checkpoints and at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone

from vifprobe.capture.manifest import CoverageGap, Manifest, TapEntry
from vifprobe.capture.rows import FloodRow, PolicerRow, ReconcileRow, TopRow
from vifprobe.model.reading import Reading


@dataclass(frozen=True)
class Totals:
    """Totals of the whole run so far, or at its end.

    readings: one a tap, with the counts since the start of the run. reasons, locate: names of the kernel's drop reasons
    and functions, see tables.drop_rows. policer, flood, top: None where nobody looked; no file is written then. flood
    and top come from the readings where they are not given. lost_samples: overwritten before they were taken. end,
    end_monotonic_ns: when counting ended; None: now.
    """

    readings: Sequence[Reading]
    reasons: Mapping[int, str] = field(default_factory=dict)
    locate: Callable[[int], str | None] = field(default=lambda _: None)
    reconcile: Sequence[ReconcileRow] = ()
    gaps: Sequence[CoverageGap] = ()
    policer: Sequence[PolicerRow] | None = None
    flood: Sequence[FloodRow] | None = None
    top: Sequence[TopRow] | None = None
    lost_samples: int = 0
    end: datetime | None = None
    end_monotonic_ns: int | None = None


def _seen(entry: TapEntry, reading: Reading) -> TapEntry:
    return replace(
        entry,
        verdicts=reading.verdicts,
        missed=reading.missed,
        missed_in=dict(reading.missed_in),
        start_ns=reading.start_ns,
        duration_ns=reading.duration_ns,
        at=reading.at,
        limits=dict(reading.limits),
        notes=tuple(reading.notes),
        directions=tuple(reading.directions),
        gone_ns=reading.gone_ns,
        kind=reading.kind,
        missed_bytes=reading.missed_bytes,
        late_verdicts=reading.late_verdicts,
        recursion_misses=reading.recursion_misses,
        limit_states=dict(reading.limit_states),
    )


def with_totals(manifest: Manifest, totals: Totals) -> Manifest:
    """The manifest with what is known of the run. Raises ValueError for readings of a tap that it does not have."""
    readings = {reading.tap: reading for reading in totals.readings}
    if strangers := readings.keys() - {tap.name for tap in manifest.taps}:
        raise ValueError(f"readings of taps that this capture does not have: {sorted(strangers)}")
    return replace(
        manifest,
        taps=tuple(_seen(tap, readings[tap.name]) if tap.name in readings else tap for tap in manifest.taps),
        gaps=tuple(totals.gaps),
        end=totals.end or datetime.now(timezone.utc).astimezone(),
        end_monotonic_ns=time.monotonic_ns() if totals.end_monotonic_ns is None else totals.end_monotonic_ns,
    )
