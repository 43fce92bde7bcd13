# SPDX-License-Identifier: Apache-2.0
"""Host cost in a few lines: the guest, the way of its packets, or the network softirqs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vifprobe.model.host_cost import HostCost, Load, ScopeCost
from vifprobe.model.reading import Reading
from vifprobe.model.records import HostScope
from vifprobe.render.text.line import Line, Span, line, one_line
from vifprobe.render.text.sections import Section
from vifprobe.render.units import BLOCKS, UNKNOWN, Glyphs, clean, si, whole

#: What the threads of a guest's process are called in a few letters.
KINDS = {
    "vCPU": HostScope.QEMU_VCPU,
    "vhost": HostScope.QEMU_VHOST,
    "iothread": HostScope.QEMU_IOTHREAD,
    "emulator": HostScope.QEMU_EMULATOR,
}
_SOFTIRQS = {"NET_RX": HostScope.SOFTIRQ_NET_RX, "NET_TX": HostScope.SOFTIRQ_NET_TX}
#: Shares of one CPU below this are not worth their place.
_LEAST_SHARE = 0.0005
#: Whoever has done nothing for so long is worth a word.
_LONG_NS = 900_000_000
_LABEL = Span("host     ", "name")
_BLANK = " " * len(_LABEL.text)


def host_lines(
    cost: HostCost | None, width: int = 80, glyphs: Glyphs = BLOCKS, *, has_guest: bool = True
) -> list[Line]:
    """Three lines: CPU time an offered packet by kind of thread, context switches of those, and the whole host.

    has_guest: False for what is not a guest's port: the whole host alone.
    """
    if cost is None:
        return []
    if not has_guest:
        return [_label(_LABEL, _host(cost), width, glyphs), *(line(_BLANK, text) for text in _doubts(cost))]
    rows = [_label(_LABEL, _guest(cost), width, glyphs)]
    switches = _switches(cost)
    if switches:
        rows.append(_label(Span(_BLANK), switches, width, glyphs))
    rows.append(_label(Span(_BLANK), _host(cost), width, glyphs))
    return rows + [line(_BLANK, text) for text in _doubts(cost)]


def host_section(cost: HostCost | None, width: int, glyphs: Glyphs, *, has_guest: bool = True) -> Section:
    """The same for a screen: the first line matters most."""
    rows = host_lines(cost, width, glyphs, has_guest=has_guest)
    return Section(len(rows), min(1, len(rows)), lambda room: rows[:room], keep=2, grow=2)


def share_line(readings: Sequence[Reading], width: int, glyphs: Glyphs = BLOCKS) -> list[Line]:
    """CPUs that the process behind each tap takes, the most first."""
    known = [(reading.tap, reading.host) for reading in readings if reading.host is not None]
    loads = [(tap, cost, cost.guest()) for tap, cost in known]
    found = [(cost.share(load), tap) for tap, cost, load in loads if load is not None]
    if not found:
        return []
    found.sort(key=lambda one: (-one[0], one[1]))
    parts = [line(f"{clean(tap, glyphs)} {_cpus(used)}") for used, tap in found]
    label = Span("CPUs     ", "name")
    return [_label(label, parts, width, glyphs)]


def host_object(cost: HostCost | None) -> dict[str, Any] | None:
    """The key `host` of a JSON line. Times in nanoseconds of CPU time; counts are those of the interval."""
    if cost is None:
        return None
    guest = cost.guest()
    by_kind = {name.lower(): _load_object(_kind(cost, scope)) for name, scope in KINDS.items()}
    return {
        "start_ns": cost.start_ns,
        "duration_ns": cost.duration_ns,
        "pid": cost.pid,
        "offered_packets": cost.offered_packets,
        "guest_ns_per_packet": cost.per_packet_ns(guest),
        "guest": None if guest is None else {**_load_object(guest), **by_kind},
        "total": _load_object(cost.of(HostScope.TOTAL)),
        "vhost": _load_object(cost.of(HostScope.VHOST)),
        "ksoftirqd": _load_object(cost.of(HostScope.KSOFTIRQD)),
        "ovs": _load_object(cost.of(HostScope.OVS)),
        **{f"softirq_{name.lower()}_ns": cost.of(scope).cpu_ns for name, scope in _SOFTIRQS.items()},
        "others": [_other_object(row) for row in cost.rows if row.scope is HostScope.OTHER],
        "bound_ns": cost.bound_ns,
        "missed_switches": cost.missed_switches,
        "unnamed_switches": cost.unnamed_switches,
    }


def host_fields(cost: HostCost | None) -> str:
    """For a line of `watch`: a fixed number of words."""
    if not _LINE or _LINE[0][0] is not cost:
        _LINE[:] = [(cost, _host_fields(cost))]
    return _LINE[0][1]


#: Taps without packets whose process is the same, or not known, share one.
_LINE: list[tuple[HostCost | None, str]] = []


def _host_fields(cost: HostCost | None) -> str:
    took, vcpu, vhost, softirq, waiting, preempted = _fields(cost) if cost is not None else [UNKNOWN] * 6
    return (
        f"host {took:>6} ns/packet vcpu {vcpu:>5} vhost {vhost:>5} softirq {softirq:>5} CPU"
        f" switches {waiting:>6} + {preempted:>6} /s"
    )


def _fields(cost: HostCost) -> list[str]:
    per_packet, known = cost.per_packet_ns(cost.guest()), cost.pid is not None
    kinds = (HostScope.QEMU_VCPU, HostScope.QEMU_VHOST)
    return [
        UNKNOWN if per_packet is None else f"{per_packet:.0f}",
        *(f"{cost.share(_kind(cost, scope)):.2f}" if known else UNKNOWN for scope in kinds),
        f"{cost.share(cost.of(*_SOFTIRQS.values())):.2f}",
        *(f"{_per_second(count, cost):.0f}" for count in cost.of(HostScope.TOTAL)[:2]),
    ]


def _guest(cost: HostCost) -> list[Line]:
    guest = cost.guest()
    if guest is None:
        return [line("the process behind the tap is not known (yet)")]
    per_packet = cost.per_packet_ns(guest)
    parts = [line(Span(f"{_time(per_packet)} a packet", "strong")) if per_packet is not None else line("no packets")]
    parts.append(line(f"guest {_cpus(cost.share(guest))} CPUs"))
    for name, scope in KINDS.items():
        load = _kind(cost, scope)
        if load.cpu_ns * 100 >= guest.cpu_ns > 0:
            each = cost.per_packet_ns(load)
            parts.append(line(f"{name} {_cpus(cost.share(load)) if each is None else _time(each)}"))
    return parts


def _switches(cost: HostCost) -> list[Line]:
    if cost.pid is None:
        return []
    loads = {name: _kind(cost, scope) for name, scope in KINDS.items()}
    parts = [line(f"{name} {_both(load, cost)}") for name, load in loads.items() if load.switches]
    return [line("switches/s voluntary+forced"), *parts] if parts else []


def _host(cost: HostCost) -> list[Line]:
    total = cost.of(HostScope.TOTAL)
    parts = [line(f"all {_cpus(cost.share(total))} CPUs {_both(total, cost)}/s")]
    received, sent = (_percent(cost.share(cost.of(scope))) for scope in _SOFTIRQS.values())
    parts.append(line(f"NET_RX {received} TX {sent}"))
    for name, scope in (("ksoftirqd", HostScope.KSOFTIRQD), ("OVS", HostScope.OVS)):
        load = cost.of(scope)
        if scope is HostScope.KSOFTIRQD or cost.share(load) >= _LEAST_SHARE:
            parts.append(line(f"{name} {_percent(cost.share(load))}"))
    return parts


def _doubts(cost: HostCost) -> list[str]:
    """Notes on context switches and CPU time that the numbers leave out."""
    found = []
    total = cost.of(HostScope.TOTAL)
    if cost.missed_switches * 100 > total.switches:
        found.append(f"{whole(cost.missed_switches)} context switches, at least, were not seen")
    if cost.unnamed_switches:
        found.append(f"{whole(cost.unnamed_switches)} context switches without a name: too many tasks")
    if cost.unseen_cpus and cost.duration_ns > _LONG_NS:
        found.append(f"{len(cost.unseen_cpus)} CPUs without a context switch so far: what runs there is not known")
    if cost.bound_ns * 100 > total.cpu_ns:
        found.append(f"CPU times to within {_time(cost.bound_ns)} all together")
    return found


def _kind(cost: HostCost, scope: HostScope) -> Load:
    return cost.guest(scope) or Load()


def _load_object(load: Load) -> Mapping[str, int]:
    return {"cpu_ns": load.cpu_ns, "voluntary": load.voluntary, "involuntary": load.involuntary}


def _other_object(row: ScopeCost) -> dict[str, Any]:
    counts = _load_object(Load(row.voluntary or 0, row.involuntary or 0, row.cpu_ns or 0))
    return {"name": row.name, "pid": row.pid, **counts}


def _label(label: Span, parts: Sequence[Line], width: int, glyphs: Glyphs) -> Line:
    return line(label) + one_line(parts, width - len(label.text), glyphs)


def _per_second(count: int, cost: HostCost) -> float:
    return count / cost.duration_ns * 1e9 if cost.duration_ns else 0.0


def _both(load: Load, cost: HostCost) -> str:
    return "+".join(si(_per_second(count, cost)).replace(" ", "") for count in (load.voluntary, load.involuntary))


def _cpus(share: float) -> str:
    return f"{share:.2f}"


def _percent(share: float) -> str:
    """Of one CPU."""
    return f"{share * 100:.0f} %" if share >= 0.095 or share < 0.0005 else f"{share * 100:.1f} %"


def _time(ns: float) -> str:
    return f"{ns / 1e6:.3g} ms" if ns >= 100_000 else f"{ns:.0f} ns"
