# SPDX-License-Identifier: Apache-2.0
"""What the tests of the kernel side's SYN measures share: segments of many clients, two guests, and what is known."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import numpy.typing as npt
from probe_kit import OUT, KernelSide

from vifprobe.kernel.attach import attach
from vifprobe.kernel.features import read_features
from vifprobe.kernel.load import Programs
from vifprobe.kernel.settings import Settings, possible_cpus
from vifprobe.kernel.tables.counters import Counters
from vifprobe.model.layout import Direction
from vifprobe.model.records import HLL_REGISTERS, SynMeasures
from vifprobe.testing.net.links import bridge_with
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.packets import frames as f
from vifprobe.testing.waiting import wait_until

IN = Direction.INBOUND
SYN, ACK, RST = f.TcpFlag.SYN, f.TcpFlag.ACK, f.TcpFlag.RST
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


def write(tap: Tap, frames: Sequence[bytes]) -> None:
    for frame in frames:
        os.write(tap.fd, frame)


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
