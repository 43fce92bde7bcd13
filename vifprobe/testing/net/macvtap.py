# SPDX-License-Identifier: Apache-2.0
"""Macvtaps as QEMU opens them (libvirt's `<interface type='direct'>`), in the calling thread's network namespace."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vifprobe.errors import KernelError
from vifprobe.testing.net.taps import IFF_NO_PI, IFF_TAP, TUNSETIFF, Tap, set_link_up

GUEST_MAC = "02:00:00:00:00:77"


@contextmanager
def macvtap(name: str, lower: str, mode: str = "bridge", mac: str = GUEST_MAC) -> Iterator[Tap]:
    """A macvtap on `lower`, up and silent: what is written to its descriptor is what the guest sends. Gone after it.

    mode: bridge, vepa, private or passthru (ip-link(8)). Raises KernelError without CONFIG_MACVTAP.
    """
    add = ["ip", "link", "add", "link", lower, "name", name, "address", mac, "type", "macvtap", "mode", mode]
    made = subprocess.run(add, capture_output=True, text=True, check=False)
    if made.returncode:
        raise KernelError(f"{' '.join(add)}: {made.stderr.strip()}", "It needs CONFIG_MACVTAP and CAP_NET_ADMIN.")
    try:
        ifindex = socket.if_nametoindex(name)
        fd = _opened(name, ifindex)
        try:
            set_link_up(name)
            yield Tap(name, ifindex, (fd,), vnet_hdr=False)
        finally:
            os.close(fd)
    finally:
        subprocess.run(["ip", "link", "delete", name], capture_output=True, check=False)


def _opened(name: str, ifindex: int) -> int:
    """A descriptor of /dev/tapN, by a node made for it: /dev shows those of the host's first network namespace."""
    number = _device_number(name, ifindex)
    with tempfile.TemporaryDirectory() as folder:
        node = Path(folder) / f"tap{ifindex}"
        os.mknod(node, stat.S_IFCHR | 0o600, number)
        fd = os.open(node, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("=16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return fd


def _device_number(name: str, ifindex: int) -> int:
    """Major and minor number, from a /sys of this network namespace, mounted where nobody else sees it."""
    line = f"mount -t sysfs sysfs /sys && cat /sys/class/net/{name}/tap{ifindex}/dev"
    found = subprocess.run(["unshare", "--mount", "sh", "-c", line], check=True, capture_output=True, text=True)
    major, _, minor = found.stdout.strip().partition(":")
    return os.makedev(int(major), int(minor))
