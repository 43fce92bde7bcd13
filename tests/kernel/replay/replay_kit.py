# SPDX-License-Identifier: Apache-2.0
"""What the tests of the replay share: frames shown to its program one by one, and what it said of each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from vifprobe.kernel.features import read_features
from vifprobe.kernel.load import Programs
from vifprobe.kernel.settings import Settings, possible_cpus
from vifprobe.kernel.tables.counters import Counters
from vifprobe.kernel.testrun import LOOPBACK, FrameRunner
from vifprobe.model.layout import Direction, Ethertype, Expected, PacketClass, cell_key_shifts

FRAME_BYTES_MAX = 1 << 20
TIME_NS = 1_000_000_007


class Shown(NamedTuple):
    """What the program said of a frame: the key of the cell that it was counted in."""

    direction: Direction
    ethertype: Ethertype
    packet_class: PacketClass
    size: int
    expected: Expected


class Shower:
    """The program, and the memory that it is shown frames in."""

    def __init__(self, programs: Programs, direction: Direction) -> None:
        self.programs = programs
        self.counters = Counters(programs)
        self.counters.watch(LOOPBACK, 0, 0)
        self._memory = bytearray(FRAME_BYTES_MAX)
        self.direction = direction
        self._runner = FrameRunner(programs, direction, self._memory)

    def show(self, frame: bytes, length: int | None = None, time_ns: int = TIME_NS) -> Shown | None:
        """What is said of a frame of this length (None: its own) of which these bytes are there; None: missed."""
        # What follows a frame in memory is not zero: it must not matter.
        self._memory[: len(frame) + 64] = frame + b"\xa5" * 64
        key = self._runner.key_of(0, len(frame), len(frame) if length is None else length, time_ns)
        if not key:
            return None
        found = {name: key >> shift & mask for name, (shift, mask) in cell_key_shifts().items()}
        return Shown(
            Direction(found["direction"]),
            Ethertype(found["ethertype"]),
            PacketClass(found["packet_class"]),
            found["size"],
            Expected(found["expected"]),
        )


@contextmanager
def shower(direction: Direction = Direction.OUTBOUND, bin_ns: int = 0) -> Iterator[Shower]:
    """A program of its own, with tables of its own."""
    programs = Programs(Settings(cpus=possible_cpus(), replay=True, bin_ns=bin_ns), read_features())
    try:
        made = Shower(programs, direction)
        yield made
        made.counters.close()
    finally:
        programs.close()
