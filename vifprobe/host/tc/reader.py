# SPDX-License-Identifier: Apache-2.0
"""Objects of tc on an interface, with statistics: complete dumps, for one interface or for hundreds at once.

Only dumps are used. A plain RTM_GETQDISC or RTM_GETTCLASS is answered, in most kernels, by a notification that goes to
everyone who listens for tc changes, too (net/sched/sch_api.c, tc_get_qdisc calls qdisc_notify).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, TypeVar

from vifprobe.host.net.netlink import Message, Netlink, NetlinkError, encoded
from vifprobe.host.tc.objects import header, hook_of, qdisc, tc_class, tc_filter
from vifprobe.host.tc.records import (
    CLSACT_EGRESS,
    CLSACT_INGRESS,
    INGRESS_HANDLE,
    TcAction,
    TcClass,
    TcFilter,
    TcQdisc,
)

RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
RTM_NEWTCLASS, RTM_DELTCLASS, RTM_GETTCLASS = 40, 41, 42
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46

#: Qdiscs that hold no filters and no classes; asking for either would be wasted on each tap of a big host.
_CLASSLESS = {"noqueue", "pfifo_fast", "fq_codel", "fq", "pfifo", "bfifo", "tbf", "noop"}
_GONE = (errno.ENODEV, errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class TcState:
    """tc objects of one interface. Filters are ordered by hook, chain, pref.

    problems: what could not be read, as text.
    """

    ifindex: int
    qdiscs: tuple[TcQdisc, ...] = ()
    classes: tuple[TcClass, ...] = ()
    filters: tuple[TcFilter, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def ingress(self) -> TcQdisc | None:
        """The `ingress` or `clsact` qdisc."""
        return next((found for found in self.qdiscs if found.hook == "ingress"), None)

    @property
    def root(self) -> TcQdisc | None:
        """The root of the egress tree."""
        return next((found for found in self.qdiscs if found.parent == "root"), None)

    def police(self) -> Iterator[tuple[TcFilter, TcAction]]:
        """Each police action with the filter that it hangs on."""
        return ((found, action) for found in self.filters for action in found.actions if action.kind == "police")


@lru_cache(4096)
def request_of(ifindex: int = 0, parent: int = 0) -> bytes:
    """Body of an RTM_GETQDISC, RTM_GETTCLASS or RTM_GETTFILTER."""
    return encoded(RTM_GETQDISC, {"family": socket.AF_UNSPEC, "index": ifindex, "parent": parent})


def read_tc_of(ifindexes: Iterable[int]) -> dict[int, TcState]:
    """Return ifindex -> installed objects, from one dump of the qdiscs; none for an interface that is gone."""
    return TcReader().read(ifindexes)


class TcReader:
    """Reads tc objects repeatedly. Unchanged rows are not parsed again.

    An interface without a change, counters included, gets the same TcState object.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[_Parsed, TcState]] = {}

    def read(self, ifindexes: Iterable[int]) -> dict[int, TcState]:
        """Return the result of read_tc_of. Raises HostError where netlink fails."""
        wanted = list(dict.fromkeys(ifindexes))
        with Netlink() as netlink:
            # The kernel has no way to ask for one interface's qdiscs: it sends all, those of others are skipped unread.
            rows: dict[int, list[Message]] = {ifindex: [] for ifindex in wanted}
            for message in netlink.dump(RTM_GETQDISC, request_of()):
                if message.type == RTM_NEWQDISC:
                    own = rows.get(header(message)[0])
                    if own is not None:
                        own.append(message)
            return {ifindex: self._state(_Reader(netlink, ifindex), rows[ifindex]) for ifindex in wanted}

    def forget(self, ifindexes: Iterable[int]) -> None:
        """Forget interfaces that will not be read again."""
        for ifindex in ifindexes:
            self._known.pop(ifindex, None)

    def _state(self, reader: _Reader, rows: list[Message]) -> TcState:
        before, state = self._known.get(reader.ifindex, ({}, TcState(reader.ifindex)))
        reader.known = before
        found = reader.read(rows)
        # The order counts, too: of two filters with one pref, the first in the list runs first.
        if list(reader.parsed) == list(before) and found.problems == state.problems:
            return state
        self._known[reader.ifindex] = reader.parsed, found
        return found


def waiting_of(ifindexes: Iterable[int]) -> dict[int, int]:
    """Ifindex -> packets that wait in its egress queueing tree, from one dump; those without one are left out.

    Raises HostError.
    """
    wanted, found = set(ifindexes), {}
    with Netlink() as netlink:
        for message in netlink.dump(RTM_GETQDISC, request_of()):
            if message.type == RTM_NEWQDISC and header(message)[0] in wanted:
                one = qdisc(message)
                if one.parent == "root" and one.stats.queue_packets is not None:
                    found[one.ifindex] = one.stats.queue_packets
    return found


#: Rows of dumps by type, place and bytes -> what they say.
_Parsed = dict[tuple[int, str, bytes], Any]
Record = TypeVar("Record")


class _Reader:
    """Reads the rest of one interface and notes what could not be read."""

    def __init__(self, netlink: Netlink, ifindex: int) -> None:
        self._netlink = netlink
        self.ifindex = ifindex
        self._problems: list[str] = []
        self.known: _Parsed = {}
        self.parsed: _Parsed = {}

    def read(self, qdisc_rows: list[Message]) -> TcState:
        qdiscs, parents = [], []
        for row in qdisc_rows:
            try:
                found = self._parse(row, "", qdisc)
            except NetlinkError as error:
                self._problems.append(f"a qdisc: {error.message}")
                continue
            qdiscs.append(found)
            parents += self._filter_parents(found, header(row)[1])
        classes = self._classes(qdiscs)
        parents += [(handle, None) for handle, _ in classes]
        return TcState(
            ifindex=self.ifindex,
            qdiscs=tuple(qdiscs),
            classes=tuple(found for _, found in classes),
            filters=tuple(self._filters(parents)),
            problems=tuple(self._problems),
        )

    @staticmethod
    def _filter_parents(found: TcQdisc, handle: int) -> list[tuple[int, int | None]]:
        """Return (parent, shared block) of each request for filters."""
        if found.kind == "clsact":
            return [(CLSACT_INGRESS, found.ingress_block), (CLSACT_EGRESS, found.egress_block)]
        if found.hook == "ingress":  # `ingress` answers with the same filters for whatever minor number
            return [(INGRESS_HANDLE, found.ingress_block)]
        return [] if found.kind in _CLASSLESS or not handle else [(handle, None)]

    def _classes(self, qdiscs: list[TcQdisc]) -> list[tuple[int, TcClass]]:
        if all(found.hook == "ingress" or found.kind in _CLASSLESS for found in qdiscs):
            return []
        classes = []
        for row in self._dump(RTM_GETTCLASS, 0, "classes"):
            try:
                classes.append((header(row)[1], self._parse(row, "", tc_class)))
            except NetlinkError as error:
                self._problems.append(f"a class: {error.message}")
        return classes

    def _filters(self, parents: list[tuple[int, int | None]]) -> list[TcFilter]:
        filters = []
        for parent, block in parents:
            hook = hook_of(parent)
            for row in self._dump(RTM_GETTFILTER, parent, f"{hook} filters"):
                try:
                    found = self._parse(row, f"{hook} {block}", partial(self._filter, hook=hook, block=block))
                except NetlinkError as error:
                    self._problems.append(f"a filter at {hook}: {error.message}")
                    continue
                if found is not None:
                    filters.append(found)
        return sorted(filters, key=lambda found: (found.hook, found.chain, found.pref))

    def _filter(self, row: Message, hook: str, block: int | None) -> TcFilter | None:
        return tc_filter(row, hook, self.ifindex, block)

    def _parse(self, row: Message, where: str, parse: Callable[[Message], Record]) -> Record:
        """Return the record of a row; an unchanged row is not parsed again."""
        key = row.type, where, row.body
        found = self.parsed[key] = self.known[key] if key in self.known else parse(row)
        return found

    def _dump(self, kind: int, parent: int, what: str) -> list[Message]:
        try:
            return self._netlink.dump(kind, request_of(self.ifindex, parent))
        except NetlinkError as error:
            if error.errno not in _GONE:
                self._problems.append(f"{what}: {error.message}")
            return []
