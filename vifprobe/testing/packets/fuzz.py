# SPDX-License-Identifier: Apache-2.0
"""Frames made at random, most of them nearly right: a corpus to hold a parser against another one.

All chance comes out of the `random.Random` that is given: the same seed, the same frames; and with hypothesis'
`randoms()` a frame that shows a difference is made small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from vifprobe.testing.packets import extensions, frames
from vifprobe.testing.packets.frames import EtherType, Part, Protocol, TcpFlag, eth, ipv4, ipv6, pad, vlan

#: BIG TCP: longer than a 16-bit length field can say (include/linux/netdevice.h, GSO_MAX_SIZE).
BIG_TCP_PAYLOAD_BYTES = (65_600, 70_001)

Maker = Callable[[Random], bytes]


def corpus(seed: int, count: int) -> Iterator[bytes]:
    """`count` frames of a seed."""
    random = Random(seed)  # noqa: S311 - chance, not secrecy
    return (frame(random) for _ in range(count))


def frame(random: Random) -> bytes:
    """One frame: headers, then what can go wrong with them on their way."""
    if _one_in(random, 64):
        return random.randbytes(random.randrange(14, 120))
    made = _PAYLOADS[_pick(random, (45, 35, 4, 16))](random)
    for _ in range(_pick(random, (60, 20, 14, 6))):
        made = vlan(made, vid=random.randrange(4096), pcp=random.randrange(8), tpid=_tag_type(random))
    if _one_in(random, 6):
        made = _changed(random, made)
    if _one_in(random, 5):
        made = made[: random.randrange(14, len(made) + 1)]
    if _one_in(random, 4):
        filler = bytes([random.randrange(256)])
        made = pad(made, random.choice((60, 64, len(made) + random.randrange(1, 40))), filler)
    return made


def big_tcp(random: Random) -> bytes:
    """A frame that no length field holds: only with a length of 0 it is right."""
    flags = random.choice((TcpFlag.ACK, TcpFlag.ACK | TcpFlag.PSH))
    part = frames.tcp(flags, bytes(random.choice(BIG_TCP_PAYLOAD_BYTES)))
    if random.randrange(2):
        return eth(ipv4(part, total_length=random.choice((0, 1500, 65_535))), EtherType.IPV4)
    return eth(ipv6(part, payload_length=random.choice((0, 1500, 65_535))), EtherType.IPV6)


def _one_in(random: Random, count: int) -> bool:
    return random.randrange(count) == count - 1


def _pick(random: Random, weights: tuple[int, ...]) -> int:
    """A place among these, as likely as its weight says; the first is the simplest."""
    at = random.randrange(sum(weights))
    for place, weight in enumerate(weights):
        if at < weight:
            return place
        at -= weight
    raise AssertionError("weights")


def _tag_type(random: Random) -> int:
    return EtherType.QINQ if _one_in(random, 3) else EtherType.VLAN


def _changed(random: Random, made: bytes) -> bytes:
    """Some bytes behind the addresses are something else."""
    changed = bytearray(made)
    for _ in range(random.randrange(1, 4)):
        at = random.randrange(12, min(len(made), 90)) if len(made) > 12 else 0
        changed[at] = random.randrange(256) if random.randrange(2) else changed[at] ^ 1 << random.randrange(8)
    return bytes(changed)


def _ipv4(random: Random) -> bytes:
    part = _with_ah(random, _transport(random, Protocol.ICMP, Protocol.ICMPV6))
    options = bytes([1]) * (4 * random.randrange(11)) if _one_in(random, 5) else b""
    whole = 20 + len(options) + len(part.data)
    offset = 0 if not _one_in(random, 8) else random.choice((1, 2, 185, 8191, random.randrange(8192)))
    return eth(
        ipv4(
            part,
            options=options,
            version=random.randrange(16) if _one_in(random, 40) else 4,
            ihl=random.randrange(16) if _one_in(random, 25) else None,
            total_length=_length(random, whole),
            protocol=random.randrange(256) if _one_in(random, 25) else None,
            offset=offset,
            more_fragments=_one_in(random, 8),
            dont_fragment=_one_in(random, 2),
            take=slice(None) if not _one_in(random, 12) else slice(random.randrange(24)),
        ),
        EtherType.IPV4,
    )


def _ipv6(random: Random) -> bytes:
    part = _transport(random, Protocol.ICMPV6, Protocol.ICMP)
    for _ in range(_pick(random, (40, 20, 12, 6, 4, 3, 2, 2, 3, 3, 2))):
        part = _EXTENSIONS[_pick(random, (3, 3, 3, 5, 2))](random, part)
    return eth(
        ipv6(
            part,
            version=random.randrange(16) if _one_in(random, 40) else 6,
            payload_length=_length(random, len(part.data)),
            next_header=random.randrange(256) if _one_in(random, 25) else None,
            take=slice(None) if not _one_in(random, 12) else slice(random.randrange(24)),
        ),
        EtherType.IPV6,
    )


def _length(random: Random, right: int) -> int | None:
    """A length field: None for the right value."""
    kind = _pick(random, (80, 6, 6, 4, 4))
    if kind == 0:
        return None
    if kind == 1:
        return max(0, right - random.randrange(1, 24))
    if kind == 2:
        return right + random.randrange(1, 24)
    return 0 if kind == 3 else random.randrange(65_536)


def _transport(random: Random, icmp: int, foreign_icmp: int) -> Part:
    kind = _pick(random, (60, 16, 8, 2, 14))
    if kind == 0:
        return _tcp(random)
    if kind == 1:
        payload = random.randbytes(random.randrange(60))
        return frames.udp(payload, length=_length(random, 8 + len(payload)))
    if kind in (2, 3):
        return frames.raw(icmp if kind == 2 else foreign_icmp, random.randbytes(random.randrange(40)))
    others = (Protocol.IGMP, Protocol.IPIP, Protocol.GRE, Protocol.ESP, Protocol.SCTP, 59, 89, 132, 253)
    return frames.raw(random.choice(others), random.randbytes(random.randrange(60)))


def _tcp(random: Random) -> Part:
    options = bytes([1]) * (4 * random.randrange(11)) if _one_in(random, 3) else b""
    usual = (TcpFlag.SYN, TcpFlag.ACK, TcpFlag.SYN | TcpFlag.ACK, TcpFlag.FIN | TcpFlag.ACK, TcpFlag.RST)
    return frames.tcp(
        random.randrange(256) if random.randrange(2) else random.choice(usual),
        random.randbytes(random.randrange(80) if random.randrange(2) else 0),
        options=options,
        data_offset=random.randrange(16) if _one_in(random, 12) else None,
        reserved=random.randrange(16) if _one_in(random, 8) else 0,
    )


def _with_ah(random: Random, part: Part) -> Part:
    for _ in range(_pick(random, (30, 2, 1))):
        part = _ah(random, part)
    return part


def _ah(random: Random, part: Part) -> Part:
    length = random.randrange(256) if _one_in(random, 10) else None
    return extensions.ah(part, icv_bytes=4 * random.randrange(5), payload_len=length)


def _fragment(random: Random, part: Part) -> Part:
    offset = 0 if not _one_in(random, 3) else random.choice((1, 2, 185, 8191, random.randrange(8192)))
    return extensions.fragment(part, offset=offset, more=_one_in(random, 2))


_EXTENSIONS: tuple[Callable[[Random, Part], Part], ...] = (
    lambda random, part: extensions.hop_by_hop(part, units=random.randrange(3)),
    lambda random, part: extensions.routing(part, units=random.randrange(3)),
    lambda random, part: extensions.destination_options(part, units=random.randrange(3)),
    _fragment,
    _ah,
)


def _arp(random: Random) -> bytes:
    kind = _pick(random, (8, 2))
    hardware_bytes, protocol_bytes = (6, 4) if kind == 0 else (random.randrange(24), random.randrange(24))
    packet = frames.arp(operation=random.randrange(1, 5), hardware_bytes=hardware_bytes, protocol_bytes=protocol_bytes)
    return eth(packet, EtherType.ARP)


def _other(random: Random) -> bytes:
    inside = ipv4(_tcp(random))
    kind = random.randrange(6)
    if kind == 0:
        return eth(extensions.lldp(), EtherType.LLDP)
    if kind == 1:
        return eth(extensions.mpls(inside), EtherType.MPLS)
    if kind == 2:
        return eth(extensions.pppoe(inside), EtherType.PPPOE)
    if kind == 3:
        return frames.eth_length(random.randbytes(random.randrange(3, 60)))
    return eth(random.randbytes(random.randrange(60)), random.randrange(0x10000))


_PAYLOADS: tuple[Maker, ...] = (_ipv4, _ipv6, _arp, _other)
