# SPDX-License-Identifier: Apache-2.0
"""Which tcx programs run ahead of vifprobe's own on one hook of a device: what they decide is not seen.

netlink tells nothing of them, so that they have to be looked for: one system call a look.
"""

from __future__ import annotations

from itertools import takewhile

from vifprobe.kernel.tcx import TcxProgram, tcx_program_ids, tcx_programs


class FirstPlace:
    """Looks at one hook of a device."""

    def __init__(self, ifindex: int, ingress: bool) -> None:
        self._ifindex, self._ingress = ifindex, ingress
        self._seen: tuple[int, ...] = ()
        self._ahead: tuple[TcxProgram, ...] = ()

    def ahead(self) -> tuple[TcxProgram, ...]:
        """Programs of others that run first; none where the device is gone."""
        try:
            ids = tcx_program_ids(self._ifindex, self._ingress)
            if ids != self._seen:
                every = tcx_programs(self._ifindex, self._ingress)
                self._seen, self._ahead = ids, tuple(takewhile(lambda one: not one.own, every))
        except OSError:
            return ()
        return self._ahead
