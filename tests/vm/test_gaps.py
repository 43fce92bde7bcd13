# SPDX-License-Identifier: Apache-2.0
"""Somebody deletes and adds the policer's qdisc while a capture runs: counting goes on, and the folder tells of it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from vm_kit import KERNEL, OUT, ROOM, SECONDS, add_policer, delete_policer, policed

from vifprobe import load
from vifprobe.capture.reader import Capture
from vifprobe.capture.rows import EventRow
from vifprobe.model.layout import Verdict
from vifprobe.model.reading import count
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.net.taps import Tap, device_counters
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.traffic.flood import Writer, writer
from vifprobe.testing.traffic.scenario import forwarded, syn_flood_packets
from vifprobe.testing.waiting import wait_until

pytestmark = pytest.mark.usefixtures("stock_kernel")

RATE, BURST = 1, 3
PPS = 503  # a fifth of what an emulated guest can send: its one processor is for all that runs in it


@contextmanager
def captured(tap: str, folder: Path) -> Iterator[Path]:
    """`vifprobe capture` of a tap, from its first packet on; SIGTERM ends it with the block.

    Without samples and host cost, whose 2 % of a processor are all of an emulated one.
    """
    made = folder / "capture"
    command = ["python", "-m", "vifprobe", "capture", tap, "-d", "120s", "-o", str(made), "--direction", "outbound"]
    command += ["--no-samples", "--no-host"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            wait_until(lambda: (made / "timeline.csv").exists() or process.poll() is not None, ROOM)
            yield made
            process.terminate()
            out, _ = process.communicate(timeout=ROOM)
            assert process.returncode == 0, out
        finally:
            process.kill()


@contextmanager
def steady_flood(tap: Tap) -> Iterator[Writer]:
    """SYNs at several times the limit, until told to end by closing."""
    packets = syn_flood_packets(tap)
    with writer(tap.fds, packets, count=10**9, seconds=SECONDS, packets_per_second=PPS) as flood:
        flood.start()
        yield flood


def grows(tap: str, packets: int = 503) -> None:
    """Wait until the tap has sent so many more."""
    before = device_counters(tap)["rx_packets"]
    wait_until(lambda: device_counters(tap)["rx_packets"] > before + packets, ROOM)


def taken_over(folder: Path) -> None:
    """Wait until the tracepoints count what a filter that went with its qdisc did. Before that, a new qdisc would get
    a filter again: a gap more at the next deletion.
    """
    if KERNEL != "6.12":
        wait_until(lambda: "by tracepoint since" in (folder / "events.csv").read_text(), ROOM)


def policers_told(folder: Path) -> int:
    """How many policers came, as far as the capture's events say."""
    return len(re.findall(r"filter_new.*police", (folder / "events.csv").read_text()))


def told(capture: Capture, kind: str) -> list[EventRow]:
    return [row for row in capture.events if row.kind == kind]


def lasted_ns(row: EventRow) -> float:
    """The length in the words of a gap."""
    found = re.search(r"for ([\d.]+) (s|ms|µs|ns)", row.detail)
    assert found, row
    return float(found[1]) * {"s": 1e9, "ms": 1e6, "µs": 1e3, "ns": 1}[found[2]]


def check(capture: Capture, tap: str, by_comm: str, replaced: int) -> None:
    """Who took the policer away is named, or has ended so soon that nobody is; the gaps have their length."""
    assert capture.manifest.complete
    limit_gaps = told(capture, "limit_gap")
    assert len(limit_gaps) == replaced, capture.events
    for row in limit_gaps:
        assert row.tap == tap
        assert row.by_comm in (by_comm, "")
        assert lasted_ns(row) > 0
    gaps = told(capture, "gap")
    # A tcx program does not care for qdiscs; a filter goes with its qdisc, and the tracepoints take over for good.
    assert len(gaps) == (0 if KERNEL == "6.12" else 1), capture.events
    for row, known in zip(gaps, capture.manifest.gaps, strict=True):
        assert row.by_comm in (by_comm, "")
        assert row.detail == known.why
        assert row.at_ns == known.start_ns
        assert known.duration_ns is not None
        assert lasted_ns(row) == pytest.approx(known.duration_ns, rel=0.1)
    print(f"{KERNEL}: {[row.detail for row in (*gaps, *limit_gaps)]}")


def check_counts(capture: Capture, tap: str) -> None:
    """Nothing is counted twice; what was not watched is all that is missing, and said to be so."""
    rows = {row.counter: row for row in capture.reconcile if row.tap == tap}
    device = rows["device rx_packets"]
    assert device.delta is not None
    assert device.vifprobe_low is not None
    assert device.vifprobe_low <= device.delta
    if not capture.manifest.gaps:
        assert device.agrees is True, device
        return
    assert device.agrees is None
    assert device.vifprobe_high is None
    assert device.delta - device.vifprobe_low <= unwatched_most(capture)


def unwatched_most(capture: Capture) -> float:
    """Packets that can have been sent while nobody looked; the writer makes up for time that it did not run."""
    if not capture.manifest.gaps:
        return 0
    return (sum(gap.duration_ns or 0 for gap in capture.manifest.gaps) / 1e9 + 0.5) * PPS


@pytest.fixture
def guest_tap(netns: Netns) -> Iterator[Tap]:
    with make_tap("tap0", vnet_hdr=True) as tap, forwarded(tap):
        yield tap


def test_by_hand_as_neutron_does(guest_tap: Tap, tmp_path: Path) -> None:
    """Linux bridge agent: the qdisc is deleted and added anew at each update; twice here.

    What a new policer drops is `dropped` until vifprobe has read that it is there.
    """
    add_policer("tap0", "libvirt", RATE, BURST)
    with captured("tap0", tmp_path) as folder, steady_flood(guest_tap):
        grows("tap0")
        all_dropped = known_dropped = policed("tap0").dropped
        for times in (1, 2):
            delete_policer("tap0")
            taken_over(folder)
            grows("tap0")
            add_policer("tap0", "libvirt", RATE, BURST)
            wait_until(lambda times=times: policers_told(folder) == times, ROOM)  # type: ignore[misc]  # the loop's own
            before = policed("tap0").dropped
            grows("tap0")
            dropped = policed("tap0").dropped
            all_dropped += dropped
            known_dropped += dropped - before
    capture = load(folder)
    check(capture, "tap0", "tc", replaced=2)
    check_counts(capture, "tap0")
    found, others = (
        count(capture.reading().where(OUT, verdict)).packets for verdict in (Verdict.POLICED, Verdict.DROPPED)
    )
    assert found >= known_dropped > 0, capture.manifest.gaps
    assert found + others >= all_dropped
    late = [re.search(r"^up to ([\d,]+) packets that count as dropped", note) for note in capture.reading().notes]
    assert found + sum(int(said[1].replace(",", "")) for said in late if said) >= all_dropped, capture.reading().notes
