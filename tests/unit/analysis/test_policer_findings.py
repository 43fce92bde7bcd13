# SPDX-License-Identifier: Apache-2.0
"""Each finding is raised on its proof, and not without it; an ordinary, correct set-up raises none."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pytest

from vifprobe.analysis.findings import thresholds as t
from vifprobe.analysis.findings.raised import findings
from vifprobe.analysis.findings.situation import Growth, LinkLoad, Sample, Situation, Uplink
from vifprobe.analysis.gaps import LimitEvent, LimitGap
from vifprobe.analysis.limit_state import limit_answer
from vifprobe.analysis.policer import SetUp, policer_rows
from vifprobe.model.layout import CELL, SIZE_UNKNOWN, Direction, Ethertype, PacketClass, Verdict, size_bucket
from vifprobe.model.limits import DeclaredLimit, InstalledLimit, LimitState
from vifprobe.model.reading import Finding, Reading

OUT, IN = Direction.OUTBOUND, Direction.INBOUND
RATE, BURST = 100_000_000, 3_200_000
SECOND = 1_000_000_000
LIBVIRT = DeclaredLimit(OUT, "libvirt", "bandwidth", "tap0", RATE, BURST)
OVS = DeclaredLimit(OUT, "ovs", "policing", "tap0", RATE, BURST)
POLICE = InstalledLimit(
    OUT, "tc", "police", "ingress pref 49152 u32 800::800 police 1", "tap0", RATE, BURST,
    packets=7919, bytes=104_729, drops=13, bucket_bytes=BURST,
)  # fmt: skip
HTB = InstalledLimit(IN, "tc", "htb", "root htb 1:1", "tap0", RATE, BURST)
CORRECT = SetUp("tap0", declared=(LIBVIRT,), enforced=(POLICE,), ingress_qdisc="ingress")


def reading(*rows: tuple[Any, ...], seconds: float = 1.0, direction: Direction = OUT) -> Reading:
    """Rows: (verdict, packets, frame bytes of each, class, ethertype, reason), the last three optional."""
    cells = np.zeros(len(rows), dtype=CELL)
    for cell, row in zip(cells, rows, strict=True):
        verdict, packets, size = row[:3]
        packet_class, ethertype, reason = row[3:] + (PacketClass.UDP, Ethertype.IPV4, 0)[len(row) - 3 :]
        cell["direction"], cell["verdict"], cell["packets"] = direction, verdict, packets
        cell["packet_class"], cell["ethertype"], cell["reason"] = packet_class, ethertype, reason
        cell["size"], cell["frame_bytes"] = size_bucket(size), packets * size
        cell["charged_bytes"], cell["wire_bytes"] = packets * (size - 14), packets * (max(size, 60) + 24)
    at = datetime(2026, 11, 22, tzinfo=timezone.utc)
    return Reading("tap0", at, 0, round(seconds * SECOND), cells)


def patterns(situation: Situation) -> list[str]:
    return [finding.pattern for finding in findings(situation)]


def only(situation: Situation, pattern: str) -> Finding:
    (found,) = [finding for finding in findings(situation) if finding.pattern == pattern]
    assert found.evidence
    assert found.advice
    assert found.title
    assert found.severity in ("info", "warning", "critical")
    return found


def at_limit(mean_bytes: int = 540, share: float = 0.98, policed: int = 0) -> Reading:
    """One second at the limit with frames of this size."""
    packets = int(share * RATE / 8 / (mean_bytes - 14))
    return reading((Verdict.PASSED, packets, mean_bytes), (Verdict.POLICED, policed, mean_bytes))


ORDINARY = [
    Situation(CORRECT),
    Situation(CORRECT, reading=at_limit()),
    Situation(CORRECT, reading=at_limit(policed=300)),  # TCP at its limit loses a percent
    Situation(SetUp("tap0")),
    Situation(SetUp("tap0"), reading=at_limit()),
    Situation(replace(CORRECT, enforced=(POLICE, HTB), declared=(LIBVIRT, replace(LIBVIRT, direction=IN)))),
    Situation(CORRECT, growth=(Growth(OUT, POLICE.where, 1.0, 12_500_000, 0, 12_500_000, 20_011),)),
    Situation(CORRECT, reading=at_limit(), load=LinkLoad(1.0, 0.9, 0.9, 0.9)),
    Situation(CORRECT, uplink=Uplink("eth0", 1.0, 10**9, 10_007, 10_000_000, 0)),
    Situation(replace(CORRECT, declared=(LIBVIRT, OVS))),
    # nft and an unreadable set-up, in which nothing can be proved
    Situation(SetUp("tap0", declared=(LIBVIRT,), enforced_unknown=("tc: no answer",))),
]


@pytest.mark.parametrize("situation", ORDINARY)
def test_an_ordinary_set_up_raises_nothing(situation: Situation) -> None:
    assert findings(situation) == ()


def test_p1_what_is_declared_is_not_there() -> None:
    found = only(Situation(SetUp("tap0", declared=(LIBVIRT,)), reading=at_limit(1514, 4.0)), "P1")
    assert found.id == "P1-outbound"
    assert found.severity == "critical"
    assert found.title == "libvirt declares 100 Mbit/s outbound, but the kernel enforces nothing"
    assert found.evidence["offered_charged_bps"] == pytest.approx(400_000_000, rel=0.02)


def test_p1_names_all_who_declare_it() -> None:
    found = only(Situation(SetUp("tap0", declared=(LIBVIRT, OVS))), "P1")
    assert found.title.startswith("libvirt and Open vSwitch declare 100 Mbit/s")


def test_p1_is_of_its_direction() -> None:
    assert patterns(Situation(replace(CORRECT, declared=(LIBVIRT, replace(LIBVIRT, direction=IN))))) == ["P1"]
    assert (
        patterns(Situation(replace(CORRECT, declared=(LIBVIRT, replace(LIBVIRT, direction=IN))), directions=(OUT,)))
        == []
    )


def removal(at_ns: int = 10 * SECOND, by: str = "ovs-vswitchd") -> LimitEvent:
    return LimitEvent(at_ns, "qdisc_del", OUT, by, 4711, "ingress qdisc ffff: at ingress", "ingress")


def gap(**changes: Any) -> LimitGap:
    change = LimitEvent(10 * SECOND - 800_000, "link", detail="promiscuity 0 -> 1")
    made = LimitGap(1, OUT, 10 * SECOND, POLICE, removal(), change, passed_bytes=104_729)
    return replace(made, **changes)


def test_p2_who_removed_it_and_after_what() -> None:
    lost = SetUp("tap0", declared=(LIBVIRT,))
    found = only(Situation(lost, now_ns=12 * SECOND, gaps=(gap(),)), "P2")
    assert found.title == "ovs-vswitchd removed the ingress policer 800 µs after a link change (promiscuity 0 -> 1)"
    assert found.severity == "critical"
    assert (found.evidence["by_pid"], found.evidence["after_link_change_ns"]) == (4711, 800_000)
    assert "qos-policy" in found.advice


def test_p2_is_less_grave_once_the_limit_is_back() -> None:
    back = gap(end_ns=11 * SECOND, restored_by="neutron")
    assert only(Situation(CORRECT, now_ns=12 * SECOND, gaps=(back,)), "P2").severity == "warning"


def test_p2_not_for_an_owner_that_sets_its_limit_anew() -> None:
    anew = gap(link_change=None, end_ns=10 * SECOND + 3_000_000, passed_bytes=1009)
    assert patterns(Situation(CORRECT, now_ns=12 * SECOND, gaps=(anew,))) == []


def test_p3_how_long_and_how_much() -> None:
    replug = gap(link_change=None, end_ns=10 * SECOND + 700_000_000, passed_bytes=35_000_017)
    found = only(Situation(CORRECT, now_ns=12 * SECOND, gaps=(replug,)), "P3")
    assert found.title == "there was no outbound limit for 700 ms: 35 MB passed unpoliced"
    assert found.severity == "warning"
    assert found.evidence["limit_would_have_passed_bytes"] == RATE // 8 * 7 // 10 + BURST


def test_p3_is_no_alarm_where_no_more_passed_than_would_have() -> None:
    quiet = gap(link_change=None, end_ns=11 * SECOND)
    assert only(Situation(CORRECT, now_ns=12 * SECOND, gaps=(quiet,)), "P3").severity == "info"


def test_p3_counts_on_while_the_limit_is_away() -> None:
    found = only(Situation(SetUp("tap0"), now_ns=12 * SECOND, gaps=(gap(passed_bytes=100_000_007),)), "P3")
    assert (found.severity, found.evidence["over"]) == ("critical", False)
    assert found.title.startswith("there has been no outbound limit for 2.0 s")


def test_p4_a_filter_for_one_protocol() -> None:
    set_up = replace(CORRECT, enforced=(replace(POLICE, protocol="ip"),))
    seen = reading((Verdict.PASSED, 1009, 1514), (Verdict.PASSED, 19_937, 1514, PacketClass.UDP, Ethertype.IPV6))
    found = only(Situation(set_up, reading=seen), "P4")
    assert found.severity == "critical"
    assert found.evidence["passed_beside_frame_bytes"] == 19_937 * 1514
    assert found.evidence["passed_beside_packets_by_class"] == {"udp": 19_937}
    assert "all but ip" in found.title
    assert limit_answer(set_up, OUT).state is LimitState.HOLES
    quiet = only(Situation(set_up, reading=reading((Verdict.PASSED, 1009, 1514))), "P4")
    assert quiet.severity == "warning"


def test_p4_not_where_filters_together_leave_nothing_out() -> None:
    both = (replace(POLICE, protocol="ip"), replace(POLICE, where="other"))
    assert patterns(Situation(replace(CORRECT, enforced=both))) == []


def test_p5_a_policer_that_sees_nothing() -> None:
    set_up = replace(CORRECT, earlier=("the tcx program accel (id 42)",))
    grown = Growth(OUT, POLICE.where, 1.0, 1009, 13, 12_500_000, 20_011)
    found = only(Situation(set_up, growth=(grown,)), "P5")
    assert found.severity == "critical"
    assert "accel (id 42)" in found.title
    assert limit_answer(set_up, OUT, (), {found.id}).state is LimitState.BYPASSED


def test_p5_not_for_a_policer_of_another_protocol_or_few_packets() -> None:
    of_arp = replace(CORRECT, enforced=(POLICE, replace(POLICE, where="arp", protocol="arp")))
    grown = Growth(OUT, "arp", 1.0, 0, 0, 12_500_000, 20_011)
    assert patterns(Situation(of_arp, growth=(grown,), reading=at_limit())) == []
    few = Growth(OUT, POLICE.where, 1.0, 0, 0, 12_500, t.SHADOW_PACKETS - 1)
    assert patterns(Situation(CORRECT, growth=(few,))) == []


def test_p6_small_packets_under_a_limit_that_holds() -> None:
    found = only(Situation(CORRECT, reading=at_limit(54, policed=0)), "P6")
    assert found.evidence["mean_charged_bytes"] == 40
    assert found.evidence["wire_over_charged"] == 2.1
    assert found.evidence["passed_wire_bps"] > 1.9 * RATE


def test_p6_not_below_its_rate() -> None:
    assert patterns(Situation(CORRECT, reading=at_limit(54, share=0.3))) == []


def test_p7_many_packets_within_the_limit() -> None:
    flood = reading((Verdict.PASSED, 200_003, 54))
    found = only(Situation(CORRECT, reading=flood, load=LinkLoad(1.0, 0.1, 0.7, 0.4)), "P7")
    assert found.evidence["offered_pps"] == 200_003
    assert found.evidence["vhost_cpus"] == 0.7


@pytest.mark.parametrize(
    ("situation", "why"),
    [
        (Situation(CORRECT, reading=reading((Verdict.PASSED, 200_003, 54))), "CPU not known"),
        (Situation(CORRECT, reading=reading((Verdict.PASSED, 200_003, 54)), load=LinkLoad(1.0, 0.1, 0.0, 0.1)), "idle"),
        (
            Situation(
                replace(CORRECT, enforced=(POLICE, replace(POLICE, where="pps", rate_bps=None, rate_pps=50_000))),
                reading=reading((Verdict.PASSED, 200_003, 54)),
                load=LinkLoad(1.0, 0.1, 0.7, 0.4),
            ),
            "packets are limited",
        ),
    ],
)
def test_p7_not_without_its_proof(situation: Situation, why: str) -> None:
    assert "P7" not in patterns(situation), why


def test_p8_the_taps_counters_hold_what_was_policed() -> None:
    flood = reading((Verdict.PASSED, 8_000, 1514), (Verdict.POLICED, 24_001, 1514))
    found = only(Situation(CORRECT, reading=flood), "P8")
    assert found.severity == "info"
    assert found.evidence["tap_received_bps"] == 8 * 32_001 * 1514
    assert found.evidence["policed_packets"] == 24_001


def test_p8_not_where_more_passes_than_the_limit() -> None:
    broken = reading((Verdict.PASSED, 30_011, 1514), (Verdict.POLICED, 10_007, 1514))
    assert "P8" not in patterns(Situation(CORRECT, reading=broken))


def samples(before_pps: int, after_pps: int, policed: int) -> tuple[Sample, ...]:
    first = [Sample(number * SECOND, SECOND, before_pps, 0, 5_003, 0.5) for number in range(3)]
    return (*first, *(Sample(number * SECOND, SECOND, after_pps, policed, 14_009, 1.5) for number in range(3, 6)))


def test_p9_the_guest_offers_more_since_the_policer_came() -> None:
    amplified = Situation(CORRECT, installs=((OUT, 3 * SECOND),), samples=samples(50_021, 100_003, 80_021))
    found = only(amplified, "P9")
    assert found.severity == "info"
    assert found.title == "the guest offers 2.0 times as many packets since the policer of 100 Mbit/s came"
    assert found.evidence["context_switches_after_per_second"] == 14_009


def test_p9_not_without_more_or_without_policing() -> None:
    installs = ((OUT, 3 * SECOND),)
    assert patterns(Situation(CORRECT, installs=installs, samples=samples(50_021, 50_021, 40_009))) == []
    assert patterns(Situation(CORRECT, installs=installs, samples=samples(50_021, 100_003, 1009))) == []
    assert patterns(Situation(CORRECT, samples=samples(50_021, 100_003, 80_021))) == []


def test_p10_frames_longer_than_the_bucket() -> None:
    small = replace(CORRECT, declared=(), enforced=(replace(POLICE, burst_bytes=20_000, bucket_bytes=20_000),))
    seen = reading((Verdict.PASSED, 1009, 1514), (Verdict.POLICED, 31, 60_064))
    found = only(Situation(small, reading=seen), "P10")
    assert (found.evidence["policed_packets"], found.evidence["bucket_bytes"]) == (31, 20_000)
    assert found.evidence["mean_charged_bytes"] == 60_050
    assert "P10" not in patterns(Situation(CORRECT, reading=seen))


def test_p10_not_where_some_of_that_size_pass() -> None:
    small = replace(CORRECT, declared=(), enforced=(replace(POLICE, burst_bytes=20_000, bucket_bytes=20_000),))
    seen = reading((Verdict.PASSED, 1, 60_064), (Verdict.POLICED, 31, 60_064))
    assert patterns(Situation(small, reading=seen)) == ["P19"]


@pytest.mark.parametrize(
    ("installed", "severity", "words"),
    [
        (8 * RATE, "critical", "bytes were taken for bits"),
        (RATE // 8, "warning", "bits were taken for bytes"),
        (RATE * 1024 // 1000, "critical", "1024 instead of 1000"),
        (250_000_000, "critical", None),
    ],
)
def test_p11_another_rate(installed: int, severity: str, words: str | None) -> None:
    found = only(Situation(replace(CORRECT, enforced=(replace(POLICE, rate_bps=installed),))), "P11")
    assert (found.severity, found.evidence["unit_mistake"]) == (severity, words)


def test_p11_another_burst_but_not_a_rounded_one() -> None:
    other = replace(CORRECT, enforced=(replace(POLICE, burst_bytes=BURST // 8, bucket_bytes=BURST // 8),))
    assert only(Situation(other), "P11").severity == "warning"
    for near in (BURST - 150, BURST * 1000 // 1024, BURST + 40):
        assert patterns(Situation(replace(CORRECT, enforced=(replace(POLICE, burst_bytes=near),)))) == []


def test_p11_not_for_an_nft_burst_named_as_what_passes_at_once() -> None:
    nft = replace(POLICE, source="nft", kind="limit", burst_bytes=BURST // 8, bucket_bytes=BURST)
    assert patterns(Situation(replace(CORRECT, enforced=(nft,)))) == []


def test_p11_not_for_a_declaration_that_a_stricter_one_overrides() -> None:
    half = replace(OVS, rate_bps=RATE // 2)
    set_up = replace(CORRECT, declared=(LIBVIRT, half), enforced=(replace(POLICE, rate_bps=RATE // 2),))
    assert patterns(Situation(set_up)) == []


def test_p12_the_limit_is_past_the_tap() -> None:
    beyond = replace(POLICE, device="qvo834d76e9-5f")
    neutron = replace(OVS, device="qvo834d76e9-5f")
    found = only(Situation(SetUp("tap0", declared=(neutron,), elsewhere=(beyond,))), "P12")
    assert found.severity == "info"
    both = SetUp("tap0", declared=(LIBVIRT, neutron), elsewhere=(beyond,))
    assert only(Situation(both), "P12").severity == "warning"
    assert patterns(Situation(both)) == ["P12"]


def test_p12_the_other_directions_side() -> None:
    swapped = SetUp("tap0", declared=(LIBVIRT,), enforced=(HTB,))
    assert patterns(Situation(swapped)) == ["P12"]
    assert only(Situation(swapped), "P12").severity == "critical"


def test_p12_a_meter() -> None:
    meter = InstalledLimit(OUT, "ovs", "meter", "br-int meter 1", "br-int", RATE)
    found = only(Situation(SetUp("tap0", elsewhere=(meter,))), "P12")
    assert "OpenFlow meter of br-int" in found.title
    assert patterns(Situation(SetUp("tap0", declared=(LIBVIRT,), elsewhere=(meter,)))) == ["P12"]
    of_packets = replace(meter, rate_bps=None, rate_pps=10_007)
    assert patterns(Situation(SetUp("tap0", declared=(LIBVIRT,), elsewhere=(of_packets,)))) == ["P1"]


def test_p13_clsact_blocks_open_vswitch() -> None:
    blocked = SetUp("tap0", declared=(OVS,), ingress_qdisc="clsact")
    assert patterns(Situation(blocked)) == ["P13"]
    assert patterns(Situation(replace(blocked, ingress_qdisc=""))) == ["P1"]
    assert patterns(Situation(replace(blocked, enforced=(POLICE,)))) == []


def test_p14_the_ring_is_full() -> None:
    reasons = {77: "FULL_RING", 78: "NOMEM"}
    seen = reading((Verdict.PASSED, 10_007, 1514), (Verdict.DROPPED, 211, 1514, PacketClass.UDP, Ethertype.IPV4, 77),
                   direction=IN)  # fmt: skip
    found = only(Situation(CORRECT, reading=seen, reasons=reasons), "P14")
    assert found.evidence["full_ring_packets"] == 211
    assert patterns(Situation(CORRECT, reading=seen, reasons={77: "NOMEM"})) == []


def test_p15_the_uplink_is_full() -> None:
    full = Uplink("eth0", 2.0, 10**9, 161_813, 245_000_000, 1009)
    assert only(Situation(CORRECT, uplink=full), "P15").evidence["line_bps"] == 995_534_048
    assert patterns(Situation(CORRECT, uplink=replace(full, dropped_packets=0))) == []
    assert patterns(Situation(CORRECT, uplink=replace(full, sent_bytes=100_000_007))) == []
    # A flood of SYNs: few bytes as devices count them, but each frame is padded, and has a preamble and a gap.
    syns = Uplink("eth0", 2.0, 10**9, 2_900_003, 54 * 2_900_003, 1009)
    assert only(Situation(CORRECT, uplink=syns), "P15").evidence["line_bps"] == 8 * 84 * 2_900_003 // 2


def test_ids_stay_and_are_unique_and_the_worst_comes_first() -> None:
    bad = Situation(
        SetUp("tap0", declared=(LIBVIRT, replace(LIBVIRT, direction=IN))), now_ns=12 * SECOND, gaps=(gap(),)
    )
    first, second = findings(bad), findings(replace(bad, now_ns=13 * SECOND))
    assert [one.id for one in first] == [one.id for one in second]
    assert len({one.id for one in first}) == len(first) >= 3
    assert first[0].severity == "critical"


def test_rows_say_who_agrees_with_whom() -> None:
    other = replace(OVS, rate_bps=RATE // 2)
    rows = policer_rows(replace(CORRECT, declared=(LIBVIRT, other)))
    assert [(row.source, row.matches_declared) for row in rows] == [("libvirt", True), ("ovs", False), ("tc", True)]
    assert rows[2].drops == 13
    (undeclared,) = policer_rows(replace(CORRECT, declared=()))
    assert undeclared.matches_declared is None
    (unread,) = policer_rows(SetUp("tap0", declared=(LIBVIRT,), enforced_unknown=("tc",)))
    assert unread.matches_declared is None


@pytest.mark.parametrize(
    ("set_up", "state"),
    [
        (CORRECT, LimitState.THERE),
        (SetUp("tap0", declared=(LIBVIRT,)), LimitState.ABSENT),
        (replace(CORRECT, enforced=(replace(POLICE, rate_bps=RATE * 8),)), LimitState.DIFFERS),
        (replace(CORRECT, declared=()), LimitState.UNDECLARED),
        (SetUp("tap0"), LimitState.NONE),
        (SetUp("tap0", declared_unknown=("Open vSwitch: no answer",)), LimitState.UNKNOWN),
        (SetUp("tap0", declared=(LIBVIRT,), enforced_unknown=("tc",)), LimitState.UNKNOWN),
    ],
)
def test_the_answer_for_a_person_in_a_hurry(set_up: SetUp, state: LimitState) -> None:
    assert limit_answer(set_up, OUT).state is state


@pytest.mark.parametrize(
    ("missed", "severity"), [(1, "warning"), (10, "warning"), (11, "critical"), (10_007, "critical")]
)
def test_p16_packets_that_are_not_counted(missed: int, severity: str) -> None:
    """Critical above one in a thousand; of their own direction only."""
    counted = replace(reading((Verdict.PASSED, 10_000, 60)), missed=missed, missed_in={OUT: missed, IN: 0})
    found = only(Situation(CORRECT, reading=counted), "P16")
    assert (found.id, found.severity) == ("P16-outbound", severity)
    assert found.title == f"{missed:,} outbound packets are not counted: figures are too low"
    assert found.evidence["counted_packets"] == 10_000


def test_p16_not_without_missed_packets() -> None:
    counted = replace(reading((Verdict.PASSED, 10_000, 60)), missed_in={OUT: 0, IN: 0})
    assert findings(Situation(CORRECT, reading=counted)) == ()


def test_p10_not_by_packets_without_their_size() -> None:
    """Their mean says nothing of any one of them."""
    small = replace(CORRECT, declared=(), enforced=(replace(POLICE, burst_bytes=20_000, bucket_bytes=20_000),))
    seen = reading((Verdict.POLICED, 31, 60_064))
    assert patterns(Situation(small, reading=seen)) == ["P10", "P19"]
    seen.cells["size"] = SIZE_UNKNOWN
    assert patterns(Situation(small, reading=seen)) == ["P19"]


@pytest.mark.parametrize("kind", ["police", "limit", "meter"])
def test_p19_a_burst_that_is_too_small_for_tcp(kind: str) -> None:
    least = round(RATE / 8 * t.BURST_NS / 1e9)
    small = replace(POLICE, kind=kind, burst_bytes=least - 1, bucket_bytes=least - 1)
    declared = replace(LIBVIRT, burst_bytes=None)
    found = only(Situation(SetUp("tap0", (declared,), (small,))), "P19")
    assert (found.severity, found.evidence["wanted_bytes"]) == ("warning", 10_000_000)
    enough = replace(small, burst_bytes=least, bucket_bytes=least)
    assert patterns(Situation(SetUp("tap0", (declared,), (enough,)))) == []


def test_p19_not_of_a_shaper_and_not_where_the_burst_is_unknown() -> None:
    for limit in (
        replace(POLICE, kind="htb", burst_bytes=1_600, bucket_bytes=None),
        replace(POLICE, burst_bytes=None, bucket_bytes=None),
        replace(POLICE, rate_bps=None, rate_pps=1_000, burst_bytes=None, bucket_bytes=None),
    ):
        assert "P19" not in patterns(Situation(SetUp("tap0", (), (limit,))))


def test_p20_installed_and_declared_by_nobody() -> None:
    alone = SetUp("tap0", (), (POLICE,), known_to=("libvirt", "ovs"))
    found = only(Situation(alone), "P20")
    assert found.severity == "info"
    assert "libvirt and Open vSwitch declare none" in found.title
    assert patterns(Situation(replace(alone, known_to=()))) == []  # nobody that could have declared it
    assert patterns(Situation(replace(alone, declared_unknown=("libvirt: no answer",)))) == []
    assert patterns(Situation(replace(alone, declared=(LIBVIRT,)))) == []


@pytest.mark.parametrize(
    ("declared", "known_to", "words", "not_words"),
    [
        ((LIBVIRT,), ("libvirt",), "libvirt and Nova limit bytes alone", "Neutron"),
        ((OVS,), ("ovs",), "packet_rate_limit", "libvirt"),
        ((replace(OVS, source="ovn"),), ("ovs",), "OVN has no rule for packet rates", "Neutron"),
        ((replace(LIBVIRT, source="user"),), (), "police `pkts_rate`", "libvirt"),
    ],
)
def test_p7_advises_what_this_back_end_can_do(
    declared: tuple[DeclaredLimit, ...], known_to: tuple[str, ...], words: str, not_words: str
) -> None:
    many = reading((Verdict.PASSED, 200_003, 60))
    load = LinkLoad(1.0, 0.5, 0.3, 0.2)
    set_up = SetUp("tap0", declared, (POLICE,), known_to=known_to)
    advice = only(Situation(set_up, reading=many, load=load), "P7").advice
    assert words in advice
    assert not_words not in advice


def test_p1_advises_how_this_source_sets_it() -> None:
    for source, words in (("libvirt", "virsh domiftune"), ("ovs", "ovs-vsctl"), ("proxmox", "qm set")):
        advice = only(Situation(SetUp("tap0", (replace(LIBVIRT, source=source),))), "P1").advice
        assert words in advice
        assert ("virsh" in advice) is (source == "libvirt")
