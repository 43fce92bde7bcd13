# SPDX-License-Identifier: Apache-2.0
"""Tuns (layer 3), as a VPN opens them: in the calling thread's network namespace."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from vifprobe.testing.net.taps import (
    IFF_NO_PI,
    IFF_TUN,
    IFF_VNET_HDR,
    VNET_HEADER,
    Tap,
    gso_packet,
    open_queue,
    set_link_up,
)
from vifprobe.testing.packets.case import Case
from vifprobe.testing.packets.frames import ETH_HEADER_BYTES

#: struct tun_pi of include/uapi/linux/if_tun.h: flags, and the EtherType of what follows.
PACKET_INFORMATION = struct.Struct("!HH")


@dataclass(frozen=True)
class Tun(Tap):
    """An open tun: what is written to its descriptor is what the device receives.

    packet_information: struct tun_pi comes first; else the kernel takes the type from the IP version.
    """

    packet_information: bool = False

    def write_case(self, case: Case) -> None:
        """One packet to the device, see `of_frame`."""
        os.write(self.fd, self.of_frame(case))

    def of_frame(self, case: Case) -> bytes:
        """What to write for a case of the packet table: the frame without its Ethernet header."""
        packet = case.frame[ETH_HEADER_BYTES:]
        if case.gso is not None:
            offset = case.gso.transport_offset - ETH_HEADER_BYTES
            body = gso_packet(packet, gso_size=case.gso.size, transport_offset=offset, gso_type=case.gso.kind)
        else:
            body = VNET_HEADER.pack(0, 0, 0, 0, 0, 0) + packet if self.vnet_hdr else packet
        if not self.packet_information:
            return body
        return PACKET_INFORMATION.pack(0, int.from_bytes(case.frame[12:14], "big")) + body

    def read(self) -> bytes:
        """The next packet that the host sent. BlockingIOError where there is none."""
        return os.read(self.fd, 1 << 17)


@contextmanager
def tun(
    name: str, *, vnet_hdr: bool = False, packet_information: bool = False, mtu: int = 1500, address: str = ""
) -> Iterator[Tun]:
    """A tun that is up, without IPv6 of its own; gone after the block. address: with the prefix length; "" for none.

    Raises KernelError without /dev/net/tun or CAP_NET_ADMIN.
    """
    flags = IFF_TUN | IFF_NO_PI * (not packet_information) | IFF_VNET_HDR * vnet_hdr
    with ExitStack() as stack:
        fd = open_queue(stack, name, flags)
        os.set_blocking(fd, False)
        commands = [["ip", "link", "set", name, "mtu", str(mtu)]]
        commands += [["ip", "address", "add", address, "dev", name]] if address else []
        for command in commands:
            subprocess.run(command, check=True, capture_output=True)
        set_link_up(name)
        yield Tun(name, socket.if_nametoindex(name), (fd,), vnet_hdr, packet_information)
