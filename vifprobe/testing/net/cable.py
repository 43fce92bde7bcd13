# SPDX-License-Identifier: Apache-2.0
"""A guest with a real TCP stack behind a tap: a cable between the guest's own network card and the host's tap.

The guest is a network namespace whose card is a tap too. What its kernel sends comes out of that tap's descriptor and
is written to the host's tap, as QEMU does with a VM's packets; and the other way round. `join` does that in a process
of its own, which runs this file as a script: it shares no interpreter lock with who watches.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # as a script it runs without the package
    from vifprobe.testing.net.netns import Netns

GUEST_ADDRESS, HOST_ADDRESS = "10.77.0.2", "10.77.0.1"
_PREFIX = 16  # all of 10.77.0.0/16 is on this link
#: Out of a /64 of those for documentation. What is beyond the link goes to the host, which forwards nothing.
GUEST_ADDRESS_V6, HOST_ADDRESS_V6 = "2001:db8:77::2", "2001:db8:77::1"
_FRAME_BYTES = 65_550
_BATCH = 256  # frames of one side before the other one has its turn


@dataclass(frozen=True)
class Wired:
    """A guest's namespace and its path, and the tap that a host would watch (in the caller's namespace)."""

    guest: Netns
    tap: str

    @property
    def guest_netns(self) -> str:
        """The path of the guest's namespace."""
        return self.guest.path


@contextmanager
def wired_guest(tap: str = "tap0") -> Iterator[Wired]:
    """A guest with an address, behind a tap of the calling thread's namespace, which has the other address."""
    # Here, so that the script below runs without the package.
    from vifprobe.testing.net.netns import private_netns
    from vifprobe.testing.net.taps import tap as make_tap

    with ExitStack() as stack:
        host = stack.enter_context(make_tap(tap))
        _run("ip", "address", "add", f"{HOST_ADDRESS}/{_PREFIX}", "dev", tap)
        guest = stack.enter_context(private_netns(enter=False))
        with guest.entered():
            card = stack.enter_context(make_tap("eth0"))
            _run("ip", "address", "add", f"{GUEST_ADDRESS}/{_PREFIX}", "dev", "eth0")
            _run("ip", "link", "set", "lo", "up")
        stack.enter_context(_joined(host.fd, card.fd))
        yield Wired(guest, tap)


def add_ipv6(wired: Wired) -> None:
    """IPv6 for both, without waiting for anybody to object to an address: link-local ones, those above, and for the
    guest a temporary one beside its own (RFC 8981), which its connections begin from.
    """
    _ipv6_on(wired.tap)
    _run("ip", "address", "add", f"{HOST_ADDRESS_V6}/64", "dev", wired.tap)
    with wired.guest.entered():
        Path("/proc/sys/net/ipv6/conf/eth0/use_tempaddr").write_text("2")
        _ipv6_on("eth0")
        _run("ip", "address", "add", f"{GUEST_ADDRESS_V6}/64", "dev", "eth0", "mngtmpaddr")
        for version, gateway in (("-4", HOST_ADDRESS), ("-6", HOST_ADDRESS_V6)):
            _run("ip", version, "route", "add", "default", "via", gateway)


def _ipv6_on(device: str) -> None:
    for knob, value in (("accept_dad", 0), ("dad_transmits", 0), ("router_solicitations", 0), ("disable_ipv6", 0)):
        Path(f"/proc/sys/net/ipv6/conf/{device}/{knob}").write_text(str(value))


@contextmanager
def _joined(one: int, other: int) -> Iterator[None]:
    command = [sys.executable, "-I", "-S", __file__, str(one), str(other)]
    process = subprocess.Popen(command, pass_fds=(one, other), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        try:
            if process.stdout is None or process.stdout.readline() != b"ready\n":
                raise OSError("the cable did not start")
            yield
        finally:
            process.kill()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def join(one: int, other: int) -> None:
    """Copy frames both ways until stdin ends."""
    for fd in (one, other):
        os.set_blocking(fd, False)
    to = {one: other, other: one}
    while True:
        ready, _, _ = select.select([one, other, sys.stdin.fileno()], [], [])
        if sys.stdin.fileno() in ready:
            return
        for fd in ready:
            for _ in range(_BATCH):
                try:
                    frame = os.read(fd, _FRAME_BYTES)
                except BlockingIOError:
                    break
                try:
                    os.write(to[fd], frame)
                except OSError as error:  # a card whose ring is full loses frames, as any does
                    print(json.dumps({"lost": str(error)}), file=sys.stderr)


if __name__ == "__main__":
    print("ready", flush=True)
    join(int(sys.argv[1]), int(sys.argv[2]))
