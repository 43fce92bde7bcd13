# SPDX-License-Identifier: Apache-2.0
"""A real guest sends: QEMU with virtio-net on the tap, its own kernel's pktgen. Its counts are vifprobe's."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vifprobe import Probe
from vifprobe.model.layout import Direction, PacketClass, Verdict
from vifprobe.model.reading import count
from vifprobe.testing.net.links import nft_ingress_limit
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.net.taps import device_counters, set_link_up

Require = Callable[[str, object, str], None]

SENDER = Path(__file__).parents[2] / "scripts" / "lab" / "guest-sender"
# In a virtual machine with a stock kernel this one is emulated twice over, and has vhost-net.
COUNT, BYTES, SECONDS = (1_009, 73, 800.0) if os.environ.get("VIFPROBE_VM") else (100_003, 73, 240.0)
OUT = Direction.OUTBOUND


@pytest.fixture
def guest_tap(netns: Netns) -> Iterator[str]:
    """A tap for QEMU to open."""
    subprocess.run(["ip", "tuntap", "add", "tap0", "mode", "tap", "vnet_hdr"], check=True)
    set_link_up("tap0")
    yield "tap0"
    subprocess.run(["ip", "link", "delete", "tap0"], check=True)


def test_counts_agree_with_the_guest(guest_tap: str, require: Require) -> None:
    done: list[subprocess.CompletedProcess[str]] = []
    with (
        nft_ingress_limit(guest_tap, rate_bytes_per_second=101, burst_bytes=1_009) as limit,
        Probe(guest_tap, directions=(OUT,)) as probe,
    ):

        def send() -> None:
            try:
                environment = os.environ | {"GUEST_SECONDS": str(round(SECONDS))}
                command = [str(SENDER), guest_tap, str(COUNT), str(BYTES)]
                done.append(subprocess.run(command, capture_output=True, text=True, check=False, env=environment))
            finally:
                probe.stop()

        guest = threading.Thread(target=send)
        guest.start()
        [total] = [reading for reading in probe.readings(0.5, SECONDS) if reading.final]
        guest.join()
        policed = limit.read()
    [sender] = done
    require("vm", sender.returncode != 77, sender.stderr.strip())
    assert sender.returncode == 0, sender.stderr
    told = re.search(r"pktgen (\d+) driver (\d+) all (\d+) bytes (\d+) vhost (on|off)", sender.stdout)
    assert told, sender.stdout
    sent, driver, packets, frame_bytes = map(int, told.groups()[:4])
    assert told[5] == ("on" if Path("/dev/vhost-net").exists() else "off")
    assert sent == driver == COUNT
    offered = total.offered(OUT)
    assert (offered.packets, offered.frame_bytes) == (packets, frame_bytes)
    assert device_counters(guest_tap)["rx_packets"] == packets
    assert total.offered(OUT, PacketClass.UDP).packets == COUNT
    found = count(total.where(OUT, Verdict.POLICED))
    assert (found.packets, found.charged_bytes) == (policed.packets, policed.bytes)
    assert policed.packets > COUNT // 2
