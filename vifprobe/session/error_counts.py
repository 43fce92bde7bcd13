# SPDX-License-Identifier: Apache-2.0
"""Counts of packets that the programs could not treat as they should, besides missed packets."""

from __future__ import annotations

from typing import NamedTuple

from vifprobe.kernel.tables.counters import Snapshot


class ErrorCounts(NamedTuple):
    """Error counts, as the fields of the same names of vifprobe.model.reading.Reading."""

    missed_bytes: int = 0
    late_verdicts: int = 0
    recursion_misses: int = 0

    @classmethod
    def of(cls, number: int, snapshot: Snapshot) -> ErrorCounts:
        """Return the counts since the start: of the tap with this number, or of all taps where they are not by tap."""
        return cls(int(snapshot.missed_bytes[number].sum()), snapshot.late_verdicts, snapshot.recursion_misses)

    def since(self, before: ErrorCounts) -> ErrorCounts:
        """Return what has been added to the earlier counts."""
        return ErrorCounts(*(now - then for now, then in zip(self, before, strict=True)))

    def notes(self) -> list[str]:
        """Return notes on a run with these totals."""
        found = []
        if self.late_verdicts:
            found.append(f"{self.late_verdicts:,} packets were dropped after they had been counted as passed")
        if self.recursion_misses:
            found.append(
                f"the kernel did not run vifprobe's programs for {self.recursion_misses:,} events (recursion_misses): "
                "drops among them are counted as passed"
            )
        return found
