# SPDX-License-Identifier: Apache-2.0
"""What the live run had is what `load` gives back, however the run ended."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from capture_kit import (
    FLOOD,
    FLOOD_PACKETS,
    OUT,
    REASONS,
    SYMBOLS,
    TAPS,
    bins_like,
    manifest,
    plain,
    random_cells,
    reading,
)
from hypothesis import given, settings

from vifprobe.analysis.reconcile import CounterSamples, probe_count, reconcile
from vifprobe.capture.manifest import NOT_ENDED, CoverageGap
from vifprobe.capture.reader import load
from vifprobe.capture.rows import EventRow, FloodRow, HostRow, PolicerRow, TopRow
from vifprobe.capture.tables import drop_rows, without
from vifprobe.capture.writer import CaptureWriter, Totals
from vifprobe.errors import CaptureError
from vifprobe.model.flood import Flood, Measure, Top
from vifprobe.model.layout import Direction, Verdict
from vifprobe.model.reading import Cells, Finding, Limit, Reading
from vifprobe.testing.waiting import wait_until

EVENTS = (
    EventRow(-5, "tap0", "qdisc", "RTM_DELQDISC ingress, by =cmd|' /C calc'!A0", 4711, "ovs-vswitchd\x1b[31m"),
    EventRow(7, "", "gap", "netlink socket overran", None, ""),
)


def same(one: Reading, other: Reading) -> bool:
    """Equal in all but the address that dropped a packet."""
    one_fields, other_fields = (
        {**vars(each), **{name: plain(without(getattr(each, name), "tap", "location")) for name in ("cells", "queued")}}
        for each in (one, other)
    )
    return one_fields == other_fields


def test_everything_comes_back(tmp_path: Path) -> None:
    seen = {"syn_share": Measure(0.9973, "of 1"), "sources": Measure(65_521, "different", 2_131)}
    top = (Top("port", "80", 100_003, 5_400_162, 3),)
    one = reading(TAPS[0], flood={OUT: Flood({**seen, "half_open": Measure(None, "handshakes")}, top)})
    two = reading(TAPS[1], FLOOD[:2], missed=0, findings=(), directions=(Direction.INBOUND,))
    drops = [row for each in (one, two) for row in drop_rows(each.cells, each.tap, REASONS, SYMBOLS.get)]
    agreed = reconcile(CounterSamples(TAPS[0], OUT, "device rx_packets", 7, 7, 100_010, 100_010), probe_count(100_003))
    host = HostRow(-7, 10**9, "thread", "vhost-4711", 4711, 13, 17, 999_983)
    policer = PolicerRow(TAPS[0], OUT, "tc", "matchall", 10**8, 3_200_000, None, "all", True, 5, 7, 11)
    gap = CoverageGap(TAPS[1], 13, None, "the qdisc was deleted")
    with CaptureWriter(tmp_path / "c", manifest()) as writer:
        bins = bins_like(FLOOD, 0, writer.manifest.start_monotonic_ns)
        writer.add_bins(bins[:11])
        writer.add_events(EVENTS[:1])
        writer.add_bins(bins[11:])
        writer.add_events(EVENTS[1:])
        writer.add_host([host])
        totals = Totals([two, one], REASONS, SYMBOLS.get, [agreed], [gap], [policer])
        written = writer.finish(totals)
    capture = load(tmp_path / "c")
    assert capture.warnings == ()
    assert capture.manifest == written
    assert capture.manifest.complete
    assert capture.manifest.error is None
    assert [item.tap for item in capture.readings()] == list(TAPS)
    assert same(capture.reading(TAPS[0]), one)
    assert same(capture.reading(TAPS[1]), two)
    assert capture.events == EVENTS
    assert capture.reasons == REASONS
    assert (capture.drops, capture.reconcile, capture.host) == (tuple(drops), (agreed,), (host,))
    assert capture.policer == (policer,)
    assert capture.flood == (
        FloodRow(TAPS[0], OUT, "syn_share", 0.9973, "of 1"),
        FloodRow(TAPS[0], OUT, "sources", 65_521, "different"),
        FloodRow(TAPS[0], OUT, "sources_error", 2_131, "different"),
        FloodRow(TAPS[0], OUT, "half_open", None, "handshakes"),
    )
    assert capture.top == (TopRow(TAPS[0], OUT, "port", "80", 100_003, 5_400_162, 3),)
    assert capture.manifest.gaps == (gap,)
    assert capture.findings == ((TAPS[0], one.findings[0]),)
    assert int(capture.bins["packets"].sum()) == FLOOD_PACKETS
    assert set(capture.bins["start_ns"]) == set(bins["start_ns"])


@given(random_cells())
@settings(max_examples=25)
def test_any_cells_come_back_and_all_sums_agree(table: Cells) -> None:
    with tempfile.TemporaryDirectory() as folder:
        live = reading(table=table)
        with CaptureWriter(Path(folder) / "c", manifest()) as writer:
            writer.add_bins(bins_like(table, 0, writer.manifest.start_monotonic_ns))
            writer.finish(Totals([live], REASONS))
        capture = load(Path(folder) / "c")
    assert same(capture.reading("tap0"), live)
    for direction in Direction:
        rows = [row for row in capture.histogram or () if row.direction == direction]
        offered = live.offered(direction).packets
        assert capture.reading("tap0").offered(direction).packets == offered == sum(row.packets for row in rows)
        for verdict in Verdict:
            of_bins = capture.bins[(capture.bins["direction"] == direction) & (capture.bins["verdict"] == verdict)]
            assert int(of_bins["packets"].sum()) == sum(row.packets for row in rows if row.verdict == verdict)
        lost = [row for row in rows if row.verdict in (Verdict.POLICED, Verdict.DROPPED)]
        dropped = sum(row.packets for row in capture.drops if row.direction == direction)
        assert dropped == sum(row.packets for row in lost)


def test_two_captures_of_the_same_differ_in_the_manifest_only(tmp_path: Path) -> None:
    same_start = manifest()
    for name, order in (("a", 1), ("b", -1)):
        with CaptureWriter(tmp_path / name, same_start) as writer:
            writer.add_bins(bins_like(FLOOD, 0, same_start.start_monotonic_ns)[::order])
            writer.finish(Totals([reading(TAPS[0], FLOOD[::order]), reading(TAPS[1])][::order]))
    for path in (tmp_path / "a").iterdir():
        assert path.name == "manifest.json" or path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_the_manifest_holds_what_the_contract_lists(tmp_path: Path) -> None:
    with CaptureWriter(tmp_path / "c", manifest()) as writer:
        first = json.loads((tmp_path / "c/manifest.json").read_text())
        assert (first["complete"], first["error"], first["end"]) == (False, NOT_ENDED, None)
        writer.finish(Totals([reading()], gaps=[CoverageGap("tap0", 5, 7, "re-plugged")]))
    last = json.loads((tmp_path / "c/manifest.json").read_text())
    assert (last["schema"], last["complete"], last["error"]) == (1, True, None)
    assert (last["hook"], last["verdicts"], last["missed"]) == ("tcx", "reason", 17)
    assert {"vifprobe_version", "kernel_version", "host", "options", "gaps"} <= last.keys()
    assert {"name", "ifindex", "domain", "port"} <= last["taps"][0].keys()
    assert datetime.fromisoformat(last["start"]).tzinfo
    assert datetime.fromisoformat(last["end"]) >= datetime.fromisoformat(last["start"])
    assert last["end_monotonic_ns"] >= last["start_monotonic_ns"] > 0
    assert last["sha256"].keys() == {path.name for path in (tmp_path / "c").iterdir()} - {"manifest.json"}


def test_hostile_and_odd_values_in_json_come_back_or_are_unknown(tmp_path: Path) -> None:
    evidence: dict[Any, Any] = {
        "packets": np.int64(5),
        "ratio": math.nan,
        "tap": "\x1b[2J\ud83d",
        7: (Verdict.POLICED,),
    }
    finding = Finding("x", "P1", "critical", "t", evidence, "")
    with CaptureWriter(tmp_path / "c", manifest()) as writer:
        writer.finish(Totals([reading(findings=(finding,))]))
    (found,) = load(tmp_path / "c").reading().findings
    assert found.evidence == {"packets": 5, "ratio": None, "tap": "\x1b[2J\ud83d", "7": ["policed"]}
    assert b"\x1b" not in (tmp_path / "c/findings.json").read_bytes()


def test_reasons_for_an_early_end_keep_the_totals_but_not_complete(tmp_path: Path) -> None:
    with CaptureWriter(tmp_path / "c", manifest()) as writer:
        writer.finish(Totals([reading()]), error="ended by SIGTERM")
    capture = load(tmp_path / "c")
    assert not capture.manifest.complete
    assert capture.warnings == ("incomplete: ended by SIGTERM",)
    assert same(capture.reading(), reading())


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), SystemExit(143), CaptureError("boom")])
def test_an_exception_leaves_what_was_written(tmp_path: Path, error: BaseException) -> None:
    def run() -> None:
        with CaptureWriter(tmp_path / "c", manifest()) as writer:
            writer.add_bins(bins_like(FLOOD, 1, writer.manifest.start_monotonic_ns))
            writer.add_events(EVENTS)
            raise error

    with pytest.raises(type(error)):
        run()
    capture = load(tmp_path / "c")
    assert not capture.manifest.complete
    assert capture.manifest.end is not None
    assert ("boom" if error.args == ("boom",) else type(error).__name__) in (capture.manifest.error or "")
    assert int(capture.bins["packets"].sum()) == FLOOD_PACKETS
    assert capture.events == EVENTS
    assert capture.readings() == ()
    assert f"no totals: the run ended before they were written; the timeline has {FLOOD_PACKETS}" in capture.warnings[1]
    with pytest.raises(CaptureError, match="no totals of tap0"):
        capture.reading("tap0")


def test_leaving_without_finish_says_so(tmp_path: Path) -> None:
    with CaptureWriter(tmp_path / "c", manifest()):
        pass
    assert load(tmp_path / "c").manifest.error == "the run ended before the totals were written"


def test_nothing_can_be_added_after_the_end(tmp_path: Path) -> None:
    with CaptureWriter(tmp_path / "c", manifest()) as writer:
        writer.finish(Totals([reading()]))
        with pytest.raises(ValueError, match="after the end"):
            writer.add_events(EVENTS)
    assert load(tmp_path / "c").manifest.complete


def test_a_reading_of_a_foreign_tap_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tap7"), CaptureWriter(tmp_path / "c", manifest()) as writer:
        writer.finish(Totals([reading("tap7")]))


def test_a_checkpoint_gives_totals_to_a_run_that_dies(tmp_path: Path) -> None:
    with CaptureWriter(tmp_path / "c", manifest()) as writer:
        writer.checkpoint(Totals([reading(table=FLOOD[:1])]))
        writer.checkpoint(Totals([reading()]))
    capture = load(tmp_path / "c")
    assert not capture.manifest.complete
    assert same(capture.reading(), reading())


KILLED = """
import sys
sys.path.insert(0, sys.argv[2])
from capture_kit import *
from vifprobe.capture.writer import CaptureWriter, Totals
with CaptureWriter(sys.argv[1], manifest()) as writer:
    bins = bins_like(FLOOD, 0, writer.manifest.start_monotonic_ns)
    while True:
        writer.add_bins(bins)
        if len(sys.argv) > 3:
            writer.checkpoint(Totals([reading()]))
"""


@pytest.mark.parametrize("checkpoints", [False, True])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_writer_leaves_a_readable_folder(tmp_path: Path, number: signal.Signals, checkpoints: bool) -> None:
    folder = tmp_path / "c"
    arguments = [sys.executable, "-c", KILLED, str(folder), str(Path(__file__).parent), *(["1"] if checkpoints else [])]
    with subprocess.Popen(arguments) as process:
        seen = folder / ("histogram.csv" if checkpoints else "timeline.csv")
        wait_until(lambda: process.poll() is not None or (seen.exists() and seen.stat().st_size > 500), 60)
        assert process.poll() is None
        process.send_signal(number)
        process.wait(60)
    capture = load(folder)
    assert not capture.manifest.complete
    assert capture.manifest.error == NOT_ENDED
    assert int(capture.bins["packets"].sum()) >= FLOOD_PACKETS
    if checkpoints:
        # Killed between the first totals and their manifest there is nothing that says which run they are of.
        assert all(same(item, reading()) for item in capture.readings())
    with CaptureWriter(folder, manifest(), force=True) as writer:
        writer.finish(Totals([reading()]))
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_every_cut_of_a_running_timeline_is_readable(tmp_path: Path) -> None:
    with CaptureWriter(tmp_path / "c", manifest()) as writer:
        writer.add_bins(bins_like(FLOOD[:1], 0, writer.manifest.start_monotonic_ns))
    timeline = tmp_path / "c/timeline.csv"
    whole = timeline.read_bytes()
    counts = []
    for cut in range(len(whole) + 1):
        timeline.write_bytes(whole[:cut])
        capture = load(tmp_path / "c")
        counts.append(int(capture.bins["packets"].sum()))
        cut_short = any("cut short" in text or "empty" in text for text in capture.warnings)
        assert cut_short == (not whole[:cut].endswith(b"\n"))
    assert counts == sorted(counts)
    assert counts[-1] == int(FLOOD[:1]["packets"].sum())


def test_limits_of_both_directions_come_back(tmp_path: Path) -> None:
    limits = {Direction.INBOUND: Limit(5, 7, 11, 13), OUT: Limit(None, 0, None, None)}
    live = reading(limits=limits, at=datetime(2026, 11, 22, tzinfo=timezone.utc), start_ns=5)
    with CaptureWriter(tmp_path / "c", manifest("tap0")) as writer:
        writer.finish(Totals([live]))
    assert same(load(os.fspath(tmp_path / "c")).reading(), live)
