# SPDX-License-Identifier: Apache-2.0
"""The neighbour table as the kernel has it, beside what ip(8) prints of it."""

from __future__ import annotations

import json
from ipaddress import ip_address

from host_fixtures import run

from vifprobe.host.net.neighbours import Neighbour, neighbours
from vifprobe.testing.net.taps import Tap


def test_addresses_by_mac(tap: Tap) -> None:
    run(f"ip neigh add 192.0.2.7 lladdr fa:16:3e:00:00:07 dev {tap.name}")
    run(f"ip neigh add 192.0.2.8 lladdr fa:16:3e:00:00:08 dev {tap.name} nud permanent")
    run(f"ip neigh add 192.0.2.9 dev {tap.name} nud incomplete")
    found = [one for one in neighbours() if one.ifindex == tap.ifindex]
    assert Neighbour(tap.ifindex, ip_address("192.0.2.8"), "fa:16:3e:00:00:08") in found
    printed = {(row["dst"], row["lladdr"]) for row in json.loads(run("ip -j neigh")) if "lladdr" in row}
    assert {(str(one.ip), one.mac) for one in found} == printed
    assert len(found) == 2
