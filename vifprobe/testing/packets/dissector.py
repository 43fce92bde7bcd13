# SPDX-License-Identifier: Apache-2.0
"""An independent opinion on each frame: tshark reads it, and from its fields alone the class is worked out.

What tshark does beyond the frame (reassembly, heuristics, what TCP and UDP carry) is off, so that a frame's fields
depend on this frame only.
"""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import IO

from vifprobe.model.layout import EXTENSION_HEADERS_MAX, EXTENSION_REACH_BYTES, VLAN_TAGS_MAX, PacketClass
from vifprobe.testing.packets.frames import (
    ETH_HEADER_BYTES,
    IPV4_HEADER_BYTES,
    IPV6_HEADER_BYTES,
    TCP_HEADER_BYTES,
    UDP_HEADER_BYTES,
    VLAN_TAG_BYTES,
    Protocol,
)
from vifprobe.testing.packets.recording import pcap_parts
from vifprobe.testing.packets.rules import tcp_class

FIELDS = (
    "frame.len",
    "frame.protocols",
    "eth.len",
    "vlan.id",
    "vlan.len",
    "ieee8021ad.id",
    "ieee8021ad.svid",
    "ieee8021ad.cvid",
    "ip.version",
    "ip.hdr_len",
    "ip.len",
    "ip.proto",
    "ip.frag_offset",
    "ipv6.version",
    "ipv6.plen",
    "ipv6.nxt",
    "ipv6.hopopts.nxt",
    "ipv6.hopopts.len_oct",
    "ipv6.routing.nxt",
    "ipv6.routing.len_oct",
    "ipv6.dstopts.nxt",
    "ipv6.dstopts.len_oct",
    "ipv6.fraghdr.nxt",
    "ipv6.fraghdr.offset",
    "ah.next_header",
    "ah.length",
    "tcp.flags",
    "tcp.hdr_len",
    "udp.length",
    "_ws.malformed",
    "_ws.expert.message",
)
PREFERENCES = (
    "ip.defragment:FALSE",
    "ipv6.defragment:FALSE",
    "ip.check_checksum:FALSE",
    "tcp.check_checksum:FALSE",
    "udp.check_checksum:FALSE",
    "tcp.analyze_sequence_numbers:FALSE",  # else it leaves out the payload of what looks sent twice
    "tcp.desegment_tcp_streams:FALSE",
    "ip.tso_support:FALSE",  # else a total length of 0 is taken for the frame's
    "vlan.qinq_ethertype:0x8100",  # 0x9100 is no tag to Linux (include/linux/if_vlan.h, eth_type_vlan)
)
#: For frames that are longer than a 16-bit length says: a length of 0 is then the frame's.
BIG_PREFERENCES = (*PREFERENCES, "ip.tso_support:TRUE", "ipv6.tso_support:TRUE")
#: All others are off: what is behind them is data.
PROTOCOLS = (
    "eth",
    "ethertype",
    "vlan",
    "ieee8021ad",
    "arp",
    "ip",
    "ipv6",
    "ipv6.hopopts",
    "ipv6.routing",
    "ipv6.fraghdr",
    "ipv6.dstopts",
    "ah",
    "tcp",
    "udp",
    "icmp",
    "icmpv6",
)
TAGS = {"vlan", "ieee8021ad"}
_IPV4_MAX_BYTES = 65_535
_ICMP_HEADER_BYTES = 8
_EXTENSION_LEAST_BYTES = 8
#: EtherTypes under which it reads ARP, too: RARP, and one of a fibre channel's. To Linux they are no ARP.
_ARP_TOO = (b"\x80\x35", b"\xff\xf2")
#: Extension headers: where tshark has the next header, and the length (fragment header: the offset).
_EXTENSIONS: dict[int, tuple[str, str]] = {
    Protocol.HOP_BY_HOP: ("ipv6.hopopts.nxt", "ipv6.hopopts.len_oct"),
    Protocol.ROUTING: ("ipv6.routing.nxt", "ipv6.routing.len_oct"),
    Protocol.DESTINATION_OPTIONS: ("ipv6.dstopts.nxt", "ipv6.dstopts.len_oct"),
    Protocol.FRAGMENT: ("ipv6.fraghdr.nxt", "ipv6.fraghdr.offset"),
    Protocol.AH: ("ah.next_header", "ah.length"),
}

Fields = dict[str, str]


def read(
    frames: Iterable[bytes], *, fields: Sequence[str] = FIELDS, preferences: Sequence[str] = PREFERENCES
) -> Iterator[Fields]:
    """The fields of each frame, as they come; several values of one field are joined by commas.

    frames: drawn from in another thread, ahead of what is read. Raises CalledProcessError where tshark fails.
    """
    with _only_some_protocols() as environment, _started(environment, fields, preferences) as running:
        assert running.stdin is not None  # noqa: S101 - both were asked for
        assert running.stdout is not None  # noqa: S101
        feeder = Thread(target=_feed, args=(running.stdin, frames), daemon=True)
        feeder.start()
        for line in running.stdout:
            yield dict(zip(fields, line.decode().rstrip("\n").split("\t"), strict=True))
        feeder.join()
    if running.returncode:
        raise subprocess.CalledProcessError(running.returncode, "tshark")


@contextmanager
def _only_some_protocols() -> Iterator[dict[str, str]]:
    """An environment in which tshark knows PROTOCOLS and no other: what it must not know, its settings list."""
    with TemporaryDirectory() as folder:
        Path(folder, "disabled_protos").write_text("".join(f"{name}\n" for name in _other_protocols()))
        yield {**os.environ, "WIRESHARK_CONFIG_DIR": folder}


@cache
def _other_protocols() -> tuple[str, ...]:
    listed = subprocess.run(["tshark", "-G", "protocols"], capture_output=True, text=True, check=True, timeout=60)
    known = [line.split("\t")[2] for line in listed.stdout.splitlines()]
    return tuple(name for name in known if name not in PROTOCOLS and not name.startswith(("eth", "frame", "data")))


def _started(environment: dict[str, str], fields: Sequence[str], preferences: Sequence[str]) -> subprocess.Popen[bytes]:
    options = [word for preference in preferences for word in ("-o", preference)]
    options += [word for field in fields for word in ("-e", field)]
    command = ["tshark", "-n", "-r", "-", "-T", "fields", "-E", "separator=/t", *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)


def _feed(stream: IO[bytes], frames: Iterable[bytes]) -> None:
    # Where tshark has ended before, its exit code is what is to be told.
    with suppress(BrokenPipeError), stream:
        stream.writelines(pcap_parts(enumerate(frames)))


def class_of(found: Fields, frame: bytes) -> PacketClass | None:
    """The class that the rules give to what tshark saw of a frame.

    None where it gave up on a header that is all there: it reads the options in extension headers, and shows nothing
    of what follows a wrong one.
    """
    layers = [layer for layer in found["frame.protocols"].split(":")[1:] if layer != "ethertype"]
    inside = [layer for layer in layers if layer not in TAGS]
    tags = sum(len(_values(found, name)) for name in ("vlan.id", "ieee8021ad.id", "ieee8021ad.svid", "ieee8021ad.cvid"))
    if tags > VLAN_TAGS_MAX:
        return PacketClass.OTHER
    if not inside or inside[0] == "data":
        return _class_of_no_protocol(found)
    start = ETH_HEADER_BYTES + VLAN_TAG_BYTES * tags
    if inside[0] == "arp":
        if frame[start - 2 : start] in _ARP_TOO:
            return PacketClass.OTHER
        return PacketClass.MALFORMED if found["_ws.malformed"] else PacketClass.ARP
    if inside[0] == "ip":
        return _ipv4_class(found, start)
    return _ipv6_class(found, start) if inside[0] == "ipv6" else PacketClass.OTHER


def _class_of_no_protocol(found: Fields) -> PacketClass:
    """What is neither IP nor ARP to tshark: something else, or cut within a tag, or an impossible IPv6 header."""
    if "Bogus IPv6 version" in found["_ws.expert.message"]:
        return PacketClass.MALFORMED
    # A length where others have a type is no header that could be cut; nor is a third tag, which is not looked into.
    is_typed = not found["eth.len"] and not found["vlan.len"]
    looked_into = ETH_HEADER_BYTES + VLAN_TAGS_MAX * VLAN_TAG_BYTES
    is_cut = found["_ws.malformed"] and is_typed and int(found["frame.len"]) < looked_into
    return PacketClass.MALFORMED if is_cut else PacketClass.OTHER


def _values(found: Fields, name: str) -> list[int]:
    return [int(value, 0) for value in found[name].split(",") if value]


def _first(found: Fields, name: str) -> int | None:
    values = _values(found, name)
    return values[0] if values else None


def _ipv4_class(found: Fields, start: int) -> PacketClass | None:
    frame_bytes = int(found["frame.len"])
    version, header, total = (_first(found, name) for name in ("ip.version", "ip.hdr_len", "ip.len"))
    if version != 4 or header is None or header < IPV4_HEADER_BYTES or start + header > frame_bytes or total is None:
        return PacketClass.MALFORMED
    if total == 0 and frame_bytes - start > _IPV4_MAX_BYTES:
        total = frame_bytes - start
    if total < header:
        return PacketClass.MALFORMED
    if _first(found, "ip.frag_offset"):
        return PacketClass.FRAGMENT
    walk = _Walk(found, start + header, min(frame_bytes, start + total), _first(found, "ip.proto"), is_ipv6=False)
    return walk.packet_class()


def _ipv6_class(found: Fields, start: int) -> PacketClass | None:
    frame_bytes = int(found["frame.len"])
    version, payload = (_first(found, name) for name in ("ipv6.version", "ipv6.plen"))
    after = start + IPV6_HEADER_BYTES
    if version != 6 or payload is None or after > frame_bytes:
        return PacketClass.MALFORMED
    if payload == 0 and frame_bytes - start > _IPV4_MAX_BYTES:
        payload = frame_bytes - after
    walk = _Walk(found, after, min(frame_bytes, after + payload), _first(found, "ipv6.nxt"), is_ipv6=True)
    return walk.packet_class()


class _Walk:
    """From header to header behind IP. at, end: where the next one begins, and what none may reach beyond."""

    def __init__(self, found: Fields, at: int, end: int, proto: int | None, *, is_ipv6: bool) -> None:
        self._found = found
        self._at, self._end, self._proto = at, end, proto
        self._is_ipv6 = is_ipv6
        self._seen: Counter[int] = Counter()

    def packet_class(self) -> PacketClass | None:
        """What the headers give; None where tshark has no values of a header that is all there."""
        first = self._at
        for _ in range(EXTENSION_HEADERS_MAX):
            if not self._is_extension():
                return self._transport()
            if self._at + _EXTENSION_LEAST_BYTES > self._end:
                return PacketClass.MALFORMED
            values = self._next_extension()
            if values is None:
                return None
            self._proto, length, offset = values
            if offset:
                return PacketClass.FRAGMENT
            self._at += length
            if self._at > self._end:
                return PacketClass.MALFORMED
            if self._at - first > EXTENSION_REACH_BYTES:
                return PacketClass.IP_OTHER
        return PacketClass.IP_OTHER if self._is_extension() else self._transport()

    def _is_extension(self) -> bool:
        return self._proto in _EXTENSIONS if self._is_ipv6 else self._proto == Protocol.AH

    def _next_extension(self) -> tuple[int, int, int] | None:
        """Next header, length in bytes and fragment offset."""
        proto = self._proto or 0
        place, self._seen[proto] = self._seen[proto], self._seen[proto] + 1
        following, measure = (_values(self._found, name) for name in _EXTENSIONS[proto])
        if place >= min(len(following), len(measure)):
            return None
        if proto == Protocol.FRAGMENT:
            return following[place], _EXTENSION_LEAST_BYTES, measure[place]
        length = 4 * (measure[place] + 2) if proto == Protocol.AH else measure[place]
        return following[place], length, 0

    def _transport(self) -> PacketClass | None:
        room = self._end - self._at
        if self._proto == Protocol.TCP:
            return self._tcp(room)
        if self._proto == Protocol.UDP:
            return self._udp(room)
        if self._proto == (Protocol.ICMPV6 if self._is_ipv6 else Protocol.ICMP):
            whole = PacketClass.ICMPV6 if self._is_ipv6 else PacketClass.ICMP
            return whole if room >= _ICMP_HEADER_BYTES else PacketClass.MALFORMED
        return PacketClass.IP_OTHER

    def _tcp(self, room: int) -> PacketClass | None:
        header, flags = _first(self._found, "tcp.hdr_len"), _first(self._found, "tcp.flags")
        if room < TCP_HEADER_BYTES:
            return PacketClass.MALFORMED
        if header is None:
            return None
        if header < TCP_HEADER_BYTES or header > room:
            return PacketClass.MALFORMED
        return None if flags is None else tcp_class(flags & 0xFF, room - header)

    def _udp(self, room: int) -> PacketClass | None:
        length = _first(self._found, "udp.length")
        if room < UDP_HEADER_BYTES:
            return PacketClass.MALFORMED
        if length is None:
            return None
        is_jumbo = length == 0 and room > _IPV4_MAX_BYTES
        return PacketClass.UDP if length >= UDP_HEADER_BYTES or is_jumbo else PacketClass.MALFORMED
