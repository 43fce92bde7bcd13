# SPDX-License-Identifier: Apache-2.0
"""The smallest frame that still shows a difference, found with few looks at many frames each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

#: Says of each frame whether it shows the difference.
Shows = Callable[[Sequence[bytes]], Sequence[bool]]


def smallest(frame: bytes, shows: Shows, rounds: int = 20) -> bytes:
    """A frame as short and as full of zeros as can be found in so many rounds; each asks `shows` once."""
    for _ in range(rounds):
        candidates = sorted((each for each in set(_simpler(frame)) if _cost(each) < _cost(frame)), key=_cost)
        found = [each for each, does in zip(candidates, shows(candidates), strict=True) if does]
        if not found:
            return frame
        frame = found[0]
    return frame


def _cost(frame: bytes) -> tuple[int, int, bytes]:
    return len(frame), len(frame) - frame.count(0), frame


def _simpler(frame: bytes) -> Iterator[bytes]:
    """Frames with less in them: cut at the end or within, zeros for bytes, smaller bytes."""
    size = len(frame)
    while size:
        for at in range(0, len(frame), size):
            yield frame[:at] + frame[at + size :]
            yield frame[:at] + bytes(len(frame[at : at + size])) + frame[at + size :]
        size //= 2
    for at, byte in enumerate(frame):
        for lower in {byte >> 1, byte & byte - 1} if byte else ():
            yield frame[:at] + bytes([lower]) + frame[at + 1 :]
