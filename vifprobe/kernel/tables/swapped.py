# SPDX-License-Identifier: Apache-2.0
"""Translate the kernel side's directions (the hooks, named as those of a tap) into the guest's directions."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from vifprobe.model.records import Distinct, SynMeasures

Array = npt.NDArray[Any]


class Swapped:
    """Translation for taps whose egress is outbound. numbers: of these taps (see vifprobe.model.ports)."""

    def __init__(self, numbers: Collection[int] = ()) -> None:
        self._numbers = sorted(numbers)

    def rows(self, rows: Array) -> Array:
        """Translate records with the fields `tap` and `direction`, in place."""
        if self._numbers and len(rows):
            rows["direction"] ^= np.isin(rows["tap"], self._numbers).astype(np.uint8)
        return rows

    def table(self, table: Array) -> Array:
        """Return an array by tap, direction and any further axes, translated."""
        if not self._numbers:
            return table
        turned = table.copy()
        turned[self._numbers] = table[self._numbers, ::-1]
        return turned

    def measures(self, found: SynMeasures) -> SynMeasures:
        """Return SYN measures with all fields by tap and direction translated."""
        if not self._numbers:
            return found
        return replace(
            found,
            interval=self._distinct(found.interval),
            total=self._distinct(found.total),
            handshakes=self.table(found.handshakes),
            open_age=self.table(found.open_age),
            completed_age=self.table(found.completed_age),
        )

    def _distinct(self, found: Distinct) -> Distinct:
        sides = {(tap, 1 - way if tap in self._numbers else way): sets for (tap, way), sets in found.sides.items()}
        return replace(found, sides=sides)
