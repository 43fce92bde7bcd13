# SPDX-License-Identifier: Apache-2.0
"""Hooks of the watched taps, attached and detached in an order in which each packet is counted once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress

from vifprobe.errors import HostError
from vifprobe.host.limits import LimitReader
from vifprobe.host.tc.reader import waiting_of
from vifprobe.kernel.load import Programs
from vifprobe.kernel.tables.counters import Counters
from vifprobe.model.layout import Charge, Direction
from vifprobe.model.ports import direction_at, word
from vifprobe.model.reading import Limit
from vifprobe.model.whatif import WhatIf
from vifprobe.session.audit.auditor import Auditor
from vifprobe.session.tap import WatchedTap, at_hooks

#: Number of checks at the end of a run for inbound packets in flight whose end was not seen.
_LOOKS_AT_END = 4
_LOOK_APART_SECONDS = 0.003


class Hooks:
    """The programs on all watched taps, and the counters that they write.

    - programs, counters: the kernel side.
    - watched: the taps, ordered by number.
    - directions: watched directions.
    - auditor: knows the declared limits.
    - charge: bytes of a packet that the ideal bucket charges.
    - limits: reader of installed limits.
    """

    def __init__(
        self,
        programs: Programs,
        counters: Counters,
        watched: Sequence[WatchedTap],
        directions: tuple[Direction, ...],
        auditor: Auditor,
        charge: Charge,
        limits: LimitReader,
    ) -> None:
        self.programs = programs
        self.counters = counters
        self.watched = watched
        self._directions = directions
        self._auditor = auditor
        self._charge = charge
        self._limits = limits

    def load(self) -> None:
        """Load the programs: the verifier takes a tenth of a second or more.

        Nothing is counted yet: the programs count only taps that are in the table of watched taps.
        """
        if self.programs.unfollowed:
            for watched in self.watched:
                name = word(watched.link.kind, direction_at(watched.link.kind, "egress"))
                watched.note(f"the verdict of {name} packets is unknown: {self.programs.unfollowed}")
        self.programs.load(at_hooks([watched.link for watched in self.watched], self._directions))
        if self.programs.settings.follow is not None:
            self.programs.attach_followers()

    def attach(
        self, stack: ExitStack, create_qdisc: bool, what_ifs: Sequence[WhatIf], goes_on: Callable[[int], bool]
    ) -> None:
        """Attach the programs to each tap, and count it from then on. Verdicts must be attached before.

        Each tcx link waits for an RCU grace period with the RTNL lock held (kernel/bpf/tcx.c, tcx_link_prog_attach and
        tcx_entry_sync), 8 ms or more at 250 Hz. So several threads would not be faster.

        - stack: detaches each hook at its end.
        - create_qdisc: create a clsact qdisc where a hook needs one.
        - what_ifs: what-if limits.
        - goes_on: called with the number of attached taps; where it returns False, the other taps are left out.
        """
        for done, watched in enumerate(self.watched):
            if done and not goes_on(done):
                watched.hooks.leave_out(self._directions, time.monotonic_ns())
                continue
            stack.callback(watched.detach)
            watched.attach(self.programs, self._directions, create_qdisc)
            watched.tell_apart(self.programs)
            watched.hold_to(self._declared(watched), self._charge, self.programs)
            watched.try_out(what_ifs, self.programs)
            self.count(watched)
        goes_on(len(self.watched))

    def count(self, watched: WatchedTap) -> None:
        """Write the tap's current traits and charge to the kernel side, which counts it from then on."""
        self.counters.watch(watched.link.ifindex, watched.number, watched.traits, *watched.charge)

    def renew(self, watched: WatchedTap) -> None:
        """Update the tap's declared limits. Those of libvirt and Open vSwitch come after the start, and can change."""
        watched.hold_to(self._declared(watched), self._charge, self.programs)
        if not watched.gone:
            self.count(watched)

    def detach(self, progress: Callable[[int], object]) -> None:
        """Detach every hook; the counts are then final. Each tcx link waits for a grace period, as in attach."""
        for done, watched in enumerate(self.watched):
            progress(done)
            watched.detach()
        progress(len(self.watched))
        there = [watched for watched in self.watched if not watched.gone]
        with suppress(HostError):
            found = self._limits.read(watched.link for watched in there)
            for watched in there:
                watched.take(found[watched.link.ifindex])  # its policers' counters
        self.programs.detach_tracepoints()
        self.programs.detach_followers()
        # Packets that were in the hooks at this moment get their verdict before the last tracepoints are detached.
        self.counters.settle()
        self.programs.detach_verdicts()

    def write_off(self) -> bool:
        """Find inbound packets whose end was not seen; return False where none is in flight."""

        def waiting(numbers: Iterable[int]) -> dict[int, int]:
            taps = {self.watched[number].link.ifindex: number for number in numbers}
            with suppress(HostError):
                return {taps[ifindex]: packets for ifindex, packets in waiting_of(taps).items()}
            return {}

        return self.counters.write_off(waiting)

    def write_off_at_end(self) -> None:
        """Repeat write_off until no packet is in flight, at most _LOOKS_AT_END times, just before the end."""
        for _ in range(_LOOKS_AT_END):
            if not self.write_off():
                break
            time.sleep(_LOOK_APART_SECONDS)

    def _declared(self, watched: WatchedTap) -> dict[Direction, Limit]:
        return self._auditor.taps[watched.link.ifindex].declared_limits(self._directions)
