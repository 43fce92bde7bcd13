# SPDX-License-Identifier: Apache-2.0
"""Packets that passed a device's egress, in the units of the counters of its driver and its qdisc.

For a tap these are its inbound packets, for a macvtap its outbound ones.

A count that can't be exact has bounds: because of packets queued since before the start, frames that were segmented, or
drops with an unknown location.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from vifprobe.analysis.reconcile import ProbeCount
from vifprobe.host.counters import CounterMeaning, CounterSample, Unit
from vifprobe.model.layout import ETH_HEADER_BYTES, ETHERNET_OVERHEAD_BYTES, VLAN_TAG_BYTES, Ethertype, Verdict
from vifprobe.model.ports import direction_at, l2_header_bytes
from vifprobe.model.reading import Cells, Counts, Reading, count

#: Reasons of drops before the queue (include/net/dropreason-core.h), and those of a tap's driver (drivers/net/tun.c,
#: tun_net_xmit). Drops without a reason are attributed to the driver by the name of the function: tun_*.
_AHEAD = ("TC_EGRESS", "NETFILTER_DROP")
_BY_DRIVER = ("FULL_RING", "TAP_FILTER", "TAP_TXFILTER")


class InboundTotals:
    """The totals at a device's egress.

    - reading: totals of the run.
    - reasons: names of the kernel's drop reasons.
    - function: callback that returns the name of the function at an address, given by its low half; None where unknown.
    """

    def __init__(self, reading: Reading, reasons: Mapping[int, str], function: Callable[[int], str | None]) -> None:
        direction = direction_at(reading.kind, "egress")
        self._untracked, self._missed = reading.untracked, reading.missed_of(direction)
        self._has_gso = _has_gso(reading.where(direction), ETH_HEADER_BYTES - l2_header_bytes(reading.kind))
        dropped, policed = reading.where(direction, Verdict.DROPPED), reading.where(direction, Verdict.POLICED)
        names = np.array([reasons.get(int(code), "") for code in dropped["reason"]], dtype=object)
        functions = [function(int(place)) or "" for place in dropped["location"]]
        by_driver = np.isin(names, _BY_DRIVER) | np.array([name.startswith("tun_") for name in functions], bool)
        ahead = np.isin(names, _AHEAD) & ~by_driver
        at_tc = np.isin(policed["reason"], [code for code, name in reasons.items() if name in _AHEAD])
        self._offered, self._passed = reading.offered(direction), count(reading.where(direction, Verdict.PASSED))
        self._by_driver, self._unplaced = count(dropped[by_driver]), count(dropped[~by_driver & ~ahead])
        self._by_queue = count(policed[~at_tc])
        self._ahead = count(dropped[ahead]) + count(policed[at_tc])
        self._queued = count(reading.where(direction, Verdict.QUEUED))

    def bounds(self, sample: CounterSample, before: int | None) -> ProbeCount | None:
        """The run's count of what this counter counts; None where it has none. before: the counter's first value."""
        if sample.unit is not Unit.PACKETS and (self._missed or sample.counts is CounterMeaning.ARRIVED):
            return None
        value = _value(sample.unit)
        missed = self._missed
        unplaced = value(self._unplaced)
        if (
            sample.counts is CounterMeaning.PASSED
        ):  # what was put into the ring; what is read out of it the counter says
            passed = value(self._passed)
            return ProbeCount(passed, passed + missed, sample.slack)
        if sample.counts is CounterMeaning.DROPPED:
            by_driver = value(self._by_driver)
            return ProbeCount(by_driver, by_driver + unplaced + missed)
        if sample.counts is CounterMeaning.POLICED:
            policed = value(self._by_queue)
            return ProbeCount(policed, policed + unplaced + missed)
        if sample.counts is CounterMeaning.SENT:
            return self._sent(sample, value(self._passed) + value(self._by_driver), unplaced)
        if sample.counts is CounterMeaning.ARRIVED and not self._has_gso:
            came = self._offered.packets - self._ahead.packets
            return ProbeCount(max(0, came - self._untracked - unplaced), came + missed)
        if sample.counts is CounterMeaning.QUEUED:
            return ProbeCount(max(0, self._queued.packets - (before or 0)), self._queued.packets + missed)
        return None

    def _sent(self, sample: CounterSample, sent: int, unplaced: int) -> ProbeCount | None:
        if sample.unit is not Unit.PACKETS:
            return ProbeCount(sent, sent + unplaced)
        if self._has_gso:  # the kernel counts segments there, and none of what a guest wrote
            return None
        # Of a frame that is cut up behind the queue it counts as many as that frame's sender said: or none.
        return ProbeCount(max(0, sent - self._untracked), sent + unplaced + self._missed)


def _value(unit: Unit) -> Callable[[Counts], int]:
    name = "packets" if unit is Unit.PACKETS else "frame_bytes" if unit is Unit.FRAME_BYTES else "charged_bytes"
    return lambda counts: int(getattr(counts, name))


def _has_gso(cells: Cells, more_bytes: int) -> bool:
    """Return True if some frames have several segments: on the wire each segment has headers of its own.

    more_bytes: what a packet of this device would get on Ethernet before its first byte.
    """
    tags = np.where(cells["ethertype"] == Ethertype.VLAN, VLAN_TAG_BYTES, 0)
    long = cells["frame_bytes"] + more_bytes * cells["packets"] >= 64 * cells["packets"]  # shorter ones are padded
    more = cells["wire_bytes"] > cells["frame_bytes"] + (ETHERNET_OVERHEAD_BYTES + more_bytes + tags) * cells["packets"]
    return bool((long & more).any())
