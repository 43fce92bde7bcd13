# SPDX-License-Identifier: Apache-2.0
"""Transactions of nf_tables out of its notifications, cut short and broken ones included."""

from __future__ import annotations

import struct

import pytest

from vifprobe.host.net.netlink import Message, NetlinkError
from vifprobe.host.nft.events import NftChange, Transactions
from vifprobe.testing.net.netlink_bytes import attribute

NETDEV, INET, ARP = 5, 1, 3
TABLE, CHAIN, RULE, GONE_RULE, ELEMENT, GENERATION = 0, 3, 6, 8, 12, 15


def message(kind: int, family: int, *parts: bytes) -> Message:
    return Message(10 << 8 | kind, 0, 0, 4711, bytes((family, 0, 0, 0)) + b"".join(parts))


def rule(kind: int, handle: int, *expressions: str) -> Message:
    held = b"".join(attribute(1, attribute(1, name.encode() + b"\0")) for name in expressions)
    numbers = attribute(3, struct.pack(">Q", handle)) + attribute(4, held)
    return message(kind, NETDEV, attribute(1, b"t\0") + attribute(2, b"c\0") + numbers)


def end() -> Message:
    return message(
        GENERATION, 0, attribute(1, b"\0\0\0\7"), attribute(2, struct.pack(">I", 977)), attribute(3, b"nft\0")
    )


def test_one_change_a_transaction() -> None:
    gathered = Transactions()
    table = message(TABLE, INET, attribute(1, b"x\0"))
    for part in (table, rule(GONE_RULE, 3), rule(GONE_RULE, 4), rule(RULE, 5, "counter", "limit")):
        assert gathered.take(part) is None
    deleted = frozenset({"netdev t c rule 3", "netdev t c rule 4"})
    words = "nft inet x: table added; netdev t: 2 rules deleted, rule added"
    assert gathered.take(end()) == NftChange(words, deleted, True, 977, "nft")
    assert gathered.take(end()) is None


def test_what_is_no_change_of_an_interface() -> None:
    gathered = Transactions()
    others = (
        message(TABLE, ARP, attribute(1, b"x\0")),
        message(ELEMENT, NETDEV),
        message(250, NETDEV),
        Message(16, 0, 0, 0, b""),
    )
    for part in others:
        assert gathered.take(part) is None
    assert gathered.take(end()) is None


def test_what_was_lost_is_part_of_nothing() -> None:
    gathered = Transactions()
    gathered.take(rule(RULE, 5, "limit"))
    gathered.lost()
    assert gathered.take(end()) is None


@pytest.mark.parametrize("body", [b"", b"\5", bytes((NETDEV, 0, 0, 0))])
def test_a_message_cut_short_harms_nothing(body: bytes) -> None:
    gathered = Transactions()
    assert gathered.take(Message(10 << 8 | RULE, 0, 0, 0, body)) is None
    assert gathered.take(Message(10 << 8 | GENERATION, 0, 0, 0, body)) in (None, NftChange("nft netdev : rule added"))


def test_a_length_that_is_a_lie_is_an_error() -> None:
    with pytest.raises(NetlinkError, match="attribute says 200 bytes"):
        Transactions().take(message(RULE, NETDEV, struct.pack("=HH", 200, 1)))
