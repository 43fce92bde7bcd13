# SPDX-License-Identifier: Apache-2.0
"""`vifprobe policer` of the whole node: the worst first, one row where both directions are alike."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vifprobe.analysis.findings.raised import findings
from vifprobe.analysis.findings.situation import Situation
from vifprobe.analysis.limit_state import limit_answer
from vifprobe.analysis.policer import SetUp
from vifprobe.model.layout import Direction
from vifprobe.model.limits import DeclaredLimit, InstalledLimit, LimitState
from vifprobe.render.text.node import NodeRow, node_lines
from vifprobe.render.units import ASCII, BLOCKS, cell_width

OUT, IN = Direction.OUTBOUND, Direction.INBOUND
RATE, BURST = 100_000_000, 32_000_000


def declared(tap: str, direction: Direction) -> DeclaredLimit:
    return DeclaredLimit(direction, "libvirt", "bandwidth", tap, RATE, BURST)


def installed(tap: str, direction: Direction) -> InstalledLimit:
    return InstalledLimit(direction, "tc", "police", "ingress", tap, RATE, BURST)


def both(set_up: SetUp, domain: str = "", gone: bool = False, dropped: int | None = None) -> list[NodeRow]:
    rows = []
    for one in (OUT, IN):
        found = findings(Situation(set_up, directions=(one,)))
        rows.append(NodeRow(set_up, one, limit_answer(set_up, one), found, domain, dropped, gone))
    return rows


def right(tap: str) -> SetUp:
    asked, held = ([make(tap, one) for one in (OUT, IN)] for make in (declared, installed))
    return SetUp(tap, tuple(asked), tuple(held))  # type: ignore[arg-type]


def text(rows: list[NodeRow], width: int = 80, ascii_only: bool = False) -> list[str]:
    return [line.plain for line in node_lines(rows, width, ASCII if ascii_only else BLOCKS)]


def test_the_worst_comes_first_and_one_row_stands_for_both_directions() -> None:
    good, plain = right("tap0"), SetUp("tap1")
    half = SetUp("tap2", (declared("tap2", OUT), declared("tap2", IN)), (installed("tap2", IN),))
    away = SetUp("tap3", unread=((OUT, "the limit of X is not read"),))
    lines = text([row for one in (good, plain, half, away) for row in both(one)])
    assert lines[0] == "4 taps ·  NO POLICER  1 ·  LIMIT UNKNOWN  1 ·  NO LIMIT ASKED FOR  3"
    assert lines[1] == "   LIMIT IS THERE  3"
    rows = [line.split()[:2] for line in lines if line.startswith("tap") and not line.startswith("tap ")]
    assert rows == [
        ["tap2", "outbound"], ["tap3", "outbound"], ["tap1", "both"], ["tap3", "inbound"], ["tap0", "both"],
        ["tap2", "inbound"],
    ]  # fmt: skip
    (worst,) = [line for line in lines if line.startswith("tap2 outbound")]
    assert worst.split() == ["tap2", "outbound", "no", "policer", "100", "Mbit/s", "-", "P1"]
    assert any(line.startswith("not read the limit of X") for line in lines)


def test_who_shares_a_limit_and_what_is_gone() -> None:
    shared = replace(right("tap0"), enforced=tuple(replace(one, shared=True) for one in right("tap0").enforced))
    lines = text([*both(shared, "instance-0000002a", dropped=10_007), *both(right("tap1"), gone=True)], 100)
    assert any(line.startswith("tap1 both") and " tap is gone " in line for line in lines)
    (row,) = [line for line in lines if line.startswith("tap0")]
    assert "limit is there, shared" in row
    assert "10.0 k" in row
    assert row.endswith("instance-0000002a")


@pytest.mark.parametrize("width", [40, 80, 120])
def test_it_fits(width: int) -> None:
    rows = [row for number in range(20) for row in both(right(f"tap834d76e9-{number:02x}"), "\x1b[2Jinstance\n")]
    for ascii_only in (False, True):
        lines = text(rows, width, ascii_only)
        assert max(map(cell_width, lines)) <= width
        assert all(line.isprintable() for line in lines)
        assert not ascii_only or all(line.isascii() for line in lines)


def test_no_tap() -> None:
    assert text([]) == ["No taps in this network namespace. Name another one with --netns."]


def test_a_port_without_a_tap_is_a_row_that_is_unknown() -> None:
    """With the reason, P23, and no claim that nothing limits."""
    port = SetUp("vhu0", (declared("vhu0", OUT),), enforced_unknown=("vhu0: not here",), kind="vhostuser")
    rows = both(port, "instance-1")
    assert {row.answer.state for row in rows} == {LimitState.UNKNOWN}
    assert {one.pattern for row in rows for one in row.findings} == {"P23"}
    lines = text(rows, 100)
    assert any(line.split()[:4] == ["vhu0", "outbound", "limit", "unknown"] for line in lines)
    assert "not read vhu0: not here" in lines
