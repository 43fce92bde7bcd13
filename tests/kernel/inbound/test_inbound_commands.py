# SPDX-License-Identifier: Apache-2.0
"""Inbound verdicts as a user gets them, by default: in every file of a capture and in each line of `watch --json`."""

from __future__ import annotations

import json
from pathlib import Path

from inbound_kit import IN, SECONDS, neighbour, senders, statistics, tc
from probe_kit import FIRST_CPU, SYN, capturing, watching
from test_inbound import make_htb

from vifprobe import load
from vifprobe.model.layout import Verdict
from vifprobe.model.reading import count
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.waiting import wait_until

COUNT = 5_003
VERDICTS = (Verdict.PASSED, Verdict.POLICED, Verdict.DROPPED, Verdict.QUEUED)


def test_a_shaped_tap(tap: Tap, tmp_path: Path) -> None:
    """`capture` and `watch --json` at once: each adds up to what was sent, and policed is what the queue dropped."""
    make_htb(tap, "8kbit", 127)
    with (
        neighbour(tap) as other,
        senders((other, COUNT, FIRST_CPU)) as (writer,),
        watching(tmp_path, "--interval", "100ms") as watch,
        capturing(tmp_path) as capture,
    ):
        writer.start()
        writer.wait()
        summary, lines = capture.end(), watch.end().splitlines()
        leaf = statistics("qdisc", "tap0", "2:")
    *intervals, final = map(json.loads, lines)
    check_json(intervals, final, leaf["drops"])
    found = load(tmp_path / "capture")
    reading = found.reading()
    packets = {verdict: count(reading.where(IN, verdict)).packets for verdict in VERDICTS}
    assert sum(packets.values()) + reading.missed == COUNT
    assert packets[Verdict.POLICED] == leaf["drops"] > COUNT // 2
    assert packets[Verdict.QUEUED] >= leaf["qlen"]
    for verdict in VERDICTS:
        rows = found.bins[(found.bins["verdict"] == verdict) & (found.bins["direction"] == IN)]
        assert int(rows["packets"].sum()) == packets[verdict]
    dropped = [row for row in found.drops if row.direction is IN]
    assert sum(row.packets for row in dropped) == leaf["drops"]
    assert sum(row.frame_bytes for row in dropped) == leaf["drops"] * len(SYN)
    assert not [row for row in found.reconcile if row.agrees is False]
    drops = next(row for row in found.reconcile if row.counter == "tc root drops")
    assert (drops.delta, drops.vifprobe_low) == (leaf["drops"], leaf["drops"])
    assert f"queued {packets[Verdict.QUEUED]}" in summary


def test_a_backlog_that_shrinks(tap: Tap, tmp_path: Path) -> None:
    """What waited at the start has gone at the end: a gauge below where it began, which the reader takes."""
    make_htb(tap, "8kbit", 127)
    with neighbour(tap) as other, senders((other, COUNT, FIRST_CPU)) as (writer,):
        writer.start()
        writer.wait()
        waiting = statistics("qdisc", "tap0", "2:")["qlen"]
        assert waiting > 100
        with capturing(tmp_path) as capture:
            tc("class", "change", "dev", "tap0", "parent", "1:", "classid", "1:1", "htb", "rate", "1gbit")
            wait_until(lambda: not statistics("qdisc", "tap0", "2:")["qlen"], SECONDS)
            capture.end()
    found = load(tmp_path / "capture")
    backlog = next(row for row in found.reconcile if row.counter == "tc root backlog")
    assert (backlog.before, backlog.after) == (-(backlog.delta or 0), 0)
    assert 50 < (backlog.before or 0) <= waiting
    assert found.manifest.complete


def check_json(intervals: list[dict[str, object]], final: dict[str, object], policed: int) -> None:
    """The queue is a gauge in intervals, and what is left of it in the totals."""
    told = [_packets(one) for one in (*intervals, final)]
    *parts, total = told
    assert sum(total[name] for name in ("passed", "policed", "dropped", "queued")) == total["offered"]
    assert total["offered"] + int(str(final["missed"])) == COUNT
    assert total["policed"] == policed
    for name in ("offered", "passed", "policed", "dropped"):
        assert sum(one[name] for one in parts) == total[name]
    assert parts[-1]["queued"] == total["queued"] > 50


def _packets(line: dict[str, object]) -> dict[str, int]:
    inbound = line["inbound"]
    assert isinstance(inbound, dict)
    return {name: inbound[name]["packets"] for name in ("offered", "passed", "policed", "dropped", "queued")}
