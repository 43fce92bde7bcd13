# SPDX-License-Identifier: Apache-2.0
"""Programs that run before vifprobe's own on a packet's way, and at least how many packets went by unseen."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from vifprobe.model.layout import Direction

#: Packets that may be on their way between the device's counter and the hook (RPS, each CPU's last packet).
SLACK_PACKETS = 256
_KEPT = 64


@dataclass(frozen=True)
class Ahead:
    """A program that decides packets of one direction before they are counted, from since_ns to end_ns (monotonic).

    hook: `tcx`, `xdp`, or `filter` (of tc, of the same pref). mode: of XDP, `native`, `generic` or `offloaded`.
    id, name: as `bpftool prog` lists it. held_by: processes that hold it or its link, `cilium-agent (pid 812)`; ()
    where none was found. since_ns: when it was known last that it was not there. end_ns: None while it is.
    """

    direction: Direction
    hook: str
    id: int
    name: str
    since_ns: int
    end_ns: int | None = None
    mode: str = ""
    held_by: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """`tcx program drop_all (id 7) of agent (pid 812)`."""
        holder = f" of {self.held_by[0]}" if self.held_by else ""
        return f"{' '.join(filter(None, (self.mode, self.hook)))} program {self.name or '?'} (id {self.id}){holder}"


class Unseen:
    """Holds what a device counted against what was counted at its hook, at different times, one-sided: `packets` went
    by the hook at least. Both counts only grow.
    """

    def __init__(self) -> None:
        self.packets = 0
        self._before = 0  # what was found up to the last restart
        self.restart()

    def restart(self) -> None:
        """Start the comparison anew: the hook was not watched in between."""
        self._before = self.packets
        self._base: tuple[int, int] | None = None
        self._counted: deque[tuple[int, int]] = deque(maxlen=_KEPT)
        self._last = 0
        self._looked_ns = 0

    def is_wanted(self, looked_ns: int, began_ns: int) -> bool:
        """Return True if `see` is to be called: a reading of the device came in that is older than the snapshot."""
        return self._base is None or self._looked_ns < looked_ns <= began_ns

    def see(self, device: tuple[int, int, int], began_ns: int, ended_ns: int, counted: int) -> None:
        """One reading of the device, (begin, end, packets), and one snapshot that was begun and ended then.

        A packet is in no doubt only where the device counted it after one snapshot had ended and before another began.
        Twice in a row, or what is on its way would do.
        """
        device_ns, device_ended_ns, packets = device
        is_new = self._looked_ns < device_ended_ns <= began_ns
        if is_new:
            self._looked_ns = device_ended_ns
        if self._base is not None:
            if is_new:
                found = packets - self._base[0] - (counted - self._base[1])
                both, self._last = min(found, self._last), found
                if both > SLACK_PACKETS:
                    self.packets = max(self.packets, self._before + both)
            return
        earlier = [one for at_ns, one in self._counted if at_ns <= device_ns]
        if is_new and earlier:
            self._base = (packets, earlier[-1])
            self._counted.clear()
        else:
            self._counted.append((ended_ns, counted))
