# SPDX-License-Identifier: Apache-2.0
"""A tap with many queues has a class for each of them: as many counters as another tap are compared, no more."""

from __future__ import annotations

from vifprobe.host.counters import read_counters_of
from vifprobe.host.net.links import find_link
from vifprobe.testing.net.taps import private_netns
from vifprobe.testing.net.taps import tap as make_tap


def test_the_queues_of_a_tap_are_no_counters_of_their_own() -> None:
    with private_netns(), make_tap("tap0"), make_tap("tap1", multi_queue=True, queues=17):
        links = [find_link("tap0"), find_link("tap1")]
        one, many = (read_counters_of(links)[link.ifindex] for link in links)
    assert "tc root packets" in {sample.counter for sample in many}
    assert not [sample for sample in many if sample.counter.startswith("tc class")]
    assert len(many) <= len(one) + 4
