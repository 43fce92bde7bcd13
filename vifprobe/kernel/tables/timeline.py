# SPDX-License-Identifier: Apache-2.0
"""Time bins: each CPU's log of ended bins, the open bins, and packets that are in no bin yet."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from vifprobe.kernel.load import Programs
from vifprobe.kernel.tables.ring import unread
from vifprobe.model.layout import BIN, Direction, PacketClass, take_apart

Array = npt.NDArray[Any]


class Bins:
    """Reader of the timeline. The same bin can come in parts (one for each CPU).

    lost: number of bins that were overwritten before they were read.
    """

    def __init__(self, programs: Programs) -> None:
        settings = programs.settings
        self._cpus = settings.cpus
        self._bin_ns = settings.bin_ns
        self._open = programs.table("tap_cpu_states")["bin"][: settings.tap_cpu_states]
        self._log = programs.table("bin_log").reshape(self._cpus, -1)
        self._taken = np.zeros(self._cpus, dtype=np.int64)
        self.lost = 0

    def close(self) -> None:
        """Unmap the tables."""
        for table in ("_open", "_log"):
            self.__dict__.pop(table, None)

    def take(self, cpu_states: Array, final: bool = False) -> Array:
        """Return the bins that ended since the last call, as rows of layout.BIN; with `final`, the open ones too."""
        parts = [self._logged(cpu_states, cpu) for cpu in range(self._cpus)]
        if final:
            parts.append(self._open[self._open["tap_direction"] != 0])
        return _decoded(np.concatenate(parts))

    def pending(self, packets: Array) -> Array:
        """Return pending packets (by `cpu`), which are in no bin yet, in the open bin of their CPU."""
        rows = _single(packets)
        current = (packets["cpu"] * (len(self._open) // self._cpus)) + (
            rows["tap"].astype(np.int64) * len(Direction) + rows["direction"]
        )
        rows["start_ns"] = self._open["start_ns"][current]
        return rows

    def ongoing(self, packets: Array) -> Array:
        """Return inbound packets in flight, which are in no bin yet, in the current bin."""
        rows = _single(packets)
        rows["start_ns"] = time.monotonic_ns() // self._bin_ns * self._bin_ns
        return rows

    def _logged(self, cpu_states: Array, cpu: int) -> Array:
        rows, lost, head = unread(self._log[cpu], int(self._taken[cpu]), lambda: int(cpu_states["logged_bins"][cpu]))
        self.lost += lost
        self._taken[cpu] = head
        return rows


def _single(packets: Array) -> Array:
    """Return one row for each packet, without its time."""
    key = take_apart(packets["key"])
    rows = np.zeros(len(packets), BIN)
    for name in ("tap", "direction", "verdict"):
        rows[name] = key[name]
    rows["packets"] = 1
    rows["frame_bytes"] = packets["frame_bytes"]
    rows["syn_packets"] = key["packet_class"] == PacketClass.TCP_SYN
    return rows


def _decoded(raw: Array) -> Array:
    """Split kernel bins into one row for each verdict; empty ones are left out."""
    parts = []
    for verdict in range(raw["counts"].shape[1] if len(raw) else 0):
        counts = raw["counts"][:, verdict]
        used = counts["packets"] != 0
        rows = np.zeros(int(used.sum()), BIN)
        owner = raw["tap_direction"][used].astype(np.int64) - 1
        rows["tap"], rows["direction"] = owner // len(Direction), owner % len(Direction)
        rows["verdict"] = verdict
        rows["start_ns"] = raw["start_ns"][used]
        for name in ("packets", "frame_bytes", "syn_packets"):
            rows[name] = counts[name][used]
        parts.append(rows)
    return np.concatenate(parts) if parts else np.zeros(0, BIN)
