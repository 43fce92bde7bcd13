# SPDX-License-Identifier: Apache-2.0
"""Components of a Probe: programs, counters, audits and what joins them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from vifprobe.analysis.findings.thresholds import FloodThresholds
from vifprobe.analysis.flood.syn_tracker import SynTracker
from vifprobe.errors import TapError
from vifprobe.host.limits import LimitReader
from vifprobe.host.net.events import Events
from vifprobe.host.net.links import Link, QuickLook, find_link, quick_look
from vifprobe.host.net.names import shown
from vifprobe.kernel.attach import has_tcx
from vifprobe.kernel.features import Features, read_features, read_trace_fields, require_capabilities
from vifprobe.kernel.load import Programs, make_programs
from vifprobe.kernel.settings import Settings, possible_cpus
from vifprobe.kernel.tables.counters import Counters
from vifprobe.model.layout import Charge, Direction
from vifprobe.model.ports import is_layer_3, is_swapped
from vifprobe.model.reading import Limit
from vifprobe.model.whatif import WhatIf
from vifprobe.session.audit.auditor import Auditor
from vifprobe.session.hooks import Hooks
from vifprobe.session.host_cost import HostCollector
from vifprobe.session.tap import WatchedTap, at_hooks


@dataclass(frozen=True)
class ProbeConfig:
    """Arguments of a Probe: see there."""

    names: tuple[str, ...]
    directions: tuple[Direction, ...]
    bin_ns: int
    limits: Mapping[Direction, Limit]
    create_qdisc: bool
    charge: Charge
    samples_per_second: int
    host: bool
    thresholds: FloodThresholds | None
    what_ifs: tuple[WhatIf, ...]
    follow_inbound: bool


@dataclass(frozen=True)
class Components:
    """Components that work together while taps are watched. host, syn_tracker: None if not enabled."""

    features: Features
    events: Events
    programs: Programs
    counters: Counters
    watched: tuple[WatchedTap, ...]
    auditor: Auditor
    hooks: Hooks
    host: HostCollector | None
    syn_tracker: SynTracker | None
    limits: LimitReader


def make_components(wanted: ProbeConfig, stack: ExitStack) -> Components:
    """Make the components, in the taps' network namespace. Nothing is attached yet.

    Raises TapError, KernelError, HostError as Probe does. stack: closes the components.
    """
    with ThreadPoolExecutor(1) as pool:
        # Compiler and verifier run without Python's lock. Meanwhile pyroute2 is imported and the host side is read.
        early = _begin_early(wanted, pool, stack)
        links = [find_link(name) for name in wanted.names]
        _require_one_layer(links)
        seen = QuickLook(links[0].ifindex, not is_layer_3(links[0].kind))
        if early and early.seen == seen:
            features, compiling = early.features, early.programs
        else:
            require_capabilities()
            features = read_features()
            hooked = at_hooks(links, wanted.directions)
            compiling = _begin(_settings(wanted, seen, hooked), features, pool, stack)
        events = stack.enter_context(Events(link.ifindex for link in links))
        limits = LimitReader()
        found = limits.read(links)
        programs = compiling.result()
    counters = Counters(programs, [number for number, link in enumerate(links) if is_swapped(link.kind)])
    if counters.samples is not None:
        counters.samples.per_second = wanted.samples_per_second
    stack.callback(counters.close)
    watched = tuple(WatchedTap(link, number, found[link.ifindex]) for number, link in enumerate(links))
    auditor = Auditor(links, wanted.limits, found, limits)
    for one in watched:
        auditor.taps[one.link.ifindex].earlier, auditor.taps[one.link.ifindex].device = (
            one.hooks.earlier,
            one.hooks.device,
        )
    hooks = Hooks(programs, counters, watched, wanted.directions, auditor, wanted.charge, limits)
    host = _host(wanted, stack)
    syn_tracker = _syn_tracker(wanted, counters, watched, auditor)
    return Components(features, events, programs, counters, watched, auditor, hooks, host, syn_tracker, limits)


@dataclass(frozen=True)
class _Early:
    """Programs that are being made before the links are read, and the data that they are made from."""

    seen: QuickLook
    features: Features
    programs: Future[Programs]


def _begin_early(wanted: ProbeConfig, pool: ThreadPoolExecutor, stack: ExitStack) -> _Early | None:
    """Start to make the programs from an ioctl on the first tap; None where that is not enough for the settings."""
    seen = quick_look(wanted.names[0])
    if seen is None or len(set(wanted.directions)) < len(Direction):  # the hook of one direction depends on the kind
        return None
    require_capabilities()
    features = read_features()
    settings = _settings(wanted, seen, tuple(sorted(Direction)))
    return _Early(seen, features, _begin(settings, features, pool, stack))


def _begin(settings: Settings, features: Features, pool: ThreadPoolExecutor, stack: ExitStack) -> Future[Programs]:
    compiling = pool.submit(make_programs, settings, features)
    stack.callback(_close, compiling)
    return compiling


def _close(compiling: Future[Programs]) -> None:
    """Close the programs, also if they were never used."""
    if compiling.exception() is None:
        compiling.result().close()


def _settings(wanted: ProbeConfig, first: QuickLook, hooked: Sequence[Direction]) -> Settings:
    """Return the settings that the programs are compiled for. first: of the taps. hooked: the hooks to watch."""
    traced = not has_tcx(first.ifindex)
    follows = wanted.follow_inbound and Direction.INBOUND in hooked
    fields = read_trace_fields() if follows or traced else None
    deep = wanted.samples_per_second > 0
    return Settings(
        taps=len(wanted.names),
        bin_ns=wanted.bin_ns,
        cpus=possible_cpus(),
        trace=fields if traced else None,
        follow=fields if follows else None,
        samples=deep,
        syn=deep,
        what_ifs=len(wanted.what_ifs),
        layer_3=not first.has_ethernet,
    )


def _require_one_layer(links: Sequence[Link]) -> None:
    """Raise TapError where only some of the links have Ethernet headers: a program is compiled for one of both."""
    without = [shown(link.name) for link in links if is_layer_3(link.kind)]
    others = [shown(link.name) for link in links if not is_layer_3(link.kind)]
    if without and others:
        raise TapError(
            f"{without[0]} and {others[0]} can't be watched in one run.",
            f"{without[0]} is a tun device: its packets have no Ethernet header, those of {others[0]} have one.",
            "Watch tun devices in a separate run.",
        )


def _host(wanted: ProbeConfig, stack: ExitStack) -> HostCollector | None:
    if not wanted.host:
        return None
    host = HostCollector()
    stack.callback(host.close)
    if wanted.bin_ns:  # a capture must be complete from its start; a screen does not wait
        host.start()
        host.wait()
    return host


def _syn_tracker(
    wanted: ProbeConfig, counters: Counters, watched: Sequence[WatchedTap], auditor: Auditor
) -> SynTracker | None:
    if not wanted.samples_per_second:
        return None
    kinds = [one.link.kind for one in watched]
    made = SynTracker(counters, wanted.directions, len(watched), wanted.bin_ns, wanted.thresholds, kinds)
    for one, tap in zip(watched, made.taps, strict=True):
        auditor.taps[one.link.ifindex].syn_tracker = tap
    return made
