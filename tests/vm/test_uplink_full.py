# SPDX-License-Identifier: Apache-2.0
"""P15: what the taps of a bridge pass together is more than the line carries, and is lost there."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
from collections.abc import Iterator

import pytest
from vm_kit import OUT, run

from vifprobe.host.uplink import line_speed_bps
from vifprobe.policer_audit import audit_tap
from vifprobe.testing import frames as f
from vifprobe.testing.flood import writer
from vifprobe.testing.frames import EtherType
from vifprobe.testing.netns import Netns
from vifprobe.testing.taps import Tap
from vifprobe.testing.taps import tap as make_tap

# Not seen to pass on a stock kernel yet, and so on none by default: name those on which it was, once it was.
pytestmark = [pytest.mark.usefixtures("stock_kernel"), pytest.mark.kernels()]

FRAME = f.eth(f.ipv4(f.udp(bytes(958))), EtherType.IPV4)  # 1,000 bytes: 8 Mbit/s are 1,000 a second
_SIOCETHTOOL, _GSET, _SSET = 0x8946, 1, 2


def set_speed(name: str, megabits: int) -> None:
    """`ethtool -s NAME speed N`: of a tap, what it says of its line."""
    command = bytearray(struct.pack("=I", _GSET).ljust(44, b"\0"))
    buffer = (ctypes.c_char * 44).from_buffer(command)
    request = struct.pack("=16sQ16x", name.encode(), ctypes.addressof(buffer))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control.fileno(), _SIOCETHTOOL, request)
        struct.pack_into("=I", command, 0, _SSET)
        struct.pack_into("=H", command, 12, megabits)
        fcntl.ioctl(control.fileno(), _SIOCETHTOOL, request)


@pytest.fixture
def guest_tap(netns: Netns) -> Iterator[Tap]:
    """On a bridge whose uplink is a VLAN of a line of 10 Mbit/s, which sends no more than that."""
    with make_tap("tap0") as tap, make_tap("line0"):
        set_speed("line0", 10)
        run("ip link add link line0 name up0 type vlan id 7")
        run("ip link add br0 type bridge")
        for port in ("tap0", "up0"):
            run(f"ip link set {port} master br0")
        run("ip link set up0 up")
        run("ip link set br0 up")
        run("tc qdisc add dev up0 root tbf rate 9800kbit burst 10kb latency 5ms")
        assert line_speed_bps("up0") == 10_000_000
        yield tap


@pytest.mark.parametrize("full", [True, False])
def test_an_uplink_that_is_full(guest_tap: Tap, full: bool) -> None:
    pps = 3_000 if full else 400
    with writer(guest_tap.fds, [FRAME], count=10**9, seconds=600, packets_per_second=pps) as flood:
        flood.start()
        found = audit_tap("tap0", {}, (OUT,), 3.3)
    assert {one.pattern for one in found.findings} == ({"P15"} if full else set()), found.findings
    for finding in found.findings:
        assert finding.evidence["uplink"] == "up0"
        assert finding.evidence["speed_bps"] == 10_000_000
