# SPDX-License-Identifier: Apache-2.0
"""A corpus made at random through the kernel's program and through tshark: the same class, packet by packet.

`VIFPROBE_FUZZ_SEED` and `VIFPROBE_FUZZ_FRAMES` choose another corpus. The difference that is found is made small before
it is shown.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random

import pytest
from replay_kit import Shower, shower

from vifprobe.kernel.features import missing_capabilities
from vifprobe.model.layout import Ethertype, PacketClass
from vifprobe.testing.packets import dissector, fuzz
from vifprobe.testing.packets.shrink import smallest

SEED = int(os.environ.get("VIFPROBE_FUZZ_SEED", "20210219"))
FRAMES = int(os.environ.get("VIFPROBE_FUZZ_FRAMES", "100_003"))
#: Of how many frames tshark may have no opinion: those with a wrong option in an IPv6 extension header.
GIVEN_UP_SHARE = 0.001
BIG_FRAMES = 23


@pytest.fixture(scope="module")
def shown(require: Callable[[str, object, str], None]) -> Iterator[Shower]:
    missing = missing_capabilities()
    require("kernel", not missing, f"this process lacks {', '.join(missing)}")
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed")
    with shower() as made:
        yield made


def ours(shown: Shower, frame: bytes) -> PacketClass:
    said = shown.show(frame)
    assert said is not None, frame.hex()
    return said.packet_class


def kept(frames: Iterable[bytes], into: list[bytes]) -> Iterator[bytes]:
    for frame in frames:
        into.append(frame)
        yield frame


def told(frame: bytes, shown: Shower, preferences: Sequence[str]) -> str:
    """The smallest frame that shows the same difference, in words."""
    (found,) = dissector.read([frame], preferences=preferences)
    wanted = (ours(shown, frame), dissector.class_of(found, frame))

    def shows(frames: Sequence[bytes]) -> list[bool]:
        read = dissector.read(frames, preferences=preferences)
        return [
            (ours(shown, each), dissector.class_of(fields, each)) == wanted
            for each, fields in zip(frames, read, strict=True)
        ]

    small = smallest(frame, shows)
    (found,) = dissector.read([small], preferences=preferences)
    fields = {name: value for name, value in found.items() if value}
    return f"vifprobe {wanted[0].name}, tshark {wanted[1] and wanted[1].name}: {small.hex()} {fields}"


def check(shown: Shower, frames: Iterable[bytes], preferences: Sequence[str]) -> Counter[PacketClass | None]:
    """All frames have the class that tshark's fields give; how many have which, None: tshark gave up."""
    drawn: list[bytes] = []
    seen: Counter[PacketClass | None] = Counter()
    wrong: dict[tuple[PacketClass, PacketClass], bytes] = {}
    for number, fields in enumerate(dissector.read(kept(frames, drawn), preferences=preferences)):
        frame = drawn[number]
        by_tshark = dissector.class_of(fields, frame)
        seen[by_tshark] += 1
        said = ours(shown, frame)
        if by_tshark is not None and said is not by_tshark:
            wrong.setdefault((said, by_tshark), frame)
    assert sum(seen.values()) == len(drawn)
    assert [told(frame, shown, preferences) for frame in wrong.values()] == [], f"seed {SEED}"
    return seen


def test_a_corpus_made_at_random(shown: Shower) -> None:
    seen = check(shown, fuzz.corpus(SEED, FRAMES), dissector.PREFERENCES)
    assert seen.total() == FRAMES
    assert seen.pop(None, 0) <= GIVEN_UP_SHARE * FRAMES
    # Nothing is agreed upon that does not occur.
    assert set(seen) == set(PacketClass)
    assert min(seen.values()) > FRAMES // 200


def test_frames_longer_than_a_length_field_can_say(shown: Shower) -> None:
    random = Random(SEED)
    seen = check(shown, [fuzz.big_tcp(random) for _ in range(BIG_FRAMES)], dissector.BIG_PREFERENCES)
    assert seen == {PacketClass.TCP_DATA: BIG_FRAMES}


def test_the_corpus_has_every_kind(shown: Shower) -> None:
    """Tags, families and lengths that a lazy generator would leave out."""
    frames = list(fuzz.corpus(SEED, 5003))
    said = [shown.show(frame) for frame in frames]
    kinds = Counter((row.ethertype, row.packet_class) for row in said if row is not None)
    assert all(any(kinds[kind, code] for kind in Ethertype) for code in PacketClass)
    tcp = [code for code in PacketClass if code.name.startswith("TCP")]
    assert all(kinds[kind, code] for kind in (Ethertype.IPV4, Ethertype.IPV6, Ethertype.VLAN) for code in tcp)
    assert len({len(frame) for frame in frames}) > 150
    assert min(len(frame) for frame in frames) == 14
