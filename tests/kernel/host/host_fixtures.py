# SPDX-License-Identifier: Apache-2.0
"""What the host tests share: commands that must succeed, and the numbers in what tc prints."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import socket
import struct
import subprocess
from collections.abc import Callable
from typing import NamedTuple

from vifprobe.host.tc.objects import TCMSG
from vifprobe.testing.net.netlink_bytes import attribute
from vifprobe.testing.net.taps import Tap

#: The `require` fixture of conftest.py.
Require = Callable[[str, object, str], None]

#: 60 bytes of IPv4 and UDP to nobody: 46 bytes are charged for it at ingress.
FRAME = bytes.fromhex("020000000001020000000002080045000028000000004011000001010101020202020007000700140000") + bytes(
    18
)
CHARGED_BYTES = len(FRAME) - 14


def run(command: str, *, text: str | None = None) -> str:
    """What a command line prints; AssertionError with its complaint where it fails."""
    done = subprocess.run(command.split(), input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def can(command: str) -> bool:
    """Whether a command line succeeds."""
    return subprocess.run(command.split(), capture_output=True, check=False).returncode == 0


def send(tap: Tap, count: int, frame: bytes = FRAME) -> None:
    """Frames from the guest."""
    for _ in range(count):
        tap.write(frame)


class Printed(NamedTuple):
    """`Sent 4646 bytes 101 pkt (dropped 83, overlimits 89`."""

    bytes: int
    packets: int
    drops: int
    overlimits: int


def printed_stats(text: str) -> list[Printed]:
    """All statistics in the output of `tc -s`, in order."""
    found = re.findall(r"Sent (\d+) bytes (\d+) pkts? \(dropped (\d+), overlimits (\d+)", text)
    return [Printed(*map(int, numbers)) for numbers in found]


def printed(text: str, word: str) -> str:
    """The word behind `word` in the output of tc."""
    match = re.search(rf"\b{re.escape(word)} (\S+)", text)
    assert match, f"no {word!r} in {text}"
    return match[1]


def load_program() -> int:
    """File descriptor of a tc program that lets everything go on (`r0 = -1; exit`)."""
    instructions = struct.pack("=BBhi", 0xB7, 0, 0, -1) + struct.pack("=BBhi", 0x95, 0, 0, 0)
    code, licence = ctypes.create_string_buffer(instructions), ctypes.create_string_buffer(b"GPL")
    sched_cls, program_load = 3, 5
    attributes = struct.pack("=IIQQ", sched_cls, 2, ctypes.addressof(code), ctypes.addressof(licence)).ljust(128, b"\0")
    number = {"x86_64": 321, "aarch64": 280}[platform.machine()]
    argument = ctypes.create_string_buffer(attributes)
    fd: int = ctypes.CDLL(None, use_errno=True).syscall(number, program_load, argument, len(attributes))
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return fd


def add_program_filter(ifindex: int, parent: int, pref: int, fd: int, name: str) -> None:
    """`tc filter add dev X parent P pref N bpf da fd FD name NAME`, which tc offers for pinned programs only."""
    options = attribute(6, struct.pack("=I", fd)) + attribute(7, name.encode() + b"\0") + attribute(8, b"\1\0\0\0")
    body = TCMSG.pack(0, ifindex, 0, parent, pref << 16 | socket.htons(3))
    body += attribute(1, b"bpf\0") + attribute(0x8000 | 2, options)
    newtfilter, request_ack_create_exclusive = 44, 0x1 | 0x4 | 0x400 | 0x200
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        netlink.send(struct.pack("=IHHII", 16 + len(body), newtfilter, request_ack_create_exclusive, 1, 0) + body)
        (error,) = struct.unpack_from("=i", netlink.recv(8192), 16)
    assert error == 0, os.strerror(-error)
