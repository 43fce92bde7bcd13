# SPDX-License-Identifier: Apache-2.0
"""Audit the watched taps in a separate thread, so that neither start nor counting waits.

The thread reads declared limits (libvirt, Open vSwitch), counters and the host's CPU time. The watching thread passes
changes as they come, and requests findings with each reading.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

from vifprobe.analysis.policer import PolicerRow, policer_rows
from vifprobe.errors import HostError
from vifprobe.host.declared import declared_of
from vifprobe.host.limits import Installed, LimitReader
from vifprobe.host.net.links import Link, is_there
from vifprobe.host.ovs.meters import MeterReader
from vifprobe.host.ovs.ovn import OvnReader
from vifprobe.host.procs import processes
from vifprobe.model.layout import Direction
from vifprobe.model.reading import Limit
from vifprobe.process import capabilities
from vifprobe.session.audit import audit
from vifprobe.session.audit.audit import Look
from vifprobe.session.audit.port_addresses import host_neighbours, own_addresses
from vifprobe.session.audit.tap_audit import TapAudit

_LOOK_SECONDS = 1.0
#: Declared limits are read at these intervals: the second one after a change in the kernel, which a newly declared
#: limit causes. It bounds the number of reads when changes are frequent.
_DECLARED_NS = 10_000_000_000
_DECLARED_LEAST_NS = 1_000_000_000
_BACKGROUND_NICE = 5
#: Interval at which taps without packets are read; minimum time between two reads.
_ALL_NS = 10_000_000_000
_LOOK_LEAST_SECONDS = 0.1


class Auditor:
    """The audits of all watched taps, and the thread that updates them. Create it in the taps' network namespace."""

    def __init__(
        self,
        links: Iterable[Link],
        limits: Mapping[Direction, Limit],
        found: Mapping[int, Installed],
        reader: LimitReader | None = None,
    ) -> None:
        self.taps = {link.ifindex: TapAudit(link, limits, found[link.ifindex]) for link in links}
        syns_pps: dict[str, float] = {}
        for tap in self.taps.values():
            tap.syns_pps = syns_pps
        self._links = [tap.link for tap in self.taps.values()]
        self._wake, self._closed = threading.Event(), False
        self._reader, self._holders = reader or LimitReader(), processes.Holders()
        self._meters, self._ovn = MeterReader(), OvnReader()
        self._all_looked_ns = 0
        self._declared_ns: int | None = None
        self._poked = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def poke(self) -> None:
        """Read everything again now, with declared limits, because something has changed."""
        self._poked = True
        self._wake.set()

    def close(self) -> None:
        """End the thread. If it waits for a server that hangs, it ends with the process."""
        self._closed = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=0.3)

    def look(self) -> None:
        """Read everything once, in the calling thread."""
        self._look(self._links)

    def _look(self, links: list[Link]) -> None:
        with self._lock:
            self._look_at_declared()
            pids = {ifindex: tap.pid for ifindex, tap in self.taps.items()}
            declared = {ifindex: tap.declared for ifindex, tap in self.taps.items() if tap.declared is not None}
            if not links:
                return
            for ifindex, seen in audit.look(links, pids, declared, self._reader).items():
                self.taps[ifindex].take(seen)

    def rows(self) -> list[PolicerRow]:
        """Return all places of all taps that declare or enforce a limit."""
        return [row for tap in self.taps.values() for row in policer_rows(tap.set_up())]

    def _look_at_declared(self) -> None:
        now_ns = time.monotonic_ns()
        wait_ns = _DECLARED_LEAST_NS if self._poked else _DECLARED_NS
        if self._declared_ns is not None and now_ns - self._declared_ns < wait_ns:
            return
        self._declared_ns, self._poked = now_ns, False
        holders = self._holders.find(self._links)
        found = declared_of(self._links, ovn_reader=self._ovn, holders=holders)
        neighbours = host_neighbours()
        self._meters.refresh()
        for ifindex, tap in self.taps.items():
            if tap.gone or not is_there(tap.link):  # its declared limits are gone, too
                continue
            declared = found[ifindex]
            try:
                meters = self._meters.of(declared.ovs) if declared.ovs is not None else ()
            except HostError as error:
                meters = ()
                declared = replace(declared, problems=(*declared.problems, f"Open vSwitch's meters: {error.message}"))
            if tap.syn_tracker is not None:
                tap.syn_tracker.tracker.know(own_addresses(declared, neighbours, ifindex))
            holder = holders.get(ifindex)
            tap.learn(declared, meters, holder.pid if holder is not None and not holder.is_shared else None)

    def _run(self) -> None:
        # Lower priority for this thread alone: counting must not wait for it on a busy host.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _BACKGROUND_NICE)
        capabilities.follow_plan()
        while not self._closed:
            is_asked = self._wake.is_set()
            self._wake.clear()
            try:
                self._look(self._due(is_asked))
            except (HostError, OSError) as error:
                for tap in self.taps.values():
                    tap.take(Look(time.monotonic_ns(), problems=(str(error),)))
            if self._wake.wait(_LOOK_SECONDS) and not self._closed:
                time.sleep(_LOOK_LEAST_SECONDS)  # changes can be frequent

    def _due(self, is_asked: bool) -> list[Link]:
        """Return the taps to read: those with packets; all of them every _ALL_NS, or when something changed."""
        now_ns = time.monotonic_ns()
        if is_asked or now_ns - self._all_looked_ns > _ALL_NS:
            self._all_looked_ns = now_ns
            return self._links
        return [tap.link for tap in self.taps.values() if tap.is_busy(now_ns)]
