# SPDX-License-Identifier: Apache-2.0
"""What the verdicts of inbound packets prove: a guest that does not read (P14), a limit broken or too strict."""

from __future__ import annotations

import pytest
from inbound_kit import IN, guest, inbound, neighbour, senders, watch
from probe_kit import FIRST_CPU, SYN
from test_inbound import make_htb, set_root

from vifprobe import Probe
from vifprobe.model.layout import Expected, Verdict
from vifprobe.model.reading import Limit, Reading
from vifprobe.testing.net.taps import Tap

COUNT = 5_003
PASSED, POLICED, DROPPED, QUEUED = Verdict.PASSED, Verdict.POLICED, Verdict.DROPPED, Verdict.QUEUED


def flooded(tap: Tap, declared_bps: int | None = None, burst_bytes: int | None = None) -> Reading:
    limits = {} if declared_bps is None else {IN: Limit(declared_bps, burst_bytes=burst_bytes)}
    with (
        neighbour(tap) as other,
        senders((other, COUNT, FIRST_CPU)) as writers,
        Probe("tap0", limits=limits, bin_ns=1_000_000) as probe,
    ):
        return watch(probe, writers)[1]


@pytest.mark.parametrize("reads", [False, True])
def test_p14_a_guest_that_does_not_read(tap: Tap, reads: bool) -> None:
    """Beside it the same flood to a guest that reads: what its ring does not hold in time is told, and no more."""
    set_root(tap, "noqueue")
    if not reads:
        total = flooded(tap)
    else:
        with guest(tap):
            total = flooded(tap)
    lost = inbound(total, DROPPED).packets
    assert lost == tap.counters()["tx_dropped"]
    found = [finding for finding in total.findings if finding.pattern == "P14"]
    if reads:
        assert inbound(total, PASSED).packets + total.missed == COUNT - lost
        assert bool(found) == (lost >= 100)
    else:
        assert lost > COUNT // 2
        (finding,) = found
        assert (finding.evidence["full_ring_packets"], finding.evidence["offered_packets"]) == (lost, COUNT)
        assert finding.evidence["full_ring_frame_bytes"] == lost * len(SYN)


def test_a_queue_that_polices_is_no_ring_that_is_full(tap: Tap) -> None:
    make_htb(tap, "8kbit", 127)
    with guest(tap):
        total = flooded(tap)
    assert inbound(total, POLICED).packets > COUNT // 2
    assert not [finding for finding in total.findings if finding.pattern == "P14"]


def test_a_declared_limit_that_is_not_there_is_bypassed(tap: Tap) -> None:
    """All that the ideal bucket says is too much passes, and nothing is policed; its share is the bucket's."""
    set_root(tap, "noqueue")
    with guest(tap):
        total = flooded(tap, declared_bps=80_000, burst_bytes=101 * len(SYN))
    bypass, exceed = total.bypass(IN), total.would(IN, Expected.EXCEED)
    assert bypass is not None
    assert exceed is not None
    assert total.overpoliced(IN) == (0, 0, 0, 0)
    assert bypass.packets == exceed.packets - inbound_of(total, DROPPED, Expected.EXCEED)
    assert COUNT // 2 < bypass.packets <= COUNT - 101
    assert [finding.pattern for finding in total.findings if finding.pattern == "P1"] == ["P1"]


def test_a_queue_that_is_stricter_than_what_is_declared_overpolices(tap: Tap) -> None:
    """The ideal bucket would have let all of it pass: each packet that the queue dropped is one too many."""
    make_htb(tap, "8kbit", 127)
    total = flooded(tap, declared_bps=10_000_000_000, burst_bytes=10_000_019)
    overpoliced = total.overpoliced(IN)
    assert overpoliced is not None
    assert overpoliced == inbound(total, POLICED)
    assert overpoliced.packets > COUNT // 2
    assert total.bypass(IN) == (0, 0, 0, 0)


def inbound_of(total: Reading, verdict: Verdict, expected: Expected) -> int:
    return int(total.where(IN, verdict, expected=expected)["packets"].sum())
