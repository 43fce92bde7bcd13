# SPDX-License-Identifier: Apache-2.0
"""Totals cannot overflow: whatever a guest sends, only the sizes of its own packets can get lost, and that is said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle, islice, product
from random import Random

import pytest
from inbound_kit import neighbour
from probe_kit import FIRST_CPU, FLOOD_SECONDS, LAST_CPU, LIMIT, OUT, SYN, finish, forwarding, kernel_side, on_cpu
from syn_kit import handshakes, segment, write

from vifprobe import Probe
from vifprobe.kernel import libbpf
from vifprobe.kernel.attach import attach
from vifprobe.kernel.settings import Settings, possible_cpus
from vifprobe.model.layout import SIZE_EDGES_BYTES, SIZE_UNKNOWN, Direction, PacketClass, Verdict
from vifprobe.model.reading import Cells, Limit, Reading, count
from vifprobe.testing.net.links import bridge_with, nft_ingress_limit
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.packets import frames as f
from vifprobe.testing.packets import syns
from vifprobe.testing.packets.case import Case, Run
from vifprobe.testing.packets.table import cases_for
from vifprobe.testing.traffic.flood import flood

GO_ON = -1
IN = Direction.INBOUND
MIB = 1 << 20
FLAGS = (
    f.TcpFlag.SYN,
    f.TcpFlag.SYN | f.TcpFlag.ACK,
    f.TcpFlag.RST,
    f.TcpFlag.FIN | f.TcpFlag.ACK,
    f.TcpFlag.ACK,
    f.TcpFlag(0),
)
Totals = Counter[tuple[int, int, str]]
UNITS = ("packets", "frame_bytes", "charged_bytes", "wire_bytes")


@dataclass(frozen=True)
class Tiny(Settings):
    """Room for eight kinds of packets with their size, and four without, on each CPU."""

    @property
    def cells(self) -> int:
        """Instead of thousands."""
        return 8

    @property
    def unsized_cells(self) -> int:
        """Instead of hundreds."""
        return 4


def totals_of(cells: Cells) -> Totals:
    """What must be exact: class, ethertype and the four counts."""
    found: Totals = Counter()
    for row in cells:
        for unit in UNITS:
            found[int(row["packet_class"]), int(row["ethertype"]), unit] += int(row[unit])
    return +found


def totals_written(cases: Sequence[Case], times: int) -> Totals:
    """The same of frames taken from the cases in turn."""
    found: Totals = Counter()
    for case in islice(cycle(cases), times):
        values = (1, case.frame_bytes(Run.TAP), case.charged_bytes(Run.TAP), case.wire_bytes(Run.TAP))
        for unit, value in zip(UNITS, values, strict=True):
            found[int(case.packet_class), int(case.ethertype), unit] += value
    return +found


def unsized_packets(reading: Reading) -> int:
    return sum(reading.unsized(direction).packets for direction in reading.directions)


def every_kind() -> list[bytes]:
    """Frames of all sizes up to 60 kB: TCP with different flags and UDP, over IPv4 and IPv6, tagged or not."""
    found = []
    for size in SIZE_EDGES_BYTES[3:].tolist():
        for length in (size, size + 1):
            if length > 60_000:
                continue
            for flags in FLAGS:
                found.append(f.eth(f.ipv4(f.tcp(flags, bytes(max(0, length - 54)))), f.EtherType.IPV4))
                found.append(f.eth(f.ipv6(f.tcp(flags, bytes(max(0, length - 74)))), f.EtherType.IPV6))
                found.append(f.vlan(found[-2]))
            found.append(f.eth(f.ipv4(f.udp(bytes(max(0, length - 42)))), f.EtherType.IPV4))
            found.append(f.eth(f.ipv6(f.udp(bytes(max(0, length - 62)))), f.EtherType.IPV6))
    return found


def test_more_kinds_of_packets_than_cells(tap: Tap) -> None:
    """Every total is what was written, in packets and bytes, by class and ethertype; only sizes are missing."""
    cases = cases_for(Run.TAP, gso=False)
    with forwarding(tap), kernel_side(tap, Tiny(cpus=possible_cpus())) as kernel:
        flood([tap.fd], [case.frame for case in cases], count=10_007, seconds=FLOOD_SECONDS)
        found = kernel.counters.snapshot()
        assert totals_of(found.cells) == totals_written(cases, 10_007)
        assert int(found.missed_packets.sum()) == 0
        unsized = found.cells[found.cells["size"] == SIZE_UNKNOWN]
        sized = found.cells[found.cells["size"] != SIZE_UNKNOWN]
        assert len(sized) > 0
        assert int(unsized["packets"].sum()) > 5_000
        # Also then the answer is "go on".
        program = kernel.programs.tc_program_fd(OUT)
        assert {libbpf.test_run(program, case.frame)[0] for case in cases_for(Run.TEST_RUN, gso=False)} == {GO_ON}


def test_what_has_no_size_is_said(tap: Tap, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the reading's notes and its measure; intervals and time bins still add up to the totals."""
    monkeypatch.setattr("vifprobe.session.components.Settings", Tiny)
    cases = cases_for(Run.TAP, gso=False)
    with (
        forwarding(tap),
        nft_ingress_limit(tap.name, **LIMIT) as limit,
        Probe(tap.name, directions=(OUT,), bin_ns=1_000_000) as probe,
    ):
        flood([tap.fd], [case.frame for case in cases], count=10_007, seconds=FLOOD_SECONDS)
        found = finish(probe)
        policed, passed = limit.read(), limit.read_passed()
    total = found.totals[tap.name]
    assert total.missed == 0
    assert "P16" not in {finding.pattern for finding in total.findings}
    assert totals_of(total.cells) == totals_written(cases, 10_007)
    assert found.total(Verdict.POLICED)[::2] == (policed.packets, policed.bytes)
    # What passed the limit, odd frames among it, was not all welcome behind it.
    behind = found.total(Verdict.PASSED) + found.total(Verdict.DROPPED)
    assert behind[::2] == (passed.packets, passed.bytes)
    assert found.binned()[0] == 10_007
    unsized = unsized_packets(total)
    assert unsized > 5_000
    notes = [note for note in total.notes if "without their size" in note]
    assert notes == [note for note in notes if note.startswith(f"{unsized:,} of 10,007 packets")]
    assert len(notes) == 1


def test_a_guest_that_fills_its_cells_hides_nothing(netns: Netns) -> None:
    """Thousands of kinds, seven times on each CPU, then a flood: each of its SYNs is counted, on that tap and on its
    neighbour, whose packets all keep their size.
    """
    kinds, syn_count = every_kind(), 30_011
    assert len(kinds) > 1_500
    with ExitStack() as stack:
        loud, quiet = (stack.enter_context(make_tap(name, mtu=65521)) for name in ("tap0", "tap1"))
        stack.enter_context(forwarding(loud, quiet))
        stack.enter_context(nft_ingress_limit(loud.name, **LIMIT))
        # nft's bucket holds a second's worth beside the burst.
        burst_bytes = LIMIT["rate_bytes_per_second"] + LIMIT["burst_bytes"]
        declared = {OUT: Limit(declared_bps=8 * LIMIT["rate_bytes_per_second"], burst_bytes=burst_bytes)}
        probe = stack.enter_context(Probe(loud.name, quiet.name, limits=declared))
        for cpu in (FIRST_CPU, LAST_CPU):
            with on_cpu(cpu):
                flood([loud.fd], kinds, count=7 * len(kinds), seconds=FLOOD_SECONDS)
                flood([loud.fd, quiet.fd], [SYN], count=2 * syn_count, seconds=FLOOD_SECONDS)
        *_, of_loud, of_quiet = probe.readings(0.01, 0.03)
    by_class = Counter({code: of_loud.offered(OUT, code).packets for code in PacketClass})
    syn_kinds = len(kinds) * 3 // 20  # of twenty frames of each length
    assert by_class[PacketClass.TCP_SYN] == 2 * syn_count + 2 * 7 * syn_kinds
    assert sum(by_class.values()) == 2 * syn_count + 2 * 7 * len(kinds)
    assert of_quiet.offered(OUT, PacketClass.TCP_SYN).packets == 2 * syn_count
    assert (of_loud.missed, of_quiet.missed) == (0, 0)
    assert unsized_packets(of_quiet) == 0
    assert not [note for note in of_quiet.notes if "size" in note]
    # Each packet has a verdict and an expectation all the same.
    for reading in (of_loud, of_quiet):
        decided = [reading.counts(OUT, verdict) for verdict in (Verdict.PASSED, Verdict.POLICED, Verdict.DROPPED)]
        assert sum(one.packets for one in decided if one is not None) == reading.offered(OUT).packets
    bypass = of_loud.bypass(OUT)
    assert bypass is not None
    assert bypass.packets < 0.001 * of_loud.offered(OUT).packets


@pytest.mark.parametrize("taps", [1, 2, 3, 5, 8])
def test_any_mix_on_any_number_of_taps(netns: Netns, taps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random mixes of all classes and sizes from each tap, and towards each by way of a bridge: totals are exact."""
    random = Random(taps)
    if taps in (2, 5):
        monkeypatch.setattr("vifprobe.session.components.Settings", Tiny)
    table = cases_for(Run.TAP, gso=False)
    # The kernel takes a tag out of the bytes, see the packet table.
    towards = [frame for frame in every_kind() if len(frame) < 9_000 and frame[12:14] != b"\x81\x00"]
    written: dict[str, Totals] = {}
    received: dict[str, tuple[int, int]] = {}
    with ExitStack() as stack:
        made = [stack.enter_context(make_tap(f"tap{number}", mtu=65521)) for number in range(taps)]
        bridges = [stack.enter_context(bridge_with(tap, name=f"br{tap.name}")) for tap in made]
        assert len(bridges) == taps
        probe = stack.enter_context(Probe(*(tap.name for tap in made)))
        for tap in made:
            cases, times = random.sample(table, 60), random.randrange(1_000, 4_000)
            with on_cpu(random.choice((FIRST_CPU, LAST_CPU))):
                flood([tap.fd], [case.frame for case in cases], count=times, seconds=FLOOD_SECONDS)
            written[tap.name] = totals_written(cases, times)
        totals = {reading.tap: reading for reading in finish(probe).totals.values()}
    for tap in made:
        assert totals_of(totals[tap.name].where(OUT)) == written[tap.name]
        assert totals[tap.name].missed == 0
    # Towards a guest, which reads nothing: its ring fills, what is too much is dropped, all of it was offered.
    with ExitStack() as stack:
        guest = stack.enter_context(make_tap("tap0", mtu=65521))
        sender = stack.enter_context(neighbour(guest))
        probe = stack.enter_context(Probe(guest.name, directions=(IN,)))
        frames = random.sample(towards, 300)
        flood([sender.fd], frames, count=3_001, seconds=FLOOD_SECONDS)
        total = finish(probe).totals[guest.name]
        received[guest.name] = total.offered(IN).packets, total.offered(IN).frame_bytes
    assert total.missed == 0
    assert received[guest.name] == (3_001, sum(map(len, islice(cycle(frames), 3_001))))


def test_a_guest_cannot_take_the_handshakes_of_its_neighbour(netns: Netns) -> None:
    """Followed handshakes have room of their own on each tap: a flood on one ends none on the other."""
    begun = 503
    with ExitStack() as stack:
        loud, quiet = (stack.enter_context(make_tap(name)) for name in ("tap0", "tap1"))
        side = stack.enter_context(kernel_side(loud, Settings(taps=2, cpus=possible_cpus(), syn=True)))
        side.counters.watch(quiet.ifindex, 1, 0)
        hook = attach(side.programs.tc_program_fd(OUT), quiet.name, quiet.ifindex, OUT, "clsact")
        stack.callback(hook.detach)
        write(quiet, [segment(f.TcpFlag.SYN, client=number) for number in range(begun)])
        for seed in range(20):
            flood([loud.fd], syns.spoofed(5_003, seed), count=5_003, seconds=FLOOD_SECONDS)
        found = side.counters.syn_measures()
        assert found is not None
        own, flooding = found.handshakes[1, OUT], handshakes(found)
        assert (int(own["started"]), int(own["open"]), int(own["evicted"])) == (begun, begun, 0)
        assert int(flooding["evicted"]) > 0


def test_the_place_of_a_key_is_another_one_in_each_run(tap: Tap) -> None:
    """Else a guest could work out which packets share places."""
    found = []
    cases = cases_for(Run.TAP, gso=False)[:20]
    for _ in range(2):
        with forwarding(tap), kernel_side(tap) as kernel, on_cpu(FIRST_CPU):
            flood([tap.fd], [case.frame for case in cases], count=len(cases), seconds=5)
            kernel.counters.settle()
            used = kernel.programs.table("used_cells")[FIRST_CPU]
            found.append(used["places"][: int(used["count"])].tolist())
    assert len(found[0]) > 5
    assert found[0] != found[1]


def counter_bytes(settings: Settings) -> int:
    """Memory of the tables that counters lie in."""
    owners = settings.cpus * settings.taps
    slots = settings.cells + settings.unsized_cells
    keys = len(Direction) * 4 * 3 * 5 * len(PacketClass)
    return owners * (64 * slots + 16 + 2 * slots) + settings.overflow_parts * settings.taps * keys * 32


def test_memory_of_the_counters(tap: Tap) -> None:
    """What the sizes of the tables come to, by the kernel's own word; on a large node at most 320 MiB."""
    with kernel_side(tap) as kernel:
        tables = ("cells", "used_cells", "overflow")
        assert counter_bytes(kernel.programs.settings) == sum(kernel.programs.table(name).nbytes for name in tables)
    assert counter_bytes(Settings(taps=200, cpus=128)) <= 320 * MIB
    assert counter_bytes(Settings(taps=1, cpus=2)) <= 0.35 * MIB
    for taps, cpus in product((1, 8, 50, 200), (1, 2, 64, 128)):
        assert counter_bytes(Settings(taps=taps, cpus=cpus)) <= 320 * MIB, (taps, cpus)


def test_counts_with_and_without_size_are_the_same(tap: Tap) -> None:
    """The same packets into few cells and into many: the same totals by verdict, class, ethertype and expectation."""
    cases = cases_for(Run.TAP, gso=False)
    found = []
    with forwarding(tap):
        for settings in (Tiny(cpus=possible_cpus()), Settings(cpus=possible_cpus())):
            with kernel_side(tap, settings) as kernel:
                flood([tap.fd], [case.frame for case in cases], count=5_003, seconds=FLOOD_SECONDS)
                cells = kernel.counters.snapshot().cells
                found.append((totals_of(cells), count(cells)))
    assert found[0] == found[1]
