# SPDX-License-Identifier: Apache-2.0
"""Taps as QEMU opens them, in the calling thread's network namespace, and TSO frames written to them."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from vifprobe.errors import KernelError
from vifprobe.testing.net.netns import private_netns

__all__ = [
    "GsoType",
    "Tap",
    "create_tap",
    "device_counters",
    "gso_packet",
    "open_queue",
    "private_netns",
    "set_link_up",
    "switch_offload",
    "tap",
    "write_gso",
]

# include/uapi/linux/if_tun.h
TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
_TUN_F_CSUM, _TUN_F_TSO4 = 0x01, 0x02
TUNSETIFINDEX = 0x400454DA
IFF_TUN = 0x0001
IFF_TAP = 0x0002
IFF_MULTI_QUEUE = 0x0100
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
# include/uapi/linux/sockios.h and if.h
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
SIOCSIFMTU = 0x8922
IFF_UP = 0x1
#: struct ifreq: a name of 16 bytes, then a union of 24
_IFREQ_BYTES = 40
#: struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset (virtio 1.2, 5.1.6), as a legacy
#: guest writes it: in the host's byte order, without num_buffers
VNET_HEADER = struct.Struct("=BBHHHH")
VNET_HDR_F_NEEDS_CSUM = 1


class GsoType(IntEnum):
    """VIRTIO_NET_HDR_GSO_* of include/uapi/linux/virtio_net.h."""

    NONE = 0
    TCPV4 = 1
    TCPV6 = 4
    UDP_L4 = 5


@dataclass(frozen=True)
class Tap:
    """An open tap: what is written to a descriptor is what the guest sends."""

    name: str
    ifindex: int
    fds: tuple[int, ...]
    vnet_hdr: bool

    @property
    def fd(self) -> int:
        """The first queue's descriptor."""
        return self.fds[0]

    def packet(self, frame: bytes, *, linear_bytes: int = 0) -> bytes:
        """What to write for a frame: behind a virtio-net header where the tap has one.

        The kernel puts only the first `linear_bytes` of a frame beyond a page into the skb's linear part, if that is
        not 0 (drivers/net/tun.c, tun_get_user): what a vhost guest's headers look like.
        """
        if not self.vnet_hdr:
            return frame
        return VNET_HEADER.pack(0, GsoType.NONE, linear_bytes, 0, 0, 0) + frame

    def write(self, frame: bytes) -> None:
        """One frame from the guest."""
        os.write(self.fd, self.packet(frame))

    def counters(self) -> dict[str, int]:
        """The tap's device counters, see `device_counters`."""
        return device_counters(self.name)


@contextmanager
def create_tap(
    name: str, *, vnet_hdr: bool = False, multi_queue: bool = False, queues: int = 1, ifindex: int = 0
) -> Iterator[Tap]:
    """A tap that is down, with the kernel's own settings; gone after the block. ifindex: 0 for any."""
    if queues > 1 and not multi_queue:
        raise ValueError("several queues need multi_queue=True")
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR * vnet_hdr | IFF_MULTI_QUEUE * multi_queue
    with ExitStack() as stack:
        fds = tuple(open_queue(stack, name, flags, 0 if number else ifindex) for number in range(queues))
        yield Tap(name, socket.if_nametoindex(name), fds, vnet_hdr)


@contextmanager
def tap(
    name: str,
    *,
    vnet_hdr: bool = False,
    multi_queue: bool = False,
    queues: int = 1,
    ifindex: int = 0,
    mtu: int | None = None,
) -> Iterator[Tap]:
    """A tap that is up and silent: no IPv6, no address, so that every frame on it is a written one.

    `mtu` in bytes without the L2 header; 65521 is the most a tap takes (MAX_MTU less ETH_HLEN, drivers/net/tun.c).
    Raises KernelError without /dev/net/tun or CAP_NET_ADMIN.
    """
    with create_tap(name, vnet_hdr=vnet_hdr, multi_queue=multi_queue, queues=queues, ifindex=ifindex) as made:
        if mtu is not None:
            _interface_ioctl(SIOCSIFMTU, name, struct.pack("=i", mtu))
        set_link_up(name)
        yield made


def switch_offload(on: Tap, times: int) -> None:
    """Switch TSO on and off, as QEMU does when the guest's driver asks for it: the kernel sends a link message each
    time, in which nothing is different. After an even number of times it is as before.
    """
    for number in range(times):
        fcntl.ioctl(on.fd, TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4 * (number & 1 ^ 1))


def set_link_up(name: str) -> None:
    """Bring an interface up after turning its IPv6 off: router solicitations and MLD reports would be counted too."""
    knob = Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
    if knob.exists():
        knob.write_text("1")
    (flags,) = struct.unpack_from("=H", _interface_ioctl(SIOCGIFFLAGS, name, b""), 16)
    _interface_ioctl(SIOCSIFFLAGS, name, struct.pack("=H", flags | IFF_UP))


def device_counters(name: str) -> dict[str, int]:
    """`rx_packets`, `rx_bytes`, `rx_dropped`, `tx_packets`, … of an interface, from /proc/net/dev."""
    # /proc/net is the namespace of the process's first thread; this one follows the calling thread.
    lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
    receive, transmit = (group.split() for group in lines[1].split("|")[1:])
    names = [f"rx_{field}" for field in receive] + [f"tx_{field}" for field in transmit]
    names = [field.replace("_drop", "_dropped").replace("_errs", "_errors") for field in names]
    for line in lines[2:]:
        device, _, numbers = line.rpartition(":")
        if device.strip() == name:
            return dict(zip(names, map(int, numbers.split()), strict=True))
    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), name)


def gso_packet(frame: bytes, *, gso_size: int, transport_offset: int, gso_type: GsoType = GsoType.TCPV4) -> bytes:
    """What a guest with TSO writes: a frame that is to be cut into segments of `gso_size` payload bytes.

    For a tap made with vnet_hdr=True. `transport_offset` is where the TCP or UDP header starts in the frame.
    NEEDS_CSUM is set, as TSO asks for (virtio 1.2, 5.1.6.2.1); the checksum in the frame is not touched.
    """
    is_udp = gso_type is GsoType.UDP_L4
    transport_bytes = 8 if is_udp else (frame[transport_offset + 12] >> 4) * 4
    checksum_offset = 6 if is_udp else 16
    header_bytes = transport_offset + transport_bytes
    fields = (VNET_HDR_F_NEEDS_CSUM, gso_type, header_bytes, gso_size, transport_offset, checksum_offset)
    return VNET_HEADER.pack(*fields) + frame


def write_gso(
    tap: Tap, frame: bytes, *, gso_size: int, transport_offset: int, gso_type: GsoType = GsoType.TCPV4
) -> None:
    """One such frame from the guest, see `gso_packet`."""
    if not tap.vnet_hdr:
        raise ValueError(f"{tap.name} was opened without vnet_hdr=True")
    packet = gso_packet(frame, gso_size=gso_size, transport_offset=transport_offset, gso_type=gso_type)
    os.write(tap.fd, packet)


def open_queue(stack: ExitStack, name: str, flags: int, ifindex: int = 0) -> int:
    """A descriptor of a tun or tap device, made by the first one; closed with `stack`. flags: IFF_*."""
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        if ifindex:
            fcntl.ioctl(fd, TUNSETIFINDEX, struct.pack("=I", ifindex))
        fcntl.ioctl(fd, TUNSETIFF, struct.pack(f"=16sH{_IFREQ_BYTES - 18}x", name.encode(), flags))
    except OSError as error:
        raise KernelError(
            f"{name}: can't open it: {error.strerror}.",
            "A tap or tun needs /dev/net/tun (CONFIG_TUN) and CAP_NET_ADMIN.",
        ) from error
    return fd


def _interface_ioctl(request: int, name: str, value: bytes) -> bytes:
    ifreq = struct.pack("=16s", name.encode()) + value
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        return fcntl.ioctl(control.fileno(), request, ifreq.ljust(_IFREQ_BYTES, b"\0"))
