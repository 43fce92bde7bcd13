# SPDX-License-Identifier: Apache-2.0
"""Qdiscs, classes and filters out of netlink messages.

Decoded by vifprobe.host.net.nla.tc, which names the kernel's sources.
"""

from __future__ import annotations

import struct
from typing import Any

from vifprobe.host.net.netlink import Message, NetlinkError, reading
from vifprobe.host.tc.actions import actions, legacy_police, stats, ticks_to_bytes
from vifprobe.host.tc.records import (
    CLSACT_EGRESS,
    CLSACT_INGRESS,
    INGRESS_HANDLE,
    TC_H_INGRESS,
    BpfProgram,
    Shaper,
    TcClass,
    TcFilter,
    TcQdisc,
    filter_handle_text,
    handle_text,
)

#: struct tcmsg: family, ifindex, handle, parent, info (of a filter: pref and protocol; of a class: its leaf qdisc).
TCMSG = struct.Struct("=B3xiIII")
BLOCK_IFINDEX = -1  # TCM_IFINDEX_MAGIC_BLOCK: the object is in a shared block, whose number is in `parent`

_RTM_NEWQDISC = 36  # whose class is the class of all tc messages
_BPF_FLAG_ACT_DIRECT = 1
# Attributes of a flower filter that are not keys; ETH_TYPE is the filter's own protocol.
_FLOWER_PLAIN = {
    "TCA_FLOWER_CLASSID",
    "TCA_FLOWER_ACT",
    "TCA_FLOWER_KEY_ETH_TYPE",
    "TCA_FLOWER_FLAGS",
    "TCA_FLOWER_IN_HW_COUNT",
}

# The names that tc prints for EtherTypes (include/uapi/linux/if_ether.h).
_PROTOCOLS = {0x0003: "all", 0x0800: "ip", 0x86DD: "ipv6", 0x0806: "arp", 0x8100: "802.1Q", 0x88A8: "802.1ad"}


def header(message: Message) -> tuple[int, int, int, int]:
    """(ifindex, handle, parent, info) of a tc message. Raises NetlinkError where it is cut short."""
    if len(message.body) < TCMSG.size:
        raise NetlinkError("netlink: a tc message without a header.")
    _, ifindex, handle, parent, info = TCMSG.unpack_from(message.body)
    return ifindex, handle, parent, info


def kind_of(message: Message) -> str:
    """TCA_KIND. Raises NetlinkError where the message can't be taken apart."""
    with reading():
        kind: str = message.decoded(_RTM_NEWQDISC).get_attr("TCA_KIND", "")
        return kind


def qdisc(message: Message) -> TcQdisc:
    """An RTM_NEWQDISC or RTM_DELQDISC message. Raises NetlinkError where it can't be taken apart."""
    with reading():
        return _qdisc(message.decoded(_RTM_NEWQDISC))


def _qdisc(found: Any) -> TcQdisc:
    handle, parent = found["handle"], found["parent"]
    kind, options = found.get_attr("TCA_KIND", ""), found.get_attr("TCA_OPTIONS")
    shaper, default = None, None
    if kind == "tbf" and options is not None:
        shaper = _tbf(options)
    elif kind == "htb" and options is not None:
        minor = options.get_attr("TCA_HTB_INIT", {}).get("defcls")
        default = handle_text(handle | minor & 0xFFFF) if minor else None
    return TcQdisc(
        ifindex=found["index"],
        hook="ingress" if parent == TC_H_INGRESS else "root",
        kind=kind,
        handle=handle_text(handle),
        parent=handle_text(parent),
        shaper=shaper,
        default_class=default,
        ingress_block=found.get_attr("TCA_INGRESS_BLOCK"),
        egress_block=found.get_attr("TCA_EGRESS_BLOCK"),
        size_table=found.get_attr("TCA_STAB") is not None,
        copies=kind == "netem" and options is not None and options["duplicate"] > 0,
        stats=stats(found),
    )


def tc_class(message: Message) -> TcClass:
    """An RTM_NEWTCLASS or RTM_DELTCLASS message. Raises NetlinkError where it can't be taken apart."""
    with reading():
        return _tc_class(message.decoded(_RTM_NEWQDISC))


def _tc_class(found: Any) -> TcClass:
    kind, options = found.get_attr("TCA_KIND", ""), found.get_attr("TCA_OPTIONS")
    return TcClass(
        ifindex=found["index"],
        kind=kind,
        handle=handle_text(found["handle"]),
        parent=handle_text(found["parent"]),
        leaf=handle_text(found["info"]) if found["info"] else None,
        shaper=_htb(options) if kind == "htb" and options is not None else None,
        stats=stats(found),
    )


def _htb(options: Any) -> Shaper | None:
    main = options.get_attr("TCA_HTB_PARMS")
    if main is None:
        return None
    rate = options.get_attr("TCA_HTB_RATE64") or main["rate"]
    ceil = options.get_attr("TCA_HTB_CEIL64") or main["ceil"]
    return Shaper(
        rate_bps=rate * 8,
        burst_bytes=ticks_to_bytes(rate, main["buffer"]),
        ceil_bps=ceil * 8,
        ceil_burst_bytes=ticks_to_bytes(ceil, main["cbuffer"]),
        overhead_bytes=main["rate_overhead"],
        level=main["level"],
        priority=main["prio"],
    )


def _tbf(options: Any) -> Shaper | None:
    main = options.get_attr("TCA_TBF_PARMS")
    if main is None:
        return None
    rate = options.get_attr("TCA_TBF_RATE64") or main["rate"]
    peak = options.get_attr("TCA_TBF_PRATE64") or main["peak"]
    return Shaper(
        rate_bps=rate * 8,
        burst_bytes=ticks_to_bytes(rate, main["buffer"]),
        ceil_bps=peak * 8 or None,
        limit_bytes=main["limit"],
        overhead_bytes=main["rate_overhead"],
    )


def tc_filter(message: Message, hook: str, ifindex: int, block: int | None = None) -> TcFilter | None:
    """A filter of an RTM_NEWTFILTER or RTM_DELTFILTER message, as seen at `hook` of interface `ifindex`.

    None for rows that are not filters: the head that the kernel sends for each pref, and u32's hash tables.
    Raises NetlinkError where the message can't be taken apart.
    """
    with reading():
        found = message.decoded(_RTM_NEWQDISC)
        kind, options = found.get_attr("TCA_KIND", ""), found.get_attr("TCA_OPTIONS")
        if options is None or not found["handle"]:
            return None
        if not isinstance(options, dict):  # of a kind without a class
            options = None
        if kind == "u32" and options.get_attr("TCA_U32_DIVISOR") is not None:
            return None
        return _tc_filter(found, options, (ifindex, hook, block))


def _tc_filter(found: Any, options: Any, at: tuple[int, str, int | None]) -> TcFilter:
    ifindex, hook, block = at
    kind, parent, info = found.get_attr("TCA_KIND", ""), found["parent"], found["info"]
    named = {one.name.rpartition("_")[2]: one for one in options["attrs"]} if options is not None else {}
    class_id, acts, legacy = (one.get_value() if one else None for one in map(named.get, ("CLASSID", "ACT", "POLICE")))
    is_shared = found["index"] == BLOCK_IFINDEX
    return TcFilter(
        ifindex=ifindex,
        hook=hook,
        parent=f"block {parent}" if is_shared else handle_text(parent),
        kind=kind,
        pref=info >> 16,
        protocol=protocol_text(info & 0xFFFF),
        handle=filter_handle_text(kind, found["handle"]),
        chain=found.get_attr("TCA_CHAIN", 0),
        class_id=handle_text(class_id) if class_id is not None else None,
        matches_all=_matches_all(kind, options),
        actions=actions(acts) + legacy_police(legacy, stats(found)),
        bpf=_bpf(options) if kind == "bpf" else None,
        block=parent if is_shared else block,
    )


def protocol_text(value: int) -> str:
    """A filter's protocol as tc prints it; `value` is the low half of tcm_info, which is in network order."""
    number = struct.unpack(">H", struct.pack("=H", value))[0]
    return _PROTOCOLS.get(number, f"{number:#06x}")


def hook_of(parent: int) -> str:
    """Return the hook of a filter with this parent: `ingress`, `egress` (clsact) or `root`."""
    if parent == CLSACT_EGRESS:
        return "egress"
    return "ingress" if parent in (INGRESS_HANDLE, CLSACT_INGRESS) else "root"


def _bpf(options: Any) -> BpfProgram:
    tag = options.get_attr("TCA_BPF_TAG")
    return BpfProgram(
        name=options.get_attr("TCA_BPF_NAME", ""),
        id=options.get_attr("TCA_BPF_ID"),
        tag=tag.hex() if tag else None,
        direct_action=bool(options.get_attr("TCA_BPF_FLAGS", 0) & _BPF_FLAG_ACT_DIRECT),
    )


def _matches_all(kind: str, options: Any) -> bool | None:
    if kind == "matchall":
        return True
    if kind == "basic":
        tree = options.get_attr("TCA_BASIC_EMATCHES")
        return tree is None or not tree.get_attr("TCA_EMATCH_TREE_HDR", {}).get("nmatches", 0)
    if kind == "flower":
        return {one.name for one in options["attrs"]} <= _FLOWER_PLAIN
    if kind == "u32":
        return all(mask == 0 for mask, _ in options.get_attr("TCA_U32_SEL", ()))  # `match u32 0 0`
    return None
