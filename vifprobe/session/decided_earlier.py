# SPDX-License-Identifier: Apache-2.0
"""Keeps which programs decide one tap's packets before they are counted, and how many packets went by unseen."""

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

#: So many that are gone again are kept, the newest.
_KEPT = 32
#: Who holds a program is looked up so often at most: who wants to be first can make a new one each time.
_HOLDERS_NS = 5_000_000_000
_IFF_NAPI = 0x10  # include/uapi/linux/if_tun.h


class Earlier:
    """Of one tap. news: counted up whenever there is something new to tell. ended_ns: when a program went last."""

    def __init__(self) -> None:
        # Never changed, but replaced: the audit's thread looks at it, too.
        self._there: Mapping[tuple[Direction, str, str, int], Ahead] = {}
        self._gone: deque[Ahead] = deque(maxlen=_KEPT)
        self._held_by: dict[int, tuple[str, ...]] = {}
        self._looked_ns = -_HOLDERS_NS
        self.news = self.ended_ns = 0

    @property
    def all(self) -> tuple[Ahead, ...]:
        """Those that were there at any time, of each program the last one."""
        every = {(one.direction, one.hook, one.mode, one.id): one for one in (*self._gone, *self._there.values())}
        return tuple(every.values())

    def is_there(self, hook: str) -> bool:
        """Return True if a program is at this hook now."""
        return any(one.hook == hook for one in self._there.values())

    def see(self, direction: Direction, hook: str, programs: Iterable[tuple[str, int]], since_ns: int) -> bool:
        """Programs (mode, id) that are at a hook now, and no others; whether that is different from before.

        since_ns: when it was last known what is there.
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
    """A look at the tap's counters. counted_ns, at_ns: monotonic, before and after they were read."""

    @property
    def counted_ns(self) -> int:
        """See above."""

    @property
    def at_ns(self) -> int:
        """See above."""

    @property
    def counters(self) -> LinkCounters | None:
        """None: not read."""


class DeviceCheck:
    """Holds what a tap's driver counted against what came to its hook: received, and dropped before or behind it.

    Of taps alone: tun counts each frame that it hands to the stack, once (drivers/net/tun.c, tun_get_user and
    tun_xdp_one). Drivers of network cards put frames together afterwards.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._received, self._dropped = Unseen(), Unseen()
        self._merges: bool | None = None

    @property
    def unseen(self) -> int:
        """Packets that tun handed on and that did not come to the hook, at least."""
        if self._received.packets and self._merges is None:
            self._merges = _merges_frames(self._link)
        return 0 if self._merges else self._received.packets

    @property
    def dropped(self) -> int:
        """Packets that were counted as dropped by the device and that did not come to the hook, at least."""
        return self._dropped.packets

    def restart(self) -> None:
        """The hook was not watched until now."""
        self._received.restart()
        self._dropped.restart()

    def restart_dropped(self) -> None:
        """Forget drops until now: those that can drop now did not drop them."""
        self._dropped = Unseen()

    def is_wanted(self, looks: Sequence[Device], began_ns: int) -> Device | None:
        """The look at the device to hold counts against; None where there is nothing to be done."""
        if self._link.kind != "tap":
            return None
        read = [one for one in looks if one.counters is not None and one.at_ns <= began_ns]
        return read[-1] if read and self._received.is_wanted(read[-1].at_ns, began_ns) else None

    def see(self, device: Device, snapshot: tuple[int, int], counted: int, dropped: int) -> None:
        """A look, and what a snapshot that was begun and ended then has counted since the start of the run.

        counted: outbound packets, missed ones too. dropped: of these by others than the policer, and missed.
        """
        if device.counters is not None:
            times = device.counted_ns, device.at_ns
            self._received.see((*times, device.counters.rx_packets), *snapshot, counted)
            self._dropped.see((*times, device.counters.rx_dropped), *snapshot, dropped)


def _merges_frames(link: Link) -> bool:
    """Return True if frames are merged before the hook (IFF_NAPI, which no hypervisor asks for), as /sys shows it:
    it shows the network namespace that it was mounted in.
    """
    folder = Path("/sys/class/net") / link.name
    try:
        if int((folder / "ifindex").read_text()) != link.ifindex:
            return False
        return bool(int((folder / "tun_flags").read_text(), 16) & _IFF_NAPI)
    except (OSError, ValueError):
        return False
