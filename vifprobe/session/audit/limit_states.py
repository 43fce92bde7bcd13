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
    """Keeps what the last readings counted since each limit is what it is, and gives the states with it.

    is_settled: a further reading without packets has the states of the one before.

    Packets from before a change say nothing of what is set now: neither the reading in which it came nor the totals of
    that run are held against the limit.
    """

    def __init__(self) -> None:
        self._looked: dict[Direction, deque[Seen]] = {one: deque(maxlen=WINDOW) for one in Direction}
        self._just_changed: set[Direction] = set()
        self._ever_changed: set[Direction] = set()
        self.is_settled = True

    def follow(self, before: Limits, after: Limits, gaps: Iterable[Direction]) -> None:
        """Limits were changed. gaps: directions in which one was away, be it that the same one is back.

        The same limit made anew has a full bucket: that counts for the reading in which it came, not for the totals.
        """
        changed = {one for one in Direction if _setting(before.get(one)) != _setting(after.get(one))} | {*gaps}
        anew = {one for one in Direction if _where(before.get(one)) != _where(after.get(one))}
        self._ever_changed |= changed
        self._just_changed |= changed | anew
        for direction in changed | anew:
            self._looked[direction].clear()
            self.is_settled = False

    def of(
        self, reading: Reading, set_up: SetUp, unwatched: Collection[Direction] = ()
    ) -> dict[Direction, LimitAnswer]:
        """The states by a reading with its findings. unwatched: directions without coverage for a part of its time."""
        proved = {one.id for one in reading.findings}
        found = {one: self._of(reading, set_up, one, proved, one in unwatched) for one in reading.directions}
        looked = chain.from_iterable(self._looked.values())
        self.is_settled = not self._just_changed and all(one.is_silent for one in looked)
        return found

    def _of(
        self, reading: Reading, set_up: SetUp, direction: Direction, proved: Collection[str], unwatched: bool
    ) -> LimitAnswer:
        counted = seen(reading, direction, unwatched)
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
