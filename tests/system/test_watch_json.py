# SPDX-License-Identifier: Apache-2.0
"""`vifprobe watch --json`: the contract that users' scripts rely on, one object an interval."""

from __future__ import annotations

import json
from datetime import datetime

import pytest
from command_kit import VERDICTS, Object, assert_adds_up, run, start, total

from vifprobe.testing.net.links import nft_ingress_limit
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.packets import frames as f
from vifprobe.testing.traffic.flood import flood

SYN = f.eth(f.ipv4(f.tcp(f.TcpFlag.SYN)), f.EtherType.IPV4)
DNS = f.eth(f.ipv4(f.udp(bytes(29))), f.EtherType.IPV4)
COUNTS = {"packets", "frame_bytes", "charged_bytes", "wire_bytes"}
CLASSES = {
    *("tcp_syn", "tcp_synack", "tcp_rst", "tcp_fin", "tcp_data", "tcp_ack", "tcp_odd", "udp", "icmp", "icmpv6"),
    *("fragment", "ip_other", "arp", "other", "malformed"),
}


@pytest.fixture
def objects(tap: Tap) -> list[Object]:
    """What is printed while 5003 frames go through a limit that lets some of them pass."""
    with (
        nft_ingress_limit(tap.name, rate_bytes_per_second=101 * len(SYN), burst_bytes=307 * len(SYN)),
        start("watch", tap.name, "--json", "--interval", "100ms", "--rate", "1mbit", "--burst", "3kb") as running,
    ):
        running.wait_for_lines(1)
        flood([tap.fd], [SYN, SYN, DNS], count=5003, seconds=20)
        running.wait_for(lambda lines: total([json.loads(line) for line in lines], "offered") >= 5003)
        running.process.terminate()
        ended = running.end()
    assert (ended.code, ended.err) == (0, "")
    return ended.objects


def test_the_totals_are_what_was_sent_and_the_intervals_add_up_to_them(objects: list[Object]) -> None:
    *intervals, last = objects
    assert [found["final"] for found in objects] == [False] * len(intervals) + [True]
    assert last["outbound"]["offered"]["packets"] == 5003
    assert last["outbound"]["classes"]["udp"]["offered"]["packets"] == 5003 // 3
    assert last["outbound"]["policed"]["packets"] > 0
    assert last["missed"] == 0
    for found in objects:
        assert_adds_up(found)
    for verdict in ("offered", *VERDICTS):
        for unit in COUNTS:
            assert total(intervals, verdict, unit) == last["outbound"][verdict][unit], (verdict, unit)


def test_bytes_are_counted_four_ways(objects: list[Object]) -> None:
    """As FACTS have it: charged without the L2 header, on the wire padded to 60 and with 24 bytes around."""
    classes = objects[-1]["outbound"]["classes"]
    syns = 5003 - 5003 // 3
    assert classes["tcp_syn"]["offered"] == {
        "packets": syns,
        "frame_bytes": 54 * syns,
        "charged_bytes": 40 * syns,
        "wire_bytes": 84 * syns,
    }


def test_every_key_is_there(objects: list[Object]) -> None:
    for found in objects:
        assert found["schema"] == 1
        assert found["tap"] == "tap0"
        assert datetime.fromisoformat(found["at"]).utcoffset() is not None
        assert found["verdicts"] == "reason"
        assert isinstance(found["findings"], list)
        assert found["inbound"]["queued"] is None or set(found["inbound"]["queued"]) == COUNTS
        for direction in ("outbound", "inbound"):
            told = found[direction]
            assert {"offered", *VERDICTS, "bypass", "overpoliced", "classes", "limit"} <= set(told)
            assert set(told["offered"]) == COUNTS
            assert set(told["classes"]) == CLASSES
            for counts in told["classes"].values():
                assert set(counts) == {"offered", *VERDICTS}
        limit = found["outbound"]["limit"]
        assert limit["declared_bps"] == 1_000_000
        assert limit["installed_bps"] == 101 * len(SYN) * 8
        assert limit["installed_pps"] is None
        assert limit["burst_bytes"] == 3 * 1024


def test_the_intervals_follow_each_other_without_a_gap(objects: list[Object]) -> None:
    *intervals, last = objects
    at_ns = 0
    for found in intervals:
        assert found["start_ns"] == at_ns
        at_ns += found["duration_ns"]
    assert (last["start_ns"], last["duration_ns"]) == (0, at_ns)


def test_a_direction_that_is_not_watched_is_unknown_not_zero(tap: Tap) -> None:
    (*_, last) = run("watch", tap.name, "--json", "--direction", "outbound", "--duration", "50ms").objects
    assert last["outbound"]["offered"]["packets"] == 0
    assert last["inbound"]["offered"] is None
    assert last["inbound"]["classes"]["tcp_syn"]["offered"] is None
    assert last["outbound"]["limit"]["declared_bps"] is None


def test_two_taps_have_an_object_each(tap: Tap) -> None:
    from vifprobe.testing.net.taps import tap as make_tap

    with make_tap("tap1") as other, start("watch", "tap0", "tap1", "--json", "--interval", "50ms") as running:
        running.wait_for_lines(2)
        flood([tap.fd, other.fd], [SYN], count=1013, seconds=20)
        running.process.terminate()
        ended = running.end()
    assert ended.code == 0
    assert [found["tap"] for found in ended.objects] == ["tap0", "tap1"] * (len(ended.objects) // 2)
    finals = {found["tap"]: found["outbound"]["offered"]["packets"] for found in ended.objects if found["final"]}
    assert finals == {"tap0": 507, "tap1": 506}


def test_a_duration_ends_the_run(tap: Tap) -> None:
    """By itself, with the totals; a busy machine is late by some."""
    ended = run("watch", tap.name, "--json", "--interval", "200ms", "--duration", "500ms")
    assert ended.code == 0
    assert [found["final"] for found in ended.objects][-2:] == [False, True]
    assert 0.4e9 < ended.objects[-1]["duration_ns"] < 10e9
