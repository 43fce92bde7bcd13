# SPDX-License-Identifier: Apache-2.0
"""OpenFlow meters that packets of a port of Open vSwitch go through: limits that neither tc nor its database shows.

Neutron's packet-rate limits, its bandwidth limits with `qos_meter_bandwidth`, and OVN use them. Asked through
ovs-ofctl, which comes with Open vSwitch, for the flows of one port alone.

Source: ovs-ofctl(8), dump-flows, dump-meters and meter-stats.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from vifprobe.host.ovs import OvsInterface

_TOOL = "ovs-ofctl"
_SECONDS = 2
_OUTPUT_MAX = 4 * 1024 * 1024
_FLOW_METER = re.compile(r"\bmeter:(\d+)")
_METER = re.compile(r"^meter=(\d+) ([a-z ]*?)bands=\s*((?:^type=.*\n?)*)", re.MULTILINE)
_BAND = re.compile(r"type=drop rate=(\d+)(?: burst_size=(\d+))?")
_STATS = re.compile(
    r"^meter:(\d+) .*?packet_in_count:(\d+) byte_in_count:(\d+).*?\n0: packet_count:(\d+)", re.MULTILINE
)


@dataclass(frozen=True)
class Meter:
    """One meter that packets from a port are sent through. None: not set, or not counted.

    rate_bps, burst_bytes: a meter of kbit (1000). rate_pps: one of packets. packets, bytes: that came to it; drops:
    packets. All ports whose flows name it share it.
    """

    bridge: str
    number: int
    rate_bps: int | None = None
    burst_bytes: int | None = None
    rate_pps: int | None = None
    packets: int | None = None
    bytes: int | None = None
    drops: int | None = None


def meters_of(interface: OvsInterface) -> tuple[Meter, ...]:
    """The meters in the flows of what comes in through this interface; none where ovs-ofctl is not installed, or does
    not answer within some seconds.
    """
    if interface.ofport is None or not interface.bridge or shutil.which(_TOOL) is None:
        return ()
    flows = _ask("dump-flows", interface.bridge, f"in_port={interface.ofport}")
    numbers = {int(number) for number in _FLOW_METER.findall(flows)}
    if not numbers:
        return ()
    found = parse_meters(interface.bridge, _ask("dump-meters", interface.bridge), _ask("meter-stats", interface.bridge))
    return tuple(meter for meter in found if meter.number in numbers)


def parse_meters(bridge: str, listed: str, counted: str = "") -> Iterable[Meter]:
    """What `dump-meters` and `meter-stats` print."""
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
            rate_pps=rate if in_packets else None,
            packets=packets,
            bytes=size,
            drops=drops,
        )


def _ask(*arguments: str) -> str:
    command = [_TOOL, "-O", "OpenFlow13", f"--timeout={_SECONDS}", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=_SECONDS + 1)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout[:_OUTPUT_MAX].decode(errors="replace") if done.returncode == 0 else ""
