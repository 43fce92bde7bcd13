# SPDX-License-Identifier: Apache-2.0
"""Programs that decide a tap's packets before they are counted, and the number of packets not seen because of them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from vifprobe.analysis.ahead import Ahead, Unseen
from vifprobe.host.net.links import Link, LinkCounters
from vifprobe.kernel.tcx import program_holders, program_name
from vifprobe.model.layout import Direction

#: Number of removed programs that are kept, the newest ones.
_KEPT = 32
#: Minimum time between searches for the holders of programs: another process can attach new programs all the time.
_HOLDERS_NS = 5_000_000_000
_IFF_NAPI = 0x10  # include/uapi/linux/if_tun.h


class Earlier:
    """Programs of others on one tap that run before vifprobe's.

    - news: incremented at each change.
    - ended_ns: when a program was last removed, monotonic; 0: never.
    """

    def __init__(self) -> None:
        # Never changed in place, but replaced: the audit's thread reads it, too.
        self._there: Mapping[tuple[Direction, str, str, int], Ahead] = {}
        self._gone: deque[Ahead] = deque(maxlen=_KEPT)
        self._held_by: dict[int, tuple[str, ...]] = {}
        self._looked_ns = -_HOLDERS_NS
        self.news = self.ended_ns = 0

    @property
    def all(self) -> tuple[Ahead, ...]:
        """Return all programs that were attached at any time; the last attachment of each."""
        every = {(one.direction, one.hook, one.mode, one.id): one for one in (*self._gone, *self._there.values())}
        return tuple(every.values())

    def is_there(self, hook: str) -> bool:
        """Return True if a program is at this hook now."""
        return any(one.hook == hook for one in self._there.values())

    def see(self, direction: Direction, hook: str, programs: Iterable[tuple[str, int]], since_ns: int) -> bool:
        """Record the programs at a hook now; return True if they changed.

        - direction, hook: of the programs.
        - programs: (mode, id) of each program.
        - since_ns: time of the previous check, monotonic.
        """
        now_ns = time.monotonic_ns()
        keys = {(direction, hook, mode, number) for mode, number in programs}
        there = dict(self._there)
        ended = [key for key in there if key[:2] == (direction, hook) and key not in keys]
        new = sorted(key for key in keys if key not in there)
        if not ended and not new:
            return False
        self._gone.extend(replace(there.pop(key), end_ns=now_ns) for key in ended)
        self._look_for_holders([key[3] for key in new], now_ns)
        for key in new:
            name, held_by = program_name(key[3]), self._held_by.get(key[3], ())
            there[key] = Ahead(direction, hook, key[3], name, since_ns, None, key[2], held_by)
        self._there = there
        self.ended_ns = now_ns if ended else self.ended_ns
        self.news += 1
        return True

    def _look_for_holders(self, ids: Sequence[int], now_ns: int) -> None:
        if ids and now_ns - self._looked_ns >= _HOLDERS_NS:
            self._looked_ns = now_ns
            self._held_by = program_holders(ids)


class Device(Protocol):
    """One reading of the tap's device counters."""

    @property
    def counted_ns(self) -> int:
        """Time before the counters were read, monotonic."""

    @property
    def at_ns(self) -> int:
        """Time after the counters were read, monotonic."""

    @property
    def counters(self) -> LinkCounters | None:
        """The counters; None: not read."""


class DeviceCheck:
    """Compares the counters of a tap's driver (received and dropped) with the packets that reached its hook.

    For taps only: tun counts each frame that it hands to the stack, once (drivers/net/tun.c, tun_get_user and
    tun_xdp_one). Drivers of network cards merge frames afterwards.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._received, self._dropped = Unseen(), Unseen()
        self._merges: bool | None = None

    @property
    def unseen(self) -> int:
        """Return the minimum number of packets that tun handed to the stack and that did not reach the hook."""
        if self._received.packets and self._merges is None:
            self._merges = _merges_frames(self._link)
        return 0 if self._merges else self._received.packets

    @property
    def dropped(self) -> int:
        """Return the minimum number of packets that the device counted as dropped and that did not reach the hook."""
        return self._dropped.packets

    def restart(self) -> None:
        """Start the comparison again: the hook was not watched until now."""
        self._received.restart()
        self._dropped.restart()

    def restart_dropped(self) -> None:
        """Forget the drops so far: the programs that are attached now did not cause them."""
        self._dropped = Unseen()

    def is_wanted(self, looks: Sequence[Device], began_ns: int) -> Device | None:
        """Return the device reading to compare counts with; None where no comparison is due."""
        if self._link.kind != "tap":
            return None
        read = [one for one in looks if one.counters is not None and one.at_ns <= began_ns]
        return read[-1] if read and self._received.is_wanted(read[-1].at_ns, began_ns) else None

    def see(self, device: Device, snapshot: tuple[int, int], counted: int, dropped: int) -> None:
        """Compare a device reading with the counts of a snapshot since the start of the run.

        - snapshot: monotonic times of its begin and end.
        - counted: outbound packets, with missed ones.
        - dropped: of these, packets dropped by others than the policer, and missed ones.
        """
        if device.counters is not None:
            times = device.counted_ns, device.at_ns
            self._received.see((*times, device.counters.rx_packets), *snapshot, counted)
            self._dropped.see((*times, device.counters.rx_dropped), *snapshot, dropped)


def _merges_frames(link: Link) -> bool:
    """Return True if frames are merged before the hook: IFF_NAPI, which no hypervisor sets.

    Read from /sys, which shows the network namespace that it was mounted in.
    """
    folder = Path("/sys/class/net") / link.name
    try:
        if int((folder / "ifindex").read_text()) != link.ifindex:
            return False
        return bool(int((folder / "tun_flags").read_text(), 16) & _IFF_NAPI)
    except (OSError, ValueError):
        return False
