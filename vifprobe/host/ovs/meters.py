# SPDX-License-Identifier: Apache-2.0
"""OpenFlow meters that packets of a port of Open vSwitch go through: limits that neither tc nor its database shows.

Neutron's packet-rate limits, its bandwidth limits with `qos_meter_bandwidth`, and OVN use them. Read through ovs-ofctl:
the flows of a bridge once for all its ports.

Source: ovs-ofctl(8), dump-flows, dump-meters and meter-stats.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from vifprobe.host.ovs import ofctl
from vifprobe.host.ovs.flows import Flows
from vifprobe.host.ovs.ofctl import MeterError
from vifprobe.host.ovs.ports import OvsInterface
from vifprobe.model.layout import Direction

#: Flows with meters, and those that lead to them, of one bridge.
_KEPT_MAX = 16 * 1024 * 1024
#: The part of the time that a bridge may be kept busy with such questions.
_SHARE = 0.02
# A number longer than any that is kept (64 bits) is none.
_METER = re.compile(r"^meter=([0-9]{1,10}) ([a-z ]*?)bands=\s*((?:^type=.*\n?)*)", re.MULTILINE)
_BAND = re.compile(r"type=drop rate=([0-9]{1,18})\b(?: burst_size=([0-9]{1,18})\b)?")
_STATS = re.compile(
    r"^meter:([0-9]{1,10}) .*?packet_in_count:([0-9]{1,20}) byte_in_count:([0-9]{1,20})\b"
    r".*?\n0: packet_count:([0-9]{1,20})\b",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Meter:
    """One meter for packets of a port. None: not set, or not counted.

    - bridge, number: OVS bridge and number of the meter.
    - rate_bps, burst_bytes: of a meter in kbit (1000).
    - bucket_bytes: what passes at once after silence: the burst, or a second at the rate where none is set
      (lib/dpif-netlink.c, dpif_netlink_meter_set__).
    - rate_pps: of a meter in packets.
    - packets, bytes: that reached the meter.
    - drops: dropped packets.
    - direction: of the packets.
    - conditions: of the flow, as ovs-ofctl writes them; "" where all packets of the port meet it.
    - shared: packets of other ports go through it, too.
    - cookie: of the flow; OVN: the first 32 bits of the logical flow's UUID.
    """

    bridge: str
    number: int
    rate_bps: int | None = None
    burst_bytes: int | None = None
    bucket_bytes: int | None = None
    rate_pps: int | None = None
    packets: int | None = None
    bytes: int | None = None
    drops: int | None = None
    direction: Direction = Direction.OUTBOUND
    conditions: str = ""
    shared: bool = False
    cookie: int = 0


@dataclass(frozen=True)
class _Bridge:
    """The flows and meters of a bridge, or why they could not be read. took_ns, at_ns: of reading them, monotonic."""

    flows: Flows
    meters: dict[int, Meter]
    shared: frozenset[int]
    problem: str
    took_ns: int
    at_ns: int


class MeterReader:
    """Reads bridges once for all ports, and not more often than they can bear."""

    def __init__(self) -> None:
        self._bridges: dict[str, _Bridge] = {}

    def refresh(self) -> None:
        """Let the next question read again; not where reading took so long that a bridge would be kept busy."""
        now_ns = time.monotonic_ns()
        kept = {name: one for name, one in self._bridges.items() if now_ns - one.at_ns < one.took_ns / _SHARE}
        self._bridges = kept

    def of(self, interface: OvsInterface) -> tuple[Meter, ...]:
        """Return the meters in the way of a port's packets; none where ovs-ofctl is not installed.

        Raises MeterError where they could not be read.
        """
        if interface.ofport is None or not interface.bridge or not ofctl.is_installed():
            return ()
        name = interface.bridge
        bridge = self._bridges.get(name) or self._bridges.setdefault(name, _read(name))
        if bridge.problem:
            raise MeterError(bridge.problem)
        macs = [interface.attached_mac] if interface.attached_mac else []
        uses = bridge.flows.uses(bridge.flows.keys(interface.ofport, macs))
        return tuple(
            replace(
                bridge.meters[use.number],
                direction=use.direction,
                conditions=use.conditions,
                shared=use.number in bridge.shared,
                cookie=use.cookie,
            )
            for use in uses
            if use.number in bridge.meters
        )


def _read(bridge: str) -> _Bridge:
    began_ns, flows, meters, problem, kept = time.monotonic_ns(), Flows(), {}, "", 0
    try:
        for piece in ofctl.pieces("dump-flows", bridge):
            kept += flows.feed(piece)
            if kept > _KEPT_MAX:
                raise MeterError(f"{bridge}: more than {_KEPT_MAX} bytes of flows with meters.")
        if flows.has_meters:
            found = parse_meters(bridge, ofctl.ask("dump-meters", bridge), ofctl.ask("meter-stats", bridge))
            meters = {meter.number: meter for meter in found}
    except MeterError as error:
        problem = error.message
    ended_ns = time.monotonic_ns()
    return _Bridge(flows, meters, flows.shared(), problem, ended_ns - began_ns, ended_ns)


def meters_of(interface: OvsInterface) -> tuple[Meter, ...]:
    """Return the meters in the way of one port's packets. Raises MeterError, see `MeterReader.of`."""
    return MeterReader().of(interface)


def parse_meters(bridge: str, listed: str, counted: str = "") -> Iterable[Meter]:
    """Meters in the output of `dump-meters` and `meter-stats`."""
    stats = {int(number): tuple(map(int, rest)) for number, *rest in _STATS.findall(counted)}
    for number, flags, bands in _METER.findall(listed):
        band = _BAND.search(bands)
        if band is None:
            continue
        rate, burst = int(band[1]), int(band[2] or 0)
        packets, size, drops = stats.get(int(number), (None, None, None))
        in_packets = "pktps" in flags.split()
        yield Meter(
            bridge,
            int(number),
            rate_bps=None if in_packets else rate * 1000,
            burst_bytes=None if in_packets or not burst else burst * 1000 // 8,
            bucket_bytes=None if in_packets else (burst or rate) * 1000 // 8,
            rate_pps=rate if in_packets else None,
            packets=packets,
            bytes=size,
            drops=drops,
        )
