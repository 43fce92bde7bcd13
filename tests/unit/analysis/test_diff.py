# SPDX-License-Identifier: Apache-2.0
"""`vifprobe diff`: rates of two captures side by side, findings that came and went."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import capture_kit as kit
import pytest
from click.testing import CliRunner

from vifprobe.analysis.difference import MeasureChange, difference, paired
from vifprobe.capture.writer import CaptureWriter, Totals
from vifprobe.commands.diff import command
from vifprobe.errors import EXIT_FINDING
from vifprobe.model.layout import Direction, PacketClass, Verdict
from vifprobe.model.reading import Finding, Limit, Reading
from vifprobe.render.text.difference import figure

SECONDS_BEFORE, SECONDS_AFTER = 7, 13
GONE = Finding("absent", "P1", "critical", "No policer", {"declared_bps": 7}, "Add it")
STILL = Finding("small", "P6", "warning", "Small packets", {"ratio": 1.5}, "Add pps")
NEW = Finding("burst", "P11", "warning", "Wrong burst", {"burst": 3}, "Mend it")


def run(seconds: int, syns: int, policed: int, *findings: Finding, **fields: Any) -> Reading:
    table = kit.cells(
        kit.cell(syns - policed, 54, packet_class=PacketClass.TCP_SYN, verdict=Verdict.PASSED),
        kit.cell(policed, 54, packet_class=PacketClass.TCP_SYN, verdict=Verdict.POLICED, reason=6),
    )
    given = {"duration_ns": seconds * 10**9, "findings": findings, "directions": (Direction.OUTBOUND,)}
    return replace(kit.reading(table=table), **{**given, **fields})


BEFORE = run(SECONDS_BEFORE, 70_007, 7, GONE, STILL)
AFTER = run(SECONDS_AFTER, 260_013, 130_013, STILL, NEW)


def changes(before: Reading, after: Reading) -> dict[str, MeasureChange]:
    return {change.measure: change for change in difference(before, after).changes}


def captured(directory: Path, *readings: Reading) -> str:
    with CaptureWriter(directory, kit.manifest(*(reading.tap for reading in readings))) as writer:
        writer.finish(Totals(list(readings), kit.REASONS))
    return str(directory)


def test_rates_not_counts_are_held_against_each_other() -> None:
    found = changes(BEFORE, AFTER)
    assert (found["offered"].before, found["offered"].after) == (70_007 / 7, 260_013 / 13)
    assert (found["tcp_syn passed"].before, found["tcp_syn passed"].after) == (10_000, 10_000)
    assert found["policed on wire"].after == 130_013 * 84 * 8 / SECONDS_AFTER
    assert found["offered"].factor == (260_013 / 13) / (70_007 / 7)


def test_findings_are_told_apart() -> None:
    found = difference(BEFORE, AFTER)
    assert (found.gone, found.new, found.still) == ((GONE,), (NEW,), (STILL,))


def test_what_is_unknown_in_one_run_stays_unknown() -> None:
    blind = replace(BEFORE, cells=kit.cells(kit.cell(17, packet_class=PacketClass.UDP, verdict=Verdict.UNKNOWN)))
    found = changes(blind, AFTER)
    assert found["passed"].before is None
    assert found["passed"].factor is None
    assert found["udp offered"].after == 0
    assert "dropped" in found
    other = replace(AFTER, directions=(Direction.INBOUND,))
    assert {change.after for change in difference(BEFORE, other).changes if change.measure == "offered"} == {None, 0}


def test_limits_before_and_after() -> None:
    installed = replace(AFTER, limits={Direction.OUTBOUND: Limit(100_000_000, 99_999_744, None, 3_200_000)})
    found = changes(BEFORE, installed)
    assert (found["installed"].before, found["installed"].after) == (None, 99_999_744)
    assert found["declared"].factor == 1


def test_taps_are_paired_by_name_and_two_single_ones_anyway() -> None:
    a, b, c = (replace(BEFORE, tap=name) for name in ("tap-a", "tap-b", "tap-c"))
    assert paired([a], [b]) == [(a, b)]
    assert paired([a, b], [b, c]) == [(b, b)]


def test_the_command_as_text_and_as_json(tmp_path: Path) -> None:
    dirs = [captured(tmp_path / "before", BEFORE), captured(tmp_path / "after", AFTER)]
    text = CliRunner().invoke(command, dirs)
    assert text.exit_code == 0, text.output
    assert max(map(len, text.output.splitlines())) <= 80
    for words in ("GONE", "NEW", "STILL", "tcp syn offered", "+100 %"):
        assert words in text.output
    found = json.loads(CliRunner().invoke(command, [*dirs, "--json"]).output)
    offered = next(change for change in found["taps"][0]["changes"] if change["measure"] == "offered")
    assert offered["before"] == 70_007 / 7
    assert [finding["id"] for finding in found["taps"][0]["findings"]["new"]] == ["burst"]


def test_fail_on_looks_at_new_findings_only(tmp_path: Path) -> None:
    dirs = [captured(tmp_path / "before", BEFORE), captured(tmp_path / "after", AFTER)]
    assert CliRunner().invoke(command, [*dirs, "--fail-on", "warning"]).exit_code == EXIT_FINDING
    assert CliRunner().invoke(command, [*dirs, "--fail-on", "critical"]).exit_code == 0
    assert CliRunner().invoke(command, [*reversed(dirs), "--fail-on", "critical"]).exit_code == EXIT_FINDING


def test_captures_without_a_common_tap_are_refused(tmp_path: Path) -> None:
    pair = [replace(BEFORE, tap=name) for name in ("tap-a", "tap-b", "tap-c", "tap-d")]
    done = CliRunner().invoke(command, [captured(tmp_path / "x", *pair[:2]), captured(tmp_path / "y", *pair[2:])])
    assert "tap-a, tap-b, and tap-c, tap-d" in str(done.exception)


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [(None, "bit/s", "?"), (1e8, "bit/s", "100 Mbit/s"), (0, "packets/s", "0/s"), (3_200_000, "bytes", "3125kb")],
)
def test_figures_are_written_in_their_unit(value: float | None, unit: str, shown: str) -> None:
    assert figure(value, unit) == shown
