# SPDX-License-Identifier: Apache-2.0
"""The number of tracked connections, of the namespace that asks."""

from __future__ import annotations

from host_fixtures import Require, run

from vifprobe.host.net.conntrack import read_conntrack
from vifprobe.host.net.links import find_link
from vifprobe.testing.net.netns import private_netns
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.packets import frames as f

FLOWS = 211
CHAIN = "type filter hook input priority 0;\nct state new counter"
GUEST, HOST = bytes((192, 0, 2, 2)), bytes((192, 0, 2, 1))


def test_connections_are_counted_where_they_are(tap: Tap, require: Require) -> None:
    try:
        run(
            "nft -f -", text="table ip t {\nchain c {\ntype filter hook input priority 0;\nct state new counter\n}\n}\n"
        )
    except AssertionError as error:
        require("kernel", False, f"nft with conntrack: {error}")
    run("ip address add 192.0.2.1/24 dev tap0")
    run("ip link set lo up")
    to = bytes.fromhex(find_link("tap0").mac.replace(":", ""))
    for flow in range(FLOWS):
        packet = f.ipv4(f.udp(bytes(19), source_port=2_000 + flow), source=GUEST, destination=HOST)
        tap.write(to + f.eth(packet, f.EtherType.IPV4)[6:])
    found = read_conntrack()
    assert found is not None
    assert found.entries == FLOWS
    assert found.entries_max > FLOWS
    assert found.dropped_packets in (0, None)
    with private_netns():
        other = read_conntrack()
        assert other is not None
        assert other.entries == 0
