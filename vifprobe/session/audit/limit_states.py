# SPDX-License-Identifier: Apache-2.0
"""The states of one tap's limits, from reading to reading."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from itertools import chain

from vifprobe.analysis.limit_state import WINDOW, Seen, limit_answer, seen
from vifprobe.analysis.policer import SetUp
from vifprobe.model.layout import Direction
from vifprobe.model.limits import Doubt, InstalledLimit, LimitAnswer
from vifprobe.model.reading import Reading

Limits = Mapping[Direction, InstalledLimit | None]


class LimitStates:
    """Counts of the last readings since each limit last changed, and the states that follow from them.

    Packets from before a change are no evidence about the current limit. So neither the reading with the change nor the
    totals of that run are compared with the limit.

    is_settled: a further reading without packets has the states of the previous one.
    """

    def __init__(self) -> None:
        self._looked: dict[Direction, deque[Seen]] = {one: deque(maxlen=WINDOW) for one in Direction}
        self._just_changed: set[Direction] = set()
        self._ever_changed: set[Direction] = set()
        self.is_settled = True

    def follow(self, before: Limits, after: Limits, gaps: Iterable[Direction]) -> None:
        """Apply a change of limits. gaps: directions in which a limit was missing, even if the same one is back.

        The same limit, created again, has a full bucket. That affects the reading with the change, not the totals.
        """
        changed = {one for one in Direction if _setting(before.get(one)) != _setting(after.get(one))} | {*gaps}
        anew = {one for one in Direction if _where(before.get(one)) != _where(after.get(one))}
        self._ever_changed |= changed
        self._just_changed |= changed | anew
        for direction in changed | anew:
            self._looked[direction].clear()
            self.is_settled = False

    def of(
        self,
        reading: Reading,
        set_up: SetUp,
        unwatched: Collection[Direction] = (),
        reasons: Mapping[int, str] | None = None,
    ) -> dict[Direction, LimitAnswer]:
        """Return the states for a reading with its findings.

        - unwatched: directions with a gap in the interval.
        - reasons: names of the kernel's drop reasons; None: who dropped is not known.
        """
        proved = {one.id for one in reading.findings}
        counted = {one: seen(reading, one, one in unwatched, reasons) for one in reading.directions}
        found = {one: self._of(reading, set_up, one, proved, counted[one]) for one in reading.directions}
        looked = chain.from_iterable(self._looked.values())
        self.is_settled = not self._just_changed and all(one.is_silent for one in looked)
        return found

    def _of(
        self, reading: Reading, set_up: SetUp, direction: Direction, proved: Collection[str], counted: Seen | None
    ) -> LimitAnswer:
        if counted is None:
            return limit_answer(set_up, direction, (), proved)
        if reading.final:
            doubt = Doubt.CHANGED if direction in self._ever_changed else None
            return limit_answer(set_up, direction, () if doubt else (counted,), proved, doubt)
        if direction in self._just_changed:
            self._just_changed.discard(direction)
            return limit_answer(set_up, direction, (), proved, Doubt.CHANGED)
        self._looked[direction].append(counted)
        return limit_answer(set_up, direction, tuple(self._looked[direction]), proved)


def _setting(limit: InstalledLimit | None) -> tuple[object, ...]:
    """Return the settings that identify a limit, without its place and counters."""
    return () if limit is None else (limit.rate_bps, limit.at_once_bytes, limit.rate_pps, limit.protocol)


def _where(limit: InstalledLimit | None) -> str:
    return "" if limit is None else limit.where
