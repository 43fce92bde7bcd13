# SPDX-License-Identifier: Apache-2.0
"""What shows a difference between two parsers is made small before a person has to read it."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from vifprobe.testing.packets.fuzz import corpus, frame
from vifprobe.testing.packets.shrink import smallest


def test_only_what_matters_is_left() -> None:
    looks = []

    def shows(frames: Sequence[bytes]) -> list[bool]:
        looks.append(len(frames))
        return [b"\x86\xdd" in each[12:] and each[-1:] >= b"\x40" for each in frames]

    random = Random(7)
    start = random.randbytes(30) + b"\x86\xdd" + random.randbytes(90) + b"\xff"
    small = smallest(start, shows, rounds=20)
    assert small == bytes(12) + b"\x86\xdd"
    assert len(looks) < 20


def test_what_shows_nothing_smaller_stays() -> None:
    assert smallest(b"\x81\x00", lambda frames: [False] * len(frames)) == b"\x81\x00"


def test_a_seed_gives_the_same_frames_again() -> None:
    assert list(corpus(11, 211)) == list(corpus(11, 211))
    assert list(corpus(11, 211)) != list(corpus(13, 211))
    random = Random(11)
    assert [frame(random) for _ in range(211)] == list(corpus(11, 211))
