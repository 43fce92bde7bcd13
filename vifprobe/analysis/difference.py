# SPDX-License-Identifier: Apache-2.0
"""Differences of two runs: the same measures of a tap before and after a change, as rates, since no two runs are
equally long.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vifprobe.model.layout import Direction, PacketClass, Verdict
from vifprobe.model.reading import Counts, Finding, Limit, Reading


@dataclass(frozen=True)
class MeasureChange:
    """One measure in both runs. Values in `unit`; None: unknown there, or not watched."""

    direction: Direction
    measure: str
    unit: str
    before: float | None
    after: float | None

    @property
    def factor(self) -> float | None:
        """After : before; None where either is unknown, or before was nothing."""
        if self.before is None or self.after is None or not self.before:
            return None
        return self.after / self.before


@dataclass(frozen=True)
class Difference:
    """Two runs of one tap, side by side. Findings are the same where id and direction of what they are about are."""

    before: Reading
    after: Reading
    changes: tuple[MeasureChange, ...]
    gone: tuple[Finding, ...]
    new: tuple[Finding, ...]
    still: tuple[Finding, ...]


def paired(before: Sequence[Reading], after: Sequence[Reading]) -> list[tuple[Reading, Reading]]:
    """Return pairs of readings to compare: those of the same tap; two single ones whatever their names."""
    if len(before) == len(after) == 1:
        return [(before[0], after[0])]
    later = {reading.tap: reading for reading in after}
    return [(reading, later[reading.tap]) for reading in before if reading.tap in later]


def difference(before: Reading, after: Reading) -> Difference:
    """Hold two runs of a tap against each other."""
    was, now = _by_id(before), _by_id(after)
    return Difference(
        before,
        after,
        tuple(_changes(before, after)),
        gone=tuple(finding for key, finding in was.items() if key not in now),
        new=tuple(finding for key, finding in now.items() if key not in was),
        still=tuple(finding for key, finding in now.items() if key in was),
    )


def _by_id(reading: Reading) -> dict[str, Finding]:
    return {finding.id: finding for finding in reading.findings}


def _changes(before: Reading, after: Reading) -> Iterator[MeasureChange]:
    for direction in Direction:
        if direction not in (*before.directions, *after.directions):
            continue
        runs = (before, after)
        yield from _limits(runs, direction)
        for name in ("offered", "passed", "policed", "dropped", "bypass", "overpoliced"):
            yield from _traffic(runs, direction, name)
        for code in PacketClass:
            if any(code in run.classes(direction) for run in runs):
                yield from _of_class(runs, direction, code)


def _limits(runs: tuple[Reading, Reading], direction: Direction) -> Iterator[MeasureChange]:
    limits = [run.limits.get(direction, Limit()) for run in runs]
    for name, unit in (
        ("declared_bps", "bit/s"),
        ("installed_bps", "bit/s"),
        ("installed_pps", "packets/s"),
        ("burst_bytes", "bytes"),
    ):
        values = [getattr(limit, name) for limit in limits]
        if any(value is not None for value in values):
            yield MeasureChange(direction, name.rpartition("_")[0], unit, *values)


def _traffic(runs: tuple[Reading, Reading], direction: Direction, name: str) -> Iterator[MeasureChange]:
    counts = [_named(run, direction, name) for run in runs]
    if all(found is None for found in counts):
        return
    rates = [_rates(found, run) for found, run in zip(counts, runs, strict=True)]
    for field, unit in (("packets", "packets/s"), ("charged_bytes", "bit/s"), ("wire_bytes", "bit/s")):
        label = {"charged_bytes": " charged", "wire_bytes": " on wire"}.get(field, "")
        yield MeasureChange(direction, name + label, unit, *(found.get(field) for found in rates))


def _of_class(runs: tuple[Reading, Reading], direction: Direction, code: PacketClass) -> Iterator[MeasureChange]:
    for verdict in (None, Verdict.PASSED):
        counts = [_class_counts(run, direction, verdict, code) for run in runs]
        if any(found is not None for found in counts):
            rates = [_rates(found, run).get("packets") for found, run in zip(counts, runs, strict=True)]
            name = "offered" if verdict is None else verdict.name.lower()
            yield MeasureChange(direction, f"{code.name.lower()} {name}", "packets/s", *rates)


def _class_counts(run: Reading, direction: Direction, verdict: Verdict | None, code: PacketClass) -> Counts | None:
    if direction not in run.directions:
        return None
    return run.offered(direction, code) if verdict is None else run.counts(direction, verdict, code)


def _named(run: Reading, direction: Direction, name: str) -> Counts | None:
    if direction not in run.directions:
        return None
    if name in ("bypass", "overpoliced"):
        return run.bypass(direction) if name == "bypass" else run.overpoliced(direction)
    return run.offered(direction) if name == "offered" else run.counts(direction, Verdict[name.upper()])


def _rates(counts: Counts | None, run: Reading) -> dict[str, float]:
    """Per second, bytes as bits; empty where unknown."""
    if counts is None or run.duration_ns <= 0:
        return {}
    seconds = run.duration_ns / 1e9
    return {name: value * (1 if name == "packets" else 8) / seconds for name, value in counts._asdict().items()}
