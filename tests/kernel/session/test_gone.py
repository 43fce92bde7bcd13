# SPDX-License-Identifier: Apache-2.0
"""Taps that change under the observer: deleted, renamed, down and up; two observers; what was seen is kept and said."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Iterator
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
from vifprobe.errors import TapError
from vifprobe.host.net.links import find_link, is_there
from vifprobe.model.layout import Verdict
from vifprobe.model.reading import Limit, Reading, count
from vifprobe.render.text.policer import AuditView, policer_lines
from vifprobe.session.audit.snapshot import audit_tap
from vifprobe.testing.net.links import nft_ingress_limit
from vifprobe.testing.net.netns import Netns, private_netns
from vifprobe.testing.net.taps import Tap, set_link_up
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.traffic.flood import flood, writer
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


def test_one_of_two_is_marked_gone(netns: Netns, tmp_path: Path) -> None:
    """At once and once: in JSON, in lines and in CSV; its limit is not said to be none. Then only in the totals."""
    with ExitStack() as stack:
        taps = [stack.enter_context(make_tap(name)) for name in ("tap0", "tap1")]
        limit = stack.enter_context(nft_ingress_limit("tap1", rate_bytes_per_second=100_003, burst_bytes=40_009))
        file = tmp_path / "watch.csv"
        watch = stack.enter_context(watching(tmp_path, "--csv", str(file), taps=("tap0", "tap1")))
        both = ("watch", "tap0", "tap1", "--interval", "60s")
        lines = stack.enter_context(command(*both, folder=tmp_path, PYTHONUNBUFFERED="1"))
        lines.wait_for(lines.printed)
        flood([taps[1].fd], [SYN], count=COUNT, seconds=FLOOD_SECONDS)
        policed = limit.read().packets
        run("ip link delete tap1")
        lines.wait_for(lambda: " gone " in lines.printed(), 20)  # long before the interval's end
        lines.end(1)
        seen = len(watch.printed().splitlines())
        watch.wait_for(lambda: len(watch.printed().splitlines()) > seen + 2)
        out = watch.end(1)
    mine = [found for found in map(json.loads, out.splitlines()) if found["tap"] == "tap1"]
    assert [found["gone"] for found in mine] == [False] * (len(mine) - 2) + [True, True]
    *_, last, final = mine
    assert last["gone_ns"] == final["gone_ns"] > 0
    assert last["outbound"]["limit"]["installed_bps"] == final["outbound"]["limit"]["installed_bps"] == 800_024
    assert final_of(out, "tap1")["outbound"]["policed"]["packets"] == policed
    assert not any(found["gone"] for found in map(json.loads, out.splitlines()) if found["tap"] == "tap0")
    rows = list(csv.DictReader(file.open()))
    assert {row["tap"] for row in rows if row["gone"] == "true"} == {"tap1"}
    assert sum(int(row["packets"]) for row in rows if row["tap"] == "tap1" and row["direction"] == "outbound") == COUNT
    told = [line.split(" gone ") for line in lines.printed().splitlines() if " tap1 " in line]
    assert [len(parts) for parts in told[-2:]] == [2, 2]
    assert "of     0.8 Mbit/s" in told[-2][0]


def test_one_of_two_is_gone_from_a_capture(netns: Netns, tmp_path: Path) -> None:
    """Summary, folder and readings say which, and since when; the other tap's do not."""
    with ExitStack() as stack:
        taps = [stack.enter_context(make_tap(name)) for name in ("tap0", "tap1")]
        capture = stack.enter_context(capturing(tmp_path, "--no-samples", taps=("tap0", "tap1")))
        flood([taps[1].fd], [SYN], count=COUNT, seconds=FLOOD_SECONDS)
        run("ip link delete tap1")
        capture.wait_for(lambda: "link_del" in (tmp_path / "capture/events.csv").read_text())
        capture.process.terminate()
        text = capture.ended(1)
    found = load(tmp_path / "capture")
    assert text.count(" TAP IS GONE  deleted ") == 1
    assert [reading.gone for reading in found.readings()] == [False, True]
    entries = [entry.gone_ns for entry in found.manifest.taps]
    assert entries[0] is None
    assert entries[1] == found.reading("tap1").gone_ns
    assert found.reading("tap1").offered(OUT).packets == COUNT


@pytest.mark.parametrize("packets", [True, False])
def test_deleted_while_it_is_audited(tap: Tap, packets: bool) -> None:
    """The audit ends at once, says so, and keeps to what was set before: a deleted tap has not lost its limit."""
    readings = Probe.readings

    def of_a_deleted_tap(probe: Probe, seconds: float, duration_seconds: float) -> Iterator[Reading]:
        run("ip link delete tap0")
        return readings(probe, seconds, duration_seconds)

    link, limits = find_link("tap0"), {OUT: Limit(declared_bps=800_024)}

    def there_for_the_last_time(_link: object) -> bool:
        was_there = is_there(link)
        if was_there:
            run("ip link delete tap0")
        return was_there

    with nft_ingress_limit("tap0", **LIMIT), pytest.MonkeyPatch.context() as patch:
        if packets:
            patch.setattr(Probe, "readings", of_a_deleted_tap)
        else:  # nothing else runs between the first look and the end
            patch.setattr("vifprobe.session.audit.snapshot.is_there", there_for_the_last_time)
        report = audit_tap("tap0", limits, (OUT,), 60.0, packets=packets)
    assert report.gone
    assert report.duration_ns < 30e9
    assert not {finding.pattern for finding in report.findings} & {"P1", "P2"}
    assert report.set_up.main_enforced(OUT) is not None
    view = AuditView(report.set_up, report.rows, report.findings, report.limit_states, gone=True)
    shown = "".join(row.plain + "\n" for row in policer_lines(view))
    assert shown.startswith(" TAP IS GONE ")
    assert "NO POLICER" not in shown


def test_readings_of_a_tap_end_with_it(netns: Netns) -> None:
    """The last one is marked, and comes at once; the totals are, too; the other tap's readings go on."""
    with make_tap("tap0"), make_tap("tap1"), Probe("tap0", "tap1") as probe:
        run("ip link delete tap1")
        seen: list[Reading] = []
        for batch in probe.intervals(0.5, 60):
            seen += batch
            if len(batch) == 1:
                probe.stop()
    assert probe.gone == ("tap1",)
    ended = [reading for reading in seen if reading.tap == "tap1" and reading.gone]
    assert [reading.final for reading in ended] == [False, True]
    assert ended[0].duration_ns < 0.5e9
    assert not any(reading.gone for reading in seen if reading.tap == "tap0")


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
