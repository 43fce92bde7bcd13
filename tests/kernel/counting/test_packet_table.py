# SPDX-License-Identifier: Apache-2.0
"""The packet table through the real programs: BPF_PROG_TEST_RUN, then written to a tap, seen by both ways of looking
at it, the tc program (tcx, or a filter in a qdisc) and the tracepoint.

Every frame must give exactly one packet of its class, ethertype, size bucket and byte counts, and the tc program must
answer "go on" to all of them.
"""

from __future__ import annotations

import errno
import os
import struct
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest

from vifprobe.errors import KernelError
from vifprobe.kernel import libbpf
from vifprobe.kernel.attach import attach, has_tcx
from vifprobe.kernel.features import missing_capabilities, read_features, read_trace_fields
from vifprobe.kernel.load import Programs
from vifprobe.kernel.settings import Settings, possible_cpus
from vifprobe.kernel.tables.counters import Counters
from vifprobe.model.layout import Direction, Ethertype, PacketClass, TapTrait
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.net.taps import GsoType, Tap
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.packets.frames import ETH_HEADER_BYTES, pad
from vifprobe.testing.packets.table import CASES, Case, Run, cases_for

GO_ON = -1  # TC_ACT_UNSPEC and TCX_NEXT of include/uapi/linux/pkt_cls.h and bpf.h
LOOPBACK = 1  # ifindex of the device that TEST_RUN gives its packets: lo of the caller's namespace
KEY = ("direction", "packet_class", "ethertype", "size")
COUNTS = ("packets", "frame_bytes", "charged_bytes", "wire_bytes")
# struct __sk_buff of include/uapi/linux/bpf.h: 192 bytes, of which only gso_size is set
GSO_SIZE_OFFSET = 176
CONTEXT_BYTES = 192
NON_LINEAR_BYTES = 4099  # more than a page
# net/core/skbuff.c, alloc_skb_with_frags: before 6.6 a frame's bytes are in single pages, MAX_SKB_FRAGS of them
SINGLE_PAGES_BYTES = 17 * 4096  # and before 6.2 it knows no UDP segmentation (include/linux/virtio_net.h)
TC, TRACEPOINT = "tc", "tracepoint"
#: In the names of cases that are told apart by where the frame's bytes end, so that padding changes them.
ENDED_BY_THE_BYTES = ("cut", "beyond", "65535", "left")

Takes = Callable[[Case], bool]
Seen = dict[tuple[int, ...], tuple[int, ...]]


class Observer:
    """The compiled programs and what they have newly counted, whatever became of it."""

    def __init__(self, programs: Programs) -> None:
        self.programs = programs
        self._counters = Counters(programs)
        self._before: Seen = {}

    def watch(self, ifindex: int, traits: int = 0) -> None:
        self._counters.watch(ifindex, 0, traits)

    def missed(self) -> int:
        """Packets said to be missed, ever."""
        return int(self._counters.snapshot().missed_packets.sum())

    def take(self) -> Seen:
        """Counts by key since the last call."""
        now: Seen = {}
        for row in self._counters.snapshot().cells:
            key = tuple(int(row[name]) for name in KEY)
            counts = tuple(int(row[name]) for name in COUNTS)
            now[key] = tuple(np.add(now.get(key, (0,) * len(COUNTS)), counts).tolist())
        zero = (0,) * len(COUNTS)
        new = {key: tuple(np.subtract(now[key], self._before.get(key, zero)).tolist()) for key in now}
        self._before = now
        return {key: counts for key, counts in new.items() if any(counts)}


@pytest.fixture(scope="module")
def programs(require: Callable[[str, object, str], None]) -> Iterator[Programs]:
    missing = missing_capabilities()
    require("kernel", not missing, f"this process lacks {', '.join(missing)}")
    try:
        # The same programs for both ways, as they are on a kernel that needs the second.
        settings = Settings(taps=1, bin_ns=0, cpus=possible_cpus(), trace=read_trace_fields())
        compiled = Programs(settings, read_features())
    except KernelError as error:
        require("kernel", False, str(error))
        raise
    try:
        yield compiled
    finally:
        compiled.close()


@pytest.fixture
def observer(netns: Netns, programs: Programs) -> Observer:
    found = Observer(programs)
    found.take()  # what earlier tests have left
    return found


@pytest.fixture
def vnet_tap(netns: Netns) -> Iterator[Tap]:
    """With a virtio-net header, so that it takes GSO frames as well as plain ones."""
    with make_tap("tap0", vnet_hdr=True, mtu=65521) as tap:
        yield tap


@pytest.fixture
def taken(netns: Netns) -> Takes:
    """Whether a tap of this kernel takes a case's frame, however little of it is in the linear part."""
    longest = max(CASES, key=lambda case: len(case.frame))
    segmented = next(case for case in CASES if case.gso and case.gso.kind is GsoType.UDP_L4)
    with make_tap("tap1", vnet_hdr=True) as other:
        has_large_pages = can_write(other, other.packet(longest.frame, linear_bytes=ETH_HEADER_BYTES), errno.EMSGSIZE)
        has_uso = can_write(other, segmented.packet(other), errno.EINVAL)

    def takes(case: Case) -> bool:
        is_uso = case.gso is not None and case.gso.kind is GsoType.UDP_L4
        return (has_large_pages or len(case.frame) <= SINGLE_PAGES_BYTES) and (has_uso or not is_uso)

    return takes


def can_write(tap: Tap, packet: bytes, refusal: int) -> bool:
    try:
        os.write(tap.fd, packet)
    except OSError as error:
        if error.errno != refusal:
            raise
        return False
    return True


@pytest.fixture(params=[TC, TRACEPOINT])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def attached(observer: Observer, vnet_tap: Tap, way: str) -> Iterator[Observer]:
    with ExitStack() as stack:
        if way == TC:
            attach_tc(observer, vnet_tap, stack)
        else:
            observer.watch(vnet_tap.ifindex, TapTrait.TRACED_OUTBOUND)
            observer.programs.attach_tracepoints()
            stack.callback(observer.programs.detach_tracepoints)
        yield observer


def attach_tc(observer: Observer, tap: Tap, stack: ExitStack) -> None:
    qdisc = None
    if not has_tcx(tap.ifindex):
        qdisc = "ingress"
        subprocess.run(["tc", "qdisc", "add", "dev", tap.name, qdisc], check=True)
    observer.watch(tap.ifindex)
    program = observer.programs.tc_program_fd(Direction.OUTBOUND)
    attachment = attach(program, tap.name, tap.ifindex, Direction.OUTBOUND, qdisc)
    stack.callback(attachment.detach)


def expected(case: Case, run: Run, direction: Direction = Direction.OUTBOUND) -> Seen:
    key = (int(direction), int(case.packet_class), int(case.ethertype), case.size_bucket(run))
    return {key: (1, case.frame_bytes(run), case.charged_bytes(run), case.wire_bytes(run))}


def told(seen: Seen) -> str:
    """What was counted, in words."""
    return "; ".join(
        f"{Direction(direction).name} {PacketClass(packet_class).name} {Ethertype(ethertype).name} size {size}: "
        + " ".join(f"{name} {value}" for name, value in zip(COUNTS, counts, strict=True))
        for (direction, packet_class, ethertype, size), counts in seen.items()
    )


def context(case: Case) -> bytes:
    """The struct __sk_buff that TEST_RUN starts from: plain but for gso_size.

    Without any, the kernel leaves wire_len at 0 (net/bpf/test_run.c, convert___skb_to_skb).
    """
    gso_size = case.gso.size if case.gso else 0
    return struct.pack("=I", gso_size).rjust(GSO_SIZE_OFFSET + 4, b"\0").ljust(CONTEXT_BYTES, b"\0")


def check(
    cases: Iterable[Case], want: Callable[[Case], Seen], show: Callable[[Case], None], observer: Observer
) -> None:
    """Show all cases; where the sum of any key is wrong, those of that key one by one, to name what is wrong."""
    batches: dict[tuple[int, ...], list[Case]] = defaultdict(list)
    for case in cases:
        (key,) = want(case)
        batches[key].append(case)
        show(case)
    assert batches
    all_seen = observer.take()
    wrong = []
    for key, batch in batches.items():
        total = np.sum([want(case)[key] for case in batch], axis=0)
        if all_seen.pop(key, None) == tuple(total.tolist()):
            continue
        for case in batch:
            show(case)
            seen = observer.take()
            if seen != want(case):
                wrong.append(f"{case.name}: expected {told(want(case))}; seen {told(seen)}")
    assert wrong == []
    assert not all_seen, told(all_seen)


@pytest.mark.parametrize("direction", list(Direction))
def test_table_through_test_run(observer: Observer, direction: Direction) -> None:
    observer.watch(LOOPBACK)
    program = observer.programs.tc_program_fd(direction)

    def show(case: Case) -> None:
        answer, _ = libbpf.test_run(program, case.frame, context(case))
        assert answer == GO_ON, case.name

    check(cases_for(Run.TEST_RUN), lambda case: expected(case, Run.TEST_RUN, direction), show, observer)


def test_table_on_a_real_tap(attached: Observer, vnet_tap: Tap, taken: Takes, way: str) -> None:
    def show(case: Case) -> None:
        os.write(vnet_tap.fd, case.packet(vnet_tap))

    # Headers that go on behind the first page are not in the linear part.
    cases = [case for case in cases_for(Run.TAP) if way == TC or "longest headers" not in case.name]
    cases = [case for case in cases if taken(case)]
    check(cases, lambda case: expected(case, Run.TAP), show, attached)


def test_the_kernel_passes_on_what_the_table_says(attached: Observer, vnet_tap: Tap) -> None:
    """Frames that the table keeps from the tap don't get to tc, or the table would leave out cases."""
    kept = [case for case in CASES if not case.runs(Run.TAP)]
    assert kept
    for case in kept:
        os.write(vnet_tap.fd, case.packet(vnet_tap))
    assert attached.take() == {}


@pytest.mark.parametrize("way", [TC], indirect=True)
@pytest.mark.parametrize("linear_bytes", [14, 15, 18, 33, 34, 47, 54, 61, 94])
def test_class_does_not_depend_on_the_linear_part(
    attached: Observer, vnet_tap: Tap, taken: Takes, linear_bytes: int
) -> None:
    """Padded beyond a page, the frames of the table keep their class, with most headers outside the linear part."""

    def show(case: Case) -> None:
        write(vnet_tap, case, linear_bytes)

    check(long_cases(taken), lambda case: expected(case, Run.TAP), show, attached)


@pytest.mark.parametrize("way", [TRACEPOINT], indirect=True)
def test_a_tracepoint_tells_what_it_can_not_read(attached: Observer, vnet_tap: Tap, taken: Takes) -> None:
    """Headers outside the linear part are out of its reach: such a packet is missed, never given a wrong class."""
    missed_cases = 0
    before = attached.missed()
    cases = long_cases(taken)[::47]
    for case in cases:
        write(vnet_tap, case, linear_bytes=54)
        seen = attached.take()
        if not seen:
            missed_cases += 1
            continue
        assert seen == expected(case, Run.TAP), f"{case.name}: seen {told(seen)}"
    assert attached.missed() - before == missed_cases
    assert 0 < missed_cases < len(cases)


def long_cases(taken: Takes) -> list[Case]:
    return [
        replace(case, frame=pad(case.frame, max(len(case.frame), NON_LINEAR_BYTES), b"\x11"))
        for case in cases_for(Run.TAP, gso=False)
        if taken(case)
        and case.packet_class is not PacketClass.MALFORMED
        and not any(word in case.name for word in ENDED_BY_THE_BYTES)
    ]


def write(tap: Tap, case: Case, linear_bytes: int) -> None:
    os.write(tap.fd, tap.packet(case.frame, linear_bytes=linear_bytes))
