# SPDX-License-Identifier: Apache-2.0
"""nla classes: what pyroute2's lack, and their bounds."""

from __future__ import annotations

import logging
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vifprobe.host.net import nla
from vifprobe.host.net.netlink import Message, NetlinkError, encoded, reading
from vifprobe.host.net.nla.base import nla as nla_base
from vifprobe.host.tc.objects import TCMSG, tc_filter
from vifprobe.host.tc.records import TcAction
from vifprobe.testing.net.netlink_bytes import attribute

NEWTFILTER, NEWLINK, GETLINK = 44, 16, 18


def action_of(kind: str, options: bytes) -> TcAction:
    """The one action of a flower filter, as it is read."""
    inner = attribute(1, kind.encode() + b"\0") + attribute(0x8000 | 2, options)
    body = TCMSG.pack(0, 5, 1, 0xFFFFFFF2, 0x00310300) + attribute(1, b"flower\0")
    body += attribute(2, attribute(3, attribute(1, inner)))
    found = tc_filter(Message(NEWTFILTER, 0, 0, 0, body), "ingress", 5)
    assert found is not None
    return found.actions[0]


#: Where each action's struct with tc_gen at its head is, by include/uapi/linux/tc_act/.
PLACES = {
    "gact": 2, "mirred": 2, "bpf": 2, "skbedit": 2, "vlan": 2, "pedit": 2, "sample": 2, "tunnel_key": 2, "skbmod": 2,
    "simple": 2, "mpls": 2, "gate": 2, "csum": 1, "nat": 1, "ife": 1, "connmark": 1, "ct": 1, "ctinfo": 3,
}  # fmt: skip


@pytest.mark.parametrize(("kind", "place"), PLACES.items())
def test_the_verdict_of_each_action(kind: str, place: int) -> None:
    """Whatever comes behind tc_gen in the action's own struct."""
    generic = struct.pack("=IIiii", 97, 0, 2, 1, 1) + bytes(24)
    assert action_of(kind, attribute(place, generic)) == TcAction(kind, 97, "drop")
    assert action_of(kind, attribute(place, generic[:19])) == TcAction(kind)


def test_pedit_with_extended_keys() -> None:
    """They come under another number, and so does the struct (tcf_pedit_dump)."""
    generic = struct.pack("=IIiii", 97, 0, 2, 1, 1) + bytes(24)
    assert action_of("pedit", attribute(5, b"\0" * 8) + attribute(4, generic)) == TcAction("pedit", 97, "drop")


def test_gact_that_says_another_verdict_now_and_then() -> None:
    generic, random = struct.pack("=IIiii", 97, 0, 2, 1, 1), struct.pack("=HHi", 1, 5, 3)
    assert action_of("gact", attribute(2, generic) + attribute(3, random)).control == "drop or pipe"


def test_an_action_of_a_kind_that_is_not_known_has_no_verdict() -> None:
    assert action_of("novel", attribute(2, bytes(40))) == TcAction("novel")


def link(attributes: bytes) -> Message:
    return Message(NEWLINK, 0, 0, 0, struct.pack("=BxHiII", 0, 1, 7, 0, 0) + attributes)


def test_a_value_that_is_cut_short_is_absent_and_one_behind_it_is_not_read_into_it() -> None:
    found = link(attribute(4, b"\x01\x02") + attribute(13, struct.pack("=I", 977))).decoded(NEWLINK)
    assert (found.get_attr("IFLA_MTU"), found.get_attr("IFLA_TXQLEN")) == (None, 977)


@pytest.mark.parametrize("length", [0, 3, 9, 65535])
@pytest.mark.parametrize("nested", [False, True])
def test_a_length_that_cannot_be_true_is_an_error(length: int, nested: bool) -> None:
    bad = struct.pack("=HHI", length, 1, 0)
    with pytest.raises(NetlinkError, match="an attribute says"), reading():
        link(attribute(18, bad) if nested else bad).decoded(NEWLINK).get_attr("IFLA_LINKINFO")


@given(st.binary(max_size=64))
def test_whatever_comes_nothing_is_logged(data: bytes) -> None:
    """pyroute2 logs a traceback for what it can't decode, which would be on the screen."""
    heard: list[logging.LogRecord] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record)

    handler = Listener()
    logging.getLogger().addHandler(handler)
    try:
        with reading():
            found = link(data).decoded(NEWLINK)
            for one in found["attrs"]:
                one.get_value()
    except NetlinkError:
        pass
    finally:
        logging.getLogger().removeHandler(handler)
    assert heard == []


def test_pyroute2s_own_classes_are_left_as_they_are() -> None:
    """Who uses pyroute2 in the same process has them unchanged."""
    from pyroute2.netlink.rtnl.marshal import MarshalRtnl
    from pyroute2.netlink.rtnl.tcmsg import plugins

    assert "flower" not in plugins
    assert not set(MarshalRtnl.msg_map.values()) & set(nla.MESSAGES.values())


def test_a_request_is_encoded_as_iproute2_writes_it() -> None:
    """RTM_GETLINK by a name that is no UTF-8, without counters."""
    body = encoded(GETLINK, {"index": 0}, [("IFLA_IFNAME", "tap\udcff"), ("IFLA_EXT_MASK", 8)])
    assert body == bytes(16) + attribute(3, b"tap\xff\0") + attribute(29, struct.pack("=I", 8))


def test_both_forms_of_an_nla_map() -> None:
    class Counted(nla_base):
        nla_map = (("A_UNSPEC", "none"), ("A_ONE", "uint32"), ("A_TWO", "none"), ("A_THREE", "asciiz"))

    data = attribute(1, struct.pack("=I", 11)) + attribute(2, b"left out") + attribute(3, b"three\0")
    data += attribute(9, b"")
    found = Counted(data=attribute(5, data), length=4 + len(data))
    found.decode()
    assert [(one.name, one.get_value()) for one in found["attrs"]] == [("A_ONE", 11), ("A_THREE", "three")]
