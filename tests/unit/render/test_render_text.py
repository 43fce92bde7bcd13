# SPDX-License-Identifier: Apache-2.0
"""What is written where there is no screen: interval lines, summaries, taps, doctor."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import render_kit as kit

from vifprobe.analysis.reconcile import ReconcileRow
from vifprobe.model.layout import Direction
from vifprobe.render.text.doctor import Check, CheckState, doctor_lines
from vifprobe.render.text.lines import interval_line, lines_header
from vifprobe.render.text.summary import summary_lines
from vifprobe.render.text.taps import TapRow, taps_lines
from vifprobe.render.text.terminal import print_lines
from vifprobe.render.units import ASCII, cell_width

HOSTILE = "\x1b[2J[red]\n\u202ex y"
TOTAL = replace(kit.BASE, final=True, duration_ns=2 * kit.SECOND_NS)
COUNTERS = [
    ReconcileRow(kit.TAP, Direction.OUTBOUND, "device rx_packets", 7, 270656, 270649, 270649, 270649, True),
    ReconcileRow(kit.TAP, Direction.OUTBOUND, "tc police drops", 0, 171003, 171003, 171000, 171000, False),
    ReconcileRow(kit.TAP, Direction.OUTBOUND, "nft drops", None, None, None, 171000, 171000, None),
    ReconcileRow("tap-of-someone-else", Direction.OUTBOUND, "other", 0, 1, 1, 0, 0, False),
]


@pytest.fixture(autouse=True)
def _utc() -> Iterator[None]:
    """Clock times on screens are local ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def test_interval_lines_golden() -> None:
    readings = [*kit.history(3), kit.alone(), replace(kit.BASE, directions=(Direction.OUTBOUND,)), TOTAL]
    kit.check_golden("lines", "\n".join([lines_header(), *map(interval_line, readings)]) + "\n")


def test_interval_lines_have_the_same_fields_at_the_same_places() -> None:
    quiet, loud = kit.alone(), kit.BASE
    fields = [interval_line(reading).split() for reading in (quiet, loud)]
    words = [[at for at, word in enumerate(row) if word.isalpha() or "/" in word] for row in fields]
    assert words[0] == words[1]
    assert interval_line(quiet).index("policed") == interval_line(loud).index("policed")


def test_interval_lines_carry_the_readings_numbers() -> None:
    line = interval_line(kit.BASE)
    offered = kit.BASE.offered(Direction.OUTBOUND)
    found = re.search(r"out offered +(\d+) pps +([\d.]+) Mbit/s passed", line)
    assert found is not None
    assert int(found[1]) == offered.packets
    assert float(found[2]) == pytest.approx(offered.frame_bytes * 8 / 1e6, abs=0.05)
    inbound = line.split(" in ")[1]
    assert re.match(r"offered +1201 pps +0.9 Mbit/s passed +1181 pps +0.9 Mbit/s policed +7 pps", inbound)
    assert re.search(r"dropped +11 pps +0.009 Mbit/s queued +5 missed", inbound)
    unknown = interval_line(kit.unfollowed()).split(" in ")[1]
    assert re.match(r"offered +1201 pps +0.9 Mbit/s passed +\? pps +\? Mbit/s policed +\? pps", unknown)
    assert re.search(r"queued +\? missed", unknown)


def test_interval_lines_of_parts_of_a_second_show_it() -> None:
    assert interval_line(replace(kit.BASE, duration_ns=100_000_000)).startswith("05:12:44.123 ")


def test_a_name_stays_one_field() -> None:
    line = interval_line(replace(kit.BASE, tap=HOSTILE))
    assert line.isascii()
    assert line.isprintable()
    assert line.split()[1] == "\\x1b[2J[red]\\x0a\\u202ex\\x20y"


@pytest.mark.parametrize("width", [80, 60])
def test_summary_golden(width: int) -> None:
    lines = summary_lines(TOTAL, kit.CONTEXT, COUNTERS, ["cap/manifest.json", "cap/histogram.csv"], width)
    assert max(cell_width(line.plain) for line in lines) <= width
    kit.check_golden(f"summary-{width}", kit.text_of(lines))


def test_summary_tells_the_story_with_exact_counts() -> None:
    text = kit.text_of(summary_lines(TOTAL, kit.CONTEXT, COUNTERS))
    offered = TOTAL.offered(Direction.OUTBOUND).packets
    assert f"{offered:,}" in text
    assert "policed 171,000 by TC_INGRESS: tc at the tap's ingress" in text
    assert "dropped 601 by NO_TX_TARGET" in text
    assert "1 of 3 counters agree: device rx_packets; cannot be decided: nft drops" in text
    assert "DISAGREES  tc police drops: kernel 171,003, vifprobe 171,000" in text
    assert "someone" not in text
    assert "Ask the owner of the VM." in text


def test_summary_of_an_empty_run() -> None:
    text = kit.text_of(summary_lines(kit.alone(limit=kit.LIMIT)))
    assert "NO TRAFFIC" in text
    assert "tcp_syn" not in text


def test_taps_golden() -> None:
    rows = [
        TapRow("vnet3", outbound_packets=0, inbound_packets=3),
        TapRow(
            kit.TAP,
            bridge="br-int",
            qemu_pid=4711,
            domain="instance-0000002a",
            outbound_packets=123_456_789,
            inbound_packets=7,
            declared_bps=100_000_000,
        ),
        TapRow("macvtap0", "macvtap", outbound_packets=101, inbound_packets=11, outbound_hook="egress"),
    ]
    kit.check_golden("taps", kit.text_of(taps_lines(rows)))
    assert "No taps" in kit.text_of(taps_lines([]))


def test_doctor_golden() -> None:
    checks = [
        Check("tcx", CheckState.OK, "attaches at the head", cost="never shown", remedy="never shown"),
        Check(
            "tracefs", CheckState.MISSING, "not mounted", "drop reasons have no names", "mount -t tracefs tracefs /x"
        ),
        Check("libbpf", CheckState.DEGRADED, "1.0", "no tcx: a tc filter is used, which " * 3, "apt install libbpf1"),
    ]
    text = kit.text_of(doctor_lines(checks))
    kit.check_golden("doctor", text)
    assert "never shown" not in text


def test_outside_text_is_harmless_everywhere() -> None:
    reading = replace(TOTAL, tap=HOSTILE, notes=(HOSTILE,))
    counters = [COUNTERS[0]._replace(tap=HOSTILE, counter=HOSTILE), COUNTERS[1]._replace(tap=HOSTILE, counter=HOSTILE)]
    lines = [
        *summary_lines(reading, replace(kit.CONTEXT, domain=HOSTILE), counters, [HOSTILE]),
        *taps_lines([TapRow(HOSTILE, HOSTILE, HOSTILE, 1, HOSTILE, HOSTILE)]),
        *doctor_lines([Check(HOSTILE, CheckState.MISSING, HOSTILE, HOSTILE, HOSTILE)]),
    ]
    assert all(line.plain.isprintable() for line in lines)


def test_many_counters_of_one_kind_are_summed_up() -> None:
    """A tap under HTB with a class for each tenant, say: hundreds of names would hide the lines that matter."""
    rows = [
        COUNTERS[0]._replace(counter=f"tc class 1:{number:x} {name}", agrees=None)
        for number in range(101)
        for name in ("bytes", "packets", "drops")
    ]
    text = " ".join(kit.text_of(summary_lines(TOTAL, kit.CONTEXT, [COUNTERS[0], *rows])).split())
    assert (
        "1 of 304 counters agree: device rx_packets; cannot be decided: "
        "tc class bytes (101), tc class packets (101), tc class drops (101)"
    ) in text


def test_plain_text_goes_to_what_is_no_terminal() -> None:
    stream = io.StringIO()
    print_lines(stream, summary_lines(TOTAL, kit.CONTEXT, glyphs=ASCII))
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().isascii()
    assert " LIMIT HOLDS " in stream.getvalue()


def test_a_deleted_tap_is_marked_in_lines_and_summary() -> None:
    """The totals still say whether the limit held."""
    gone = replace(kit.BASE, gone_ns=3_217_000_000)
    assert interval_line(gone).endswith(" gone 3.217 s")
    assert interval_line(replace(gone, final=True)).endswith(" gone 3.217 s")
    text = kit.text_of(summary_lines(replace(gone, final=True), kit.CONTEXT))
    assert " TAP IS GONE  deleted 3.2 s after the start" in text
    assert kit.text_of(summary_lines(replace(kit.BASE, final=True), kit.CONTEXT)) == text.replace(
        " TAP IS GONE  deleted 3.2 s after the start\n", ""
    )
