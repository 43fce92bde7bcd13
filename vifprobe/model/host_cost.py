# SPDX-License-Identifier: Apache-2.0
"""Cost of the taps' packets for this host: CPU time and context switches by scope, and nanoseconds per packet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from vifprobe.model.records import HostScope

#: Scopes of the process that holds a tap.
GUEST_SCOPES = (HostScope.QEMU_VCPU, HostScope.QEMU_VHOST, HostScope.QEMU_IOTHREAD, HostScope.QEMU_EMULATOR)
#: Names under "other" that get a row of their own in an interval, those with the most CPU time; and in a whole run.
TOP_OTHERS = 10
NAMES_MAX = 4096
REST = "(rest)"


class ScopeCost(NamedTuple):
    """One row of host.csv but for its time. None: not known, or without meaning for the scope."""

    scope: HostScope
    name: str
    pid: int | None
    voluntary: int | None
    involuntary: int | None
    cpu_ns: int | None


class Load(NamedTuple):
    """Sums of some rows."""

    voluntary: int = 0
    involuntary: int = 0
    cpu_ns: int = 0

    @property
    def switches(self) -> int:
        """Context switches of both kinds."""
        return self.voluntary + self.involuntary


@dataclass(frozen=True)
class HostCost:
    """The host in one interval (or the whole run), as one tap's reading shows it.

    start_ns, duration_ns: monotonic, from the start of the run; the host counters' own, which begin some tenths of a
    second after the packets'. rows: see records.HostScope. offered_packets: of the tap in that time, both directions as
    far as watched. pid: the process that holds the tap, None where not known (yet). bound_ns: what CPU times may be off
    by, all together. missed_switches: switches (at least) that the kernel's tracepoint did not tell of, or kept from
    the programs. unnamed_switches: counted, but without names: too many tasks ran in one interval. unseen_cpus:
    CPUs on which nothing has switched yet: what runs there is not known.
    """

    start_ns: int
    duration_ns: int
    rows: tuple[ScopeCost, ...]
    offered_packets: int = 0
    pid: int | None = None
    bound_ns: int = 0
    missed_switches: int = 0
    unnamed_switches: int = 0
    unseen_cpus: tuple[int, ...] = ()

    def of(self, *scopes: HostScope, pid: int | None = None) -> Load:
        """Sum of some scopes' rows; of one process where pid is given."""
        return _sum(row for row in self.rows if row.scope in scopes and (pid is None or row.pid == pid))

    def guest(self, *scopes: HostScope) -> Load | None:
        """Of the process that holds the tap: some of GUEST_SCOPES, else all; with the kernel's vhost threads of it.

        None where the process is not known.
        """
        if self.pid is None:
            return None
        own = self.of(*(scopes or GUEST_SCOPES), pid=self.pid)
        if scopes and HostScope.QEMU_VHOST not in scopes:
            return own
        name = f"vhost-{self.pid}"
        more = _sum(row for row in self.rows if row.scope is HostScope.VHOST and row.name == name)
        return Load(*(a + b for a, b in zip(own, more, strict=True)))

    def per_packet_ns(self, load: Load | None) -> float | None:
        """CPU time an offered packet; None where nothing was offered."""
        return load.cpu_ns / self.offered_packets if load is not None and self.offered_packets else None

    def share(self, load: Load) -> float:
        """CPU time as a part of one CPU's: 1.0 is one CPU, all of the time."""
        return load.cpu_ns / self.duration_ns if self.duration_ns else 0.0


@dataclass
class HostCostSum:
    """Rows of several intervals added up, bounded: names beyond NAMES_MAX are added up as one."""

    sums: dict[tuple[HostScope, str, int | None], list[int]] = field(default_factory=dict)

    def add(self, scope: HostScope, name: str, pid: int | None, counts: Iterable[int]) -> None:
        """Counts: voluntary, involuntary, cpu_ns."""
        key = (scope, name, pid)
        if key not in self.sums and len(self.sums) >= NAMES_MAX:
            key = (HostScope.OTHER, REST, None)
        sums = self.sums.setdefault(key, [0, 0, 0])
        for place, count in enumerate(counts):
            sums[place] += count

    def add_all(self, other: HostCostSum) -> None:
        """The sums of another one."""
        for (scope, name, pid), counts in other.sums.items():
            self.add(scope, name, pid, counts)

    def rows(self, top: int = TOP_OTHERS) -> tuple[ScopeCost, ...]:
        """In the order of HostScope, then by CPU time; of OTHER the first `top` and the rest. Zeros left out."""
        others = sorted((key for key in self.sums if key[0] is HostScope.OTHER), key=self._weight)
        rest = [key for key in others[top:] if key[1] != REST]
        kept = {key: list(counts) for key, counts in self.sums.items() if key not in rest}
        if rest:
            sums = kept.setdefault((HostScope.OTHER, REST, None), [0, 0, 0])
            for key in rest:
                sums[:] = [a + b for a, b in zip(sums, self.sums[key], strict=True)]
        order = list(HostScope)
        shown = sorted(kept, key=lambda key: (order.index(key[0]), key[1] == REST, *self._weight(key)))
        return tuple(_row(*key, kept[key]) for key in shown if any(kept[key]))

    def _weight(self, key: tuple[HostScope, str, int | None]) -> tuple[int, int, str]:
        voluntary, involuntary, cpu_ns = self.sums.get(key, (0, 0, 0))
        return -cpu_ns, -voluntary - involuntary, key[1]


def _sum(rows: Iterable[ScopeCost]) -> Load:
    found = list(rows)
    return Load(
        sum(row.voluntary or 0 for row in found),
        sum(row.involuntary or 0 for row in found),
        sum(row.cpu_ns or 0 for row in found),
    )


def _row(scope: HostScope, name: str, pid: int | None, counts: list[int]) -> ScopeCost:
    voluntary, involuntary, cpu_ns = counts
    if scope in (HostScope.SOFTIRQ_NET_RX, HostScope.SOFTIRQ_NET_TX):
        return ScopeCost(scope, name, pid, None, None, cpu_ns)
    return ScopeCost(scope, name, pid, voluntary, involuntary, None if scope is HostScope.IDLE else cpu_ns)


def scaled_packets(packets: int, counted_ns: int, wanted_ns: int) -> int:
    """Packets of a span that is not quite the wanted one, as if they had come evenly."""
    return round(packets * wanted_ns / counted_ns) if counted_ns else 0
