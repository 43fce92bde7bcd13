# SPDX-License-Identifier: Apache-2.0
"""`vifprobe policer` as people see it: the answer first, in 80 columns, and nothing of a guest's making acts on it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vifprobe.analysis.findings.raised import findings
from vifprobe.analysis.findings.situation import Situation
from vifprobe.analysis.limit_state import limit_answer
from vifprobe.analysis.policer import SetUp, policer_rows
from vifprobe.model.layout import Direction
from vifprobe.model.limits import DeclaredLimit, InstalledLimit
from vifprobe.render.text.policer import AuditView, policer_lines, proof
from vifprobe.render.units import ASCII, BLOCKS, cell_width

OUT = Direction.OUTBOUND
NAME = "tap834d76e9-5f"
LIBVIRT = DeclaredLimit(OUT, "libvirt", "bandwidth", NAME, 100_000_000, 3_200_000)
POLICE = InstalledLimit(
    OUT, "tc", "police", "ingress pref 49152 police 1", NAME, 100_000_000, 3_200_000, None, "all", True,
    10_000_019, 8_000_000_011, 7_900_009,
)  # fmt: skip
SET_UPS = {
    "LIMIT IS THERE": SetUp(NAME, (LIBVIRT,), (POLICE,)),
    "NO POLICER": SetUp(NAME, (LIBVIRT,)),
    "WRONG LIMIT": SetUp(NAME, (LIBVIRT,), (replace(POLICE, rate_bps=800_000_000),)),
    "LIMIT HAS A HOLE": SetUp(NAME, (LIBVIRT,), (replace(POLICE, protocol="ip"),)),
    "LIMIT IS ELSEWHERE": SetUp(NAME, (LIBVIRT,), elsewhere=(replace(POLICE, device="qvo834d76e9-5f"),)),
    "LIMIT, NOT DECLARED": SetUp(NAME, (), (POLICE,)),
    "NO LIMIT ASKED FOR": SetUp(NAME),
    "LIMIT UNKNOWN": SetUp(NAME, (LIBVIRT,), enforced_unknown=("tc: the kernel did not answer within 10 s",)),
}


def text(set_up: SetUp, width: int = 80, ascii_only: bool = False) -> list[str]:
    view = AuditView(
        set_up,
        policer_rows(set_up),
        findings(Situation(set_up)),
        {OUT: limit_answer(set_up, OUT)},
        (OUT,),
        "instance-0000001a",
        ("packets were not counted: no tcx, and no qdisc to put a filter into",),
    )
    lines = policer_lines(view, width, ASCII if ascii_only else BLOCKS)
    return [line.plain for line in lines]


@pytest.mark.parametrize("badge", SET_UPS)
def test_the_answer_comes_first_and_80_columns_do(badge: str) -> None:
    lines = text(SET_UPS[badge])
    assert lines[0].startswith(f" {badge}  {NAME} outbound")
    assert max(map(cell_width, lines)) <= 80
    assert all(line.isascii() for line in text(SET_UPS[badge], ascii_only=True))


def test_a_finding_comes_with_advice_and_numbers() -> None:
    lines = text(SET_UPS["WRONG LIMIT"])
    whole = " ".join(line.strip() for line in lines)
    assert "!! P11" in whole
    assert "installed over declared 8.0" in whole
    assert "bytes were taken for bits" in whole
    assert "kilobytes" in whole


def test_what_was_not_read_is_said() -> None:
    assert any(line.startswith("not read") and "did not answer" in line for line in text(SET_UPS["LIMIT UNKNOWN"]))


def test_names_from_outside_are_harmless() -> None:
    evil = replace(SET_UPS["NO POLICER"], earlier=("the tcx program \x1b[2J\nowned (id 1)",))
    assert all(line.isprintable() for line in text(evil))


def test_evidence_in_one_line() -> None:
    assert (
        proof({"gap_ns": 7, "over": True, "by": None, "ahead": ["a", "b"], "rows": [{}]})
        == "gap ns 7, over yes, ahead a; b"
    )
    assert proof({}) == "?"


def test_limits_and_counts_in_evidence_are_told_in_words() -> None:
    lines = text(SET_UPS["LIMIT HAS A HOLE"])
    whole = " ".join(" ".join(line.split()) for line in lines)
    assert "proof limits tc police 100 Mbit/s (burst 3125kb, protocol ip) at ingress pref 49152 police 1" in whole
    counts = {"passed_beside_packets_by_class": {"arp": 3, "udp": 7}, "declared": [{"rate_bps": None}]}
    assert proof(counts) == "passed beside packets by class arp 3, udp 7, declared no rate"


@pytest.mark.parametrize("badge", SET_UPS)
def test_no_proof_is_a_question_mark(badge: str) -> None:
    assert not any(line.strip() == "proof ?" for line in text(SET_UPS[badge]))
