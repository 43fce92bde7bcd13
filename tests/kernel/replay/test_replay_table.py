# SPDX-License-Identifier: Apache-2.0
"""The packet table through the program for a file's frames: each frame counted as on a real tap, to the byte.

On a real tap the kernel strips a tag of some frames; TEST_RUN strips none, and refuses short and long ones. A replay
takes them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from replay_kit import Shower, Shown, shower

from vifprobe.kernel.features import missing_capabilities
from vifprobe.kernel.testrun import SKB_MAX_BYTES, is_refused
from vifprobe.model.layout import Direction, Ethertype, Expected, PacketClass, Verdict, size_bucket
from vifprobe.model.reading import Counts, count
from vifprobe.testing.packets.case import Case, Run
from vifprobe.testing.packets.frames import ETH_HEADER_BYTES, EtherType, TcpFlag, eth, ipv4, tcp, vlan
from vifprobe.testing.packets.table import CASES, cases_for

ON_A_TAP = cases_for(Run.TAP, gso=False)


@pytest.fixture(params=list(Direction))
def shown(request: pytest.FixtureRequest, require: Callable[[str, object, str], None]) -> Iterator[Shower]:
    missing = missing_capabilities()
    require("kernel", not missing, f"this process lacks {', '.join(missing)}")
    with shower(request.param) as made:
        yield made


def said_of(case: Case, direction: Direction) -> Shown:
    return Shown(direction, case.ethertype, case.packet_class, case.size_bucket(Run.TAP), Expected.NONE)


def test_every_frame_is_counted_as_on_a_real_tap(shown: Shower, request: pytest.FixtureRequest) -> None:
    direction = request.node.callspec.params["shown"]
    wrong = []
    for case in ON_A_TAP:
        said = shown.show(case.frame)
        if said != said_of(case, direction):
            wrong.append(f"{case.name}: expected {said_of(case, direction)}, was {said}")
    assert wrong == []
    assert any(is_refused(case.frame, len(case.frame)) for case in ON_A_TAP)
    assert any(len(case.frame) > SKB_MAX_BYTES for case in ON_A_TAP)
    l2_bytes = ETH_HEADER_BYTES * len(ON_A_TAP) if direction is Direction.OUTBOUND else 0
    frame_bytes = sum(case.frame_bytes(Run.TAP) for case in ON_A_TAP)
    wire_bytes = sum(case.wire_bytes(Run.TAP) for case in ON_A_TAP)
    snapshot = shown.counters.snapshot()
    assert count(snapshot.cells) == Counts(len(ON_A_TAP), frame_bytes, frame_bytes - l2_bytes, wire_bytes)
    assert snapshot.missed_packets.tolist() == [[0, 0]]
    assert set(snapshot.cells["verdict"]) == {Verdict.UNKNOWN}


def test_frames_that_no_tap_takes_are_counted_all_the_same(shown: Shower) -> None:
    """Shorter than an Ethernet header, or than the tag that they begin and the type behind it."""
    kept = {case.name: (case.frame, case.packet_class) for case in CASES if case.gso is None and not case.runs(Run.TAP)}
    runts = {f"{length} bytes": (bytes(length), PacketClass.MALFORMED) for length in range(ETH_HEADER_BYTES)}
    for name, (frame, packet_class) in (kept | runts).items():
        said = shown.show(frame)
        assert said is not None, name
        assert (said.packet_class, said.size) == (packet_class, size_bucket(len(frame))), name
    frame_bytes = sum(len(frame) for frame, _ in (kept | runts).values())
    counts = count(shown.counters.snapshot().cells)
    assert counts[:2] == (len(kept) + len(runts), frame_bytes)
    assert 0 < counts.charged_bytes <= frame_bytes


@pytest.mark.parametrize("tagged", [False, True])
def test_of_a_frame_cut_by_the_recorder_only_what_is_there_is_believed(shown: Shower, tagged: bool) -> None:
    """A class where the headers are there, else missed; never malformed, and the length is the frame's own."""
    frame = eth(ipv4(tcp(TcpFlag.ACK, bytes(1009))), EtherType.IPV4)
    frame = vlan(frame) if tagged else frame
    flags_end = 48 + 4 * tagged
    for captured in range(len(frame) + 1):
        said = shown.show(frame[:captured], len(frame))
        if captured < flags_end:
            assert said is None
        else:
            assert said is not None
            ethertype = Ethertype.VLAN if tagged else Ethertype.IPV4
            assert said[1:4] == (ethertype, PacketClass.TCP_DATA, size_bucket(len(frame) - 4 * tagged))
    snapshot = shown.counters.snapshot()
    missed = snapshot.missed_packets[0, shown.direction], snapshot.missed_bytes[0, shown.direction]
    assert missed == (flags_end, flags_end * len(frame))
    assert int(snapshot.missed_packets.sum()) == flags_end
    assert count(snapshot.cells).packets == len(frame) + 1 - flags_end
