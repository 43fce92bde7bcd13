# SPDX-License-Identifier: Apache-2.0
"""Times in which a tap had no limit, from the changes that were told of it: who removed it, after what, what passed.

Pure: fed with events in their order and with what had passed by the time that they were heard of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from vifprobe.analysis.findings import thresholds
from vifprobe.model.layout import Direction
from vifprobe.model.limits import InstalledLimit

#: So many gaps that are over are kept of a direction, the newest, and so many limits that came: somebody may change a
#: limit all day long.
KEPT = 32

#: What an event means for the limits of a tap. `link`: any notification about the link itself. `limit_new`: a policer
#: or shaper is there. `limit_maybe`: something is there that is a limit if one is found. `limit_del`: one filter or
#: class is gone, others may be left. `qdisc_del`: and all in it. `rules`: some were deleted or added, and what that
#: comes to is for what is installed to tell.
Meaning = Literal["link", "limit_new", "limit_maybe", "limit_del", "qdisc_del", "rules"]


@dataclass(frozen=True)
class LimitEvent:
    """One event. at_ns: monotonic. direction: None for `link`. by: the process's name, "" where that is not known.

    detail: what changed, in words, "" where nothing is told of it. qdisc: kind of the qdisc that was removed. deleted,
    adds_limit: of `rules`, the places that are gone (`where` of a limit but for its first word), and whether any new
    one limits something.
    """

    at_ns: int
    meaning: Meaning
    direction: Direction | None = None
    by: str = ""
    by_pid: int | None = None
    detail: str = ""
    qdisc: str = ""
    deleted: frozenset[str] = frozenset()
    adds_limit: bool = False


@dataclass(frozen=True)
class LimitGap:
    """A time without a limit. number: 1 for the first one of its tap and direction.

    limit: what was lost. removal: None where nobody told of it. link_change: the last one before it, None for none
    shortly before. end_ns, restored_by: None while it lasts. passed_bytes: charged bytes that no policer took in it,
    counted from when it was heard of, so at least so many; None where that is not known.
    """

    number: int
    direction: Direction
    start_ns: int
    limit: InstalledLimit | None
    removal: LimitEvent | None = None
    link_change: LimitEvent | None = None
    end_ns: int | None = None
    restored_by: str | None = None
    passed_bytes: int | None = None

    def duration_ns(self, now_ns: int) -> int:
        """Its length so far."""
        return (now_ns if self.end_ns is None else self.end_ns) - self.start_ns

    def allowed_bytes(self, now_ns: int) -> int | None:
        """Return the bytes that the lost limit would have passed in this time; None if it had no bit rate."""
        if self.limit is None or self.limit.rate_bps is None:
            return None
        return self.limit.rate_bps * self.duration_ns(now_ns) // 8_000_000_000 + (self.limit.at_once_bytes or 0)

    def exceeded(self, now_ns: int) -> bool:
        """Return True if more passed than the limit would have let through."""
        allowed = self.allowed_bytes(now_ns)
        return allowed is not None and self.passed_bytes is not None and self.passed_bytes > allowed


@dataclass(frozen=True)
class EarlierGaps:
    """Gaps of one direction that are not kept one by one any more. duration_ns: of all together."""

    number: int = 0
    duration_ns: int = 0


class GapTracker:
    """Keeps the gaps of one tap: the newest KEPT of each direction, one batch of events more at most.

    installs: (direction, monotonic ns) of each limit that came where there had been none, the newest KEPT.
    installs_before: how many came before those. earlier: gaps that are not in `gaps` any more.
    """

    def __init__(self, limits: Mapping[Direction, InstalledLimit | None]) -> None:
        self.gaps: list[LimitGap] = []
        self.installs: list[tuple[Direction, int]] = []
        self.installs_before = 0
        self.earlier = {direction: EarlierGaps() for direction in Direction}
        self._limits = dict(limits)
        self._passed_at: dict[tuple[Direction, int], int | None] = {}
        self._link_change: LimitEvent | None = None

    def follow(
        self,
        events: Iterable[LimitEvent],
        limits: Mapping[Direction, InstalledLimit | None],
        now_ns: int,
        passed: Mapping[Direction, int | None],
    ) -> bool:
        """Take in events and what is installed after them; whether a limit came, went or changed.

        passed: charged bytes that have passed since the start, by direction; None where not known.
        """
        self._leave_out_old()
        tentative = dict(self._limits)
        before = dict(self._limits)
        opened, removals = len(self.gaps), [gap.removal for gap in self.gaps]
        for event in events:
            self._take(event, tentative, limits, passed)
        self._limits = dict(limits)
        for direction in Direction:
            if not self._settle(direction, opened, tentative.get(direction), limits.get(direction), now_ns, passed):
                self._limits[direction] = None
        self.progress(passed)
        changed = any(_setting(before.get(one)) != _setting(limits.get(one)) for one in Direction)
        return changed or removals != [gap.removal for gap in self.gaps]

    def note_link_change(self, event: LimitEvent) -> None:
        """Note a link change: a removal of a limit can be the answer to it."""
        self._link_change = event

    def _leave_out_old(self) -> None:
        """Gaps of earlier batches: whoever tells of each one by one has done so by now."""
        for direction in Direction:
            over = [gap for gap in self.gaps if gap.direction is direction and gap.end_ns is not None]
            old = over[: max(0, len(over) - KEPT)]
            if old:
                so_far = self.earlier[direction]
                lasted_ns = sum(gap.duration_ns(0) for gap in old)
                self.earlier[direction] = EarlierGaps(so_far.number + len(old), so_far.duration_ns + lasted_ns)
                self.gaps = [gap for gap in self.gaps if gap.direction is not direction or gap.number > old[-1].number]
        too_many = max(0, len(self.installs) - KEPT)
        self.installs_before += too_many
        del self.installs[:too_many]

    def progress(self, passed: Mapping[Direction, int | None]) -> None:
        """Count what has passed in the gaps that are still open."""
        for place, gap in enumerate(self.gaps):
            if gap.end_ns is None:
                self.gaps[place] = replace(gap, passed_bytes=self._passed_in(gap, passed))

    def _take(
        self,
        event: LimitEvent,
        tentative: dict[Direction, InstalledLimit | None],
        limits: Mapping[Direction, InstalledLimit | None],
        passed: Mapping[Direction, int | None],
    ) -> None:
        if event.meaning == "link":
            self.note_link_change(event)
            return
        if event.meaning == "rules":
            self._take_rules(event, tentative, limits, passed)
            return
        direction = event.direction
        if direction is None:
            return
        if event.meaning == "limit_maybe" and limits.get(direction) is None:
            return
        if event.meaning in ("limit_new", "limit_maybe"):
            if tentative.get(direction) is None:
                self._restored(direction, event.at_ns, event.by, passed)
                tentative[direction] = limits.get(direction) or InstalledLimit(direction, "", "", "", "")
        elif (lost := tentative.get(direction)) is not None:
            self._lost(direction, event.at_ns, lost, event, passed)
            tentative[direction] = None
        else:
            self._explain(event)

    def _explain(self, event: LimitEvent) -> None:
        """A limit that was seen to be gone before its removal was told of: somebody looked in between. What was told
        while that look went on has an earlier time than the look.
        """
        for place, gap in enumerate(self.gaps):
            late_ns = event.at_ns - gap.start_ns
            if event.direction not in (None, gap.direction) or gap.removal is not None or gap.limit is None:
                continue
            told = replace(gap, removal=event, link_change=self._change_before(event.at_ns))
            if abs(late_ns) < thresholds.TOLD_LATE_NS and _took_it(told, gap.limit):
                self.gaps[place] = replace(told, start_ns=min(gap.start_ns, event.at_ns))

    def _change_before(self, at_ns: int) -> LimitEvent | None:
        change = self._link_change
        return None if change is None or at_ns - change.at_ns > thresholds.LINK_CHANGE_BEFORE_NS else change

    def _take_rules(
        self,
        event: LimitEvent,
        tentative: dict[Direction, InstalledLimit | None],
        limits: Mapping[Direction, InstalledLimit | None],
        passed: Mapping[Direction, int | None],
    ) -> None:
        """A transaction of nft: to delete a limit and add one in the same transaction leaves no gap."""
        self._explain(event)
        for direction in Direction:
            was, now = tentative.get(direction), limits.get(direction)
            is_deleted = was is not None and was.where.partition(" ")[2] in event.deleted
            if was is not None and (now is None or is_deleted) and not event.adds_limit:
                self._lost(direction, event.at_ns, was, event, passed)
                tentative[direction] = None
            elif was is None and now is not None and event.adds_limit:
                self._restored(direction, event.at_ns, event.by, passed)
                tentative[direction] = now

    def _settle(
        self,
        direction: Direction,
        opened: int,
        told: InstalledLimit | None,
        found: InstalledLimit | None,
        now_ns: int,
        passed: Mapping[Direction, int | None],
    ) -> bool:
        """Hold what the events told against what is there: not each change is told, and one of several may be left.

        False: what is there came after these events, and is still to be told of.
        """
        last = next((gap for gap in reversed(self.gaps) if gap.direction is direction and gap.end_ns is None), None)
        if told is None and found is not None:
            is_new = last is not None and self.gaps.index(last) >= opened
            if is_new and last is not None and _took_it(last, found):
                return False
            if is_new and last is not None:
                self._passed_at.pop((direction, last.number), None)
                self.gaps.remove(last)  # one of several limits went, and the rest is still there
            else:
                self._restored(direction, now_ns, "", passed)
        elif told is not None and found is None:
            self._lost(direction, now_ns, told, None, passed)
        return True

    def _lost(
        self,
        direction: Direction,
        at_ns: int,
        limit: InstalledLimit,
        removal: LimitEvent | None,
        passed: Mapping[Direction, int | None],
    ) -> None:
        number = 1 + self.earlier[direction].number + sum(gap.direction is direction for gap in self.gaps)
        change = self._change_before(at_ns)
        self._passed_at[direction, number] = passed.get(direction)
        self.gaps.append(LimitGap(number, direction, at_ns, limit, removal, change if removal else None))

    def _restored(self, direction: Direction, at_ns: int, by: str, passed: Mapping[Direction, int | None]) -> None:
        for place, gap in enumerate(self.gaps):
            if gap.direction is direction and gap.end_ns is None:
                counted = self._passed_in(gap, passed)
                self._passed_at.pop((direction, gap.number), None)
                self.gaps[place] = replace(gap, end_ns=at_ns, restored_by=by, passed_bytes=counted)
                return
        self.installs.append((direction, at_ns))

    def _passed_in(self, gap: LimitGap, passed: Mapping[Direction, int | None]) -> int | None:
        now, then = passed.get(gap.direction), self._passed_at.get((gap.direction, gap.number))
        return None if now is None or then is None else max(0, now - then)


def _took_it(gap: LimitGap, found: InstalledLimit) -> bool:
    """Return True if a limit like the one that is there must have gone, too, when the gap began."""
    removal, limit = gap.removal, gap.limit
    if removal is None or limit is None or (found.source, found.kind) != (limit.source, limit.kind):
        return False
    if removal.meaning == "rules":
        return limit.where.partition(" ")[2] in removal.deleted
    held = ("ingress", "clsact") if limit.kind == "police" else (limit.kind,)
    return removal.meaning == "qdisc_del" and limit.source == "tc" and removal.qdisc in held


def _setting(limit: InstalledLimit | None) -> tuple[object, ...]:
    """Return the settings that identify a limit, without its counters."""
    return () if limit is None else (limit.where, limit.rate_bps, limit.burst_bytes, limit.rate_pps, limit.protocol)
