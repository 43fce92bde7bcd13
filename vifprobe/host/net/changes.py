# SPDX-License-Identifier: Apache-2.0
"""Changes of watched interfaces: the last known state, and the difference that a netlink notification makes.

No sockets here: `events` passes the notifications.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from vifprobe.host.net.links import RTM_DELLINK, RTM_NEWLINK, Link, parse
from vifprobe.host.net.netlink import Message, reading
from vifprobe.host.tc import reader
from vifprobe.host.tc.objects import BLOCK_IFINDEX, header, hook_of, kind_of, qdisc, tc_class, tc_filter
from vifprobe.host.tc.records import TcAction, TcClass, TcFilter, TcQdisc

#: link_new: an interface of a watched name that was not there. link_change without a visible change is reported, too:
#: a change of offload features looks like this, and Open vSwitch acts on any RTM_NEWLINK. nft_change: a transaction
#: that may have changed what nft does on a watched interface. gap, limit_gap: no notifications but what came of them
#: (vifprobe.session.coverage): the tap was not watched, or had no limit.
EventKind = Literal[
    "link_new",
    "link_del",
    "link_up",
    "link_down",
    "link_change",
    "qdisc_new",
    "qdisc_del",
    "class_new",
    "class_del",
    "filter_new",
    "filter_del",
    "nft_change",
    "overflow",
    "unreadable",
    "gap",
    "limit_gap",
]

_TC_KINDS: dict[int, EventKind] = {
    reader.RTM_NEWQDISC: "qdisc_new",
    reader.RTM_DELQDISC: "qdisc_del",
    reader.RTM_NEWTCLASS: "class_new",
    reader.RTM_DELTCLASS: "class_del",
    reader.RTM_NEWTFILTER: "filter_new",
    reader.RTM_DELTFILTER: "filter_del",
}
_MOVED = ("IFLA_NEW_NETNSID", "IFLA_NEW_IFINDEX")

# Fields of Link whose changes are reported, with their names in ip-link(8). `up` has separate event kinds.
_TOLD = {
    "name": "name",
    "mtu": "mtu",
    "promiscuity": "promiscuity",
    "tx_queue_length": "qlen",
    "master_name": "master",
    "mac": "address",
    "carrier": "carrier",
    "qdisc": "qdisc",
    "alias": "alias",
    "xdp": "xdp",
}


@dataclass(frozen=True)
class LinkChange:
    """One notification about a watched interface.

    - ifindex, kind: interface and kind of the event.
    - detail: the change, for people.
    - record: the changed object with all its settings; None without one.
    """

    ifindex: int
    kind: EventKind
    detail: str
    record: Link | TcQdisc | TcClass | TcFilter | None = None


class Watched:
    """Last known state of the watched interfaces.

    An interface that comes back under a watched name is watched from then on, with any ifindex.
    """

    def __init__(self, ifindexes: Iterable[int], links: Iterable[Link], qdiscs: Iterable[TcQdisc]) -> None:
        self._links = {link.ifindex: link for link in links}
        self._watched = set(ifindexes)
        self._names = {link.name for ifindex, link in self._links.items() if ifindex in self._watched}
        self._blocks: dict[int, dict[int, str]] = {}  # shared block -> ifindex -> hook
        for found in qdiscs:
            self._note_blocks(found)

    @property
    def ifindexes(self) -> frozenset[int]:
        """Return the watched interfaces, with those that came later."""
        return frozenset(self._watched)

    def is_watched(self, ifindex: int) -> bool:
        """Return True if this interface is watched."""
        return ifindex in self._watched

    def changes(self, message: Message) -> list[LinkChange]:
        """Return the changes in this notification; none for other interfaces. Raises NetlinkError if it is invalid."""
        if message.type in (RTM_NEWLINK, RTM_DELLINK):
            return self._link(message)
        kind = _TC_KINDS.get(message.type)
        return [] if kind is None else self._tc(kind, message)

    def resync(self, links: Iterable[Link]) -> list[LinkChange]:
        """Compare with a fresh list of all interfaces, after notifications were lost."""
        now = {link.ifindex: link for link in links}
        found = []
        for ifindex in sorted(self._watched & self._links.keys() - now.keys()):
            found.append(LinkChange(ifindex, "link_del", "gone", self._links[ifindex]))
        for ifindex in self._links.keys() - now.keys():
            self._forget(ifindex)
        for ifindex, link in now.items():
            if self._links.get(ifindex) != link:
                found += self._new_link(link)
        return [one for one in found if one.detail != NO_CHANGE]

    def _link(self, message: Message) -> list[LinkChange]:
        if message.body[:1] != bytes((socket.AF_UNSPEC,)):
            return []  # AF_BRIDGE: an RTM_DELLINK of that family means that a port left its bridge
        link = parse(message, {ifindex: known.name for ifindex, known in self._links.items()})
        if message.type == RTM_NEWLINK:
            return self._new_link(link)
        was_watched = link.ifindex in self._watched
        self._forget(link.ifindex)
        if not was_watched:
            return []
        with reading():
            found = message.decoded(RTM_NEWLINK)
            moved = any(found.get_attr(name) is not None for name in _MOVED)
        return [LinkChange(link.ifindex, "link_del", "moved to another namespace" if moved else "deleted", link)]

    def _new_link(self, link: Link) -> list[LinkChange]:
        before = self._links.get(link.ifindex)
        self._links[link.ifindex] = link
        watched = link.ifindex in self._watched
        if before is None:
            if not watched and link.name not in self._names:
                return []
            self._watched.add(link.ifindex)
            return [LinkChange(link.ifindex, "link_new", f"{link.name} is there, ifindex {link.ifindex}", link)]
        if not watched:
            if link.name not in self._names or before.name == link.name:
                return []
            self._watched.add(link.ifindex)
            return [LinkChange(link.ifindex, "link_new", f"{before.name} was renamed {link.name}", link)]
        kind: EventKind = "link_change"
        if before.up != link.up:
            kind = "link_up" if link.up else "link_down"
        return [LinkChange(link.ifindex, kind, _difference(before, link), link)]

    def _tc(self, kind: EventKind, message: Message) -> list[LinkChange]:
        ifindex, _, parent, info = header(message)
        if ifindex == BLOCK_IFINDEX:
            on = self._blocks.get(parent, {})
            return [self._filter(kind, message, hook, one, info) for one, hook in sorted(on.items())]
        if ifindex not in self._watched:
            return []
        if kind.startswith("filter"):
            return [self._filter(kind, message, hook_of(parent), ifindex, info)]
        if kind.startswith("class"):
            found = tc_class(message)
            return [LinkChange(ifindex, kind, f"{found.kind} class {found.handle}", found)]
        record = qdisc(message)
        if record.hook == "ingress":
            self._forget_blocks(ifindex)
        if kind == "qdisc_new":
            self._note_blocks(record)
        return [LinkChange(ifindex, kind, f"{record.kind} qdisc {record.handle} at {record.parent}", record)]

    @staticmethod
    def _filter(kind: EventKind, message: Message, hook: str, ifindex: int, info: int) -> LinkChange:
        found = tc_filter(message, hook, ifindex)
        if found is None:
            # All of a pref are deleted by one message without a handle; and a new matchall is announced without its
            # settings (cls_matchall.c, mall_change: *arg = head, which is the former one): dump to learn them.
            of_kind = kind_of(message) or "unknown"
            many = "s" if kind == "filter_del" else ""
            return LinkChange(ifindex, kind, f"{of_kind} filter{many} of pref {info >> 16} at {hook}")
        acts = "".join(f", {_action(action)}" for action in found.actions)
        return LinkChange(ifindex, kind, f"filter {found.where} protocol {found.protocol}{acts}", found)

    def _forget(self, ifindex: int) -> None:
        """Remove an interface that is gone; one that comes back is found by its name."""
        self._links.pop(ifindex, None)
        self._watched.discard(ifindex)
        self._forget_blocks(ifindex)

    def _forget_blocks(self, ifindex: int) -> None:
        for block in [block for block, on in self._blocks.items() if on.pop(ifindex, None) and not on]:
            del self._blocks[block]

    def _note_blocks(self, found: TcQdisc) -> None:
        if found.ifindex in self._watched:
            for block, hook in ((found.ingress_block, "ingress"), (found.egress_block, "egress")):
                if block:
                    self._blocks.setdefault(block, {})[found.ifindex] = hook


#: Detail of a link message without news.
NO_CHANGE = "nothing that a link message tells has changed"


def _difference(before: Link, now: Link) -> str:
    differences = [f"{'up' if now.up else 'down'}"] if before.up != now.up else []
    for field, called in _TOLD.items():
        old, new = getattr(before, field), getattr(now, field)
        if old != new:
            differences.append(f"{called} {_shown(old)} -> {_shown(new)}")
    return ", ".join(differences) or NO_CHANGE


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ", ".join(f"{one.mode} (program id {one.id})" for one in value) or "none"
    return str(value) if value not in ("", None) else "none"


def _action(action: TcAction) -> str:
    policer = action.policer
    if policer is None:
        return f"{action.kind} {action.control}".strip()
    rate = f"{policer.rate_bps} bit/s" if policer.rate_bps is not None else f"{policer.rate_pps} packets/s"
    return f"police {rate} {policer.exceed_action}"
