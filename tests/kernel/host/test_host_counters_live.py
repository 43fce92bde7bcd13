# SPDX-License-Identifier: Apache-2.0
"""Counters that counter_check a probe's count: exact for what was written, whoever keeps them."""

from __future__ import annotations

from host_fixtures import CHARGED_BYTES, FRAME, run, send
from host_reading import read_counters

from vifprobe.host.counters import CounterMeaning, CounterSample, Unit, read_counters_of
from vifprobe.host.net.links import find_link
from vifprobe.model.layout import Direction
from vifprobe.testing.net.links import nft_ingress_limit
from vifprobe.testing.net.taps import Tap, create_tap
from vifprobe.testing.waiting import wait_until


def by_name(samples: tuple[CounterSample, ...]) -> dict[str, CounterSample]:
    names = {one.counter: one for one in samples}
    assert len(names) == len(samples), "a counter's name stands for one counter"
    return names


def grown(before: tuple[CounterSample, ...], after: tuple[CounterSample, ...]) -> dict[str, int]:
    old = by_name(before)
    return {one.counter: one.value - old[one.counter].value for one in after}


def test_a_flood_behind_an_nft_limit_in_the_counters_of_device_tc_and_nft(tap: Tap) -> None:
    run("tc qdisc add dev tap0 ingress")
    run("tc filter add dev tap0 parent ffff: protocol all u32 match u32 0 0 flowid :1")
    link = find_link("tap0")
    with nft_ingress_limit("tap0", rate_bytes_per_second=460, burst_bytes=4600) as limit:
        send(tap, 211)
        before = read_counters(link)
        dropped_before = limit.read().packets
        send(tap, 1009)
        dropped = limit.read().packets - dropped_before
        difference = grown(before, read_counters(link, before))
    assert difference["device rx_packets"] == difference["tc ingress packets"] == 1009
    assert difference["device rx_bytes"] == 1009 * len(FRAME)
    assert difference["tc ingress bytes"] == 1009 * CHARGED_BYTES
    assert difference["tc ingress drops"] == 0
    assert difference["nft drops packets: ingress"] == dropped > 0
    assert difference["nft drops bytes: ingress"] == dropped * CHARGED_BYTES
    counts = {name: one.counts for name, one in by_name(before).items()}
    assert counts["nft drops packets: ingress"] is CounterMeaning.POLICED
    assert counts["tc ingress drops"] is CounterMeaning.PART  # what nft drops is policed, too, and not in it


def test_what_the_guest_reads_and_what_its_full_ring_refuses(tap: Tap) -> None:
    """Nothing reads this tap: 17 frames fit into its queue of 17, the qdisc ahead of it is taken away."""
    run("ip link set tap0 txqueuelen 17")
    run("tc qdisc replace dev tap0 root noqueue")
    link = find_link("tap0")
    before = read_counters(link)
    with create_tap("tap1") as other:
        run("ip link set tap1 up")
        run("tc qdisc add dev tap1 ingress")
        run("tc filter add dev tap1 parent ffff: protocol all u32 match u32 0 0 action mirred egress redirect dev tap0")
        send(other, 101)
    after = wait_until(lambda: find(read_counters(link), "device tx_dropped"), 5)
    assert after is not None
    assert after.value - by_name(before)["device tx_dropped"].value == 101 - 17
    assert (after.counts, after.direction, after.unit) == (CounterMeaning.DROPPED, Direction.INBOUND, Unit.PACKETS)


def find(samples: tuple[CounterSample, ...], counter: str) -> CounterSample | None:
    one = by_name(samples)[counter]
    return one if one.value else None


def test_the_root_qdiscs_drops_are_what_is_policed_towards_the_guest(tap: Tap) -> None:
    run("tc qdisc replace dev tap0 root handle 7: tbf rate 8kbit burst 1540 limit 1540")
    link = find_link("tap0")
    before = read_counters(link)
    with create_tap("tap1") as other:
        run("ip link set tap1 up")
        run("tc qdisc add dev tap1 ingress")
        run("tc filter add dev tap1 parent ffff: protocol all u32 match u32 0 0 action mirred egress redirect dev tap0")
        send(other, 307)
    after = read_counters(link, before)
    difference = grown(before, after)
    assert difference["tc root drops"] > 0
    assert by_name(after)["tc root drops"].counts is CounterMeaning.POLICED
    shown = run("tc -s qdisc show dev tap0 root")
    assert f"(dropped {by_name(after)['tc root drops'].value}," in shown


def test_many_taps_at_once_and_one_that_is_gone(tap: Tap) -> None:
    with create_tap("tap1") as other:
        run("ip link set tap1 up")
        links = [find_link("tap0"), find_link("tap1")]
        send(tap, 11)
        send(other, 13)
        found = read_counters_of(links)
        values = [by_name(found[link.ifindex])["device rx_packets"].value for link in links]
        assert values == [11, 13]
    gone = read_counters_of(links)
    assert gone[links[1].ifindex] == ()
    assert by_name(gone[links[0].ifindex])["device rx_packets"].value == 11
