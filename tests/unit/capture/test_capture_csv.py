# SPDX-License-Identifier: Apache-2.0
"""The CSV contract: names and order of columns, what a cell may hold, what a reader says of damage."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
import pytest
from capture_kit import OUT
from hypothesis import example, given
from hypothesis import strategies as st

from vifprobe.capture.codecs import decode_text, encode_text
from vifprobe.capture.csvio import (
    DROPS,
    EVENTS,
    FLOOD,
    HISTOGRAM,
    POLICER,
    RECONCILE,
    TABLES,
    TIMELINE,
    Table,
    decode,
)
from vifprobe.capture.rows import DropRow, EventRow, FloodRow, HistogramRow, PolicerRow, ReconcileRow, TimelineRow
from vifprobe.errors import CaptureError
from vifprobe.model.layout import Direction, Ethertype, Expected, PacketClass, Verdict

# The contract, typed here a second time on purpose: users' scripts rest on it.
COLUMNS = {
    "histogram.csv": "tap,direction,ethertype,packet_class,size_min_bytes,size_max_bytes,verdict,expected,packets,"
    "frame_bytes,charged_bytes,wire_bytes",
    "timeline.csv": "tap,direction,start_ns,duration_ns,verdict,packets,frame_bytes,syn_packets",
    "drops.csv": "tap,direction,reason,location,packets,frame_bytes",
    "lost.csv": "tap,direction,ethertype,packet_class,size_min_bytes,size_max_bytes,verdict,expected,reason_code,"
    "reason,packets,frame_bytes,charged_bytes,wire_bytes",
    "policer.csv": "tap,direction,source,kind,rate_bps,burst_bytes,rate_pps,protocol,matches_declared,packets,bytes,"
    "drops",
    "reconcile.csv": "tap,direction,counter,before,after,delta,vifprobe_low,vifprobe_high,agrees",
    "flood.csv": "tap,direction,measure,value,unit",
    "top.csv": "tap,direction,kind,key,packets,frame_bytes,error_max",
    "host.csv": "start_ns,duration_ns,scope,name,pid,context_switches_voluntary,context_switches_involuntary,cpu_ns",
    "events.csv": "at_ns,tap,kind,detail,by_pid,by_comm",
    "whatif.csv": "tap,direction,limit,packet_class,passed_packets,passed_frame_bytes,stopped_packets,"
    "stopped_frame_bytes",
}
HOSTILE = (
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    " =1",
    "'",
    "''=1",
    "'=1",
    "a;=1",
    'a"b',
    "a,b",
    "\\",
)


def test_every_table_has_its_contract_columns_in_order() -> None:
    assert {table.file: table.header().decode() for table in TABLES} == {
        file: columns + "\n" for file, columns in COLUMNS.items()
    }


@given(st.text())
@example("\ud83d lone surrogate")
@example("\\x41 \\u0041 \\U00000041 \\\\ \\")
@example("\u202egnp.exe")
def test_text_cell_round_trips(text: str) -> None:
    assert decode_text(encode_text(text)) == text


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_round_trips_and_starts_no_formula(text: str) -> None:
    cell = encode_text(text)
    assert decode_text(cell) == text
    assert cell.lstrip(" ")[:1] not in set("=+-@\t\r\n")


@given(st.text())
def test_text_cell_is_harmless(text: str) -> None:
    """No control character, line break or bidi override survives, and no formula starts."""
    cell = encode_text(text)
    assert cell.isprintable()
    assert cell.lstrip(" ")[:1] not in set("=+-@")


@given(st.lists(st.tuples(st.text(), st.text(), st.one_of(st.none(), st.integers(0, 2**63 - 1)), st.text())))
def test_rows_of_text_round_trip_one_line_each(texts: list[tuple[str, str, int | None, str]]) -> None:
    rows = tuple(EventRow(-5, tap, "qdisc", detail, pid, comm) for tap, detail, pid, comm in texts)
    data = EVENTS.header() + EVENTS.encode(rows)
    assert decode(EVENTS, data).rows == rows
    assert data.count(b"\n") == len(rows) + 1
    assert b"\r" not in data


@given(st.lists(st.text(alphabet=st.characters(codec="utf-8")), min_size=1))
def test_other_csv_readers_see_the_same_cells(texts: list[str]) -> None:
    """Plain csv.reader splits the lines as we do: quoting is RFC 4180."""
    rows = [DropRow(text, OUT, text, "", 5, 7) for text in texts]
    read = list(csv.reader(io.StringIO(DROPS.encode(rows).decode(), newline="")))
    assert [line[0] for line in read] == [encode_text(text) for text in texts]
    assert {len(line) for line in read} == {6}


def test_cells_are_written_as_the_contract_says() -> None:
    row = HistogramRow(
        "tap0",
        OUT,
        Ethertype.IPV4,
        PacketClass.TCP_SYN,
        65536,
        None,
        Verdict.UNKNOWN,
        Expected.NONE,
        1_000_003,
        60_000_180,
        46_000_138,
        84_000_252,
    )
    assert HISTOGRAM.encode([row]) == b"tap0,outbound,ipv4,tcp_syn,65536,,,,1000003,60000180,46000138,84000252\n"
    full = row._replace(size_max_bytes=7, verdict=Verdict.POLICED, expected=Expected.EXCEED)
    assert b",7,policed,exceed," in HISTOGRAM.encode([full])
    reconciled = ReconcileRow("tap0", OUT, "device rx_packets", 5, 18, 13, 13, 13, True)
    assert RECONCILE.encode([reconciled]) == b"tap0,outbound,device rx_packets,5,18,13,13,13,true\n"
    assert RECONCILE.encode([reconciled._replace(agrees=None, before=None)]).endswith(b",,18,13,13,13,\n")


ROWS: list[tuple[Table[Any], tuple[Any, ...]]] = [
    (TIMELINE, TimelineRow("tap0", OUT, -3, 10_000_000, Verdict.DROPPED, 7, 420, 5)),
    (POLICER, PolicerRow("tap0", OUT, "libvirt", "u32", 10**8, None, None, "all", False, 3, 5, None)),
    (FLOOD, FloodRow("tap0", OUT, "syn_share", 0.000000123, "ratio")),
    (FLOOD, FloodRow("tap0", OUT, "syn_packets", 100_003, "packets")),
    (FLOOD, FloodRow("tap0", OUT, "half_open", None, "packets")),
]


@pytest.mark.parametrize(("table", "row"), ROWS)
def test_typed_rows_round_trip(table: Table[Any], row: tuple[Any, ...]) -> None:
    data = table.header() + table.encode([row])
    assert decode(table, data).rows == (row,)
    assert b"e-" not in data


def test_numbers_from_numpy_are_written_as_whole_numbers() -> None:
    numpy_row: Any = DropRow("t", OUT, "R", "f", np.int64(5), np.uint64(7))  # type: ignore[arg-type]
    assert DROPS.encode([numpy_row]) == b"t,outbound,R,f,5,7\n"
    with pytest.raises(ValueError, match="float"):
        DROPS.encode([DropRow("t", OUT, "R", "f", 5.0, 7)])  # type: ignore[arg-type]


@given(st.floats())
def test_decimals_never_have_an_exponent(value: float) -> None:
    cell = FLOOD.encode([FloodRow("t", OUT, "m", value, "u")]).decode().split(",")[3]
    assert "e" not in cell
    assert "n" not in cell
    assert (float(cell) == value) if cell else (value != value or abs(value) == float("inf"))


HEADER = DROPS.header()
LINE = b"tap0,outbound,TC_INGRESS,0x1,5,7\n"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", r"drops\.csv: line 1 is missing"),
        (HEADER.replace(b"reason,", b""), r"drops\.csv: line 1 lacks the column reason"),
        (HEADER.replace(b"reason", b"tap"), r"line 1 lacks the column reason"),
        (HEADER.replace(b"\n", b",tap\n"), r"line 1 has the column 'tap' more than once"),
        (HEADER + LINE + LINE[:-1], r"drops\.csv: the last line does not end"),
        (HEADER + LINE + b"tap0,outbound\n", r"line 3 has 2 cells"),
        (HEADER + LINE + b"\n", r"line 3 has 1 cells"),
        (HEADER + LINE.replace(b"outbound", b"sideways"), r"line 2: direction is 'sideways'"),
        (HEADER + LINE.replace(b",5,", b",-5,"), r"line 2: packets is '-5'"),
        (HEADER + LINE.replace(b",5,", b",,"), r"line 2: packets is ''"),
        (HEADER + LINE.replace(b",5,", b",5.0,"), r"line 2: packets is '5\.0'"),
        (HEADER + LINE.replace(b",5,", b",1_0,"), r"line 2: packets is '1_0'"),
        (HEADER + LINE.replace(b",5,", " ٣,".encode()), r"line 2 has 5 cells"),
        (HEADER + LINE.replace(b",5,", ",٣,".encode()), r"line 2: packets is "),
        (HEADER + LINE.replace(b",5,", b",9223372036854775808,"), r"line 2: packets is '9223372036854775808'"),
        (HEADER + LINE.replace(b",5,", b"," + b"9" * 5000 + b","), r"line 2: packets is '9{59}…"),
        (HEADER + LINE + b'"tap0,outbound,R,f,5,7\n', r"line 3: unexpected end of data"),
        (HEADER + LINE + b"tap\xff,outbound,R,f,5,7\n", r"line 3 is not UTF-8"),
        (HEADER + LINE.replace(b"\n", b"\r\n"), r"line 2: frame_bytes is '7\\r'"),
    ],
)
def test_damage_is_named_with_its_line(data: bytes, told: str) -> None:
    with pytest.raises(CaptureError, match=told):
        decode(DROPS, data)


def test_error_text_never_carries_control_characters() -> None:
    with pytest.raises(CaptureError) as caught:
        decode(DROPS, HEADER + LINE.replace(b",5,", b",\x1b[2J,"))
    assert "\x1b" not in str(caught.value)


def test_largest_count_is_read() -> None:
    data = HEADER + LINE.replace(b",5,", b",9223372036854775807,")
    assert decode(DROPS, data).rows[0].packets == 2**63 - 1


def test_unknown_columns_are_left_out_with_a_warning() -> None:
    data = b'color,"a,b",' + HEADER + b'red,"x,y",' + LINE
    decoded = decode(DROPS, data)
    assert decoded.rows == (DropRow("tap0", OUT, "TC_INGRESS", "0x1", 5, 7),)
    assert len(decoded.warnings) == 1
    assert "color" in decoded.warnings[0]


def test_columns_are_found_by_name_in_any_order() -> None:
    data = b"frame_bytes,packets,location,reason,direction,tap\n7,5,f,R,inbound,tap0\n"
    assert decode(DROPS, data).rows == (DropRow("tap0", Direction.INBOUND, "R", "f", 5, 7),)


@pytest.mark.parametrize("cut", range(1, len(LINE)))
def test_a_line_cut_short_by_a_kill_is_left_out_and_said(cut: int) -> None:
    decoded = decode(DROPS, HEADER + LINE + LINE[:cut], finished=False)
    assert len(decoded.rows) == 1
    assert "line 3 is cut short" in decoded.warnings[0]


@pytest.mark.parametrize("data", [b"", HEADER[:7]])
def test_a_file_killed_before_its_header_has_no_rows(data: bytes) -> None:
    decoded = decode(DROPS, data, finished=False)
    assert decoded.rows == ()
    assert decoded.warnings


def test_a_cut_in_the_middle_of_a_character_is_a_cut_line() -> None:
    data = HEADER + LINE + "täp".encode()[:2]
    assert len(decode(DROPS, data, finished=False).rows) == 1
