# SPDX-License-Identifier: Apache-2.0
"""Entries of legacy iptables: rules that limit among them, and bytes that can't be entries."""

from __future__ import annotations

import struct

import pytest

from vifprobe.host.nft.legacy import _FAMILIES, rules_in
from vifprobe.host.nft.matches import InterfaceTest, name_bytes

IPV4, IPV6 = _FAMILIES
MASK = b"\xff" * 5 + bytes(11)


def element(name: str, data: bytes = bytes(8)) -> bytes:
    return struct.pack("=H29sB", 32 + len(data), name.encode(), 0) + data


def entry(matches: list[bytes], target: str = "", family: object = IPV4, iif: str = "", invert: int = 0) -> bytes:
    assert family in (IPV4, IPV6)
    at, invert_at, offsets_at, elements_at = (16, 83, 88, 112) if family is IPV4 else (64, 132, 140, 168)
    head = bytearray(elements_at)
    if iif:
        head[at : at + 16], head[at + 32 : at + 48] = name_bytes(iif), MASK
    head[invert_at] = invert
    held = b"".join(matches)
    last = element(target)
    struct.pack_into("=HH", head, offsets_at, elements_at + len(held), elements_at + len(held) + len(last))
    return bytes(head) + held + last


@pytest.mark.parametrize("family", _FAMILIES, ids=lambda one: one.name)
def test_rules_that_limit(family: object) -> None:
    assert family in (IPV4, IPV6)
    entries = entry([], family=family) + entry([element("tcp"), element("hashlimit")], family=family, iif="tap0")
    entries += entry([element("limit")], "LOG", family) + entry([element("quota")], "REJECT", family, "tap1", 1)
    found = list(rules_in(family, "filter", entries))
    assert [(one.limiter, one.tests) for one in found] == [
        ("hashlimit", (InterfaceTest("iifname", name_bytes("tap0"), MASK),)),
        ("quota", (InterfaceTest("iifname", name_bytes("tap1"), MASK, inverted=True),)),
    ]


def test_a_physdev_match_names_ports() -> None:
    info = name_bytes("tap0") + MASK + bytes(32) + bytes((0, 1))
    (found,) = rules_in(IPV4, "filter", entry([element("physdev", info), element("limit")]))
    assert found.tests == (InterfaceTest("physin", name_bytes("tap0"), MASK),)


def test_what_is_cut_short_or_impossible_ends_the_walk() -> None:
    entries = entry([element("hashlimit")]) * 3
    for length in range(len(entries)):
        assert len(list(rules_in(IPV4, "filter", entries[:length]))) <= 3
    for place in range(0, len(entries), 2):
        for value in (0, 1, 0xFFFF):
            damaged = bytearray(entries)
            struct.pack_into("=H", damaged, place, value)
            assert len(list(rules_in(IPV4, "filter", bytes(damaged)))) <= 3
