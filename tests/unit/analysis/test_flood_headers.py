# SPDX-License-Identifier: Apache-2.0
"""Sampled headers are taken apart as an independent reading of the same bytes says."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

import numpy as np
import pytest
from flood_kit import samples

from vifprobe.analysis.flood.addresses import address
from vifprobe.analysis.flood.habits import fingerprint_words
from vifprobe.analysis.flood.headers import option_letters, packets_of
from vifprobe.model.layout import PacketClass
from vifprobe.testing.packets import frames as f
from vifprobe.testing.packets import syns
from vifprobe.testing.packets.extensions import hop_by_hop
from vifprobe.testing.packets.frames import EtherType, TcpFlag


def test_every_field_of_a_syn() -> None:
    frame = syns.syn(
        source=IPv4Address("203.0.113.7"),
        destination=IPv4Address("198.51.100.9"),
        source_port=40_009,
        destination_port=8_443,
        sequence=0xDEADBEEF,
        window=29_200,
        ttl=57,
        identification=54_321,
        options=syns.LINUX_OPTIONS,
    )
    (row,) = packets_of(samples([frame]))
    assert (row["version"], row["ttl"], row["ip_id"], row["has_tcp"]) == (4, 57, 54_321, True)
    assert (row["source_port"], row["destination_port"]) == (40_009, 8_443)
    assert (row["sequence"], row["window"], row["mss"]) == (0xDEADBEEF, 29_200, 1_460)
    assert address(int(row["source_high"]), int(row["source_low"])) == IPv4Address("203.0.113.7")
    assert address(int(row["destination_high"]), int(row["destination_low"])) == IPv4Address("198.51.100.9")
    assert int(row["source_mac"]).to_bytes(6, "big") == f.SOURCE_MAC
    assert int(row["destination_mac"]).to_bytes(6, "big") == f.DESTINATION_MAC
    assert option_letters(int(row["options"])) == "MSTNW"
    assert fingerprint_words(row) == "IPv4 ttl 57 window 29200 mss 1460 options MSTNW"


PART = f.tcp(TcpFlag.SYN, options=bytes((1, 1, 2, 4, 2, 24)) + bytes(2))


@pytest.mark.parametrize(
    ("frame", "version"),
    [
        (f.eth(f.ipv4(PART), EtherType.IPV4), 4),
        (f.vlan(f.eth(f.ipv4(PART), EtherType.IPV4)), 4),
        (f.qinq(f.eth(f.ipv4(PART), EtherType.IPV4)), 4),
        (f.eth(f.ipv4(PART, options=bytes((1,) * 8)), EtherType.IPV4), 4),
        (f.eth(f.ipv6(PART), EtherType.IPV6), 6),
        (f.vlan(f.eth(f.ipv6(hop_by_hop(PART)), EtherType.IPV6)), 6),
    ],
)
def test_tcp_is_found_behind_tags_options_and_extension_headers(frame: bytes, version: int) -> None:
    (row,) = packets_of(samples([frame]))
    assert (row["version"], row["has_tcp"], row["source_port"]) == (version, True, f.SOURCE_PORT)
    assert (row["mss"], option_letters(int(row["options"]))) == (536, "NNME")
    wanted = IPv4Address(f.SOURCE_IPV4) if version == 4 else IPv6Address(f.SOURCE_IPV6)
    assert address(int(row["source_high"]), int(row["source_low"])) == wanted


@pytest.mark.parametrize(
    ("options", "letters"),
    [
        (b"", ""),
        (bytes((0, 0, 0, 0)), "E"),
        (bytes((2, 4, 5, 180)), "M"),
        (bytes((254, 4, 0, 0)), "?"),
        (bytes((34, 2, 1, 1)), "FNN"),
        (bytes((1, 1, 1, 8)), "NNN!"),  # the last one's length is beyond the header
        (bytes((8, 1, 0, 0)), "!"),  # shorter than itself
        (bytes((1,) * 40), "N" * 15),
    ],
)
def test_option_layouts(options: bytes, letters: str) -> None:
    (row,) = packets_of(samples([syns.syn(options=options)]))
    assert option_letters(int(row["options"])) == letters


def test_arp() -> None:
    (row,) = packets_of(samples([f.pad(f.eth(f.arp(), EtherType.ARP))], PacketClass.ARP))
    assert row["version"] == 1
    assert int(row["arp_mac"]).to_bytes(6, "big") == f.SOURCE_MAC
    assert address(int(row["source_high"]), int(row["source_low"])) == IPv4Address(f.SOURCE_IPV4)
    assert address(int(row["destination_high"]), int(row["destination_low"])) == IPv4Address(f.DESTINATION_IPV4)


def test_a_sample_cut_anywhere_gives_no_field_that_is_not_there() -> None:
    """Nothing is read from beyond the valid bytes, whatever stands there."""
    frame = f.vlan(f.eth(f.ipv6(hop_by_hop(PART)), EtherType.IPV6))
    rows = samples([frame] * (len(frame) + 1))
    rows["headers"][:, len(frame) :] = 0xFF
    rows["header_bytes"] = np.arange(len(frame) + 1)
    found = packets_of(rows)
    transport = 14 + 4 + 40 + 8
    assert (found["version"] == np.where(np.arange(len(frame) + 1) >= 58, 6, 0)).all()
    assert (found["has_tcp"] == (np.arange(len(frame) + 1) >= transport + 20)).all()
    assert set(found["mss"][found["has_tcp"]][:-1].tolist()) == {-1}
    assert option_letters(int(found["options"][-2])) == "!"


def test_random_bytes_are_harmless() -> None:
    random = np.random.default_rng(3)
    rows = samples([b""] * 5_003)
    rows["headers"] = random.integers(0, 256, rows["headers"].shape)
    rows["header_bytes"] = random.integers(0, 200, len(rows))
    rows["headers"][:, 12:14] = np.frombuffer(struct.pack("!H", 0x86DD), np.uint8)
    found = packets_of(rows)
    assert len(found) == len(rows)
    assert not found["has_tcp"][rows["header_bytes"] < 74].any()
