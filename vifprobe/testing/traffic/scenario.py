# SPDX-License-Identifier: Apache-2.0
"""A VM's tap as a compute node has it, played on any machine: limited, on a bridge, with a guest that can run amok.

Everything happens in the calling thread's network namespace: enter a private one first.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain, zip_longest

from vifprobe.errors import KernelError
from vifprobe.testing.net.links import bridge_with, nft_ingress_limit
from vifprobe.testing.net.taps import Tap, gso_packet, set_link_up, tap
from vifprobe.testing.packets import frames as f
from vifprobe.testing.packets.frames import EtherType, TcpFlag

#: TCP payload of a full Ethernet frame with timestamps; what is longer, a bridge drops.
SEGMENT_BYTES = 1448
SEGMENT6_BYTES = 1428
_TIMESTAMPS = bytes((1, 1, 8, 10)) + bytes(8)  # NOP, NOP, RFC 7323
_SYN_OPTIONS = bytes((2, 4, 5, 180, 4, 2, 8, 10)) + bytes(8) + bytes((1, 3, 3, 7))  # MSS, SACK, timestamps, scale
_DNS_QUERY = bytes.fromhex("1f2b01000001000000000000076578616d706c65036e65740000010001")  # A? example.net


@dataclass(frozen=True)
class PolicerScenario:
    """Who limits the guest. `is_police`: act_police, as libvirt installs it; else an nft limit stands in for it.

    bucket_bytes: how much passes at once after silence.
    """

    is_police: bool
    rate_bps: int
    bucket_bytes: int

    @property
    def words(self) -> str:
        """In a sentence: "limited by ..."."""
        return "tc's act_police, as libvirt installs it" if self.is_police else "an nft limit (no act_police here)"


@dataclass(frozen=True)
class Guest:
    """The VM as the host sees it: its tap and what limits it."""

    tap: Tap
    policer: PolicerScenario


@contextmanager
def guest(name: str = "tap834d76e9-5f", *, average: int = 12500, burst: int = 3125) -> Iterator[Guest]:
    """A tap on a bridge that forwards to an uplink, its outbound traffic limited; all gone after the block.

    average and burst as Nova's ``quota:vif_outbound_average`` and ``_burst`` name them: 1000 byte/s and 1024 byte.
    The tap takes a virtio-net header, as QEMU's does.
    """
    with ExitStack() as stack:
        made = stack.enter_context(tap(name, vnet_hdr=True))
        policer = stack.enter_context(limit(made.name, average=average, burst=burst))
        stack.enter_context(forwarded(made))
        yield Guest(made, policer)


@contextmanager
def forwarded(*taps: Tap) -> Iterator[None]:
    """What the taps' policers let through passes: on a bridge, to an uplink that takes all of it."""
    with bridge_with(*taps) as bridge, _uplink(bridge):
        yield


@contextmanager
def limit(device: str, *, average: int, burst: int) -> Iterator[PolicerScenario]:
    """The policer that libvirt installs for what comes from the guest, else (no act_police) an nft limit."""
    rate_bps = average * 8000
    # What virNetDevBandwidthSet runs (libvirt, src/util/virnetdevbandwidth.c); it goes away with the tap.
    police = f"police rate {average}kbps burst {burst}kb mtu 64kb drop flowid :1"
    if _done(f"tc qdisc add dev {device} ingress"):
        if _done(f"tc filter add dev {device} parent ffff: protocol all u32 match u32 0 0 {police}"):
            yield PolicerScenario(True, rate_bps, burst * 1024)
            return
        _done(f"tc qdisc delete dev {device} ingress")
    with nft_ingress_limit(device, rate_bytes_per_second=average * 1000, burst_bytes=burst * 1024):
        # nft's bucket holds a second's worth of the rate besides (net/netfilter/nft_limit.c, nft_limit_init).
        yield PolicerScenario(False, rate_bps, average * 1000 + burst * 1024)


def ordinary_packets(tap: Tap) -> list[bytes]:
    """What to write for a guest that does its work: 100 packets, 526 bytes long in the mean, for a writer to repeat.

    Handshakes, downloads (ACKs) and uploads (data, some of it as TSO frames), DNS, pings, ARP, IPv4 and IPv6.
    """
    data, ack = TcpFlag.PSH | TcpFlag.ACK, TcpFlag.ACK
    full, full6 = bytes(SEGMENT_BYTES), bytes(SEGMENT6_BYTES)
    mix = [
        [_tcp4(ack)] * 36,
        [_tcp4(data, full)] * 14,
        [_tcp4(data, bytes(length)) for length in (19, 73, 131, 257, 419, 641, 883, 1109)],
        [_tcp6(ack)] * 8 + [_tcp6(data, full6)] * 4 + [_tcp6(TcpFlag.SYN, options=_SYN_OPTIONS)],
        [_tcp4(TcpFlag.SYN, options=_SYN_OPTIONS)] * 3 + [_tcp4(TcpFlag.SYN | ack, options=_SYN_OPTIONS)] * 2,
        [_tcp4(TcpFlag.FIN | ack)] * 3 + [_tcp4(TcpFlag.RST | ack)],
        [f.eth(f.ipv4(f.udp(_DNS_QUERY, destination_port=53)), EtherType.IPV4)] * 11,
        [f.eth(f.ipv4(f.icmp(bytes(56))), EtherType.IPV4)] * 3,
        [f.eth(f.ipv6(f.icmpv6(bytes(56))), EtherType.IPV6)] * 2,
        [f.pad(f.eth(f.arp(), EtherType.ARP))] * 2,
    ]
    # Dealt out in turn: traffic of one kind doesn't come in one lump.
    dealt = chain.from_iterable(zip_longest(*mix))
    packets = [tap.packet(frame) for frame in dealt if frame is not None]
    return [*packets, *_tso_packets(tap)]


def syn_flood_packets(tap: Tap, ports: int = 251) -> list[bytes]:
    """SYNs of 54 bytes without options, from one source port each: what a flood tool writes."""
    made = (f.tcp(TcpFlag.SYN, source_port=1024 + 199 * number, destination_port=80) for number in range(ports))
    return [tap.packet(f.eth(f.ipv4(part), EtherType.IPV4)) for part in made]


def _tcp4(flags: int, payload: bytes = b"", options: bytes = _TIMESTAMPS) -> bytes:
    return f.eth(f.ipv4(f.tcp(flags, payload, options=options)), EtherType.IPV4)


def _tcp6(flags: int, payload: bytes = b"", options: bytes = _TIMESTAMPS) -> bytes:
    return f.eth(f.ipv6(f.tcp(flags, payload, options=options)), EtherType.IPV6)


def _tso_packets(tap: Tap) -> list[bytes]:
    """Two frames of several segments that the guest leaves to the network card to cut."""
    if not tap.vnet_hdr:
        return []
    transport = f.ETH_HEADER_BYTES + f.IPV4_HEADER_BYTES
    frames = [_tcp4(TcpFlag.ACK, bytes(segments * SEGMENT_BYTES)) for segments in (4, 7)]
    return [gso_packet(frame, gso_size=SEGMENT_BYTES, transport_offset=transport) for frame in frames]


@contextmanager
def _uplink(bridge: str, name: str = "uplink") -> Iterator[None]:
    """A port of the bridge that swallows what is sent to it, as a network card does."""
    # Neither counts a drop for it. Not every kernel has both.
    if not any(_done(f"ip link add {name} type {kind}") for kind in ("dummy", "ifb")):
        raise KernelError(f"{bridge}: no device to forward to.", "The kernel needs CONFIG_DUMMY or CONFIG_IFB.")
    try:
        if not _done(f"ip link set {name} master {bridge}"):
            raise KernelError(f"{name} can't be made a port of {bridge}.")
        set_link_up(name)
        yield
    finally:
        _done(f"ip link delete {name}")


def _done(command: str) -> bool:
    try:
        return subprocess.run(command.split(), check=False, capture_output=True).returncode == 0
    except FileNotFoundError as error:
        raise KernelError(f"{error.filename} is not installed.") from error
