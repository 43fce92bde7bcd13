# SPDX-License-Identifier: Apache-2.0
"""The test kit's own ground: what is written to a tap is what the kernel counts, and nothing stays behind."""

import os
import select
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from vifprobe.testing.net.links import bridge_with, nft_ingress_limit, veth_pair
from vifprobe.testing.net.netns import Netns, private_netns
from vifprobe.testing.net.taps import GsoType, Tap, device_counters, write_gso
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.traffic.flood import flood, writer
from vifprobe.testing.waiting import wait_until

# 60 bytes of IEEE 802 local experimental EtherType 1; a bridge drops what comes from a source of all zeros.
FRAME = b"\xff" * 6 + bytes.fromhex("020000000001") + b"\x88\xb5" + bytes(46)
PRIME = 10_007
OTHER_PRIME = 7_919


def rx_packets(tap: Tap) -> int:
    return tap.counters()["rx_packets"]


def test_the_tap_counts_exactly_what_was_written(tap: Tap) -> None:
    written = flood([tap.fd], [FRAME], count=PRIME, seconds=10)
    assert written.frames == PRIME
    assert written.by_fd == (PRIME,)
    assert rx_packets(tap) == PRIME
    assert tap.counters()["rx_bytes"] == PRIME * len(FRAME)


def test_a_new_tap_is_silent(tap: Tap) -> None:
    assert set(tap.counters().values()) == {0}
    flood([tap.fd], [FRAME], count=1, seconds=5)
    assert rx_packets(tap) == 1  # nothing of its own came in between


def test_frames_take_turns(tap: Tap) -> None:
    frames = [FRAME, FRAME + bytes(1), FRAME + bytes(3)]
    assert flood([tap.fd], frames, count=3 * 211 + 1, seconds=10).frames == 634
    assert tap.counters()["rx_bytes"] == 634 * 60 + 211 * (1 + 3)


def test_two_taps_are_fed_in_turn(tap: Tap) -> None:
    with make_tap("tap1") as other:
        written = flood([tap.fd, other.fd], [FRAME], count=PRIME, seconds=10)
        assert written.by_fd == (5004, 5003)
        assert (rx_packets(tap), rx_packets(other)) == written.by_fd


def test_a_flood_ends_in_time(tap: Tap) -> None:
    begin = time.monotonic()
    written = flood([tap.fd], [FRAME], count=10**12, seconds=0.1)
    assert 0.1 <= time.monotonic() - begin < 5
    assert written.frames == rx_packets(tap) > 0


def test_a_paced_flood_keeps_its_pace(tap: Tap) -> None:
    written = flood([tap.fd], [FRAME], count=499, seconds=20, packets_per_second=1000)
    assert written.frames == rx_packets(tap) == 499
    assert written.seconds >= 0.498  # frame i isn't written before i / 1000 s
    assert written.seconds < 5


def test_a_flood_without_bounds_is_refused(tap: Tap) -> None:
    with pytest.raises(ValueError, match="seconds above 0"):
        flood([tap.fd], [FRAME], count=1, seconds=0)
    with pytest.raises(ValueError, match="a frame"), writer([tap.fd], [], count=1, seconds=1):
        pass


def test_writers_on_two_cpus_at_once(tap: Tap) -> None:
    first_cpu, *_, last_cpu = sorted(os.sched_getaffinity(0)) * 2
    with (
        make_tap("tap1") as other,
        writer([tap.fd, other.fd], [FRAME], count=PRIME, seconds=20, cpu=first_cpu) as one,
        writer([other.fd], [FRAME], count=OTHER_PRIME, seconds=20, cpu=last_cpu) as two,
    ):
        assert os.sched_getaffinity(one.pid) == {first_cpu}
        assert os.sched_getaffinity(two.pid) == {last_cpu}
        assert rx_packets(tap) == rx_packets(other) == 0  # nothing before start()
        one.start()
        two.start()
        assert one.wait().by_fd == (5004, 5003)
        assert two.wait().by_fd == (OTHER_PRIME,)
        assert rx_packets(tap) == 5004
        assert rx_packets(other) == 5003 + OTHER_PRIME


def test_a_writer_says_why_it_failed(tap: Tap) -> None:
    with writer([tap.fd], [FRAME[:13]], count=1, seconds=5) as short:
        short.start()
        with pytest.raises(OSError, match="Invalid argument"):  # a tap takes 14 bytes or more
            short.wait()


def test_a_writer_that_was_never_started_ends_with_its_block(tap: Tap) -> None:
    with writer([tap.fd], [FRAME], count=1, seconds=5) as idle:
        pid = idle.pid
    assert not Path(f"/proc/{pid}").exists()
    assert rx_packets(tap) == 0


def test_nft_limit_passes_its_burst_and_counts_the_rest(tap: Tap) -> None:
    """Nft counts 46 bytes for a frame of 60 at ingress, and every frame is in exactly one of its two counters."""
    with nft_ingress_limit(tap.name, rate_bytes_per_second=46_000, burst_bytes=46_000) as limit:
        before = time.monotonic()
        flood([tap.fd], [FRAME], count=PRIME, seconds=10)
        seconds = time.monotonic() - before
        policed, passed = limit.read(), limit.read_passed()
        assert policed.packets + passed.packets == PRIME
        assert policed.bytes == 46 * policed.packets
        # One second's worth and the burst are in the bucket at the start, and it fills at the rate.
        assert 2000 <= passed.packets <= 2000 + 1000 * seconds + 1
    flood([tap.fd], [FRAME], count=7, seconds=10)  # the limit is gone
    assert rx_packets(tap) == PRIME + 7


def test_bridge_takes_what_the_tap_sends(tap: Tap) -> None:
    with make_tap("tap1") as other, bridge_with(tap, other) as bridge:
        assert Path(f"/proc/sys/net/ipv6/conf/{bridge}").exists()
        wait_until(lambda: _is_forwarded(tap, other), 10)
    assert bridge not in [name for _, name in socket.if_nameindex()]


def _is_forwarded(tap: Tap, other: Tap) -> bool:
    tap.write(FRAME)
    return bool(select.select([other.fd], [], [], 0)[0]) and os.read(other.fd, 2048) == FRAME


def test_veth_pair_hands_over(netns: Netns) -> None:
    with veth_pair("veth0", "veth1"):
        link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        with link:
            link.bind(("veth0", 0))
            link.send(FRAME)
        wait_until(lambda: device_counters("veth1")["rx_packets"] == 1, 5)


def test_tso_frames_are_one_packet(netns: Netns) -> None:
    with make_tap("tap0", vnet_hdr=True) as tap:
        headers = FRAME[:12] + b"\x08\x00" + b"\x45" + bytes(19) + bytes(12) + b"\x50" + bytes(7)
        write_gso(tap, headers + bytes(10_000), gso_size=1448, transport_offset=34, gso_type=GsoType.TCPV4)
        tap.write(FRAME)
        assert rx_packets(tap) == 2
        assert tap.counters()["rx_bytes"] == len(headers) + 10_000 + len(FRAME)
    with make_tap("tap1") as plain, pytest.raises(ValueError, match="vnet_hdr"):
        write_gso(plain, FRAME, gso_size=1, transport_offset=34)


def test_every_queue_counts_for_the_tap(netns: Netns) -> None:
    with make_tap("tap0", multi_queue=True, queues=3) as tap:
        assert flood(tap.fds, [FRAME], count=31, seconds=5).by_fd == (11, 10, 10)
        assert rx_packets(tap) == 31


def test_a_tap_ends_with_its_block(netns: Netns) -> None:
    with make_tap("tap0", mtu=9000) as tap:
        assert socket.if_nametoindex("tap0") == tap.ifindex
    assert "tap0" not in [name for _, name in socket.if_nameindex()]


def test_the_caller_is_back_where_it_was(netns: Netns) -> None:
    def current() -> int:
        return Path("/proc/thread-self/ns/net").stat().st_ino

    assert current() == netns.inode
    with private_netns(enter=False) as other:
        assert current() == netns.inode != other.inode
        assert other.run(current) == other.inode
        with other.entered():
            assert current() == other.inode
        with pytest.raises(ZeroDivisionError), private_netns():
            _ = 1 / 0
        assert current() == netns.inode
        assert Path(other.path).stat().st_ino == other.inode


def test_namespaces_are_gone_afterwards(netns: Netns) -> None:
    """A veth end dies with its namespace, and its peer with it (drivers/net/veth.c, veth_dellink)."""

    def names() -> list[str]:
        return [name for _, name in socket.if_nameindex()]

    with ExitStack() as stack:
        with private_netns(enter=False) as other:
            stack.enter_context(veth_pair("veth0", "veth1", peer_netns_path=other.path))
            assert "veth1" in other.run(names)
            with other.entered(), make_tap("tap0") as inner:
                inner.write(FRAME)
            assert "veth0" in names()
        wait_until(lambda: "veth0" not in names(), 10)
    assert "netns" not in [thread.name for thread in threading.enumerate()]
