# SPDX-License-Identifier: Apache-2.0
"""SYN measures of the kernel side: different addresses and ports, handshakes to their end, in bounded memory."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from probe_kit import FIRST_CPU, OUT, KernelSide, kernel_side, on_cpu

from vifprobe.kernel import libbpf
from vifprobe.kernel.attach import attach
from vifprobe.kernel.build import Programs, Settings, possible_cpus
from vifprobe.kernel.counters import Counters
from vifprobe.kernel.features import read_features, read_trace_fields
from vifprobe.layout import Direction, TapTrait
from vifprobe.records import AGE_BUCKETS, HLL_REGISTERS, SynMeasures
from vifprobe.testing import frames as f
from vifprobe.testing.flood import flood
from vifprobe.testing.links import bridge_with
from vifprobe.testing.netns import Netns
from vifprobe.testing.taps import Tap
from vifprobe.testing.taps import tap as make_tap
from vifprobe.testing.waiting import wait_until

IN = Direction.INBOUND
SYN, ACK, RST = f.TcpFlag.SYN, f.TcpFlag.ACK, f.TcpFlag.RST
#: Different sources in the flood that memory is bounded under: some 0.3 us each, in an emulated machine far more.
SPOOFED = 300_000 if os.environ.get("VIFPROBE_VM") else 10_000_000
GOLDEN = 0x9E3779B1  # odd: adding it gives 2**32 different addresses
Counts = dict[str, int]


def measures(side: KernelSide) -> SynMeasures:
    found = side.counters.syn_measures()
    assert found is not None
    return found


def estimate(registers: npt.NDArray[np.uint8]) -> float:
    """Flajolet et al. 2007, figure 3: raw estimate, and linear counting where that is small."""
    size = len(registers)
    raw = 0.7213 / (1 + 1.079 / size) * size**2 / (2.0 ** -registers.astype(float)).sum()
    empty = int((registers == 0).sum())
    return float(size * np.log(size / empty) if raw <= 2.5 * size and empty else raw)


def check_estimate(registers: npt.NDArray[np.uint8], true: int) -> None:
    """Within five standard errors of 1.04 / sqrt(m)."""
    assert len(registers) == HLL_REGISTERS
    assert abs(estimate(registers) - true) <= 5 * 1.04 / np.sqrt(HLL_REGISTERS) * true + 1


def handshakes(found: SynMeasures, tap: int = 0, direction: Direction = OUT) -> Counts:
    """Those that are not 0."""
    row = found.handshakes[tap, direction]
    assert sum(int(row[name]) for name in ("completed", "reset", "expired", "evicted", "open")) == row["started"]
    assert found.open_age[tap, direction].sum() == row["open"]
    assert found.completed_age[tap, direction].sum() == row["completed"]
    return {name: int(row[name]) for name in row.dtype.names or () if row[name]}


def segment(flags: int, *, client: int = 1, back: bool = False, ipv6: bool = False, payload: bytes = b"") -> bytes:
    """A segment between client number `client` (address and port) and a server; `back`: from the server."""
    source, destination = 20_000 + client % 40_000, 443
    if back:
        source, destination = destination, source
    part = f.tcp(flags, payload, source_port=source, destination_port=destination)
    if ipv6:
        frame = f.eth(f.ipv6(part), f.EtherType.IPV6)
        ours, theirs = bytes.fromhex("20010db8") + client.to_bytes(12, "big"), f.DESTINATION_IPV6
        pair = theirs + ours if back else ours + theirs
        return frame[:22] + pair + frame[54:]
    frame = f.eth(f.ipv4(part), f.EtherType.IPV4)
    ours, theirs = (0x0A000000 + client).to_bytes(4, "big"), f.DESTINATION_IPV4
    pair = theirs + ours if back else ours + theirs
    # A bridge with netfilter drops packets with a wrong sum.
    header = frame[14:24] + bytes(2) + pair
    return frame[:14] + header[:10] + f.checksum(header).to_bytes(2, "big") + header[12:] + frame[34:]


@pytest.fixture(params=["tc", "tracepoint"])
def side(request: pytest.FixtureRequest, tap: Tap) -> Iterator[KernelSide]:
    """SYN measures of tap0, by the tc program or by the tracepoints; outbound only."""
    if request.param == "tc":
        with kernel_side(tap, Settings(cpus=possible_cpus(), syn=True)) as made:
            yield made
        return
    with ExitStack() as stack:
        programs = Programs(Settings(cpus=possible_cpus(), syn=True, trace=read_trace_fields()), read_features())
        stack.callback(programs.close)
        made = KernelSide(programs, Counters(programs))
        stack.callback(made.counters.close)
        made.counters.watch(tap.ifindex, 0, TapTrait.TRACED_OUTBOUND)
        programs.attach_tracepoints()
        stack.callback(programs.detach_tracepoints)
        yield made


def write(tap: Tap, frames: Sequence[bytes]) -> None:
    for frame in frames:
        os.write(tap.fd, frame)


def test_what_is_different_in_syns(side: KernelSide, tap: Tap) -> None:
    """Sources by their number, IPv4 and IPv6, ports exactly; what is no SYN adds nothing."""
    first = [segment(SYN, client=client) for client in range(3_001)]
    write(tap, [*first, *first[:1_009], *(segment(ACK, client=client, payload=b"!") for client in range(9_001))])
    one = measures(side)
    check_estimate(one.interval.sources[0, OUT], 3_001)
    check_estimate(one.interval.destinations[0, OUT], 1)
    assert np.flatnonzero(one.interval.source_ports[0, OUT]).tolist() == list(range(20_000, 23_001))
    assert np.flatnonzero(one.interval.destination_ports[0, OUT]).tolist() == [443]
    assert not one.interval.sources[0, IN].any()
    # The next interval knows nothing of it; the total knows both.
    write(tap, [f.vlan(segment(SYN, client=client, ipv6=True)) for client in range(503)])
    two = measures(side)
    check_estimate(two.interval.sources[0, OUT], 503)
    check_estimate(two.total.sources[0, OUT], 3_504)
    check_estimate(two.total.destinations[0, OUT], 2)
    assert two.total.source_ports[0, OUT].sum() == 3_001
    assert two.interval.source_ports[0, OUT].sum() == 503
    assert two.since_ns == one.at_ns
    three = measures(side)
    assert not three.interval.sources.any()
    assert not three.interval.source_ports.any()
    assert (three.total.sources == two.total.sources).all()


@contextmanager
def two_taps(netns: Netns) -> Iterator[tuple[Tap, Tap, KernelSide]]:
    """Two guests on a bridge, both watched, both directions: what one sends the other receives."""
    with ExitStack() as stack:
        taps = [stack.enter_context(make_tap(name)) for name in ("tap0", "tap1")]
        stack.enter_context(bridge_with(*taps))
        programs = Programs(Settings(taps=2, cpus=possible_cpus(), syn=True), read_features())
        stack.callback(programs.close)
        counters = Counters(programs)
        stack.callback(counters.close)
        for number, tap in enumerate(taps):
            counters.watch(tap.ifindex, number, 0)
            for direction in Direction:
                made = attach(programs.tc_program_fd(direction), tap.name, tap.ifindex, direction, None)
                stack.callback(made.detach)
        # Until the kernel's link watch has run, the bridge forwards nothing.
        wait_until(lambda: forwards(taps[0], counters), 10)
        yield taps[0], taps[1], KernelSide(programs, counters)


def forwards(tap: Tap, counters: Counters) -> bool:
    """Whether what this guest sends is seen on its way to the other one."""
    os.write(tap.fd, f.eth(f.arp(), f.EtherType.ARP))
    return bool((counters.cells_now()["direction"] == IN).any())


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
def test_handshakes_to_their_end(netns: Netns, ipv6: bool) -> None:
    """Completed by an ACK or by data, refused, never answered, answered and left; each once, however often a SYN is
    sent; for the client's tap outbound, for the server's inbound.
    """
    with two_taps(netns) as (client, server, side):

        def ask(number: int, flags: int = SYN, payload: bytes = b"") -> None:
            os.write(client.fd, segment(flags, client=number, ipv6=ipv6, payload=payload))

        def answer(number: int, flags: int = SYN | ACK) -> None:
            os.write(server.fd, segment(flags, client=number, back=True, ipv6=ipv6))

        for number in range(101):  # completed
            ask(number)
            answer(number)
            answer(number)
            ask(number, ACK, b"GET" if number % 2 else b"")
            ask(number, ACK)
            answer(number, RST)  # after the end: not its business
        for number in range(200, 223):  # refused
            ask(number)
            answer(number, RST | ACK)
        for number in range(300, 337):  # never answered, sent again
            ask(number)
            ask(number)
        for number in range(400, 413):  # answered, left half-open
            ask(number)
            answer(number)
        found = measures(side)
        want = {"every": 1, "followed": 174, "started": 174, "answered": 114, "completed": 101, "reset": 23, "open": 50}
        assert handshakes(found, 0, OUT) == want
        assert handshakes(found, 1, IN) == want
        assert handshakes(found, 0, IN) == handshakes(found, 1, OUT) == {"every": 1}


def test_the_age_of_what_is_open(tap: Tap) -> None:
    """Buckets of powers of two of microseconds, from the SYN to now."""
    with kernel_side(tap, Settings(cpus=possible_cpus(), syn=True)) as side:
        write(tap, [segment(SYN, client=client) for client in range(7)])
        early = measures(side)
        write(tap, [segment(SYN, client=100)])
        late = measures(side)
        ages = np.flatnonzero(late.open_age[0, OUT])
        assert late.open_age[0, OUT].sum() == 8
        oldest_us = (late.at_ns - early.since_ns) // 1000
        youngest_us = (late.at_ns - early.at_ns) // 1000
        assert ages[-1] <= int(oldest_us).bit_length()
        assert ages[0] <= int(youngest_us).bit_length()
        assert (late.open_age[0, OUT, int(youngest_us).bit_length() :]).sum() >= 7


def test_fewer_flows_are_followed_in_a_flood_and_all_of_them_after_it(tap: Tap) -> None:
    """The table is never too small for long; weighted sums stay those of all flows; and then it is exact again."""
    with kernel_side(tap, Settings(cpus=possible_cpus(), syn=True)) as side, on_cpu(FIRST_CPU):
        started = 100_003
        frames = [segment(SYN, client=client) for client in range(started)]
        flood([tap.fd], frames, count=started, seconds=60)
        found = handshakes(measures(side))
        assert found["every"] > 1
        assert found["followed"] < started / 2
        # Binomial: one in `every` at most, each standing for as many.
        assert abs(found["started"] - started) < 5 * np.sqrt(started * found["every"])
        assert found["open"] <= side.programs.settings.flows * found["every"]
        check_estimate(measures(side).total.sources[0, OUT], started)
        shifts = side.programs.table("syn_controls")["shift"]
        wait_until(lambda: measures(side) and not shifts.any(), 10)
        before = handshakes(measures(side))
        write(tap, [segment(SYN, client=1_000_000 + client) for client in range(13)])
        after = handshakes(measures(side))
        assert after["followed"] - before["followed"] == after["started"] - before["started"] == 13


class Spoofer:
    """A tc program that changes a frame's source address and port, then runs the program under test on it: so that
    BPF_PROG_TEST_RUN with a repeat shows millions of different SYNs to it in a second.
    """

    def __init__(self, fd: int) -> None:
        self._table = libbpf.create_map("spoofed", 3, 4, 4, 1, 0)  # BPF_MAP_TYPE_PROG_ARRAY
        libbpf.update_map(self._table, bytes(4), fd.to_bytes(4, sys.byteorder))
        self.fd = libbpf.load_tc_program("spoofer", self._code())

    def _code(self) -> bytes:
        def step(code: int, to: int = 0, of: int = 0, offset: int = 0, value: int = 0) -> bytes:
            return struct.pack("=BBhi", code, of << 4 | to, offset, value)

        source_at, port_at, end_at = 26, 34, 36
        return b"".join(
            (
                step(0xBF, 6, 1),  # r6 = context
                step(0x61, 2, 1, 76),  # r2 = data
                step(0x61, 3, 1, 80),  # r3 = data_end
                step(0xBF, 4, 2),
                step(0x07, 4, value=end_at),
                step(0x2D, 4, 3, 9),  # not that long: leave
                step(0x61, 5, 2, source_at),
                step(0x04, 5, value=GOLDEN - (1 << 32)),
                step(0x63, 2, 5, source_at),
                step(0x6B, 2, 5, port_at),
                step(0xBF, 1, 6),
                step(0x18, 2, 1, 0, self._table) + step(0),
                step(0xB7, 3),
                step(0x85, value=12),  # tail call
                step(0xB7, 0, value=-1),
                step(0x95),
            )
        )

    def close(self) -> None:
        for fd in (self.fd, self._table):
            os.close(fd)


def resident_bytes() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def map_bytes(programs: Programs) -> int:
    """What the kernel charges for the tables."""
    total = 0
    for fd in programs._maps:
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("memlock"))
    return total


def test_memory_is_bounded_whatever_is_spoofed(netns: Netns) -> None:
    """Millions of sources: tables and process keep their size, the number is told within its error, and what was not
    followed to its end is known.
    """
    with ExitStack() as stack:
        programs = Programs(Settings(cpus=possible_cpus(), syn=True, samples=True), read_features())
        stack.callback(programs.close)
        counters = Counters(programs)
        stack.callback(counters.close)
        loopback = 1  # ifindex that TEST_RUN gives its packets
        counters.watch(loopback, 0, 0)
        spoofer = Spoofer(programs.tc_program_fd(OUT))
        stack.callback(spoofer.close)
        frame = segment(SYN)
        libbpf.test_run(spoofer.fd, frame, repeat=10_007)
        counters.take_samples()
        counters.syn_measures()
        resident, tables = resident_bytes(), map_bytes(programs)
        for number in range(10):
            # Each run begins where the one before it ended.
            begin = struct.pack("=I", number * (SPOOFED // 10) * GOLDEN % (1 << 32))
            libbpf.test_run(spoofer.fd, frame[:26] + begin + frame[30:], repeat=SPOOFED // 10)
            counters.take_samples()
            found = counters.syn_measures()
        assert found is not None
        assert map_bytes(programs) == tables
        assert resident_bytes() - resident < 16 << 20  # the reader's own arrays
        check_estimate(found.interval.sources[0, OUT], SPOOFED // 10)
        check_estimate(found.total.sources[0, OUT], SPOOFED // 10 * 10 + 10_007)
        assert found.total.source_ports[0, OUT].all()
        told = handshakes(found)
        assert told["every"] > 1
        assert told["evicted"] > 0
        assert told["open"] <= programs.settings.flows * told["every"]


def test_off_is_off(tap: Tap) -> None:
    """Without it in the settings there are no tables, and nothing to tell."""
    with kernel_side(tap) as side:
        os.write(tap.fd, segment(SYN))
        assert side.counters.syn_measures() is None
        with pytest.raises(StopIteration):
            side.programs.table("flows")


def test_ages_have_buckets_for_all(tap: Tap) -> None:
    """The last one, open-ended, begins beyond what a handshake is followed for."""
    assert 1 << (AGE_BUCKETS - 2) > 60_000_000
