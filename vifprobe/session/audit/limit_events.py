# SPDX-License-Identifier: Apache-2.0
"""Events of a tap as statements about its limits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from vifprobe.analysis.gaps import LimitEvent, Meaning
from vifprobe.host.net.events import Event
from vifprobe.host.nft.events import NftChange
from vifprobe.host.tc.records import TcClass, TcFilter, TcQdisc
from vifprobe.model.layout import Direction
from vifprobe.model.ports import is_swapped, turned


def limit_events(events: Iterable[Event], kind: str = "tap") -> list[LimitEvent]:
    """Return the statements about limits that events of a device of this kind make."""
    found = [one for event in events if (one := _limit_event(event)) is not None]
    if not is_swapped(kind):
        return found
    return [one if one.direction is None else replace(one, direction=turned(kind, one.direction)) for one in found]


def _limit_event(event: Event) -> LimitEvent | None:
    if isinstance(event.record, NftChange):
        change = event.record
        who = (event.by_words, event.by_pid, event.detail)
        return LimitEvent(event.at_ns, "rules", None, *who, "", change.deleted, change.adds_limit)
    meaning, direction, qdisc = _meaning(event)
    if meaning is None:
        return None
    # Details without a change are left out of the text.
    detail = "" if meaning == "link" and event.detail.startswith("nothing ") else event.detail
    return LimitEvent(event.at_ns, meaning, direction, event.by_words, event.by_pid, detail, qdisc)


def _meaning(event: Event) -> tuple[Meaning | None, Direction | None, str]:
    record, out, into = event.record, Direction.OUTBOUND, Direction.INBOUND
    if event.kind.startswith("link"):
        return "link", None, ""
    if isinstance(record, TcQdisc):
        if record.hook == "ingress":
            return ("qdisc_del", out, record.kind) if event.kind == "qdisc_del" else (None, None, "")
        if event.kind == "qdisc_del":
            return "qdisc_del", into, record.kind
        return ("limit_new", into, record.kind) if record.shaper is not None else (None, None, "")
    if isinstance(record, TcClass) and record.shaper is not None:
        return ("limit_new" if event.kind == "class_new" else "limit_del"), into, ""
    if isinstance(record, TcFilter) and event.kind == "filter_new":
        polices = record.hook == "ingress" and any(action.kind == "police" for action in record.actions)
        return ("limit_new", out, "") if polices else (None, None, "")
    if event.kind == "filter_new" and record is None and event.detail.startswith("matchall "):
        # Open vSwitch's, announced without its settings (see host/changes.py).
        return "limit_maybe", (into if "egress" in event.detail else out), ""
    if event.kind == "filter_del":
        return "limit_del", (into if "egress" in event.detail else out), ""
    return None, None, ""
