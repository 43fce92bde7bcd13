# SPDX-License-Identifier: Apache-2.0
"""P21: connections of a guest fill the conntrack table, and the packets of further ones are dropped.

The maximum is the whole host's: only in a virtual machine may a test set it.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from vm_kit import OUT, run

from vifprobe.host.net.conntrack import Conntrack, read_conntrack
from vifprobe.model.layout import Verdict
from vifprobe.model.reading import count
from vifprobe.session.probe import Probe
from vifprobe.testing.net.cable import HOST_ADDRESS, Wired, wired_guest
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.waiting import wait_until

pytestmark = pytest.mark.usefixtures("stock_kernel")

PORT, MOST = 7_001, 13
MAXIMUM = Path("/proc/sys/net/netfilter/nf_conntrack_max")


@contextmanager
def maximum(entries: int) -> Iterator[None]:
    """Set for the host, which is written to in its own namespace."""
    before = run("nsenter -t 1 -n cat /proc/sys/net/netfilter/nf_conntrack_max")
    run(f"nsenter -t 1 -n sysctl -q -w net.netfilter.nf_conntrack_max={entries}")
    try:
        yield
    finally:
        run(f"nsenter -t 1 -n sysctl -q -w net.netfilter.nf_conntrack_max={before.strip()}")


@pytest.fixture
def guest(netns: Netns) -> Iterator[Wired]:
    """A guest whose connections to the host are tracked, and a server for them."""
    table = "table ip t {\nchain c {\ntype filter hook input priority 0;\nct state new counter\n}\n}\n"
    subprocess.run(["nft", "-f", "-"], input=table, text=True, check=True)
    with wired_guest() as wired, socket.socket() as server:
        server.bind((HOST_ADDRESS, PORT))
        server.listen(4 * MOST)
        yield wired


def table() -> Conntrack:
    found = read_conntrack()
    assert found is not None
    return found


def connect(wired: Wired, stack: ExitStack, connections: int) -> None:
    """From the guest; answered or not, nobody waits here."""
    with wired.guest.entered():
        for _ in range(connections):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex((HOST_ADDRESS, PORT))


def test_a_table_that_is_full(guest: Wired) -> None:
    with ExitStack() as stack, maximum(MOST), Probe(guest.tap) as probe:
        readings = probe.readings(0.2, 120.0)
        first = next(readings)
        assert "P21" not in {one.pattern for one in first.findings}
        connect(guest, stack, MOST)
        wait_until(lambda: table().entries >= MOST, 60.0)
        nearly = next(one for one in readings if "P21" in {found.pattern for found in one.findings})
        (found,) = [one for one in nearly.findings if one.pattern == "P21"]
        assert (found.severity, found.evidence["entries"]) == ("warning", MOST)
        connect(guest, stack, 7)
        wait_until(lambda: (table().dropped_packets or 0) > 0, 60.0)
        dropped = next(
            one for one in readings if any(f.pattern == "P21" and f.severity == "critical" for f in one.findings)
        )
        (found,) = [one for one in dropped.findings if one.pattern == "P21"]
        assert found.evidence["dropped_packets"] > 0
        assert found.evidence["most_syns_by"] in (guest.tap, None)
        probe.stop()
        *_, totals = readings
    assert count(totals.where(OUT, Verdict.DROPPED)).packets > 0
