# SPDX-License-Identifier: Apache-2.0
"""What the system tests share: policers as tc installs them and counts for them, and a watched flood."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from vifprobe.model.layout import Direction, Verdict
from vifprobe.model.reading import Reading, count
from vifprobe.session.probe import Probe
from vifprobe.testing.traffic.flood import Writer, Written

#: The stock kernel that these run on, "" elsewhere.
KERNEL = os.environ.get("VIFPROBE_VM", "")
OUT = Direction.OUTBOUND
SECONDS = 60.0  # bound of any flood here
ROOM = 400.0  # for a command to start under emulation, compiled anew

#: Behind `tc filter add dev X parent ffff:`. rate in kB/s, burst in KiB, as Nova and libvirt have them.
FORMS: dict[str, Callable[[float, int], str]] = {
    # libvirt, src/util/virnetdevbandwidth.c
    "libvirt": lambda rate, burst: (
        f"protocol all u32 match u32 0 0 police rate {rate}kbps burst {burst}kb mtu 64kb drop flowid :1"
    ),
    # Open vSwitch, lib/netdev-linux.c: since 2.17, and before
    "ovs matchall": lambda rate, burst: (
        f"protocol all prio 1 handle 1 matchall action police rate {rate * 8:g}kbit burst {burst}kb mtu 65535"
        " conform-exceed drop/continue"
    ),
    "ovs basic": lambda rate, burst: (
        f"protocol all prio 49 basic police rate {rate * 8:g}kbit burst {burst}kb mtu 65535 drop"
    ),
}


class Policed(NamedTuple):
    """What act_police itself counted: offered to it, and dropped by it. A TSO frame counts as no packet there."""

    bytes: int
    packets: int
    dropped: int


def run(command: str) -> str:
    """What a command line prints; AssertionError with its complaint where it fails."""
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def add_policer(device: str, form: str, rate: float, burst: int) -> None:
    """The qdisc and the filter."""
    run(f"tc qdisc add dev {device} ingress")
    run(f"tc filter add dev {device} parent ffff: {FORMS[form](rate, burst)}")


def delete_policer(device: str) -> None:
    """As libvirt and Neutron do it before they add it anew."""
    run(f"tc qdisc del dev {device} ingress")


def policed(device: str) -> Policed:
    """Counters of the one policer, from what tc prints."""
    text = run(f"tc -s filter show dev {device} parent ffff:")
    found = re.findall(r"Sent (\d+) bytes (\d+) pkts? \(dropped (\d+),", text)
    assert len(found) == 1, text
    return Policed(*map(int, found[0]))


def has_policer(device: str) -> bool:
    """Whether any is there."""
    return "police" in run(f"tc filter show dev {device} parent ffff:") if has_ingress(device) else False


def has_ingress(device: str) -> bool:
    """Whether there is an ingress qdisc."""
    return "ingress" in run(f"tc qdisc show dev {device}")


class Seen(NamedTuple):
    """Totals by tap, and what was written."""

    readings: dict[str, Reading]
    written: list[Written]

    def packets(self, verdict: Verdict | None = None, tap: str = "tap0") -> int:
        """Outbound packets of a verdict, or offered."""
        return count(self.readings[tap].where(OUT, verdict)).packets

    def charged(self, verdict: Verdict | None = None, tap: str = "tap0") -> int:
        """Outbound charged bytes of a verdict, or offered."""
        return count(self.readings[tap].where(OUT, verdict)).charged_bytes


@contextmanager
def ended_after(probe: Probe, act: Callable[[], None]) -> Iterator[None]:
    """Do something in a thread while the caller reads the probe, then stop the probe. Errors come to the caller."""
    errors: list[BaseException] = []

    def body() -> None:
        try:
            act()
        except BaseException as error:  # handed to the caller's thread
            errors.append(error)
        finally:
            probe.stop()

    thread = threading.Thread(target=body)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if errors:
        raise errors[0]


def watch(probe: Probe, writers: Sequence[Writer], interval_seconds: float = 0.5) -> Seen:
    """Start the writers, read the probe until they have ended, give its totals; sums checked."""
    written: list[Written] = []

    def act() -> None:
        for writer in writers:
            writer.start()
        written.extend(writer.wait() for writer in writers)

    with ended_after(probe, act):
        finals = {reading.tap: reading for reading in probe.readings(interval_seconds, SECONDS) if reading.final}
    for reading in finals.values():
        assert reading.missed == 0
        decided = (Verdict.PASSED, Verdict.POLICED, Verdict.DROPPED)
        assert sum(count(reading.where(OUT, one)).packets for one in decided) == reading.offered(OUT).packets
    return Seen(finals, written)
