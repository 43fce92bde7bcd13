# SPDX-License-Identifier: Apache-2.0
"""`watch --json` and `watch --csv`: the contract that scripts rely on."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import render_kit as kit

from vifprobe.model.flood import Flood, Measure
from vifprobe.model.host_cost import HostCost
from vifprobe.model.layout import Direction, Expected, PacketClass, Verdict
from vifprobe.model.reading import Counts, Reading, count, no_cells
from vifprobe.render.export.csvlines import csv_header, csv_rows
from vifprobe.render.export.jsonlines import dumps, reading_line, reading_object
from vifprobe.render.text.lines import interval_line

COUNTS = ["packets", "frame_bytes", "charged_bytes", "wire_bytes"]
LIMITS = ["declared_bps", "installed_bps", "installed_pps", "burst_bytes"]
OUTCOMES = ["passed", "policed", "dropped"]


def parsed(reading: Reading) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(dumps(reading_object(reading)))
    return found


def test_every_key_of_the_contract_in_its_order() -> None:
    found = parsed(kit.BASE)
    assert list(found) == [
        *("schema", "tap", "at", "start_ns", "duration_ns", "final"),
        *("outbound", "inbound", "missed", "verdicts", "host", "findings", "flood"),
        *("gone", "gone_ns", "kind", "guest_port"),
        *("missed_bytes", "late_verdicts", "recursion_misses"),
    ]
    both = ["offered", *OUTCOMES, "bypass", "overpoliced", "classes", "limit", "what_if", "unsized"]
    assert list(found["outbound"]) == both
    assert sorted(found["inbound"]) == sorted([*both, "queued"])
    assert list(found["outbound"]["offered"]) == COUNTS
    assert list(found["outbound"]["limit"]) == [
        *LIMITS,
        *("state", "traffic", "doubt"),
    ]
    assert list(found["outbound"]["classes"]) == [code.name.lower() for code in PacketClass]
    assert all(list(entry) == ["offered", *OUTCOMES] for entry in found["outbound"]["classes"].values())
    assert list(found["findings"][0]) == ["id", "pattern", "severity", "title"]


def test_what_escaped_the_programs_comes_through() -> None:
    found = parsed(replace(kit.BASE, missed_bytes=1009, late_verdicts=13, recursion_misses=17))
    assert (found["missed_bytes"], found["late_verdicts"], found["recursion_misses"]) == (1009, 13, 17)


def test_values_come_through() -> None:
    found = parsed(replace(kit.at(3), missed=13, final=True))
    assert found["schema"] == 1
    assert (found["tap"], found["at"]) == (kit.TAP, "2026-11-22T05:12:47.123456+00:00")
    assert (found["start_ns"], found["duration_ns"]) == (3_000_000_000, 1_000_000_000)
    assert (found["missed"], found["verdicts"], found["final"]) == (13, "reason", True)
    assert found["outbound"]["limit"] == {
        "declared_bps": 100_000_000,
        "installed_bps": 100_000_000,
        "installed_pps": None,
        "burst_bytes": 3_200_000,
        "state": "there",
        "traffic": "holds",
        "doubt": None,
    }
    syn = found["outbound"]["classes"]["tcp_syn"]
    assert (syn["offered"]["packets"], syn["policed"]["packets"]) == (90001 + 169991, 169991)
    assert syn["offered"]["charged_bytes"] == 40 * (90001 + 169991)


def test_classes_and_verdicts_add_up_in_every_counter() -> None:
    outbound = parsed(kit.BASE)["outbound"]
    for name in COUNTS:
        assert sum(outbound[outcome][name] for outcome in OUTCOMES) == outbound["offered"][name]
        for outcome in ("offered", *OUTCOMES):
            classes = outbound["classes"].values()
            assert sum(entry[outcome][name] for entry in classes) == outbound[outcome][name]


def test_unknown_is_null_and_never_0() -> None:
    inbound = parsed(kit.unfollowed())["inbound"]
    assert inbound["offered"]["packets"] == 1201
    for name in (*OUTCOMES, "queued", "bypass", "overpoliced"):
        assert inbound[name] is None
    assert inbound["classes"]["icmp"]["passed"] is None
    assert inbound["classes"]["udp"]["passed"]["packets"] == 0  # none was offered, so none passed
    assert {inbound["limit"][name] for name in LIMITS} == {None}
    assert (inbound["limit"]["state"], inbound["limit"]["traffic"]) == ("none", "unknown")
    unknown = parsed(replace(kit.unfollowed(), limit_states={}))["inbound"]["limit"]
    assert (unknown["state"], unknown["traffic"], unknown["doubt"]) == ("unknown", "unknown", None)
    assert parsed(replace(kit.BASE, verdicts=""))["verdicts"] is None


def test_inbound_packets_have_their_verdicts_and_the_queue_is_a_gauge() -> None:
    inbound = parsed(kit.BASE)["inbound"]
    packets = {name: inbound[name]["packets"] for name in ("offered", *OUTCOMES, "queued")}
    assert packets == {"offered": 1201, "passed": 1181, "policed": 7, "dropped": 11, "queued": 5}
    assert inbound["classes"]["icmp"]["policed"]["packets"] == 7
    assert parsed(replace(kit.BASE, final=True))["inbound"]["queued"]["packets"] == 2


def test_a_direction_that_nobody_watched_is_unknown_not_silent() -> None:
    inbound = parsed(replace(kit.BASE, directions=(Direction.OUTBOUND,)))["inbound"]
    for name in ("offered", *OUTCOMES, "queued", "bypass", "overpoliced"):
        assert inbound[name] is None
    assert inbound["classes"]["tcp_syn"] == dict.fromkeys(["offered", *OUTCOMES])


def test_bypass_and_overpoliced_need_a_limit_to_be_held_against() -> None:
    assert parsed(kit.BASE)["outbound"]["bypass"] is None
    reading = kit.alone(
        kit.cell(101, 54, PacketClass.UDP, expected=Expected.EXCEED),
        kit.cell(103, 54, PacketClass.UDP, Verdict.POLICED, expected=Expected.CONFORM),
        kit.cell(107, 54, PacketClass.UDP, expected=Expected.CONFORM),
    )
    outbound = parsed(reading)["outbound"]
    assert (outbound["bypass"]["packets"], outbound["overpoliced"]["packets"]) == (101, 103)


def test_one_line_of_ascii_whatever_the_name() -> None:
    name = 'x\n"\x1b[2J\u2028名\udcff'
    line = dumps(reading_object(replace(kit.BASE, tap=name)))
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["tap"] == name


RENDERERS = [
    *("export.jsonlines", "export.csvlines", "units"),
    *("text.lines", "text.summary", "text.taps", "text.doctor", "text.terminal"),
]


@pytest.mark.parametrize("module", RENDERERS)
def test_what_needs_no_screen_does_not_import_rich(module: str) -> None:
    code = f"import sys, vifprobe.render.{module}; sys.exit(any(name.split('.')[0] == 'rich' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_csv_adds_up_to_the_reading() -> None:
    intervals = [kit.at(number) for number in range(3)]
    text = csv_header() + "".join(csv_rows(reading) for reading in intervals)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == [
        *("at", "tap", "direction", "start_ns", "duration_ns", "packet_class", "verdict"),
        *COUNTS,
        "gone",
    ]
    for direction in Direction:
        mine = [row for row in rows if row["direction"] == direction.name.lower()]
        ended = [row for row in mine if row["verdict"] != "queued"]
        total = Counts(*(sum(int(row[name]) for row in ended) for name in COUNTS))
        waiting = [count(reading.where(direction, Verdict.QUEUED)) for reading in intervals]
        assert total + sum(waiting, Counts()) == sum((reading.offered(direction) for reading in intervals), Counts())
        gauge = [int(row["packets"]) for row in mine if row["verdict"] == "queued"]
        assert gauge == ([5] * 3 if direction is Direction.INBOUND else [])
    assert {row["verdict"] for row in rows if row["direction"] == "inbound"} == {*OUTCOMES, "queued"}
    unknown = list(csv.DictReader(io.StringIO(csv_header() + csv_rows(kit.unfollowed()))))
    assert {row["verdict"] for row in unknown if row["direction"] == "inbound"} == {""}
    assert len({tuple(row[name] for name in ("at", "direction", "packet_class", "verdict")) for row in rows}) == len(
        rows
    )


def test_csv_leaves_the_totals_out_and_makes_names_safe() -> None:
    assert csv_rows(replace(kit.BASE, final=True)) == ""
    row = next(csv.reader(io.StringIO(csv_rows(replace(kit.BASE, tap='=cmd|"x"!A1\n')))))
    assert row[1] == '\'=cmd|"x"!A1\\x0a'


def test_a_deleted_tap_is_marked_in_json_and_csv() -> None:
    """Also where its last interval has no packets: a row of none then says it, in each direction."""
    found = parsed(replace(kit.BASE, gone_ns=3_217_000_000))
    assert (found["gone"], found["gone_ns"]) == (True, 3_217_000_000)
    assert (parsed(kit.BASE)["gone"], parsed(kit.BASE)["gone_ns"]) == (False, None)
    busy = replace(kit.BASE, gone_ns=1)
    silent = replace(busy, cells=no_cells(), queued=no_cells())
    rows = [list(csv.DictReader(io.StringIO(csv_header() + csv_rows(one)))) for one in (kit.BASE, busy, silent)]
    assert {row["gone"] for row in rows[0]} == {"false"}
    assert {row["gone"] for row in rows[1]} == {"true"}
    names = ("direction", "packet_class", "verdict", "packets", "gone")
    found_rows = [tuple(row[name] for name in names) for row in rows[2]]
    assert found_rows == [(direction, "", "", "0", "true") for direction in ("outbound", "inbound")]


def test_a_reading_that_repeats_another_one_is_written_as_it_would_be_alone() -> None:
    """Text that is used again differs where the reading does: in its times, in what the host did."""
    flood = {one: Flood({"seconds": Measure(1.0, "s"), "syn_packets": Measure(0, "packets")}) for one in Direction}
    base = replace(kit.BASE, cells=no_cells(), flood=flood)
    for number, tap in enumerate(("tap0", "tap1", "tap0", 'tap"0')):
        own = base if tap == "tap0" else replace(base, tap=tap)
        for host in (None, HostCost(number, 1_009, ()), HostCost(number, 1_009, (), pid=97)):
            seconds = Measure(1.009 + number, "s")
            later = replace(
                kit.at(number + 1, own),
                duration_ns=1_009_000_000 + number,
                host=host,
                flood={one: Flood({**found.measures, "seconds": seconds}) for one, found in flood.items()},
            )
            assert reading_line(replace(later, repeats=own)) == dumps(reading_object(later))
            assert interval_line(replace(later, repeats=own)) == interval_line(later)
