# SPDX-License-Identifier: Apache-2.0
"""OpenFlow meters that packets of a port of Open vSwitch go through: limits that neither tc nor its database shows.

Neutron's packet-rate limits, its bandwidth limits with `qos_meter_bandwidth`, and OVN use them. Asked through
ovs-ofctl, which comes with Open vSwitch, for the flows of one port alone.

Source: ovs-ofctl(8), dump-flows, dump-meters and meter-stats.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass

from vifprobe.errors import HostError
from vifprobe.host.ovs.ports import OvsInterface
from vifprobe.process.capabilities import Capability, inherited
from vifprobe.process.children import ENVIRONMENT, WORKING_DIRECTORY, program

_TOOL = "ovs-ofctl"
_SECONDS = 2
_OUTPUT_MAX = 4 * 1024 * 1024
# A number longer than any that is kept (64 bits) is none.
_FLOW_METER = re.compile(r"\bmeter:([0-9]{1,10})\b")
_METER = re.compile(r"^meter=([0-9]{1,10}) ([a-z ]*?)bands=\s*((?:^type=.*\n?)*)", re.MULTILINE)
_BAND = re.compile(r"type=drop rate=([0-9]{1,18})\b(?: burst_size=([0-9]{1,18})\b)?")
_STATS = re.compile(
    r"^meter:([0-9]{1,10}) .*?packet_in_count:([0-9]{1,20}) byte_in_count:([0-9]{1,20})\b"
    r".*?\n0: packet_count:([0-9]{1,20})\b",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Meter:
    """One meter for packets from a port. All ports whose flows name it share it. None: not set, or not counted.

    - bridge, number: OVS bridge and number of the meter.
    - rate_bps, burst_bytes: of a meter in kbit (1000).
    - rate_pps: of a meter in packets.
    - packets, bytes: that reached the meter.
    - drops: dropped packets.
    """

    bridge: str
    number: int
    rate_bps: int | None = None
    burst_bytes: int | None = None
    rate_pps: int | None = None
    packets: int | None = None
    bytes: int | None = None
    drops: int | None = None


class MeterError(HostError):
    """Meters could not be read: some may be there."""


def meters_of(interface: OvsInterface) -> tuple[Meter, ...]:
    """The meters in the flows of what comes in through this interface; none where ovs-ofctl is not installed.

    Raises MeterError where it does not answer within some seconds, or says nothing of use.
    """
    if interface.ofport is None or not interface.bridge or program(_TOOL) is None:
        return ()
    flows = _ask("dump-flows", interface.bridge, f"in_port={interface.ofport}")
    numbers = {int(number) for number in _FLOW_METER.findall(flows)}
    if not numbers:
        return ()
    found = parse_meters(interface.bridge, _ask("dump-meters", interface.bridge), _ask("meter-stats", interface.bridge))
    return tuple(meter for meter in found if meter.number in numbers)


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
            rate_pps=rate if in_packets else None,
            packets=packets,
            bytes=size,
            drops=drops,
        )


def _ask(*arguments: str) -> str:
    command = [program(_TOOL) or _TOOL, "-O", "OpenFlow13", f"--timeout={_SECONDS}", *arguments]
    try:
        with inherited(Capability.DAC_OVERRIDE):
            asked = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=WORKING_DIRECTORY,
                env=ENVIRONMENT,
            )
        with asked:
            try:
                output = _read(asked, time.monotonic() + _SECONDS + 1)
            finally:
                asked.kill()
    except OSError as error:
        raise MeterError(f"{_TOOL} can't be run: {error.strerror}.") from error
    words = output.decode(errors="replace")
    if asked.returncode and "version negotiation failed" in words:
        return ""  # a bridge that speaks only OpenFlow before 1.3, which has no meters
    if asked.returncode:
        raise MeterError(f"{_TOOL} {arguments[0]}: {words.strip()[:200]!a}.")
    return words


def _read(asked: subprocess.Popen[bytes], deadline: float) -> bytes:
    """Return the output of a command, bounded in time and length, after it has ended. Raises MeterError."""
    assert asked.stdout is not None  # noqa: S101 - it is a pipe
    output = bytearray()
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([asked.stdout], [], [], left)[0]:
            raise MeterError(f"{_TOOL} did not end within {_SECONDS + 1} s.")
        data = os.read(asked.stdout.fileno(), 1 << 16)
        if not data:
            asked.wait()
            return bytes(output)
        output += data
        if len(output) > _OUTPUT_MAX:
            raise MeterError(f"{_TOOL} wrote more than {_OUTPUT_MAX} bytes.")
