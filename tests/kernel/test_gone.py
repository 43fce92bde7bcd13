# SPDX-License-Identifier: Apache-2.0
"""Taps that change under the observer: deleted, renamed, down and up; two observers; what was seen is kept and said."""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
from leftovers_kit import bpf_objects, still_there
from probe_kit import (
    FIRST_CPU,
    FLOOD_SECONDS,
    LIMIT,
    OUT,
    SYN,
    capturing,
    check_policed,
    check_sums,
    command,
    final_of,
    finish,
    forwarding,
    watching,
)

from vifprobe import Probe, load
from vifprobe.analysis.reading import count
from vifprobe.errors import TapError
from vifprobe.layout import Verdict
from vifprobe.testing.flood import flood, writer
from vifprobe.testing.links import nft_ingress_limit
from vifprobe.testing.netns import Netns, private_netns
from vifprobe.testing.taps import Tap, set_link_up
from vifprobe.testing.taps import tap as make_tap
from vifprobe.testing.waiting import wait_until

COUNT = 10_007


def run(line: str) -> None:
    subprocess.run(line.split(), check=True, capture_output=True)


def test_deleted_while_watched(tap: Tap, tmp_path: Path) -> None:
    """The run ends by itself with exit code 1 and one clear line; all that was counted is in the final object."""
    with watching(tmp_path, "--interval", "50ms") as watch:
        seen = bpf_objects(watch.process.pid)
        flood([tap.fd], [SYN], count=COUNT, seconds=FLOOD_SECONDS)
        run(f"ip link delete {tap.name}")
        out = watch.ended(1, seconds=10)
        assert f"{tap.name}: deleted while it was watched." in watch.told()
    assert final_of(out)["outbound"]["offered"]["packets"] == COUNT
    wait_until(lambda: not still_there(seen), 10)


def test_deleted_while_captured(tap: Tap, tmp_path: Path) -> None:
    """The same, and the folder can be read: not complete, its error says why, its numbers are those written."""
    with capturing(tmp_path, "--bin", "1ms") as capture:
        flood([tap.fd], [SYN], count=COUNT, seconds=FLOOD_SECONDS)
        run(f"ip link delete {tap.name}")
        capture.ended(1, seconds=10)
        assert f"{tap.name}: deleted during the capture." in capture.told()
    found = load(tmp_path / "capture")
    assert not found.manifest.complete
    assert "deleted" in (found.manifest.error or "")
    assert found.reading().offered(OUT).packets == COUNT
    assert int(found.bins["packets"][found.bins["direction"] == OUT].sum()) == COUNT
    assert not [row for row in found.reconcile if row.agrees is False]
    assert "link_del" in [event.kind for event in found.events]


def test_one_of_two_is_deleted(tap: Tap, tmp_path: Path) -> None:
    """The other one is watched to the end, to the packet."""
    with make_tap("tap1") as other, watching(tmp_path, "--interval", "50ms", taps=("tap0", "tap1")) as watch:
        flood([tap.fd, other.fd], [SYN], count=2 * COUNT, seconds=FLOOD_SECONDS)
        run(f"ip link delete {other.name}")
        lines = len(watch.printed().splitlines())
        watch.wait_for(lambda: len(watch.printed().splitlines()) > lines + 4)
        flood([tap.fd], [SYN], count=COUNT, seconds=FLOOD_SECONDS)
        out = watch.end(1)
        assert "tap1: deleted while it was watched." in watch.told()
    assert final_of(out, "tap0")["outbound"]["offered"]["packets"] == 2 * COUNT
    assert final_of(out, "tap1")["outbound"]["offered"]["packets"] == COUNT


def test_deleted_in_the_middle_of_a_flood(netns: Netns) -> None:
    """The writer's tap goes away under it: what the probe counted adds up, and is as much as could be written."""
    with ExitStack() as stack:
        tap = stack.enter_context(make_tap("tap0"))
        flooding = stack.enter_context(writer([tap.fd], [SYN], count=10**9, seconds=20, cpu=FIRST_CPU))
        probe = stack.enter_context(Probe(tap.name))
        flooding.start()
        wait_until(lambda: probe.totals()[0].offered(OUT).packets > COUNT, 20)
        run(f"ip link delete {tap.name}")
        with pytest.raises(OSError, match="writer"):
            flooding.wait()
        readings = list(probe.readings(0.05, 10))
        assert probe.gone == ("tap0",)
        final = readings[-1]
        assert final.final
        assert final.offered(OUT).packets > COUNT
        assert sum(one.offered(OUT).packets for one in readings[:-1]) == final.offered(OUT).packets


def test_deleted_before_it_is_watched(tap: Tap, tmp_path: Path) -> None:
    """No such tap: the nearest name is offered, exit code 1, no folder is made."""
    with command("capture", "tap9", "-d", "1s", "-o", str(tmp_path / "capture"), folder=tmp_path) as capture:
        capture.ended(1)
        assert "tap9" in capture.told()
        assert "tap0" in capture.told()
    assert not (tmp_path / "capture").exists()


def test_renamed_and_down_and_up(tap: Tap) -> None:
    """An interface that must go down to be renamed is the same one afterwards: counted on, under its first name."""
    with Probe(tap.name, bin_ns=1_000_000) as probe:
        flood([tap.fd], [SYN], count=COUNT, seconds=FLOOD_SECONDS)
        run(f"ip link set {tap.name} down")
        with pytest.raises(OSError, match="Input/output error"):  # a guest's frames are refused meanwhile
            flood([tap.fd], [SYN], count=1, seconds=1)
        run(f"ip link set {tap.name} name tap9")
        set_link_up("tap9")
        flood([tap.fd], [SYN], count=COUNT, seconds=FLOOD_SECONDS)
        found = finish(probe)
        assert probe.gone == ()
        kinds = {event.kind for _, event in probe.take_events()}
    assert found.total().packets == 2 * COUNT == found.binned()[0]
    assert len(kinds) >= 2, kinds


def test_two_observers_count_the_same(tap: Tap, tmp_path: Path) -> None:
    """Both count all, and the one that stays goes on when the other one ends."""
    with ExitStack() as stack:
        limit = stack.enter_context(nft_ingress_limit(tap.name, **LIMIT))
        first = stack.enter_context(watching(tmp_path, "--interval", "50ms"))
        with Probe(tap.name) as probe:
            flood([tap.fd], [SYN], count=10 * COUNT, seconds=FLOOD_SECONDS)
            second = finish(probe)
            check_policed(second.total(Verdict.POLICED), limit.read())
        flood([tap.fd], [SYN], count=COUNT, seconds=FLOOD_SECONDS)
        final = final_of(first.end())["outbound"]
        policed = limit.read()
    assert second.total().packets == 10 * COUNT
    assert final["offered"]["packets"] == 11 * COUNT
    assert (final["policed"]["packets"], final["policed"]["charged_bytes"]) == (policed.packets, policed.bytes)


def test_a_tap_in_another_namespace(netns: Netns, tmp_path: Path) -> None:
    """Not found from here, with a hint at --netns; with it, watched, and the caller's namespace is what it was."""
    with private_netns(enter=False) as other:
        with other.entered():
            inner = make_tap("tap0")
            tap = inner.__enter__()
        try:
            with pytest.raises(TapError), Probe("tap0"):
                pass
            with command("watch", "tap0", folder=tmp_path) as watch:
                watch.ended(1)
                assert "--netns" in watch.told()
            with Probe("tap0", netns=other.path) as probe:
                flood([tap.fd], [SYN], count=COUNT, seconds=FLOOD_SECONDS)
                found = finish(probe)
            assert found.total().packets == COUNT
            assert Path("/proc/thread-self/ns/net").stat().st_ino == netns.inode
        finally:
            inner.__exit__(None, None, None)


def test_output_exists(tap: Tap, tmp_path: Path) -> None:
    """An earlier capture is never written over unasked: exit code 1 or 2, and not a byte changed."""
    with capturing(tmp_path) as capture:
        capture.end()
    folder = tmp_path / "capture"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    options = (tap.name, "-d", "100ms", "-o", str(folder))
    with command("capture", *options, folder=tmp_path) as again:
        assert again.process.wait(30) in (1, 2)
        assert "--force" in again.told()
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    with command("capture", *options, "--force", folder=tmp_path) as again:
        again.ended()
    assert load(folder).manifest.complete


def test_signals_end_a_capture_with_what_was_seen(tap: Tap, tmp_path: Path) -> None:
    """SIGTERM long before the end: exit code 0, complete, the numbers those written up to then."""
    with forwarding(tap), capturing(tmp_path) as capture:
        flood([tap.fd], [SYN], count=COUNT, seconds=FLOOD_SECONDS)
        capture.end()
    found = load(tmp_path / "capture")
    assert found.manifest.complete
    assert count(found.reading().where(OUT, Verdict.PASSED)).packets == COUNT
    assert json.loads((tmp_path / "capture/manifest.json").read_text())["end"]


def test_down_at_the_start(tap: Tap) -> None:
    """A tap that is down can be watched; it counts from when it is up."""
    run(f"ip link set {tap.name} down")
    with Probe(tap.name) as probe:
        set_link_up(tap.name)
        flood([tap.fd], [SYN], count=COUNT, seconds=FLOOD_SECONDS)
        found = finish(probe)
        check_sums(found)
    assert found.total().packets == COUNT
