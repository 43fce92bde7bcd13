# SPDX-License-Identifier: Apache-2.0
"""SYNs as different senders write them: a TCP stack, and the flood and scan tools that are seen on compute nodes.

Frames only; `flood` and `writer` send them. Each function gives `count` frames to repeat; seeded, so that two runs are
the same. Addresses outside of those set aside for documentation and private use are never sent to: sources may be any.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from random import Random

from vifprobe.testing.packets import frames as f
from vifprobe.testing.packets.frames import EtherType, TcpFlag

#: MSS 1460, SACK permitted, timestamps, NOP, window scale 7: Linux (net/ipv4/tcp_output.c, tcp_syn_options).
LINUX_OPTIONS = bytes((2, 4, 5, 180, 4, 2, 8, 10)) + bytes(8) + bytes((1, 3, 3, 7))
NMAP_OPTIONS = bytes((2, 4, 5, 180))
GUEST, TARGET = IPv4Address("192.0.2.1"), IPv4Address("198.51.100.2")
GUEST_V6, TARGET_V6 = IPv6Address("2001:db8::1"), IPv6Address("2001:db8:1::2")


def syn(
    *,
    source: IPv4Address | IPv6Address = GUEST,
    destination: IPv4Address | IPv6Address = TARGET,
    source_port: int = 40_001,
    destination_port: int = 80,
    sequence: int = 7001,
    window: int = 64_240,
    ttl: int = 64,
    identification: int = 4099,
    options: bytes = b"",
    source_mac: bytes = f.SOURCE_MAC,
    destination_mac: bytes = f.DESTINATION_MAC,
) -> bytes:
    """One SYN; over IPv6 without an identification."""
    part = f.tcp(
        TcpFlag.SYN,
        options=options,
        source_port=source_port,
        destination_port=destination_port,
        sequence=sequence,
        window=window,
    )
    if isinstance(source, IPv6Address):
        six = f.ipv6(part, source=source.packed, destination=destination.packed, hop_limit=ttl)
        return f.eth(six, EtherType.IPV6, source=source_mac, destination=destination_mac)
    packet = f.ipv4(part, source=source.packed, destination=destination.packed, ttl=ttl, identification=identification)
    return f.eth(packet, EtherType.IPV4, source=source_mac, destination=destination_mac)


def stack(count: int, seed: int = 1, target: IPv4Address = TARGET, port: int = 443) -> list[bytes]:
    """A Linux guest's own connections to one server."""
    random = _seeded(seed)
    return [
        syn(
            destination=target,
            destination_port=port,
            source_port=random.randrange(32_768, 60_999),
            sequence=random.getrandbits(32),
            identification=random.getrandbits(16),
            options=LINUX_OPTIONS[:8] + struct.pack("!II", random.getrandbits(32), 0) + LINUX_OPTIONS[16:],
        )
        for _ in range(count)
    ]


def hping(count: int, seed: int = 1) -> list[bytes]:
    """``hping3 -S --flood -p 80``: no options, a window of 512, source ports counted up."""
    random = _seeded(seed)
    return [
        syn(
            source_port=2_000 + number % 60_000,
            sequence=random.getrandbits(32),
            identification=random.getrandbits(16),
            window=512,
        )
        for number in range(count)
    ]


def spoofed(count: int, seed: int = 1) -> list[bytes]:
    """A flood from any IPv4 source, impossible ones among them: ``hping3 --rand-source``."""
    random = _seeded(seed)
    return [
        syn(
            source=IPv4Address(random.getrandbits(32)),
            source_port=random.randrange(1_024, 65_536),
            sequence=random.getrandbits(32),
            identification=random.getrandbits(16),
            window=512,
        )
        for _ in range(count)
    ]


def spoofed_v6(count: int, seed: int = 1, *, targets: int = 1, sources: int | None = None) -> list[bytes]:
    """A flood over IPv6 with `sources` different ones (None: each SYN its own) from other sites' networks, at so many
    destinations and ports in turn. Their numbers are exact.
    """
    random = _seeded(seed)
    network = int(IPv6Address("2001:db8:2::"))
    places = random.sample(range(1, 2**60), count if sources is None else sources)
    return [
        syn(
            source=IPv6Address(network + places[number % len(places)]),
            destination=IPv6Address(int(TARGET_V6) + number % targets),
            source_port=1_024 + number * 7 % 60_000,
            destination_port=443 + number % targets,
            sequence=random.getrandbits(32),
            window=512,
        )
        for number in range(count)
    ]


def mirai_scan(count: int, seed: int = 1) -> list[bytes]:
    """A sweep for telnet: the sequence number is the destination address, one of ten goes to port 2323.

    Source: the published code of the bot (bot/scanner.c). Destinations are those set aside for benchmarks (RFC 2544).
    """
    random = _seeded(seed)
    return [
        syn(
            destination=target,
            destination_port=2_323 if number % 10 == 0 else 23,
            source_port=random.randrange(1_024, 65_536),
            sequence=int(target),
            identification=random.getrandbits(16),
            window=random.getrandbits(16),
        )
        for number, target in enumerate(_benchmark_hosts(random, count))
    ]


def port_scan(count: int, seed: int = 1, target: IPv4Address = TARGET) -> list[bytes]:
    """``nmap -sS`` of one host: each port once, MSS alone, a window of 1024."""
    random = _seeded(seed)
    ports = random.sample(range(1, 65_536), count)
    sequence = random.getrandbits(32)
    return [
        syn(
            destination=target,
            destination_port=port,
            source_port=random.randrange(33_000, 65_000),
            sequence=sequence ^ random.getrandbits(16),
            identification=random.getrandbits(16),
            window=1_024,
            options=NMAP_OPTIONS,
        )
        for port in ports
    ]


def _seeded(seed: int) -> Random:
    return Random(seed)  # noqa: S311 - a test's frames, the same in each run


def _benchmark_hosts(random: Random, count: int) -> Iterator[IPv4Address]:
    base = int(IPv4Address("198.18.0.0"))
    yield from (IPv4Address(base + number) for number in random.sample(range(1, 2**17 - 1), count))
