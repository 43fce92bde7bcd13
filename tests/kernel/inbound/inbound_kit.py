# SPDX-License-Identifier: Apache-2.0
"""What the tests of inbound packets share: a way to send them, a guest that reads them, and what tc says of them."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from probe_kit import SYN, Watched, watch_flood

from vifprobe.model.layout import Direction, Verdict
from vifprobe.model.reading import Counts, Reading, count
from vifprobe.session.probe import Probe
from vifprobe.testing.net.links import bridge_with
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.packets import frames as f
from vifprobe.testing.traffic.flood import Writer, writer

IN = Direction.INBOUND
DATA = f.eth(f.ipv4(f.tcp(f.TcpFlag.ACK, bytes(1000))), f.EtherType.IPV4)
DECIDED = (Verdict.PASSED, Verdict.POLICED, Verdict.DROPPED)
SECONDS = 60.0
#: A stock kernel's version, "" elsewhere. Others may run no tracepoint program when a timer sends a packet on while
#: certain tasks have the CPU: such packets are told as missed, and counted here with those that passed.
KERNEL = os.environ.get("VIFPROBE_VM", "")


@contextmanager
def neighbour(tap: Tap, **made: Any) -> Iterator[Tap]:
    """A second tap on a bridge with the first: what is written to it comes to the first one's guest."""
    with make_tap("tap9", mtu=65521, **made) as other, bridge_with(tap, other):
        yield other


@contextmanager
def senders(*floods: tuple[Tap, int, int | None], frames: Sequence[bytes] = (SYN,)) -> Iterator[list[Writer]]:
    """Writers of (tap, count, cpu)."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(writer([tap.fd], list(frames), count=count, seconds=SECONDS, cpu=cpu))
            for tap, count, cpu in floods
        ]


@dataclass
class Guest:
    """Reads a tap as fast as it can; what came."""

    packets: int = 0
    frame_bytes: int = 0
    _end: threading.Event = field(default_factory=threading.Event)


@contextmanager
def guest(tap: Tap) -> Iterator[Guest]:
    """It reads until the block is over and nothing is left."""
    found = Guest()
    os.set_blocking(tap.fd, False)

    def read() -> None:
        while True:
            ended = found._end.is_set()
            try:
                while True:
                    found.frame_bytes += len(os.read(tap.fd, 1 << 17))
                    found.packets += 1
            except BlockingIOError:
                if ended:
                    return
                found._end.wait(0.0005)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield found
    finally:
        found._end.set()
        thread.join()
        os.set_blocking(tap.fd, True)


def drain(tap: Tap) -> int:
    """Packets that lie in the tap's ring, taken out."""
    with guest(tap) as found:
        pass
    return found.packets


def tc(*arguments: str) -> None:
    """`tc ...`, which works."""
    subprocess.run(["tc", *arguments], check=True, capture_output=True)


def statistics(kind: str, device: str, handle: str) -> dict[str, int]:
    """What `tc -s qdisc` or `tc -s class` says of one of them: bytes, packets, drops, backlog, qlen, …"""
    shown = subprocess.run(["tc", "-s", "-j", kind, "show", "dev", device], check=True, capture_output=True, text=True)
    return next(dict(one) for one in json.loads(shown.stdout) if one["handle"] == handle)


def inbound(reading: Reading, verdict: Verdict | None = None) -> Counts:
    """Inbound counts of a reading."""
    return count(reading.where(IN, verdict))


def check_sums(found: Watched, tap: str = "tap0") -> Reading:
    """Passed, policed, dropped and queued are what was offered, in each interval and in all; the totals."""
    total = found.totals[tap]
    for reading in (*found.intervals, total):
        parts = [inbound(reading, verdict).packets for verdict in (*DECIDED, Verdict.QUEUED)]
        assert sum(parts) == reading.offered(IN).packets
        assert reading.missed == 0 or not KERNEL
        assert reading.knows_verdicts(IN)
        assert min(parts[:3]) >= 0
        queued = reading.counts(IN, Verdict.QUEUED)
        assert queued is not None
        assert queued.packets >= 0
    assert total.counts(IN, Verdict.QUEUED) == inbound(total, Verdict.QUEUED)
    for verdict in (*DECIDED, Verdict.QUEUED):
        assert sum(inbound(one, verdict).packets for one in found.intervals) == inbound(total, verdict).packets
        rows = found.bins[(found.bins["direction"] == IN) & (found.bins["verdict"] == verdict)]
        assert int(rows["packets"].sum()) == inbound(total, verdict).packets
        assert int(rows["frame_bytes"].sum()) == inbound(total, verdict).frame_bytes
    return total


def sent(reading: Reading) -> int:
    """Packets that the queue handed on and the driver took."""
    return inbound(reading, Verdict.PASSED).packets + reading.missed


def watch(probe: Probe, writers: Sequence[Writer]) -> tuple[Watched, Reading]:
    """A flood of the writers, watched to its end."""
    found = watch_flood(probe, writers, checked=False)
    return found, check_sums(found)


def known(*names: str) -> set[str]:
    """Of these reasons, what a drop has of them here: before 5.17 it has none."""
    return {""} if KERNEL == "5.10" else set(names)


def reasons(probe: Probe, reading: Reading, verdict: Verdict) -> dict[str, int]:
    """Packets by the kernel's reason."""
    rows = reading.where(IN, verdict)
    codes = np.unique(rows["reason"])
    return {
        probe.features.reasons.get(int(code), ""): int(rows["packets"][rows["reason"] == code].sum()) for code in codes
    }
