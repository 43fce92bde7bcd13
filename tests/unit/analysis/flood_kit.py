# SPDX-License-Identifier: Apache-2.0
"""Samples and cells for the tests of the SYN-flood measures, made from real frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vifprobe.model.layout import CELL, SAMPLE, Direction, PacketClass, Verdict, size_bucket
from vifprobe.model.reading import Cells, merge

Array = npt.NDArray[Any]
OUT, IN = Direction.OUTBOUND, Direction.INBOUND


def seeded(seed: int) -> Callable[[int], Array]:
    """What `analysis.flood.reservoir.uniform` gives, the same in each run."""
    random = np.random.default_rng(seed)
    return lambda length: 1.0 - random.random(length)


def samples(
    frames: Sequence[bytes],
    packet_class: PacketClass = PacketClass.TCP_SYN,
    direction: Direction = OUT,
    *,
    weight: int = 1,
    gap_ns: int = 10_000,
    at_ns: int = 0,
) -> Array:
    """One sample a frame, `gap_ns` apart, each of which stands for `weight` packets."""
    rows = np.zeros(len(frames), SAMPLE)
    rows["direction"], rows["packet_class"], rows["verdict"] = direction, packet_class, Verdict.PASSED
    rows["weight"], rows["gap_ns"] = weight, gap_ns
    rows["at_ns"] = at_ns + np.arange(len(frames)) * gap_ns * weight
    lengths = np.array([len(frame) for frame in frames], np.int64)
    rows["frame_bytes"], rows["charged_bytes"] = lengths, lengths - 14
    rows["header_bytes"] = np.minimum(lengths, 128)
    for row, frame in zip(rows, frames, strict=True):
        row["headers"][: min(len(frame), 128)] = np.frombuffer(frame[:128], np.uint8)
    return rows


def cells(*counted: tuple[Direction, PacketClass, int], frame_bytes: int = 54, verdict: int = Verdict.PASSED) -> Cells:
    """Exact counts by direction and class."""
    rows = np.zeros(len(counted), CELL)
    for row, (direction, packet_class, packets) in zip(rows, counted, strict=True):
        row["direction"], row["packet_class"], row["verdict"] = direction, packet_class, verdict
        row["size"], row["packets"], row["frame_bytes"] = size_bucket(frame_bytes), packets, packets * frame_bytes
        row["charged_bytes"], row["wire_bytes"] = packets * (frame_bytes - 14), packets * 84
    return merge(rows)
