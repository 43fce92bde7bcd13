# SPDX-License-Identifier: Apache-2.0
"""Read the host's declared and installed limits, counters and load once, and join them in the terms of the analysis."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from vifprobe.analysis.findings.situation import ConntrackLoad, Growth, LinkLoad, Uplink
from vifprobe.analysis.limit_state import Seen
from vifprobe.analysis.policer import SetUp
from vifprobe.errors import HostError
from vifprobe.host import declared as declarations
from vifprobe.host.limits import Installed, LimitReader
from vifprobe.host.net.conntrack import Conntrack, read_conntrack
from vifprobe.host.net.links import Link, LinkCounters, list_links_and_counters
from vifprobe.host.net.uplink import UplinkSample, find_uplink, sample_uplink
from vifprobe.host.ovs.meters import Meter
from vifprobe.host.procs.load import LoadSample, sample_load
from vifprobe.host.tc.records import TcAction
from vifprobe.kernel.attach import is_own_filter
from vifprobe.kernel.tcx import TcxProgram, tcx_programs
from vifprobe.model.layout import Direction
from vifprobe.model.limits import DeclaredLimit, InstalledLimit
from vifprobe.model.ports import direction_at, hook_of, l2_header_bytes
from vifprobe.model.reading import Limit

#: Qdiscs that order, mark or drop, but limit no rate; HTB's rates are in its classes, which are read.
_UNLIMITED = (
    *("noqueue", "noop", "pfifo_fast", "pfifo", "bfifo", "pfifo_head_drop", "mq", "mqprio", "multiq", "prio", "htb"),
    *("fq_codel", "codel", "fq", "sfq", "sfb", "fq_pie", "pie", "hhf", "red", "gred", "choke", "drr", "qfq", "ets"),
    *("ingress", "clsact", "skbprio", "plug"),
)
#: Conditions of a flow (ovs-ofctl) -> protocol as tc writes it; others leave out some packets of a protocol.
_PROTOCOLS = {"": "all", "ip": "ip", "ipv6": "ipv6", "arp": "arp"}
#: Verdicts with which the next filter gets the packet; all others decide about it.
_UNDECIDED = ("continue", "pipe", "")


@dataclass(frozen=True)
class Look:
    """State of one tap at one moment. None: not read.

    - at_ns, counted_ns: monotonic times, after everything was read and before the counters were read.
    - installed: installed limits.
    - counters: device counters.
    - tcx: programs at ingress.
    - beyond: limits of other interfaces that limit its packets, by name.
    - load: CPU time.
    - conntrack: the table of connections.
    - uplink: device by which its packets leave the host.
    - problems: what could not be read, as text.
    - gone: the interface does not exist any more.
    """

    at_ns: int
    counted_ns: int = 0
    installed: Installed | None = None
    counters: LinkCounters | None = None
    tcx: tuple[TcxProgram, ...] = ()
    beyond: Mapping[str, Installed] = field(default_factory=dict)
    load: LoadSample | None = None
    uplink: UplinkSample | None = None
    conntrack: Conntrack | None = None
    problems: tuple[str, ...] = ()
    gone: bool = False


def given_limits(limits: Mapping[Direction, Limit], device: str) -> list[DeclaredLimit]:
    """Return the limits of the command line as declared limits of this interface."""
    return [
        DeclaredLimit(direction, "user", "option", device, limit.declared_bps, limit.burst_bytes)
        for direction, limit in limits.items()
        if limit.declared_bps is not None
    ]


def look(
    links: Sequence[Link],
    pids: Mapping[int, int | None],
    declared: Mapping[int, declarations.Declared],
    limits: LimitReader | None = None,
) -> dict[int, Look]:
    """Read limits, counters, programs and load of some taps, from the same few dumps. Never raises."""
    counted_ns = time.monotonic_ns()
    try:
        rows = list_links_and_counters()
    except HostError as error:
        return {link.ifindex: Look(time.monotonic_ns(), problems=(error.message,)) for link in links}
    by_name = {link.name: link for link, _ in rows}
    counters = {link.ifindex: counted for link, counted in rows}
    beyond = {link.ifindex: _beyond(link, declared.get(link.ifindex), by_name) for link in links}
    uplinks = {link.ifindex: find_uplink(by_name.get(link.name, link), by_name.values()) for link in links}
    here = [link for link in links if link.ifindex in counters]
    others = [*chain.from_iterable(beyond.values()), *filter(None, uplinks.values())]
    wanted = {one.ifindex: one for one in (*here, *others)}
    try:
        found = (limits or LimitReader()).read(wanted.values())
    except HostError as error:
        return {link.ifindex: Look(time.monotonic_ns(), problems=(error.message,)) for link in links}
    conntrack = read_conntrack()
    gone = {link.ifindex: Look(time.monotonic_ns(), problems=("the interface is gone",), gone=True) for link in links}
    return gone | {
        link.ifindex: Look(
            at_ns=time.monotonic_ns(),
            counted_ns=counted_ns,
            installed=found[link.ifindex],
            counters=counters.get(link.ifindex),
            tcx=_tcx(link.ifindex),
            beyond={one.name: found[one.ifindex] for one in beyond[link.ifindex]},
            load=_load(pids.get(link.ifindex)),
            uplink=_uplink(uplinks[link.ifindex], counters, found),
            conntrack=conntrack,
        )
        for link in here
    }


def _beyond(link: Link, declared: declarations.Declared | None, by_name: Mapping[str, Link]) -> list[Link]:
    """Return interfaces after the tap that can limit its packets: those with a declared limit, and Neutron's qvo."""
    from vifprobe.host.taps import neutron_port_prefix  # imports the reader of libvirt's XML

    names = {one.device for one in declared.limits} if declared else set()
    prefix = neutron_port_prefix(link.name)
    names |= {f"qvo{prefix}"} if prefix else set()
    return [by_name[name] for name in sorted(names - {link.name}) if name in by_name]


def _tcx(ifindex: int) -> tuple[TcxProgram, ...]:
    try:
        return tcx_programs(ifindex, ingress=True)
    except OSError:
        return ()


def _load(pid: int | None) -> LoadSample | None:
    try:
        return sample_load(pid)
    except (OSError, LookupError, ValueError):
        return None


def _uplink(
    link: Link | None, counters: Mapping[int, LinkCounters | None], found: Mapping[int, Installed]
) -> UplinkSample | None:
    counted = counters.get(link.ifindex) if link else None
    return sample_uplink(link, counted, found[link.ifindex].tc) if link and counted else None


def set_up(
    link: Link,
    installed: Installed | None,
    declared: declarations.Declared | None,
    seen: Look | None = None,
    meters: Iterable[Meter] = (),
) -> SetUp:
    """Return declared and installed limits in the terms of the analysis. declared: None before the first look."""
    beyond = seen.beyond if seen else {}
    missing = ("not read yet",)
    return SetUp(
        tap=link.name,
        kind=link.kind,
        declared=declared.limits if declared else (),
        enforced=installed.limits if installed else (),
        elsewhere=(
            *(installed.elsewhere if installed else ()),
            *(one for found in beyond.values() for one in found.limits),
            *map(_metered, meters),
        ),
        earlier=_earlier(installed, seen.tcx if seen else ()) if installed else (),
        ingress_qdisc=installed.tc.ingress.kind if installed and installed.tc.ingress else "",
        declared_unknown=declared.problems if declared else missing,
        enforced_unknown=installed.problems if installed else (seen.problems if seen else ()) or missing,
        unread=(*_unread(installed), *installed.unread) if installed else (),
        known_to=declared.known_to if declared else (),
    )


def _unread(installed: Installed) -> tuple[tuple[Direction, str], ...]:
    """Return qdiscs that can shape, but whose settings are not read here: HFSC, netem, CAKE, and unknown kinds."""
    egress = direction_at(installed.kind, "egress")
    return tuple(
        (egress, f"the limit of the root qdisc {found.kind} {found.handle} is not read")
        for found in installed.tc.qdiscs
        if found.hook == "root" and found.shaper is None and found.kind not in _UNLIMITED
    )


def _metered(one: Meter) -> InstalledLimit:
    protocol = _PROTOCOLS.get(one.conditions, "")
    return InstalledLimit(
        direction=one.direction,
        source="ovs",
        kind="meter",
        where=f"{one.bridge} meter {one.number}",
        device=one.bridge,
        rate_bps=one.rate_bps,
        burst_bytes=one.burst_bytes,
        rate_pps=one.rate_pps,
        protocol=protocol,
        matches_all=None if protocol else False,
        packets=one.packets,
        bytes=one.bytes,
        drops=one.drops,
        bucket_bytes=one.bucket_bytes,
        shared=one.shared,
    )


def _earlier(installed: Installed, tcx: Iterable[TcxProgram]) -> tuple[str, ...]:
    """Return names of the programs and filters that can decide a packet before the first policer at ingress."""
    words = [f"the tcx program {one.name or '?'} (id {one.id})" for one in tcx if not one.own]
    for found in installed.tc.filters:
        if found.hook != "ingress":
            continue
        if any(action.kind == "police" for action in found.actions):
            break
        name = found.bpf.name if found.bpf else ""
        if is_own_filter(found.pref, found.handle, name):
            continue
        # libbpf names a filter `program:[id]`.
        program = f" ({name.partition(':[')[0]}, id {found.bpf.id})" if found.bpf else ""
        decides = (found.bpf is not None and found.bpf.direct_action) or any(map(_decides, found.actions))
        if decides:
            words.append(f"the filter {found.where}{program}")
    return tuple(words)


def _decides(action: TcAction) -> bool:
    return action.control not in _UNDECIDED


def growth(before: Look, after: Look) -> tuple[Growth, ...]:
    """Return what each limit at ingress and the tap counted between two looks; not of a replaced limit."""
    if before.installed is None or after.installed is None or before.counters is None or after.counters is None:
        return ()
    then = {one.where: one for one in before.installed.at("ingress")}
    packets = after.counters.rx_packets - before.counters.rx_packets
    frame_bytes = after.counters.rx_bytes - before.counters.rx_bytes
    found = []
    for one in after.installed.at("ingress"):
        earlier = then.get(one.where)
        if earlier is None or one.shared or packets < 0:
            continue
        counted, passed = _more(earlier.bytes, one.bytes), _more(earlier.packets, one.packets)
        if (counted or 0) < 0 or (passed or 0) < 0:
            continue
        seconds = (after.at_ns - before.at_ns) / 1e9
        charged = frame_bytes - l2_header_bytes(after.installed.kind) * packets
        found.append(Growth(one.direction, one.where, seconds, counted, passed, charged, packets))
    return tuple(found)


def counted(before: Look, after: Look, direction: Direction) -> Seen | None:
    """Return what the kernel's counters show of one direction between two looks; None where they don't tell.

    - At ingress the device counts what arrived. Without a drop of the limit, all of it passed the limit. With drops it
      is not known how many bytes passed: a policer does not count the bytes that it drops.
    - At egress a shaper counts the bytes that it sent. Without a shaper nothing is known.
    """
    if before.installed is None or after.installed is None or before.counters is None or after.counters is None:
        return None
    hook = hook_of(after.installed.kind, direction)
    then = {one.where: one for one in before.installed.at(hook)}
    held = [one for one in after.installed.at(hook) if one.default]
    if any(one.shared or one.where not in then for one in held):
        return None
    drops = [_more(then[one.where].drops, one.drops) for one in held]
    duration_ns = after.at_ns - before.at_ns
    if hook == "egress":
        return _sent(then[held[0].where], held[0], duration_ns) if len(held) == 1 else None
    arrived = after.counters.rx_packets - before.counters.rx_packets
    size = after.counters.rx_bytes - before.counters.rx_bytes - l2_header_bytes(after.installed.kind) * arrived
    if any(drops) or None in drops or arrived < 0 or size < 0:
        return None
    return Seen(duration_ns, arrived, 0, arrived, 8 * size)


def _sent(before: InstalledLimit, now: InstalledLimit, duration_ns: int) -> Seen | None:
    """Return what a shaper counted: a policer at egress counts all that came, and not what passed."""
    packets, size, drops = (_more(getattr(before, one), getattr(now, one)) for one in ("packets", "bytes", "drops"))
    if now.kind == "police" or packets is None or size is None or drops is None or min(packets, size, drops) < 0:
        return None
    return Seen(duration_ns, packets + drops, drops, packets, 8 * size)


def dropped_by_limits(before: Look, after: Look, direction: Direction) -> int | None:
    """Return the packets that the limits of one direction dropped between two looks; None where that is not counted."""
    if before.installed is None or after.installed is None:
        return None
    then = {one.where: one for one in before.installed.of(direction)}
    found = [_more(then[one.where].drops, one.drops) for one in after.installed.of(direction) if one.where in then]
    known = [one & 0xFFFFFFFF for one in found if one is not None]  # 32 bits in the kernel
    return sum(known) if known else None


def _more(then: int | None, now: int | None) -> int | None:
    return None if then is None or now is None else now - then


def load(before: Look, after: Look) -> LinkLoad | None:
    """Return the CPUs used between two looks; None where that is unknown."""
    then, now = before.load, after.load
    if then is None or now is None or now.at_ns <= then.at_ns:
        return None
    seconds = (now.at_ns - then.at_ns) / 1e9

    def cpus(earlier: float | None, later: float | None) -> float | None:
        return None if earlier is None or later is None else round(max(0.0, later - earlier) / seconds, 3)

    return LinkLoad(
        seconds,
        cpus(then.guest_seconds, now.guest_seconds),
        cpus(then.vhost_seconds, now.vhost_seconds),
        cpus(then.softirq_seconds, now.softirq_seconds),
    )


def conntrack(before: Look | None, after: Look, syns_pps: Mapping[str, float]) -> ConntrackLoad | None:
    """Return the table of connections. before: an earlier look; syns_pps: name -> SYNs a second of each watched tap."""
    now, then = after.conntrack, before.conntrack if before else None
    if now is None:
        return None
    dropped = _more(then.dropped_packets, now.dropped_packets) if then else None
    name, most = max(syns_pps.items(), key=lambda one: one[1], default=("", 0.0))
    return ConntrackLoad(now.entries, now.entries_max, dropped, name if most else "", most)


def uplink(before: Look, after: Look) -> Uplink | None:
    """Return packets that the uplink sent and dropped between two looks."""
    then, now = before.uplink, after.uplink
    if then is None or now is None or then.name != now.name or now.at_ns <= then.at_ns:
        return None
    return Uplink(
        now.name,
        (now.at_ns - then.at_ns) / 1e9,
        now.speed_bps,
        now.sent_packets - then.sent_packets,
        now.sent_bytes - then.sent_bytes,
        now.dropped_packets - then.dropped_packets,
    )
