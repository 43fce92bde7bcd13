# SPDX-License-Identifier: Apache-2.0
"""Taking netlink apart: what is well formed is read, and what isn't is an error of ours, never a crash."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vifprobe.host.net import links
from vifprobe.host.net.changes import Watched
from vifprobe.host.net.netlink import (
    Message,
    NetlinkError,
    align,
    attribute_list,
    attributes,
    messages,
    port_of,
    text,
)
from vifprobe.host.nft import rules
from vifprobe.host.tc import objects
from vifprobe.testing.net.netlink_bytes import attribute


def datagram(*found: tuple[int, int, bytes]) -> bytes:
    parts = []
    for kind, port, body in found:
        message = struct.pack("=IHHII", 16 + len(body), kind, 0, 7, port) + body
        parts.append(message.ljust(align(len(message)), b"\0"))
    return b"".join(parts)


def test_messages_of_one_datagram_come_in_order_padding_left_out() -> None:
    found = list(messages(datagram((16, 4711, b"abcde"), (17, 4711, b""), (36, 4711, b"xyz"))))
    assert [(one.type, one.body) for one in found] == [(16, b"abcde"), (17, b""), (36, b"xyz")]
    assert {one.port for one in found} == {4711}


def test_port_of_a_datagram_and_of_none() -> None:
    assert port_of(datagram((16, 0xFFFFF001, b""))) == 0xFFFFF001
    assert port_of(b"short") == 0


@pytest.mark.parametrize("length", [0, 15, 17, 2**31])
def test_a_message_length_that_cannot_be_true_is_an_error(length: int) -> None:
    with pytest.raises(NetlinkError, match="bytes"):
        list(messages(struct.pack("=IHHII", length, 16, 0, 0, 0)))


@pytest.mark.parametrize("length", [0, 3, 9])
def test_an_attribute_length_that_cannot_be_true_is_an_error(length: int) -> None:
    with pytest.raises(NetlinkError, match="attribute"):
        attributes(struct.pack("=HHI", length, 1, 0))


def test_attributes_lose_their_flag_bits_and_keep_their_order() -> None:
    data = attribute(0x8000 | 5, b"a") + attribute(0x4000 | 6, b"bb") + attribute(5, b"ccc")
    assert list(attribute_list(data)) == [(5, b"a"), (6, b"bb"), (5, b"ccc")]
    assert attributes(data) == {5: b"ccc", 6: b"bb"}


def test_a_text_ends_at_its_nul_and_may_be_absent() -> None:
    assert (text(None), text(b"tap0\0rest")) == (None, "tap0")


def test_a_name_that_is_no_utf8_survives_the_way_back() -> None:
    assert (text(b"tap\xff\0") or "").encode("utf-8", "surrogateescape") == b"tap\xff"


PARSERS: list[Callable[[Message], object]] = [
    links.parse,
    links.parse_counters,
    objects.qdisc,
    objects.tc_class,
    lambda message: objects.tc_filter(message, "ingress", 1),
    rules.base_chain,
    rules.stateful_object,
    lambda message: rules.rule(message, {}),
    lambda message: Watched([1], [], []).changes(message),
]

KINDS = st.sampled_from([16, 17, 36, 37, 40, 41, 44, 45, 99])
# Attributes that are well formed on the outside and nest deeply, so that the parsers get beyond the first check.
NESTED = st.recursive(
    st.binary(max_size=24),
    lambda inner: st.lists(st.tuples(st.integers(0, 15), inner), max_size=6).map(
        lambda found: b"".join(attribute(kind, value) for kind, value in found)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("parse", PARSERS)
@given(kind=KINDS, head=st.binary(max_size=24), rest=NESTED)
def test_whatever_the_kernel_sends_a_parser_gives_an_answer_or_our_error(
    parse: Callable[[Message], object], kind: int, head: bytes, rest: bytes
) -> None:
    for body in (head, head.ljust(16, b"\0") + rest, head.ljust(20, b"\0") + rest, head.ljust(4, b"\0") + rest):
        try:
            parse(Message(kind, 0, 0, 0, body))
        except NetlinkError:
            continue


@pytest.mark.parametrize("kind", ["u32", "basic", "matchall", "bpf", "flower", "htb", "tbf", "fw"])
@given(options=NESTED)
def test_options_of_a_known_kind_that_make_no_sense_are_survived(kind: str, options: bytes) -> None:
    body = objects.TCMSG.pack(0, 1, 0x10001, 0xFFFF0000, 0x00310300)
    body += attribute(1, kind.encode() + b"\0") + attribute(2, options)
    for parse in (objects.qdisc, objects.tc_class, lambda one: objects.tc_filter(one, "ingress", 1)):
        try:
            parse(Message(44, 0, 0, 0, body))
        except NetlinkError:
            continue


def test_links_can_be_imported_without_anything_heavy() -> None:
    """Each start of the tool pays for what this module pulls in."""
    heavy = ("numpy", "pyroute2", "bcc", "click", "rich", "xml", "asyncio", "subprocess", "difflib")
    script = f"import sys, vifprobe.host.net.links; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
