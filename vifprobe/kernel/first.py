# SPDX-License-Identifier: Apache-2.0
"""tcx programs that run before vifprobe's own on one hook of a device. vifprobe does not see packets that they stop.

netlink does not report them, so they have to be polled, with one system call each time.
"""

from __future__ import annotations

from itertools import takewhile

from vifprobe.kernel.tcx import TcxProgram, tcx_program_ids, tcx_programs


class FirstPlace:
    """Polls one hook of a device."""

    def __init__(self, ifindex: int, ingress: bool) -> None:
        self._ifindex, self._ingress = ifindex, ingress
        self._ids: tuple[int, ...] = ()
        self._ahead: tuple[TcxProgram, ...] = ()

    def ahead(self) -> tuple[TcxProgram, ...]:
        """Return the programs of others that run first; none where the device is gone."""
        try:
            ids = tcx_program_ids(self._ifindex, self._ingress)
            if ids != self._ids:
                every = tcx_programs(self._ifindex, self._ingress)
                self._ids, self._ahead = ids, tuple(takewhile(lambda one: not one.own, every))
        except OSError:
            return ()
        return self._ahead
