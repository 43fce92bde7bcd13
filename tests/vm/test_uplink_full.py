# SPDX-License-Identifier: Apache-2.0
"""P15: what the taps of a bridge pass together is more than the line carries, and is lost there."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from vm_kit import OUT, run

from vifprobe.host.net.uplink import line_speed_bps
from vifprobe.session.audit.snapshot import audit_tap
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.packets import frames as f
from vifprobe.testing.packets.frames import EtherType
from vifprobe.testing.traffic.flood import writer

pytestmark = [pytest.mark.usefixtures("stock_kernel"), pytest.mark.kernels("6.1", "6.12")]

FRAME = f.eth(f.ipv4(f.udp(bytes(958))), EtherType.IPV4)  # 1,000 bytes: 1 Mbit/s is 125 a second
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


@contextmanager
def taken(line: Tap) -> Iterator[None]:
    """What the line carries away: a tap whose frames nobody reads sends nothing any more once its ring is full."""
    with subprocess.Popen(["cat"], stdin=line.fd, stdout=subprocess.DEVNULL) as reader:
        try:
            yield
        finally:
            reader.kill()


@pytest.fixture
def guest_tap(netns: Netns) -> Iterator[Tap]:
    """On a bridge whose uplink is a VLAN of a line of 1 Mbit/s, which sends no more than that."""
    with make_tap("tap0") as tap, make_tap("line0") as line, taken(line):
        set_speed("line0", 1)
        run("ip link add link line0 name up0 type vlan id 7")
        run("ip link add br0 type bridge")
        for port in ("tap0", "up0"):
            run(f"ip link set {port} master br0")
        run("ip link set up0 up")
        run("ip link set br0 up")
        run("tc qdisc add dev up0 root tbf rate 980kbit burst 3kb latency 5ms")
        assert line_speed_bps("up0") == 1_000_000
        yield tap


@pytest.mark.parametrize("full", [True, False])
def test_an_uplink_that_is_full(guest_tap: Tap, full: bool) -> None:
    pps = 311 if full else 41
    with writer(guest_tap.fds, [FRAME], count=10**9, seconds=600, packets_per_second=pps) as flood:
        flood.start()
        found = audit_tap("tap0", {}, (OUT,), 3.3)
    assert {one.pattern for one in found.findings} == ({"P15"} if full else set()), found.findings
    for finding in found.findings:
        assert finding.evidence["uplink"] == "up0"
        assert finding.evidence["speed_bps"] == 1_000_000
