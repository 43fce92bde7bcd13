# SPDX-License-Identifier: Apache-2.0
"""The packet table held against the rules it was built from and against an independent dissector (tshark)."""

from __future__ import annotations

import struct

import pytest

from vifprobe.model.layout import SIZE_EDGES_BYTES, Ethertype, PacketClass, size_bucket
from vifprobe.testing.packets import frames
from vifprobe.testing.packets.extensions import chain, destination_options, hop_by_hop
from vifprobe.testing.packets.frames import EtherType, TcpFlag, checksum, eth, icmpv6, ipv4, ipv6, qinq, tcp, udp, vlan
from vifprobe.testing.packets.rules import expected_charged_bytes, expected_wire_bytes, tcp_class
from vifprobe.testing.packets.table import CASES, Run, cases_for


def test_known_checksums() -> None:
    """The examples of RFC 1071, section 3, and the all-zero and all-one corners."""
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2
    assert checksum(b"") == checksum(bytes(2)) == 0xFFFF
    assert checksum(b"\xff\xff") == 0
    assert checksum(b"\x01") == 0xFEFF  # an odd byte is followed by a zero


@pytest.mark.parametrize("payload", [b"", b"x", bytes(1447), b"\xff" * 1448])
def test_checksums_are_right(payload: bytes) -> None:
    """A sum over data that carries its own right checksum gives 0 (RFC 1071, 1)."""
    for part in (tcp(TcpFlag.SYN, payload), udp(payload)):
        packet = ipv4(part, options=b"\x01" * 8)
        assert checksum(packet[:28]) == 0
        pseudo = packet[12:20] + struct.pack("!II", len(packet) - 28, part.protocol)
        assert checksum(pseudo + packet[28:]) == 0
    for part in (tcp(TcpFlag.SYN, payload), udp(payload), icmpv6(payload)):
        packet = ipv6(hop_by_hop(destination_options(part, units=3)))
        upper = packet[40 + 8 + 32 :]
        pseudo = packet[8:40] + struct.pack("!II", len(upper), part.protocol)
        assert checksum(pseudo + upper) == 0


def test_lengths_are_right() -> None:
    assert len(eth(ipv4(tcp(TcpFlag.SYN)), EtherType.IPV4)) == 54
    assert len(eth(ipv6(tcp(TcpFlag.SYN)), EtherType.IPV6)) == 74
    assert len(qinq(eth(ipv4(udp()), EtherType.IPV4))) == 14 + 8 + 28
    assert len(frames.arp()) == 28
    assert len(frames.pad(b"", 60)) == 60
    packet = ipv4(tcp(TcpFlag.SYN, b"abc", options=bytes(12)), options=bytes(4))
    assert (packet[0], packet[2:4]) == (0x46, struct.pack("!H", 24 + 32 + 3))
    assert packet[24 + 12] >> 4 == 8
    packet = ipv6(chain(udp(b"abc"), [0, 43, 60]))
    assert packet[4:7] == struct.pack("!HB", 24 + 8 + 3, 0)


def test_tags_go_outside() -> None:
    frame = eth(b"inside", EtherType.EXPERIMENTAL)
    assert vlan(frame, vid=5, pcp=3) == frame[:12] + bytes.fromhex("8100 6005") + frame[12:]
    assert qinq(frame, outer_vid=1, vid=2)[12:20] == bytes.fromhex("88a80001 81000002")


def test_case_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


def test_the_table_covers_every_class_ethertype_and_bucket_in_both_runs() -> None:
    for run in Run:
        shown = cases_for(run)
        assert {case.packet_class for case in shown} == set(PacketClass)
        assert {case.ethertype for case in shown} == set(Ethertype)
    buckets = {case.size_bucket(Run.TAP) for case in cases_for(Run.TAP)}
    assert buckets == set(range(len(SIZE_EDGES_BYTES)))
    lengths = {case.frame_bytes(Run.TAP) for case in cases_for(Run.TAP)}
    assert {int(edge) + delta for edge in SIZE_EDGES_BYTES[1:] for delta in (-1, 0, 1)} <= lengths


def test_every_case_gets_to_a_program_some_way() -> None:
    assert [case.name for case in CASES if not any(case.runs(run) for run in Run)] == []
    without_header = cases_for(Run.TAP, gso=False)
    assert {case.gso for case in without_header} == {None}
    assert len(without_header) < len(cases_for(Run.TAP))


@pytest.mark.parametrize(
    ("flags", "payload_bytes", "packet_class"),
    [
        ("SYN", 0, "tcp_syn"),
        ("SYN", 9, "tcp_syn"),
        ("SYN ECE CWR", 0, "tcp_syn"),
        ("SYN PSH URG", 0, "tcp_syn"),
        ("SYN ACK", 0, "tcp_synack"),
        ("SYN ACK ECE", 7, "tcp_synack"),
        ("SYN FIN", 0, "tcp_odd"),
        ("SYN RST", 0, "tcp_odd"),
        ("SYN ACK FIN", 0, "tcp_odd"),
        ("RST FIN", 0, "tcp_odd"),
        ("RST FIN ACK", 0, "tcp_odd"),
        ("FIN", 0, "tcp_odd"),
        ("FIN PSH URG", 0, "tcp_odd"),  # xmas
        ("", 0, "tcp_odd"),  # null
        ("PSH", 3, "tcp_odd"),
        ("URG ECE CWR", 0, "tcp_odd"),
        ("RST", 0, "tcp_rst"),
        ("RST ACK", 0, "tcp_rst"),
        ("RST ACK PSH", 5, "tcp_rst"),
        ("FIN ACK", 0, "tcp_fin"),
        ("FIN ACK PSH", 5, "tcp_fin"),
        ("ACK", 0, "tcp_ack"),
        ("ACK", 1, "tcp_data"),
        ("ACK PSH", 0, "tcp_ack"),
        ("ACK URG CWR", 1, "tcp_data"),
    ],
)
def test_flag_rule(flags: str, payload_bytes: int, packet_class: str) -> None:
    value = sum(TcpFlag[name] for name in flags.split())
    assert tcp_class(value, payload_bytes).name.lower() == packet_class


@pytest.mark.parametrize(
    ("arguments", "wire_bytes"),
    [
        ({"frame_bytes": 14}, 84),
        ({"frame_bytes": 54}, 84),
        ({"frame_bytes": 60}, 84),
        ({"frame_bytes": 61}, 85),
        ({"frame_bytes": 1514}, 1538),
        ({"frame_bytes": 54, "stripped_tag_bytes": 4}, 84),
        ({"frame_bytes": 60, "stripped_tag_bytes": 4}, 88),
        ({"frame_bytes": 54 + 3000, "gso_size": 1000, "header_bytes": 54}, 3 * 1078),
        ({"frame_bytes": 54 + 3001, "gso_size": 1000, "header_bytes": 54}, 3 * 1078 + 84),
        ({"frame_bytes": 54 + 3007, "gso_size": 1000, "header_bytes": 54}, 3 * 1078 + 85),
        ({"frame_bytes": 54 + 3007, "gso_size": 1000, "header_bytes": 54, "stripped_tag_bytes": 4}, 3 * 1082 + 89),
        ({"frame_bytes": 154, "gso_size": 1000, "header_bytes": 54}, 178),
        ({"frame_bytes": 54, "gso_size": 1000, "header_bytes": 54}, 84),
    ],
)
def test_wire_bytes(arguments: dict[str, int], wire_bytes: int) -> None:
    assert expected_wire_bytes(**arguments) == wire_bytes


def test_charged_bytes() -> None:
    assert expected_charged_bytes(60) == 46
    assert expected_charged_bytes(62, stripped_tag_bytes=4) == 44


def test_a_tag_is_on_the_wire_in_both_runs() -> None:
    for case in CASES:
        assert case.wire_bytes(Run.TAP) == case.wire_bytes(Run.TEST_RUN), case.name
        assert case.frame_bytes(Run.TAP) == len(case.frame) - 4 * (case.ethertype is Ethertype.VLAN), case.name
        assert case.size_bucket(Run.TEST_RUN) == size_bucket(len(case.frame)), case.name
