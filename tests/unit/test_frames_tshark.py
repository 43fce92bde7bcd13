# SPDX-License-Identifier: Apache-2.0
"""The packet table held against an independent dissector: tshark reads every frame, and its fields give the class."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from vifprobe.layout import EXTENSION_HEADERS_MAX, VLAN_TAGS_MAX, PacketClass
from vifprobe.testing.rules import tcp_class
from vifprobe.testing.table import CASES, Case

FIELDS = (
    "frame.protocols",
    "tcp.flags",
    "ip.proto",
    "ip.frag_offset",
    "ipv6.fraghdr.offset",
    "ip.checksum.status",
    "tcp.checksum.status",
    "udp.checksum.status",
    "icmp.checksum.status",
    "icmpv6.checksum.status",
    "_ws.malformed",
    "_ws.expert.message",
)
PREFERENCES = (
    "ip.defragment:FALSE",
    "ipv6.defragment:FALSE",
    "ip.check_checksum:TRUE",
    "tcp.check_checksum:TRUE",
    "udp.check_checksum:TRUE",
    "tcp.analyze_sequence_numbers:FALSE",  # else it leaves out the payload of what looks sent twice
)
TAGS = {"vlan", "ieee8021ad"}
EXTENSIONS = {"ip": {"ah"}, "ipv6": {"ipv6.hopopts", "ipv6.routing", "ipv6.fraghdr", "ipv6.dstopts", "ah"}}
TRANSPORTS = {
    "ip": {"udp": PacketClass.UDP, "icmp": PacketClass.ICMP},
    "ipv6": {"udp": PacketClass.UDP, "icmpv6": PacketClass.ICMPV6},
}
#: IPv4 protocols of which tshark shows no layer at all where no byte of them is there.
NEEDING_BYTES = {"1", "6", "17", "51"}
OFFSETS = {"ip": ["ip.frag_offset"], "ipv6": ["ipv6.fraghdr.offset"]}
BAD_CHECKSUM = "0"

#: Cases (by the start of the name) where tshark and the rules mean different things, and why.
DIFFERENT = {
    "other: rarp": "to tshark RARP is ARP",
    "other: 0x9100": "to tshark 0x9100 is a VLAN tag, to Linux it is none",
    "tags: 802.1Q then 0x9100": "the same",
    "tags: three, service tag outside": "tshark shows two service tags as one layer",
    "ipv4: total length 0": "tshark can't know whether the frame is a TSO frame and takes it for one",
    "size: 65535 bytes of ipv4, total length 0": "the same",
    "size: shortest ipv6 jumbo packet": "tshark wants the jumbo option (RFC 2675), which BIG TCP leaves out",
    "ipv4: udp, payload cut": "tshark wants the UDP length to fit into the IP length",
    "ipv4: udp, length beyond the end": "the same",
    "ipv6: udp, length beyond the end": "the same",
    "ipv4: udp first fragment of 7": "tshark takes the rest of the header for still to come",
    "ipv4: icmp first fragment of 7": "the same",
    "ipv6: udp first fragment of 7": "the same",
    "ipv4: protocol 134": "tshark looks into RSVP-E2E-IGNORE and blames what it finds on IP",
    "ipv6: next header 134": "the same",
}

Fields = dict[str, str]


def tshark_reads(cases: Sequence[Case], pcap: Path) -> list[Fields]:
    """The fields of each frame; several values of one field are joined by commas."""
    with pcap.open("wb") as file:
        # https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-04.html, link type 1 is Ethernet
        file.write(struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, 1))
        for at, case in enumerate(cases):
            file.write(struct.pack("=IIII", at, 0, len(case.frame), len(case.frame)) + case.frame)
    options = [word for preference in PREFERENCES for word in ("-o", preference)]
    options += [word for field in FIELDS for word in ("-e", field)]
    command = ["tshark", "-n", "-r", str(pcap), "-T", "fields", "-E", "separator=;", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return [dict(zip(FIELDS, line.split(";"), strict=True)) for line in done.stdout.splitlines()]


def class_by_tshark(found: Fields) -> PacketClass:
    layers = [layer for layer in found["frame.protocols"].split(":")[1:] if layer != "ethertype"]
    tags = 0
    while tags < len(layers) and layers[tags] in TAGS:
        tags += 1
    inside = layers[tags:]
    if tags > VLAN_TAGS_MAX:
        return PacketClass.OTHER
    if not inside:
        return PacketClass.MALFORMED if found["_ws.malformed"] else PacketClass.OTHER
    if inside[0] == "arp":
        return PacketClass.MALFORMED if found["_ws.malformed"] else PacketClass.ARP
    if inside[0] in ("ip", "ipv6"):
        return _ip_class(found, inside)
    # An IPv6 packet of another version is no IPv6 layer to tshark.
    return PacketClass.MALFORMED if "Bogus IPv6 version" in found["_ws.expert.message"] else PacketClass.OTHER


def _ip_class(found: Fields, inside: list[str]) -> PacketClass:
    family = inside[0]
    above = 1
    while above < len(inside) and inside[above] in EXTENSIONS[family]:
        above += 1
    rest = inside[above:]
    if above - 1 > EXTENSION_HEADERS_MAX:
        return PacketClass.IP_OTHER
    if not rest and (found["_ws.malformed"] or "Bogus" in found["_ws.expert.message"]):
        return PacketClass.MALFORMED
    if "Bogus IPv4 version" in found["_ws.expert.message"]:
        return PacketClass.MALFORMED
    if any(int(value) for field in OFFSETS[family] for value in found[field].split(",") if value):
        return PacketClass.FRAGMENT
    if not rest:
        return PacketClass.MALFORMED if found["ip.proto"] in NEEDING_BYTES else PacketClass.IP_OTHER
    return _transport_class(found, family, rest)


def _transport_class(found: Fields, family: str, rest: list[str]) -> PacketClass:
    said = found["_ws.expert.message"]
    if found["_ws.malformed"] and rest[0] in ("tcp", *TRANSPORTS[family]):
        return PacketClass.MALFORMED
    if rest[0] == "tcp":
        if not found["tcp.flags"] or "Bogus TCP header length" in said or "Unreassembled fragment" in said:
            return PacketClass.MALFORMED
        return tcp_class(int(found["tcp.flags"], 16) & 0xFF, len(rest) - 1)
    if rest[0] not in TRANSPORTS[family]:
        return PacketClass.IP_OTHER
    if "Bad length value" in said or "Length is zero" in said:
        return PacketClass.MALFORMED
    return TRANSPORTS[family][rest[0]]


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Case, Fields]]:
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed")
    # A guest's TSO frames have lengths of 0 and checksums still to be filled in: nothing a dissector could judge.
    cases = [case for case in CASES if case.gso is None]
    found = tshark_reads(cases, tmp_path_factory.mktemp("tshark") / "table.pcap")
    assert len(found) == len(cases)
    return list(zip(cases, found, strict=True))


def is_different(case: Case) -> bool:
    return any(case.name.startswith(start) for start in DIFFERENT)


def test_classes(read: list[tuple[Case, Fields]]) -> None:
    wrong = [
        f"{case.name}: table {case.packet_class.name}, tshark {class_by_tshark(found).name}: {found}"
        for case, found in read
        if not is_different(case) and class_by_tshark(found) is not case.packet_class
    ]
    assert wrong == []


def test_checksums_of_whole_packets(read: list[tuple[Case, Fields]]) -> None:
    """Tshark judges a checksum only where it has all the bytes. What is wrong on purpose says so in its name."""
    on_purpose = ("checksum wrong", "cut", "left", "leaves", "length", "next header", "protocol")
    fields = [field for field in FIELDS if field.endswith("checksum.status")]
    wrong = [
        f"{case.name}: {found}"
        for case, found in read
        if case.packet_class is not PacketClass.MALFORMED
        and not any(word in case.name for word in on_purpose)
        and any(BAD_CHECKSUM in found[field].split(",") for field in fields)
    ]
    assert wrong == []


def test_differences_are_still_there(read: list[tuple[Case, Fields]]) -> None:
    """An entry of DIFFERENT that no longer is one must go."""
    differing = [case.name for case, found in read if class_by_tshark(found) is not case.packet_class]
    unneeded = [start for start in DIFFERENT if not any(name.startswith(start) for name in differing)]
    assert unneeded == []
