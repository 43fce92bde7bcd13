# SPDX-License-Identifier: Apache-2.0
"""Packets of the taps that were lost at other devices (bpf/lib/copies.c)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vifprobe.kernel.load import Programs
from vifprobe.model.records import DEVICE_LOSS

Array = npt.NDArray[Any]


class DeviceLosses:
    """Reader of the table; it has no rows where inbound packets are not followed."""

    def __init__(self, programs: Programs) -> None:
        settings = programs.settings
        self._table: Array | None = None
        if settings.follow is not None:
            self._table = programs.table("device_losses").reshape(settings.cpus, settings.taps)

    def close(self) -> None:
        """Unmap the table."""
        self._table = None

    def read(self) -> Array:
        """Return the counts since the start, as rows of records.DEVICE_LOSS; each tap, device and reason once."""
        if self._table is None:
            return np.zeros(0, DEVICE_LOSS)
        found: dict[tuple[int, int, int], tuple[int, int]] = {}
        table = self._table["at"].copy()
        for cpu, tap, slot in np.argwhere(table["key"]):
            loss = table[cpu, tap, slot]
            key = (int(tap), int(loss["key"]) & 0xFFFFFFFF, int(loss["key"]) >> 32)
            dropped, copies = found.get(key, (0, 0))
            found[key] = (dropped + int(loss["dropped"]), copies + int(loss["copies"]))
        for tap in np.flatnonzero(self._table["others"].any(axis=0)):
            found[int(tap), 0, 0] = (0, int(self._table["others"][:, tap].sum()))
        rows = [(*key, *counts) for key, counts in sorted(found.items())]
        return np.array(rows, DEVICE_LOSS)
