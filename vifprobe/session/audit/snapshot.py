# SPDX-License-Identifier: Apache-2.0
"""One audit of one tap, for `vifprobe policer`: its limits, and its packets for a short time."""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Protocol

from vifprobe.analysis.findings.raised import findings
from vifprobe.analysis.findings.situation import Situation
from vifprobe.analysis.limit_state import limit_answer
from vifprobe.analysis.policer import PolicerRow, SetUp, policer_rows
from vifprobe.errors import KernelError
from vifprobe.host.declared import unseen_ports
from vifprobe.host.limits import installed_of
from vifprobe.host.net import netns as namespaces
from vifprobe.host.net.events import Event, Events
from vifprobe.host.net.links import Link, find_link, is_there
from vifprobe.host.net.selection import select_links
from vifprobe.model.layout import Direction
from vifprobe.model.limits import LimitAnswer
from vifprobe.model.ports import WITHOUT_TAP
from vifprobe.model.reading import Finding, Limit
from vifprobe.session.audit.auditor import Auditor
from vifprobe.session.audit.tap_audit import TapAudit
from vifprobe.session.probe import Probe
from vifprobe.session.tap_events import own_events


class HasFileno(Protocol):
    """An object that select() can wait for."""

    def fileno(self) -> int:
        """Return the descriptor."""


#: Context of the audit. Its argument ends the audit early. Its value is readable when the audit must end; None: never.
Stoppable = Callable[[Callable[[], None]], AbstractContextManager[HasFileno | None]]


@dataclass(frozen=True)
class PolicerReport:
    """The audit of one tap.

    - tap: interface name.
    - at: wall clock at the end.
    - duration_ns: time for which packets or counters were watched.
    - set_up: declared and installed limits.
    - directions: requested directions.
    - findings: about these directions.
    - domain: libvirt's name of the guest; "" where unknown.
    - notes: what was not read, and why.
    - gone: the tap was deleted during the audit; the other fields are from before that.
    - limit_states: of the requested directions.
    - dropped: packets that the limits of a direction dropped meanwhile, by the kernel's counters; None: not counted.
    """

    tap: str
    at: datetime
    duration_ns: int
    set_up: SetUp
    directions: tuple[Direction, ...]
    findings: tuple[Finding, ...] = ()
    domain: str = ""
    notes: tuple[str, ...] = ()
    gone: bool = False
    limit_states: Mapping[Direction, LimitAnswer] = field(default_factory=dict)
    dropped: Mapping[Direction, int | None] = field(default_factory=dict)

    @property
    def rows(self) -> tuple[PolicerRow, ...]:
        """Return the places that declare or enforce limits, of the requested directions."""
        return tuple(row for row in policer_rows(self.set_up) if row.direction in self.directions)


def audit_tap(
    tap: str,
    limits: Mapping[Direction, Limit],
    directions: tuple[Direction, ...],
    seconds: float,
    *,
    netns: str | None = None,
    packets: bool = True,
    stoppable: Stoppable = lambda stop: nullcontext(),
) -> PolicerReport:
    """Audit a tap. Raises TapError and HostError; a KernelError becomes a note, and only packets are left out.

    - tap: interface name.
    - limits: declared by the user.
    - directions: requested directions.
    - seconds: time to watch.
    - netns: name, path or pid of the tap's network namespace; None for the current one.
    - packets: count packets, too, where this kernel permits it.
    - stoppable: context that can end the audit early.
    """
    why = "packets were not counted: not requested"
    if packets:
        try:
            return _with_packets(tap, limits, directions, seconds, netns, stoppable)
        except KernelError as error:
            why = f"packets were not counted: {error.message}"
    home = namespaces.own()
    try:
        if netns is not None:
            namespaces.enter(netns)
        with stoppable(lambda: None) as stop:
            (report,) = _without_packets([find_link(tap)], limits, directions, seconds, stop)
            return replace(report, notes=(why,))
    finally:
        namespaces.return_to(home)


def audit_node(
    taps: Sequence[str],
    limits: Mapping[Direction, Limit],
    directions: tuple[Direction, ...],
    seconds: float,
    *,
    netns: str | None = None,
    stoppable: Stoppable = lambda stop: nullcontext(),
) -> tuple[PolicerReport, ...]:
    """Audit many taps by configuration, the kernel's counters and events: no BPF program is loaded, no packet counted.

    Raises TapError and HostError.

    - taps: names and patterns; nothing for all taps of the network namespace.
    - limits: declared by the user, for each tap.
    - directions, seconds, netns, stoppable: see `audit_tap`.
    """
    home = namespaces.own()
    try:
        if netns is not None:
            namespaces.enter(netns)
        with stoppable(lambda: None) as stop:
            found = _without_packets(select_links(taps), limits, directions, seconds, stop)
    finally:
        namespaces.return_to(home)
    return found if taps or netns is not None else (*found, *_unseen(directions))


def _unseen(directions: tuple[Direction, ...]) -> Iterator[PolicerReport]:
    """Yield an audit of each port that has no tap: what is declared for it, and why no more is known."""
    for port, declared in unseen_ports():
        why = f"{port.target}: {WITHOUT_TAP[port.kind or '']}"
        set_up = SetUp(port.target, declared, enforced_unknown=(why,), kind=port.kind or "", known_to=("libvirt",))
        yield PolicerReport(
            port.target,
            datetime.now(timezone.utc),
            0,
            set_up,
            directions,
            findings(Situation(set_up, directions=directions)),
            port.domain,
            limit_states={one: limit_answer(set_up, one) for one in directions},
        )


def _with_packets(
    tap: str,
    limits: Mapping[Direction, Limit],
    directions: tuple[Direction, ...],
    seconds: float,
    netns: str | None,
    stoppable: Stoppable,
) -> PolicerReport:
    probe = Probe(tap, directions=directions, netns=netns, limits=limits)
    # The signal handlers first: a signal while the hooks are attached must not leave them attached.
    with stoppable(probe.stop), probe:
        (last,) = deque(probe.readings(min(seconds, 1.0), seconds), maxlen=1)
        report = _report(probe.audit(tap), last.duration_ns, directions, last.findings, last.notes)
        states = {**report.limit_states, **last.limit_states}
        return replace(report, gone=last.gone, limit_states=states)


def _without_packets(
    links: Sequence[Link],
    limits: Mapping[Direction, Limit],
    directions: tuple[Direction, ...],
    seconds: float,
    stop: HasFileno | None,
) -> tuple[PolicerReport, ...]:
    """Return audits by limits, counters and events only."""
    auditor = Auditor(links, limits, installed_of(links))
    with Events(auditor.taps) as events:
        began_ns = time.monotonic_ns()
        auditor.look()
        until_ns = began_ns + round(seconds * 1e9)
        while (left_ns := until_ns - time.monotonic_ns()) > 0 and any(map(is_there, links)):
            heard, _, _ = select.select([events, *([stop] if stop else [])], [], [], left_ns / 1e9)
            if stop in heard:
                break
            _follow(auditor, events.read())
        auditor.look()
    duration_ns = time.monotonic_ns() - began_ns
    return tuple(
        _report(audit, duration_ns, directions, findings(audit.situation_without_packets(directions)), ())
        for audit in auditor.taps.values()
    )


def _follow(auditor: Auditor, heard: Sequence[Event]) -> None:
    """Give each tap the events that concern it. An nft event can concern all."""
    concerned = {one.ifindex for one in heard}
    audits = [audit for audit in auditor.taps.values() if concerned & {0, audit.link.ifindex} and is_there(audit.link)]
    now = installed_of(audit.link for audit in audits) if audits else {}
    for audit in audits:
        found = now[audit.link.ifindex]
        own = [one for one in heard if one.ifindex in (0, audit.link.ifindex)]
        audit.follow(own_events(own, audit.installed.nft, found.nft), found, {})


def _report(
    audit: TapAudit,
    duration_ns: int,
    directions: tuple[Direction, ...],
    found: tuple[Finding, ...],
    notes: tuple[str, ...],
) -> PolicerReport:
    domain = audit.declared.domain if audit.declared else ""
    now = datetime.now(timezone.utc)
    set_up, proved = audit.set_up(), {finding.id for finding in found}
    counted = {one: audit.counted(one) for one in directions}
    return PolicerReport(
        audit.link.name,
        now,
        duration_ns,
        set_up,
        directions,
        found,
        domain,
        notes,
        audit.gone,
        {one: limit_answer(set_up, one, looked, proved) for one, (looked, _) in counted.items()},
        {one: dropped for one, (_, dropped) in counted.items()},
    )
