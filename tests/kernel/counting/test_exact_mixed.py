# SPDX-License-Identifier: Apache-2.0
"""Exact for all that a guest can send: what really passes, TSO, VLAN, every class and size of the packet table."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path

from probe_kit import FIRST_CPU, FLOOD_SECONDS, LIMIT, OUT, SYN, capturing, forwarding, watch_flood, watching

from vifprobe import Probe, load
from vifprobe.model.layout import Direction, Ethertype, Verdict
from vifprobe.model.reading import Cells, Counts, count
from vifprobe.testing.net.links import nft_ingress_limit
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.net.taps import Tap, gso_packet
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.packets import frames as f
from vifprobe.testing.packets.case import Case, Run
from vifprobe.testing.packets.table import cases_for
from vifprobe.testing.traffic.flood import writer

COUNT = 100_003
PASSED, POLICED, DROPPED = Verdict.PASSED, Verdict.POLICED, Verdict.DROPPED
Kinds = Counter[tuple[int, int, int, str]]
_UNITS = ("packets", "frame_bytes", "charged_bytes", "wire_bytes")


def kinds_of(cells: Cells) -> Kinds:
    """Each kind of packet with its four counts, whatever became of it."""
    found: Kinds = Counter()
    for row in cells:
        for unit in _UNITS:
            found[int(row["packet_class"]), int(row["ethertype"]), int(row["size"]), unit] += int(row[unit])
    return found


def kinds_written(cases: list[Case], times: int) -> Kinds:
    """The same of `times` frames taken from the cases in turn."""
    found: Kinds = Counter()
    for case in islice(cycle(cases), times):
        values = (1, case.frame_bytes(Run.TAP), case.charged_bytes(Run.TAP), case.wire_bytes(Run.TAP))
        for unit, value in zip(_UNITS, values, strict=True):
            found[int(case.packet_class), int(case.ethertype), case.size_bucket(Run.TAP), unit] += value
    return found


def test_what_the_bridge_forwards_has_passed(tap: Tap) -> None:
    """The limit lets pass what its counter says, and all of that passes: nothing is dropped behind it."""
    with (
        forwarding(tap),
        nft_ingress_limit(tap.name, **LIMIT) as limit,
        writer([tap.fd], [SYN], count=COUNT, seconds=FLOOD_SECONDS, cpu=FIRST_CPU) as flood,
        Probe(tap.name, bin_ns=1_000_000) as probe,
    ):
        found = watch_flood(probe, [flood])
        policed, passed = limit.read(), limit.read_passed()
    assert found.total().packets == COUNT == policed.packets + passed.packets
    assert (found.total(PASSED).packets, found.total(PASSED).charged_bytes) == (passed.packets, passed.bytes)
    assert (found.total(POLICED).packets, found.total(POLICED).charged_bytes) == (policed.packets, policed.bytes)
    assert found.total(DROPPED) == Counts()
    assert found.binned(PASSED) == (passed.packets, passed.packets * len(SYN), passed.packets)


def test_tso_and_plain_frames_in_turn(netns: Netns) -> None:
    """A TSO frame is one packet of its full length, charged without L2 header, on the wire in 7 segments."""
    tso = f.eth(f.ipv4(f.tcp(f.TcpFlag.ACK, bytes(6 * 1448 + 101))), f.EtherType.IPV4)
    with ExitStack() as stack:
        tap = stack.enter_context(make_tap("tap0", vnet_hdr=True))
        stack.enter_context(forwarding(tap))
        limit = stack.enter_context(nft_ingress_limit(tap.name, rate_bytes_per_second=50_000_017, burst_bytes=100_003))
        packets = [gso_packet(tso, gso_size=1448, transport_offset=34), tap.packet(SYN)]
        flood = stack.enter_context(writer([tap.fd], packets, count=COUNT, seconds=FLOOD_SECONDS, cpu=FIRST_CPU))
        probe = stack.enter_context(Probe(tap.name))
        found = watch_flood(probe, [flood])
        nft, nft_passed = limit.read(), limit.read_passed()
    big, small = COUNT // 2 + 1, COUNT // 2
    segments_wire = len(tso) + 6 * 54 + 7 * 24
    assert found.total() == (
        COUNT,
        big * len(tso) + small * 54,
        big * (len(tso) - 14) + small * 40,
        big * segments_wire + small * 84,
    )
    assert (found.total(POLICED).packets, found.total(POLICED).charged_bytes) == (nft.packets, nft.bytes)
    assert (found.total(PASSED).packets, found.total(PASSED).charged_bytes) == (nft_passed.packets, nft_passed.bytes)
    assert nft.packets > 0 < nft_passed.packets


def test_every_class_and_size_through_the_commands(netns: Netns, tmp_path: Path) -> None:
    """The packet table in turn against a limit: each class, ethertype and size bucket has exactly what was written."""
    with ExitStack() as stack:
        tap = stack.enter_context(make_tap("tap0", vnet_hdr=True, mtu=65521))
        cases = list(cases_for(Run.TAP))
        limit = stack.enter_context(nft_ingress_limit(tap.name, rate_bytes_per_second=3_000_017, burst_bytes=100_003))
        packets = [case.packet(tap) for case in cases]
        flood = stack.enter_context(writer([tap.fd], packets, count=COUNT, seconds=FLOOD_SECONDS, cpu=FIRST_CPU))
        watch = stack.enter_context(watching(tmp_path, "--interval", "100ms"))
        capture = stack.enter_context(capturing(tmp_path, "--bin", "1ms"))
        flood.start()
        flood.wait()
        capture.end()
        final = watch.end().splitlines()[-1]
        nft = limit.read()
    found = load(tmp_path / "capture")
    assert found.manifest.complete
    reading = found.reading()
    assert reading.missed == 0
    assert kinds_of(reading.where(OUT)) == kinds_written(cases, COUNT)
    policed = count(reading.where(OUT, POLICED))
    assert (policed.packets, policed.charged_bytes) == (nft.packets, nft.bytes)
    assert f'"policed": {{"packets": {policed.packets}, ' in final
    tags = count(reading.where(OUT)[reading.where(OUT)["ethertype"] == Ethertype.VLAN]).packets
    assert tags > 1000
    agreed = {row.counter: row.delta for row in found.reconcile if row.agrees}
    assert agreed["device rx_bytes"] == reading.offered(OUT).frame_bytes + 4 * tags
    assert agreed["nft drops bytes: ingress"] == nft.bytes
    outbound = found.bins[found.bins["direction"] == Direction.OUTBOUND]
    assert int(outbound["packets"].sum()) == COUNT
