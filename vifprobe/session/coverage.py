# SPDX-License-Identifier: Apache-2.0
"""Intervals in which a tap was unwatched, or had no limit. A capture reports them as events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from vifprobe.analysis.findings.situation import bits, size, span
from vifprobe.analysis.gaps import LimitGap
from vifprobe.host.net.events import Event
from vifprobe.model.layout import Direction

#: Number of ended spans of a direction that are kept separately, the newest ones.
KEPT = 32


@dataclass(frozen=True)
class Coverage:
    """A span in which a direction of a tap was unwatched.

    - tap, direction: interface name and direction.
    - start_ns: when the removal was reported, monotonic.
    - end_ns: end, monotonic; None: until the end of the run.
    - why: cause, for people.
    - by_pid, by_comm: process that caused it; None where unknown.
    - hook: hook that watches the direction after the span; "" where none does.
    - times: number of spans that this one combines.
    - unwatched_ns: their total length; 0 for a single span.
    """

    tap: str
    direction: Direction
    start_ns: int
    end_ns: int | None
    why: str
    by_pid: int | None = None
    by_comm: str | None = None
    hook: str = ""
    times: int = 1
    unwatched_ns: int = 0

    @property
    def duration_ns(self) -> int | None:
        """Return the length; None: it lasted until the end of the run."""
        return None if self.end_ns is None else self.end_ns - self.start_ns

    def touches(self, start_ns: int, end_ns: int) -> bool:
        """Return True if some of it is in a span of time."""
        return self.start_ns < end_ns and (self.end_ns is None or self.end_ns > start_ns)

    @property
    def words(self) -> str:
        """Return the text for events.csv and the manifest."""
        lasted = _lasted("not watched", self.start_ns, self.end_ns)
        if self.times > 1:
            lasted = f"not watched {self.times:,} times within this one, {span(self.unwatched_ns)} in all"
        since = f"; by {self.hook} since" if self.hook else ""
        return f"{self.direction.name.lower()} packets {lasted}: {self.why}{since}"


def without_old(spans: list[Coverage], direction: Direction) -> list[Coverage]:
    """Return the spans with the oldest ended ones of a direction combined into one, so that KEPT ended ones remain."""
    over = [one for one in spans if one.direction is direction and one.end_ns is not None]
    old = over[: max(0, len(over) - KEPT + 1)]
    if len(old) < 2:
        return spans
    whole = replace(
        old[0],
        end_ns=old[-1].end_ns,
        hook=old[-1].hook,
        times=sum(one.times for one in old),
        unwatched_ns=sum(one.unwatched_ns or one.duration_ns or 0 for one in old),
    )
    return [whole, *(one for one in spans if one not in old)]


class GapTeller:
    """Reports each span as an event, once: when it has ended, or at the end of the run."""

    def __init__(self) -> None:
        self._reported: dict[int, frozenset[tuple[object, ...]]] = {}

    def news(
        self, tap: str, ifindex: int, unwatched: Iterable[Coverage], unlimited: Iterable[LimitGap], final: bool
    ) -> list[tuple[str, Event]]:
        """Return the events of one tap that were not reported before; with `final`, those of open spans, too."""
        found = [*_unwatched(ifindex, unwatched, final), *_unlimited(ifindex, unlimited, final)]
        reported = self._reported.get(ifindex, frozenset())
        # A span that was removed from the list does not come back.
        self._reported[ifindex] = frozenset(key for key, _ in found)
        return [(tap, event) for key, event in found if key not in reported]


#: Link messages without a change are combined until none has come for this time.
_STORM_OVER_NS = 1_000_000_000


@dataclass
class _Storm:
    """A series of link messages without a change. more: number of messages after the first one, which is reported."""

    first_ns: int
    last_ns: int
    more: int


class LinkTeller:
    """Combines link messages without a change into two events: the first one, and the number of later ones."""

    def __init__(self) -> None:
        self._storms: dict[int, _Storm] = {}

    def news(self, event: Event) -> list[Event]:
        """Return the events to report for such a message now."""
        storm = self._storms.get(event.ifindex)
        if storm is not None and event.at_ns - storm.last_ns < _STORM_OVER_NS:
            storm.more += event.times
            storm.last_ns = event.at_ns
            return []
        self._storms[event.ifindex] = _Storm(event.at_ns, event.at_ns, event.times - 1)
        return [*self._events_of(event.ifindex, storm), event]

    def over(self, now_ns: int, final: bool = False) -> list[Event]:
        """Return the events of the series that have ended; with `final`, of all."""
        ended = []
        for ifindex, storm in list(self._storms.items()):
            if final or now_ns - storm.last_ns >= _STORM_OVER_NS:
                ended += self._events_of(ifindex, self._storms.pop(ifindex))
        return ended

    @staticmethod
    def _events_of(ifindex: int, storm: _Storm | None) -> list[Event]:
        if storm is None or not storm.more:
            return []
        words = f"{storm.more:,} more link messages in {span(storm.last_ns - storm.first_ns)} without a change"
        return [Event(storm.first_ns, ifindex, "link_change", words, times=storm.more)]


_KeyedEvent = tuple[tuple[object, ...], Event]


def _unwatched(ifindex: int, spans: Iterable[Coverage], final: bool) -> Iterator[_KeyedEvent]:
    for one in spans:
        if final or one.end_ns is not None:
            key = ("gap", ifindex, one.direction, one.start_ns)
            yield key, Event(one.start_ns, ifindex, "gap", one.words, one.by_pid, one.by_comm)


def _unlimited(ifindex: int, gaps: Iterable[LimitGap], final: bool) -> Iterator[_KeyedEvent]:
    for gap in gaps:
        if final or gap.end_ns is not None:
            removal = gap.removal
            # The command name alone, as in all other rows; the text also names the parent process.
            who = (removal.by_pid, removal.by.split(" (")[0] or None) if removal else (None, None)
            key = ("limit_gap", ifindex, gap.direction, gap.number)
            yield key, Event(gap.start_ns, ifindex, "limit_gap", _limit_words(gap), *who)


def _limit_words(gap: LimitGap) -> str:
    words = f"{gap.direction.name.lower()} packets {_lasted('not limited', gap.start_ns, gap.end_ns)}"
    if gap.limit is not None and gap.limit.rate_bps is not None:
        words += f", {bits(gap.limit.rate_bps)} before"
    if gap.removal is not None and gap.removal.by:
        words += f"; removed by {gap.removal.by}"
    if gap.passed_bytes is not None:
        words += f"; {size(gap.passed_bytes)} passed"
    return words + (f"; limited again by {gap.restored_by}" if gap.restored_by else "")


def _lasted(what: str, start_ns: int, end_ns: int | None) -> str:
    return f"{what} until the end" if end_ns is None else f"{what} for {span(end_ns - start_ns)}"
