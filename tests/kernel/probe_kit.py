# SPDX-License-Identifier: Apache-2.0
"""What the tests of the whole probe share: a watched flood, the commands as processes, and what always holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vifprobe.capture.tables import Bins
from vifprobe.kernel.attach import attach, has_tcx
from vifprobe.kernel.features import read_features
from vifprobe.kernel.load import Programs
from vifprobe.kernel.settings import Settings, possible_cpus
from vifprobe.kernel.tables.counters import Counters
from vifprobe.model.layout import BIN, Direction, PacketClass, Verdict
from vifprobe.model.reading import Counts, Reading, count, merge
from vifprobe.session.probe import Probe
from vifprobe.testing.net.links import NftCount, bridge_with
from vifprobe.testing.net.taps import Tap, set_link_up
from vifprobe.testing.packets import frames as f
from vifprobe.testing.traffic.flood import Writer, Written
from vifprobe.testing.waiting import wait_until

#: The `require` fixture of conftest.py.
Require = Callable[[str, object, str], None]

#: The stock kernel that the tests run on in a virtual machine (scripts/vm), "" elsewhere.
KERNEL = os.environ.get("VIFPROBE_VM", "")
ROOM = 300.0 if KERNEL else 120.0  # seconds for a command to start; emulated, compiling takes a minute
OUT = Direction.OUTBOUND
SYN = f.eth(f.ipv4(f.tcp(f.TcpFlag.SYN)), f.EtherType.IPV4)
FLOOD = 1_000_003
LIMIT = {"rate_bytes_per_second": 100_003, "burst_bytes": 40_009}  # a part of any flood of SYNs passes, however slow
FLOOD_SECONDS = 90.0
_DECIDED = (Verdict.PASSED, Verdict.POLICED, Verdict.DROPPED)
_SOME_CPUS = sorted(os.sched_getaffinity(0))
FIRST_CPU, LAST_CPU = _SOME_CPUS[0], _SOME_CPUS[-1]


@dataclass
class Watched:
    """What a probe told of a flood: all intervals, the totals by tap, the time bins."""

    intervals: list[Reading] = field(default_factory=list)
    totals: dict[str, Reading] = field(default_factory=dict)
    bins: Bins = field(default_factory=lambda: np.zeros(0, BIN))
    written: list[Written] = field(default_factory=list)

    def total(self, verdict: Verdict | None = None, tap: str = "tap0") -> Counts:
        """Outbound counts of one tap in the whole run."""
        return count(self.totals[tap].where(OUT, verdict))

    def binned(self, verdict: Verdict | None = None, tap: int = 0) -> tuple[int, int, int]:
        """Packets, frame bytes and SYNs of one tap in all outbound time bins."""
        rows = self.bins[(self.bins["tap"] == tap) & (self.bins["direction"] == OUT)]
        if verdict is not None:
            rows = rows[rows["verdict"] == verdict]
        return int(rows["packets"].sum()), int(rows["frame_bytes"].sum()), int(rows["syn_packets"].sum())


def watch_flood(
    probe: Probe,
    writers: Sequence[Writer],
    interval_seconds: float = 0.1,
    *,
    checked: bool = True,
    missed_max: int = 0,
) -> Watched:
    """Start the writers and read the probe until all of them have ended, then its totals; all of it checked.

    missed_max: so many packets do not come to the hook.
    """
    found = Watched()

    def wait_for_writers() -> list[Written]:
        try:
            return [writer.wait() for writer in writers]
        finally:
            probe.stop()

    with ThreadPoolExecutor(1) as pool:
        for writer in writers:
            writer.start()
        written = pool.submit(wait_for_writers)
        for reading in probe.readings(interval_seconds, FLOOD_SECONDS):
            if reading.final:
                found.totals[reading.tap] = reading
            else:
                found.intervals.append(reading)
            found.bins = np.concatenate([found.bins, probe.take_bins()])
        found.written = written.result()
    if checked:
        check_sums(found, missed_max)
    return found


def finish(probe: Probe) -> Watched:
    """End the run now; what it told, checked."""
    return watch_flood(probe, ())


def check_sums(found: Watched, missed_max: int = 0) -> None:
    """No interval takes anything back, every packet has one fate, and the intervals are the totals."""
    for reading in found.intervals:
        # But for the queue, which can shrink.
        assert (reading.cells["packets"][reading.cells["verdict"] != Verdict.QUEUED] > 0).all()
        assert reading.missed <= missed_max
        assert sum(count(reading.where(OUT, verdict)).packets for verdict in _DECIDED) == reading.offered(OUT).packets
    for tap, reading in found.totals.items():
        added = merge(*(one.cells for one in found.intervals if one.tap == tap))
        assert added.tolist() == merge(reading.cells).tolist()


def check_policed(policed: Counts, nft: NftCount) -> None:
    """The probe's count is nft's own, in packets and in bytes as nft charges them; and there was something to count."""
    assert (policed.packets, policed.charged_bytes) == (nft.packets, nft.bytes)
    assert nft.packets > 0


@contextmanager
def forwarding(*taps: Tap) -> Iterator[None]:
    """The taps' frames really pass: a bridge, up, with one more port that takes all and drops nothing."""
    with ExitStack() as stack:
        bridge = stack.enter_context(bridge_with(*taps))
        stack.callback(subprocess.run, ["ip", "link", "delete", "sink0"], check=False, capture_output=True)
        # Both free what is sent to them without counting a drop; not every kernel has both. An ifb's queue is short.
        made = [["ip", "link", "add", "sink0", "txqueuelen", "1000003", "type", kind] for kind in ("dummy", "ifb")]
        assert any(subprocess.run(add, check=False, capture_output=True).returncode == 0 for add in made)
        subprocess.run(["ip", "link", "set", "sink0", "master", bridge], check=True)
        set_link_up("sink0")
        yield


@dataclass
class Command:
    """`vifprobe ...` as a process in the calling thread's network namespace; its output goes to two files."""

    process: subprocess.Popen[bytes]
    out: Path
    errors: Path

    def end(self, code: int = 0) -> str:
        """SIGTERM unless it has ended; what it printed. Checks its exit code and that it had no traceback."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.ended(code)

    def ended(self, code: int = 0, seconds: float = 2 * ROOM) -> str:
        """Wait until it ends by itself; the rest as `end`."""
        assert self.process.wait(seconds) == code, self.told()
        assert "Traceback" not in self.told()
        return self.printed()

    def printed(self) -> str:
        """Its standard output so far."""
        return self.out.read_text()

    def told(self) -> str:
        """Its standard error so far."""
        return self.errors.read_text()

    def wait_for(self, condition: Callable[[], object], seconds: float = ROOM) -> None:
        """Until the condition holds, while it runs."""
        wait_until(lambda: condition() or self.process.poll() is not None, seconds)
        assert condition(), self.told()


@contextmanager
def command(*arguments: str, folder: Path, **environment: str) -> Iterator[Command]:
    """Start it; killed with the block at the latest. folder: for its output."""
    number = len(list(folder.glob("*.err")))
    out, errors = folder / f"{number}.out", folder / f"{number}.err"
    with out.open("wb") as to_out, errors.open("wb") as to_errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "vifprobe", *arguments],
            stdout=to_out,
            stderr=to_errors,
            cwd=Path(__file__).parents[2],
            env=os.environ | environment,
        )
    with process:
        try:
            yield Command(process, out, errors)
        finally:
            if process.poll() is None:
                process.kill()


@contextmanager
def capturing(folder: Path, *arguments: str, taps: Sequence[str] = ("tap0",), **environment: str) -> Iterator[Command]:
    """`vifprobe capture` into folder/capture, once it is counting."""
    output = folder / "capture"
    options = ("-d", "80s", "-o", str(output), *arguments)
    with command("capture", *taps, *options, folder=folder, **environment) as run:
        # The folder is made when everything is attached.
        run.wait_for((output / "timeline.csv").exists)
        yield run


@contextmanager
def watching(folder: Path, *arguments: str, taps: Sequence[str] = ("tap0",), **environment: str) -> Iterator[Command]:
    """`vifprobe watch --json`, once it has printed its first line."""
    with command("watch", *taps, "--json", *arguments, folder=folder, **environment) as run:
        run.wait_for(run.printed)
        yield run


def final_of(lines: str, tap: str = "tap0") -> dict[str, Any]:
    """The last object of `watch --json` for a tap, after adding the intervals up to it: they are equal."""
    objects = [found for found in map(json.loads, lines.splitlines()) if found["tap"] == tap]
    *intervals, final = objects
    assert final["final"] is True
    assert not any(one["final"] for one in intervals)
    for path in number_paths(final["outbound"]):
        assert sum(at(one["outbound"], path) for one in intervals) == at(final["outbound"], path), path
    return dict(final)


def number_paths(tree: dict[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where the counts are in an object of `watch --json`; its limits are none."""
    for name, value in tree.items():
        if isinstance(value, dict) and name != "limit":
            yield from number_paths(value, (*before, name))
        elif isinstance(value, int):
            yield (*before, name)


def at(tree: Any, path: Iterable[str]) -> int:
    """The number at the end of a path of keys."""
    for name in path:
        tree = tree[name]
    return int(tree)


def as_counts(value: dict[str, int]) -> Counts:
    """Counts out of `watch --json`."""
    return Counts(**value)


def packets_by_class(reading: Reading) -> dict[PacketClass, int]:
    """Outbound packets of each class seen."""
    return {code: reading.offered(OUT, code).packets for code in reading.classes(OUT)}


@dataclass
class KernelSide:
    """Programs on one tap's outbound hook and their counters, without a Probe around them."""

    programs: Programs
    counters: Counters

    def counts(self) -> dict[Verdict, int]:
        """Packets by verdict since the start."""
        cells = self.counters.snapshot().cells
        return {verdict: int(cells["packets"][cells["verdict"] == verdict].sum()) for verdict in _DECIDED}


@contextmanager
def kernel_side(tap: Tap, settings: Settings | None = None) -> Iterator[KernelSide]:
    """Compiled, loaded, attached; all gone after the block."""
    wanted = settings or Settings(cpus=possible_cpus())
    with ExitStack() as stack:
        programs = Programs(wanted, read_features())
        stack.callback(programs.close)
        counters = Counters(programs)
        counters.watch(tap.ifindex, 0, 0)
        programs.attach_verdicts()
        if not has_tcx(tap.ifindex):
            subprocess.run(["tc", "qdisc", "add", "dev", tap.name, "clsact"], check=True)
        attachment = attach(programs.tc_program_fd(OUT), tap.name, tap.ifindex, OUT, "clsact")
        stack.callback(attachment.detach)
        yield KernelSide(programs, counters)


@contextmanager
def on_cpu(cpu: int) -> Iterator[None]:
    """The calling thread, and processes started by it, on one CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def acting_while_counted(act: Callable[[Probe], None]) -> Iterator[None]:
    """Do something in a thread of its own as soon as the readings of a probe begin: its hooks are in place then."""
    readings = Probe.readings

    def with_act(probe: Probe, *arguments: Any, **options: Any) -> Iterator[Reading]:
        thread = threading.Thread(target=act, args=(probe,))
        thread.start()
        try:
            yield from readings(probe, *arguments, **options)
        finally:
            thread.join()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Probe, "readings", with_act)
        yield
