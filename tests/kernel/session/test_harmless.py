# SPDX-License-Identifier: Apache-2.0
"""Harmless: nothing of a tap, its qdiscs, filters and rules is changed by being watched, however the run ends."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from leftovers_kit import bpf_objects, open_fds, operational_state, promiscuity, settings, still_there
from probe_kit import FIRST_CPU, KERNEL, SYN, capturing, command, forwarding, watching

from vifprobe import Probe
from vifprobe.errors import TapError
from vifprobe.kernel.attach import has_tcx
from vifprobe.testing.net.links import nft_ingress_limit
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.traffic.flood import writer
from vifprobe.testing.waiting import wait_until

# Emulated processors take tens of times as long.
CYCLES = 7 if KERNEL else 53
KILLS = 3 if KERNEL else 17

PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture
def set_up(tap: Tap) -> Iterator[Tap]:
    """A tap as a compute node has it: on a bridge, limited by nft, with a qdisc and a filter of someone else."""
    with ExitStack() as stack:
        stack.enter_context(forwarding(tap))
        # The kernel says so up to a second after the carrier (net/core/link_watch.c), which is no change of ours.
        wait_until(lambda: operational_state("br0") == "UP", 60)
        stack.enter_context(nft_ingress_limit(tap.name, rate_bytes_per_second=100_003, burst_bytes=10_007))
        for line in (
            f"tc qdisc add dev {tap.name} clsact",
            f"tc filter add dev {tap.name} ingress protocol all pref 49 matchall action gact pass",
        ):
            # Not every kernel has them: then there is less to be harmed.
            subprocess.run(line.split(), check=False, capture_output=True)
        flood = stack.enter_context(
            writer([tap.fd], [SYN], count=10**9, seconds=60, cpu=FIRST_CPU, packets_per_second=1009)
        )
        flood.start()
        assert promiscuity(tap.name) == 1
        yield tap


def clean_up(tap: Tap, folder: Path) -> None:
    """What a user has to do after a kill on kernels without tcx; nothing elsewhere."""
    if not has_tcx(tap.ifindex):
        with command("cleanup", folder=folder) as run:
            run.ended()


def test_nothing_changes_while_and_after_a_probe_watches(set_up: Tap) -> None:
    """The same settings before, during and after; never promiscuous; no BPF object stays."""
    before, others = settings(), bpf_objects()  # what an earlier test has left open is not the probe's
    with Probe(set_up.name, bin_ns=1_000_000) as probe:
        seen = bpf_objects() - others
        assert {kind for kind, _ in seen} == {"prog_id", "map_id", "link_id"}
        for _ in zip(range(3), probe.readings(0.05, 10), strict=False):
            assert not has_tcx(set_up.ifindex) or settings() == before
            assert promiscuity(set_up.name) == 1  # the bridge's
    assert settings() == before
    wait_until(lambda: not still_there(seen), 10)


def test_nothing_changes_through_the_commands(set_up: Tap, tmp_path: Path) -> None:
    """`watch` and `capture` at once, ended by SIGTERM; and `taps` and `doctor`, which look around."""
    before = settings()
    with watching(tmp_path, "--interval", "50ms") as watch, capturing(tmp_path) as capture:
        seen = bpf_objects(watch.process.pid) | bpf_objects(capture.process.pid)
        assert len(seen) > 10
        assert not has_tcx(set_up.ifindex) or settings() == before
        capture.end()
        watch.end()
    for name in ("taps", "doctor", "cleanup"):
        with command(name, folder=tmp_path) as run:
            run.ended()
    assert settings() == before
    wait_until(lambda: not still_there(seen), 10)


def test_nothing_stays_after_a_kill_at_any_time(set_up: Tap, tmp_path: Path) -> None:
    """SIGKILL after ever longer times from the first instruction on: starting, compiling, attaching, watching."""
    before = settings()
    begun = time.monotonic()
    with watching(tmp_path, "--interval", "50ms", VIFPROBE_CACHE="") as run:
        start_seconds = time.monotonic() - begun
        run.end()
    seen = set()
    for number in range(KILLS):
        # Every second one compiles.
        cache = {} if number % 2 else {"VIFPROBE_CACHE": ""}
        with command("watch", set_up.name, "--json", folder=tmp_path, **cache) as run:
            with suppress(subprocess.TimeoutExpired):
                run.process.wait(1.3 * start_seconds * number / KILLS)
            seen |= bpf_objects(run.process.pid)
            run.process.kill()
        clean_up(set_up, tmp_path)
        assert settings() == before, number
    assert {kind for kind, _ in seen} == {"prog_id", "map_id", "link_id"}
    wait_until(lambda: not still_there(seen), 10)


@pytest.mark.skipif(bool(KERNEL), reason="in a virtual machine, the host compiles")
def test_the_compiler_of_a_killed_run_ends_with_it(set_up: Tap, tmp_path: Path) -> None:
    """As an orphan it becomes a child of this process, which learns how it ended."""
    libc = ctypes.CDLL(None)
    with command("watch", set_up.name, "--json", folder=tmp_path, VIFPROBE_CACHE="") as run:

        def compiler() -> int:
            lists = Path(f"/proc/{run.process.pid}/task").glob("*/children")
            children = [int(pid) for each in lists for pid in each.read_text().split()]
            return next((pid for pid in children if "libLLVM" in Path(f"/proc/{pid}/maps").read_text()), 0)

        pid = wait_until(compiler, 60)
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
        try:
            run.process.kill()
            _, status = os.waitpid(pid, 0) if run.process.wait(60) else (0, 0)
        finally:
            libc.prctl(PR_SET_CHILD_SUBREAPER, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def test_nothing_stays_after_a_kill_at_the_end(set_up: Tap, tmp_path: Path) -> None:
    """SIGTERM and, while the run is taking its hooks off and writing, SIGKILL."""
    before = settings()
    for number in range(KILLS if KERNEL else 7):
        folder = tmp_path / str(number)
        folder.mkdir()
        with capturing(folder, "--bin", "1ms") as run:
            seen = bpf_objects(run.process.pid)
            run.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                run.process.wait(number * 0.01)
            run.process.kill()
        clean_up(set_up, tmp_path)
        assert settings() == before, number
        wait_until(lambda seen=seen: not still_there(seen), 10)  # type: ignore[misc]  # the loop's own value


def test_a_failed_start_leaves_nothing(set_up: Tap) -> None:
    """One of two taps is missing, and a reader of counters that fails after everything was attached."""
    before, fds, others = settings(), open_fds(), bpf_objects()
    with pytest.raises(TapError), Probe(set_up.name, "tap9"):
        pass

    seen = set()

    def fail(moment: str, links: object) -> None:
        seen.update(bpf_objects() - others)
        if moment == "after_attach":
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Probe(set_up.name, counter_check=fail):
        pass
    assert settings() == before
    assert open_fds() == fds
    assert seen
    wait_until(lambda: not still_there(seen), 10)


def test_no_descriptor_and_no_object_stays_over_many_runs(set_up: Tap) -> None:
    """Opened and closed again and again, with readings and without."""
    fds: dict[str, str] = {}
    seen, others = set(), bpf_objects()
    for number in range(CYCLES):
        with Probe(set_up.name, bin_ns=1_000_000 * (number % 2)) as probe:
            seen |= bpf_objects() - others
            if number % 10 == 3:
                list(probe.readings(0.01, 0.03))
        if number == 1:
            fds = open_fds()
    assert open_fds() == fds
    links = len([one for one in seen if one[0] == "link_id"])
    # Drops, and the three that follow inbound packets; with tcx both hooks are links, too.
    assert links == (6 * CYCLES if has_tcx(set_up.ifindex) else 4 * CYCLES)
    wait_until(lambda: not still_there(seen), 10)
