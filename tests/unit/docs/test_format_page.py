# SPDX-License-Identifier: Apache-2.0
"""docs/capture-format.md against the code: each CSV column, manifest key and JSON key is on both sides."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any

import capture_kit
import pytest
import render_kit

from vifprobe.analysis.limit_state import limit_answer
from vifprobe.analysis.policer import PolicerRow, SetUp
from vifprobe.capture.csvio import TABLES
from vifprobe.capture.findings import findings_json
from vifprobe.capture.manifest import CoverageGap, SampleCounts, to_json
from vifprobe.commands import policer
from vifprobe.host.net.changes import EventKind
from vifprobe.model.flood import Flood, Measure, Top
from vifprobe.model.host_cost import HostCost, ScopeCost
from vifprobe.model.layout import Direction, Ethertype, Expected, PacketClass, Verdict
from vifprobe.model.limits import DeclaredLimit, Doubt, InstalledLimit, LimitAnswer, LimitState, Traffic
from vifprobe.model.reading import Counts, Limit, Reading
from vifprobe.model.records import HostScope
from vifprobe.model.whatif import WhatIfRow
from vifprobe.render.export.csvlines import WATCH
from vifprobe.render.export.jsonlines import reading_object
from vifprobe.render.text.doctor import Check, CheckState
from vifprobe.render.text.replay import replay_object
from vifprobe.render.text.taps import TapRow
from vifprobe.replay.notes import ReplayNotes
from vifprobe.session.audit.snapshot import PolicerReport

PAGE = (Path(__file__).parents[3] / "docs/capture-format.md").read_text()
OUT, IN = Direction.OUTBOUND, Direction.INBOUND
AT = datetime(2026, 11, 22, tzinfo=timezone.utc)
COUNTS, LOAD = set(Counts._fields), {"cpu_ns", "voluntary", "involuntary"}


def section(title: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    (body,) = re.findall(rf"^### {re.escape(title)}\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in body.splitlines() if line[:1] == "|"]
    return rows[2:]


def keys(title: str) -> set[str]:
    """Documented keys, without those that only say that something is an object or a list of objects."""
    found = [row[0] for row in section(title)]
    assert len(found) == len(set(found))
    return {key for key in found if not any(other.startswith((f"{key}.", f"{key}[")) for other in found)}


def flat(value: Any, patterns: set[str], at: str = "") -> Iterator[str]:
    """Path of each value. patterns: documented paths, of which a `*` takes any name."""
    if isinstance(value, dict):
        if set(value) == COUNTS or (set(value) == LOAD and not at.endswith("[]")):
            yield at
            return
        for name, inner in value.items():
            star = f"{at}.*" if at else "*"
            is_any = any(one == star or one.startswith((f"{star}.", f"{star}[")) for one in patterns)
            yield from flat(inner, patterns, star if is_any else f"{at}.{name}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from flat(inner, patterns, f"{at}[]")
    else:
        yield at


def check(title: str, value: Any, *more: str) -> None:
    """Fail where the keys of a value and of its section differ. more: titles of sections that go with it."""
    patterns = {row[0] for name in (title, *more) for row in section(name)}
    leaves = {key for name in (title, *more) for key in keys(name)}
    # Where an object has counts of its own and something below them, both are documented.
    found = {
        re.sub(rf"\.({'|'.join(COUNTS | LOAD)})$", "", path) if path not in patterns else path
        for path in flat(json.loads(json.dumps(value)), patterns)
    }
    assert found - patterns == set()
    assert leaves - found == set()


@pytest.mark.parametrize("table", [*TABLES, WATCH], ids=[table.file for table in (*TABLES, WATCH)])
def test_each_column_in_the_order_of_the_file(table: Any) -> None:
    rows = section(table.file)
    assert [row[0] for row in rows] == list(table.columns)
    assert all(len(row) == 3 and all(row) for row in rows)


def test_every_row_has_unit_and_meaning() -> None:
    for title in re.findall(r"^### (.+)$", PAGE, re.MULTILINE):
        assert all(len(row) == 3 and all(row) for row in section(title)), title


def test_every_code() -> None:
    for codes in (Direction, Ethertype, PacketClass, Verdict, Expected):
        for code in codes:
            if code not in (Verdict.UNKNOWN, Expected.NONE):
                assert f"`{code.name.lower()}`" in PAGE
    for kind in EventKind.__args__:  # type: ignore[attr-defined]
        assert f"`{kind}`" in PAGE


@pytest.mark.parametrize("words", [LimitState, Traffic, Doubt])
def test_every_word_for_the_state_of_a_limit(words: type[Enum]) -> None:
    assert {row[0] for row in section(words.__name__)} == {one.value for one in words}


def test_manifest() -> None:
    begun = capture_kit.manifest("tap0")
    (tap,) = begun.taps
    seen = replace(tap, missed_in={OUT: 1}, limits={OUT: Limit()}, notes=("one",), limit_states={OUT: LimitAnswer()})
    full = replace(
        begun,
        taps=(seen,),
        gaps=(CoverageGap("tap0", 1, 2, "why"),),
        samples=SampleCounts(1, 1, 0, 0),
        left_out={"host.csv": 1},
        sha256={"host.csv": "00"},
    )
    check("manifest.json", json.loads(to_json(full)))


def test_findings() -> None:
    check("findings.json", json.loads(findings_json([("tap0", capture_kit.reading().findings[0])])))


def whole_reading() -> Reading:
    """With everything that a line of JSON can hold."""
    rows = [ScopeCost(scope, scope.value, 7, 1, 1, 1) for scope in HostScope]
    what_if = WhatIfRow(render_kit.TAP, OUT, "pps=50", PacketClass.UDP, 75, 7500, 25, 2500)
    flood = Flood({"seconds": Measure(1, "s")}, (Top("port", "80", 1, 60, 0),))
    return replace(
        render_kit.BASE,
        host=HostCost(0, 1, tuple(rows), 1, 7),
        what_ifs=(what_if,),
        flood={OUT: flood},
    )


def watched() -> dict[str, Any]:
    found = reading_object(whole_reading())
    inbound = found.pop("inbound")
    assert set(inbound) - set(found["outbound"]) == {"queued"}
    return {**found, "outbound": {**inbound, **found["outbound"]}}


def test_watch() -> None:
    check("watch --json", watched())


def test_replay() -> None:
    reading = replace(whole_reading(), notes=("one",), directions=(OUT, IN))
    limit = Limit(declared_bps=1000)
    cells = reading.cells.copy()
    cells["expected"] = Expected.CONFORM
    reading = replace(reading, cells=cells, limits=dict.fromkeys((OUT, IN), limit))
    found = replay_object(reading, {"file": "a", "format": "pcap", **vars(ReplayNotes())})
    found.pop("inbound")
    found["outbound"] = watched()["outbound"]
    check("replay --json", found, "watch --json")


def test_policer(capsys: pytest.CaptureFixture[str]) -> None:
    set_up = SetUp(
        "tap0",
        (DeclaredLimit(OUT, "user", "rate", "tap0", 1000, 10),),
        (InstalledLimit(OUT, "tc", "police", "pref 1", "tap0", 1000, 10),),
        earlier=("a program",),
        enforced_unknown=("tc",),
    )
    report = PolicerReport("tap0", AT, 1, set_up, (OUT,), capture_kit.reading().findings, notes=("one",))
    policer._json(replace(report, limit_states={OUT: limit_answer(set_up, OUT)}))
    check("policer --json", json.loads(capsys.readouterr().out))
    assert set(PolicerRow._fields) == {row[0] for row in section("policer.csv")}


def test_taps_and_doctor() -> None:
    check("taps --json", {"schema": 1, **asdict(TapRow("tap0", not_read=("libvirt: no answer",)))})
    check("doctor --json", {"schema": 1, **asdict(Check("tcx", CheckState.OK)), "state": "ok"})
    assert {field.name for field in fields(TapRow)} < {key.removesuffix("[]") for key in keys("taps --json")}


def test_diff(tmp_path: Path) -> None:
    from vifprobe.analysis.difference import difference
    from vifprobe.capture.reader import load
    from vifprobe.capture.writer import CaptureWriter, Totals
    from vifprobe.render.text.difference import diff_object

    folder = tmp_path / "a"
    with CaptureWriter(folder, capture_kit.manifest("tap0")) as writer:
        writer.finish(Totals([capture_kit.reading()], capture_kit.REASONS))
    capture = load(folder)
    capture = replace(capture, warnings=("one",))
    one = capture_kit.reading()
    found = replace(difference(one, one), gone=one.findings, new=one.findings)
    value = diff_object(capture, capture, [found])
    assert set(value["after"]) == set(value["before"])
    value.pop("after")
    check("diff --json", value)
