# SPDX-License-Identifier: Apache-2.0
"""Uplink of a tap: the port of its bridge by which packets leave the host."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass

from vifprobe.host.net.links import Link, LinkCounters
from vifprobe.host.tc.reader import TcState

_SIOCETHTOOL = 0x8946
_ETHTOOL_GSET = 0x1
_COMMAND_BYTES = 44  # struct ethtool_cmd, include/uapi/linux/ethtool.h
_SPEED_AT, _SPEED_HIGH_AT = 12, 28
_SPEED_UNKNOWN = 0xFFFFFFFF
#: Kinds of devices that lead off a host: a network card names no kind.
_KINDS = ("ethernet", "bond", "team", "vlan")


@dataclass(frozen=True)
class UplinkSample:
    """One uplink at one moment. dropped_packets: by the device and its root qdisc, growing as what was sent does."""

    at_ns: int
    name: str
    speed_bps: int
    sent_packets: int
    sent_bytes: int
    dropped_packets: int


def find_uplink(tap: Link, links: Iterable[Link]) -> Link | None:
    """Return the only port of the tap's bridge that leads off the host; None for none, or several."""
    if not tap.master_ifindex:
        return None
    ports = [link for link in links if link.master_ifindex == tap.master_ifindex and link.kind in _KINDS and link.up]
    return ports[0] if len(ports) == 1 else None


def sample_uplink(link: Link, counters: LinkCounters, tc: TcState) -> UplinkSample | None:
    """Return the current sample; None where the line speed is unknown."""
    speed_bps = line_speed_bps(link.name)
    if speed_bps is None:
        return None
    root = tc.root
    dropped = counters.tx_dropped + (root.stats.drops or 0 if root else 0)
    return UplinkSample(time.monotonic_ns(), link.name, speed_bps, counters.tx_packets, counters.tx_bytes, dropped)


def line_speed_bps(name: str) -> int | None:
    """Return a device's line speed in bits per second, as ethtool(8) shows it; None where it is unknown."""
    command = bytearray(struct.pack("=I", _ETHTOOL_GSET).ljust(_COMMAND_BYTES, b"\0"))
    buffer = (ctypes.c_char * _COMMAND_BYTES).from_buffer(command)
    request = struct.pack("=16sQ16x", name.encode("utf-8", "surrogateescape"), ctypes.addressof(buffer))
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
            fcntl.ioctl(control.fileno(), _SIOCETHTOOL, request)
    except OSError:
        return None
    low, high = struct.unpack_from("=H", command, _SPEED_AT)[0], struct.unpack_from("=H", command, _SPEED_HIGH_AT)[0]
    megabits = high << 16 | low
    # 0xffff: SPEED_UNKNOWN of a driver that does not set the upper half.
    return None if megabits in (0, 0xFFFF, _SPEED_UNKNOWN) else megabits * 1_000_000
