# SPDX-License-Identifier: Apache-2.0
"""nft limits and drop counters, read over nfnetlink and compared with what nft itself lists."""

from __future__ import annotations

import ctypes
import json
import platform
import struct
import threading
from collections.abc import Callable

import pytest
from host_fixtures import CHARGED_BYTES, Require, run, send
from host_reading import has_ingress_chain, nft_policers, read_counters, read_nft

from vifprobe.host.counters import CounterMeaning
from vifprobe.host.limits import installed
from vifprobe.host.net.links import find_link
from vifprobe.host.nft.rules import Counter, RateLimit
from vifprobe.model.layout import Direction
from vifprobe.testing.net.links import nft_ingress_limit
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.net.taps import Tap, create_tap


@pytest.fixture(autouse=True)
def nft(netns: Netns, require: Require) -> None:
    try:
        run("nft -f -", text="table netdev probe { }\n")
    except (AssertionError, FileNotFoundError) as error:
        require("kernel", False, f"nft netdev tables (CONFIG_NF_TABLES_NETDEV) and the nft tool: {error}")
    run("nft delete table netdev probe")


def ingress(rules: str, head: str = "", device: str = 'device "tap0"', policy: str = "accept") -> None:
    """A table `t` with an ingress chain."""
    chain = f"type filter hook ingress {device} priority 0; policy {policy};"
    run("nft -f -", text=f"table netdev t {{\n{head}\nchain ing {{\n{chain}\n{rules}\n}}\n}}\n")


def listed_counters() -> list[tuple[int, int]]:
    """(packets, bytes) of all counters in rules, in nft's own order."""
    found: list[tuple[int, int]] = []

    def walk(node: object) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                if key == "counter" and isinstance(value, dict):
                    found.append((value["packets"], value["bytes"]))
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk([item for item in json.loads(run("nft -j list ruleset"))["nftables"] if "rule" in item])
    return found


def test_no_chain_no_limit(tap: Tap) -> None:
    assert not has_ingress_chain("tap0")
    assert nft_policers("tap0") == ()
    assert read_nft("tap0").drops("ingress") == Counter(0, 0)


@pytest.mark.parametrize(
    ("rule", "limit"),
    [
        (
            "limit rate over 10 mbytes/second burst 1 mbytes counter drop",
            RateLimit(10 * 2**20 * 8, 2**20, 11 * 2**20, over=True),
        ),
        (
            "limit rate over 12500000 bytes/second burst 3200000 bytes counter drop",
            RateLimit(100_000_000, 3_200_000, 15_700_000, over=True),
        ),
        (
            "limit rate over 977/second burst 17 packets counter drop",
            RateLimit(rate_pps=977.0, burst_packets=17, over=True),
        ),
        ("limit rate over 30/minute burst 5 packets counter drop", RateLimit(rate_pps=0.5, burst_packets=5, over=True)),
        ("limit rate 1009/second burst 7 packets accept", RateLimit(rate_pps=1009.0, burst_packets=7)),
    ],
)
def test_a_limit_is_read_as_it_was_asked_for(tap: Tap, rule: str, limit: RateLimit) -> None:
    ingress(rule)
    (found,) = nft_policers("tap0")
    assert (found.limit, found.hook, found.shared) == (limit, "ingress", False)
    assert has_ingress_chain("tap0")
    (row,) = installed(find_link("tap0")).of(Direction.OUTBOUND)
    assert (row.source, row.kind, row.rate_bps, row.protocol) == ("nft", "limit", limit.rate_bps, "all")


def test_a_byte_limit_lets_pass_one_second_of_its_rate_and_the_burst_at_once(tap: Tap) -> None:
    """`bucket_bytes`: what tells an nft limit from a tc policer of the same numbers."""
    with nft_ingress_limit("tap0", rate_bytes_per_second=CHARGED_BYTES * 101, burst_bytes=CHARGED_BYTES * 53) as limit:
        send(tap, 1009)
        (found,) = nft_policers("tap0")
        passed = limit.read_passed().packets
        assert found.limit.bucket_bytes == CHARGED_BYTES * (101 + 53)
        assert 101 + 53 - 1 <= passed <= (101 + 53) + 101 * 5  # 101 more for each second that sending took
        assert (found.drops_packets, found.drops_bytes) == (1009 - passed, (1009 - passed) * CHARGED_BYTES)


def no_limit(text: str) -> str:
    """A limit that nothing conforms to after the first packet."""
    return text.replace("LIMIT", "limit rate over 1/hour burst 1 packets")


@pytest.mark.parametrize(
    ("rules", "drops", "expected"),
    [
        ("LIMIT counter drop", 1008, 1008),
        ("counter LIMIT counter drop", 1008, 1008),
        ("counter LIMIT drop", None, None),  # it counts what was let pass, too
        ("LIMIT drop", None, None),
        ("limit rate 1/hour burst 1 packets accept\ncounter drop", 1008, 1008),
        ("limit rate 1/hour burst 1 packets counter accept\ncounter drop", 1008, 1008),
        ("limit rate 1/hour burst 1 packets accept\nmeta mark 7 counter drop\ncounter drop", None, 1008),
        ("limit rate 1/hour burst 1 packets accept\ndrop", None, None),
        ("LIMIT counter\ncounter drop", None, 1009),
        ('LIMIT counter name "policed" drop', 1008, 1008),
        ('LIMIT counter name "policed" drop\nmeta mark 7 counter name "policed" drop', 1008, None),
        ("LIMIT jump sub", None, 1008),
        ("meta mark vmap { 7 : drop }\nLIMIT counter drop", 1008, None),
    ],
)
def test_what_was_dropped_is_told_only_where_a_counter_tells(
    tap: Tap, rules: str, drops: int | None, expected: int | None
) -> None:
    head = "counter policed { }\nchain sub {\ncounter drop\n}"
    ingress(no_limit(rules), head)
    send(tap, 1009)
    state = read_nft("tap0")
    (found,) = state.policers()
    assert found.drops_packets == drops
    assert found.drops_bytes == (None if drops is None else drops * CHARGED_BYTES)
    total = state.drops("ingress")
    assert (total.packets if total else None) == expected
    counters = {one.counter: one for one in read_counters(find_link("tap0"))}
    if total is None:
        assert "nft drops packets: ingress" not in counters
    else:
        sample = counters["nft drops packets: ingress"]
        assert (sample.value, sample.shared) == (expected, total.shared)


def test_counters_are_those_that_nft_lists(tap: Tap) -> None:
    limited = "ether type ip counter limit rate over 1/hour burst 7 packets counter drop"
    ingress(f"counter\n{limited}\nether type arp counter drop")
    send(tap, 503)
    counted = [
        (counter.packets, counter.bytes)
        for at in read_nft("tap0").rules
        for counter in (at.rule.counter_before, at.rule.counter_after)
        if counter is not None
    ]
    assert counted == listed_counters() == [(503, 503 * 46), (503, 503 * 46), (496, 496 * 46), (0, 0)]
    assert [at.rule.matches_all for at in read_nft("tap0").rules] == [True, False, False]


def test_a_named_limit_is_the_limit_of_the_rule(tap: Tap) -> None:
    ingress('limit name "lim" counter drop', "limit lim { rate over 977 kbytes/second burst 13 kbytes; }")
    (found,) = nft_policers("tap0")
    assert found.limit == RateLimit(977 * 1024 * 8, 13 * 1024, 990 * 1024, over=True)


def test_a_chain_on_several_devices_counts_for_all_of_them(tap: Tap) -> None:
    with create_tap("tap1"), create_tap("tap2"):
        ingress("limit rate over 1/hour burst 1 packets counter drop", device="devices = { tap0, tap1 }")
        assert [nft_policers(name)[0].shared for name in ("tap0", "tap1")] == [True, True]
        assert nft_policers("tap2") == ()
        total = read_nft("tap0").drops("ingress")
        assert total is not None
        assert total.shared
        samples = read_counters(find_link("tap0"))
        assert not [one for one in samples if one.counter.startswith("nft") and one.counts is CounterMeaning.POLICED]


def test_a_policy_that_drops_uncounted_makes_the_total_unknown(tap: Tap) -> None:
    ingress("counter accept", policy="drop")
    assert read_nft("tap0").drops("ingress") is None


def test_a_table_that_is_switched_off_limits_nothing(tap: Tap) -> None:
    ingress("limit rate over 1/hour burst 1 packets counter drop", head="flags dormant;")
    assert nft_policers("tap0") == ()
    assert not has_ingress_chain("tap0")


def test_chains_of_family_inet_are_seen(tap: Tap, require: Require) -> None:
    chain = 'type filter hook ingress device "tap0" priority 3;\nlimit rate over 1/hour burst 1 packets counter drop'
    try:
        run("nft -f -", text=f"table inet x {{\nchain other {{\ncounter drop\n}}\nchain i {{\n{chain}\n}}\n}}\n")
    except AssertionError as error:
        require("inet", False, f"ingress chains of family inet (Linux 5.10): {error}")
    (found,) = nft_policers("tap0")
    assert (found.at.base.family, found.at.base.priority, found.hook) == ("inet", 3, "ingress")
    assert len(read_nft("tap0").rules) == 1


def test_an_egress_chain_is_one_of_what_goes_to_the_guest(tap: Tap, require: Require) -> None:
    chain = 'type filter hook egress device "tap0" priority 0;\nlimit rate over 977/second burst 5 packets counter drop'
    try:
        run("nft -f -", text=f"table netdev x {{\nchain e {{\n{chain}\n}}\n}}\n")
    except AssertionError as error:
        require("egress", False, f"nft egress chains (Linux 5.16): {error}")
    assert not has_ingress_chain("tap0")
    (limit,) = installed(find_link("tap0")).limits
    assert (limit.direction, limit.rate_pps, limit.drops) == (Direction.INBOUND, 977, 0)


def test_a_chain_that_two_ways_lead_to_is_read_once(tap: Tap) -> None:
    ingress("jump a\njump b", "chain b {\ncounter\n}\nchain a {\ngoto b\n}")
    assert [(at.chain, at.rule.verdict) for at in read_nft("tap0").rules] == [
        ("ing", "jump a"), ("a", "goto b"), ("b", ""), ("ing", "jump b"),
    ]  # fmt: skip


def test_chains_that_jump_twice_each_are_no_millions_of_rules(tap: Tap) -> None:
    """Two to the power of 13 ways lead to the last chain: its counter is read once, and counts once."""
    depth = 13
    chains = [f"chain c{step} {{\njump c{step + 1}\njump c{step + 1}\n}}" for step in reversed(range(depth))]
    ingress("jump c0", "\n".join([f"chain c{depth} {{\ncounter drop\n}}", *chains]))
    send(tap, 7)
    state = read_nft("tap0")
    assert len(state.rules) == 1 + 2 * depth + 1
    assert state.drops("ingress") == Counter(7, 7 * CHARGED_BYTES, shared=True)


def test_reading_changes_nothing(tap: Tap) -> None:
    ingress('limit rate over 1/hour burst 1 packets counter name "policed" drop', "counter policed { }")
    send(tap, 11)
    before = run("nft list ruleset")
    for _ in range(3):
        read_nft("tap0")
    assert run("nft list ruleset") == before
    assert "packets 10 bytes 460" in before


def test_without_the_capability_the_error_says_what_is_missing(tap: Tap, require: Require) -> None:
    """Nfnetlink asks for CAP_NET_ADMIN, and the tc part of the answer is given all the same."""
    ingress("limit rate over 1/hour burst 1 packets counter drop")
    seen: list[tuple[str, ...]] = []

    def unprivileged() -> None:
        seen.append(installed(find_link("tap0")).problems)

    in_a_thread_without_capabilities(unprivileged)
    ((problem,),) = seen
    assert "CAP_NET_ADMIN" in problem


def in_a_thread_without_capabilities(work: Callable[[], None]) -> None:
    """Capabilities are a thread's own: this one gives up its effective set for good."""

    def call() -> None:
        number = {"x86_64": 126, "aarch64": 91}[platform.machine()]  # capset
        header = ctypes.create_string_buffer(struct.pack("=II", 0x20080522, 0))
        data = ctypes.create_string_buffer(struct.pack("=6I", 0, 0, 0, 0, 0, 0))
        assert ctypes.CDLL(None).syscall(number, header, data) == 0
        work()

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
