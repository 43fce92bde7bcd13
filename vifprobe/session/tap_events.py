# SPDX-License-Identifier: Apache-2.0
"""Which events concern one tap and its limits."""

from __future__ import annotations

from vifprobe.host.net.events import Event
from vifprobe.host.nft.events import NftChange
from vifprobe.host.nft.state import NftState
from vifprobe.host.tc.records import TcQdisc

#: Prefixes of the kinds of events after which limits are read again; "over": events were lost.
_ABOUT_LIMITS = ("qdisc", "filter", "class", "nft", "over")


def is_about_limits(events: list[Event]) -> bool:
    """Return True if limits must be read again after these events."""
    return any(event.kind.startswith(_ABOUT_LIMITS) for event in events)


def own_events(events: list[Event], before: NftState, after: NftState) -> list[Event]:
    """Return the events without nft changes that do not concern the tap. before, after: nft's state on the tap."""
    changed = before.settings != after.settings
    return [
        event
        for event in events
        if not isinstance(event.record, NftChange) or changed or before.holds_any(event.record.deleted)
    ]


def removal(events: list[Event]) -> Event:
    """Return the event that removed a filter: the end of its qdisc, else of the filter, else the first event."""
    for kind in ("qdisc_del", "filter_del"):
        for event in events:
            is_other = isinstance(event.record, TcQdisc) and event.record.kind not in ("ingress", "clsact")
            if event.kind == kind and not is_other:
                return event
    return events[0]
