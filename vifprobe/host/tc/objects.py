# SPDX-License-Identifier: Apache-2.0
"""Qdiscs, classes and filters out of netlink messages.

Source: include/uapi/linux/pkt_cls.h and pkt_sched.h; net/sched/ (cls_*.c, sch_htb.c, sch_tbf.c).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from vifprobe.host.net.netlink import Message, NetlinkError, attributes, text, u16, u32, u64
from vifprobe.host.tc.actions import (
    RATESPEC,
    TCA_STATS,
    TCA_STATS2,
    actions,
    legacy_police,
    stats,
    ticks_to_bytes,
)
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

TCA_KIND = 1
TCA_OPTIONS = 2
TCA_STAB = 8
TCA_CHAIN = 11
TCA_INGRESS_BLOCK = 13
TCA_EGRESS_BLOCK = 14


class _Layout(NamedTuple):
    """Attribute numbers of a filter kind's class id, action list, and legacy policer; 0: it has none."""

    class_id: int
    actions: int
    police: int


_LAYOUTS = {
    "u32": _Layout(1, 7, 6),
    "basic": _Layout(1, 3, 4),
    "matchall": _Layout(1, 2, 0),
    "bpf": _Layout(3, 1, 2),
    "flower": _Layout(1, 3, 0),
    "fw": _Layout(1, 4, 2),
    "cgroup": _Layout(0, 1, 2),
    "flow": _Layout(0, 9, 10),
    "route": _Layout(1, 6, 5),
}
_U32_DIVISOR, _U32_SEL = 4, 5
_BASIC_EMATCHES, _EMATCH_TREE_HEADER = 2, 1
_BPF_NAME, _BPF_FLAGS, _BPF_TAG, _BPF_ID = 7, 8, 10, 11
_BPF_FLAG_ACT_DIRECT = 1
# Flower attributes that match nothing beyond the filter's own protocol: class id, actions, EtherType, flags, and the
# count of devices it is offloaded to (TCA_FLOWER_IN_HW_COUNT).
_FLOWER_PLAIN = {1, 3, 8, 22, 86}
_HTB_PARMS, _HTB_INIT, _HTB_RATE64, _HTB_CEIL64 = 1, 2, 6, 7
_TBF_PARMS, _TBF_RATE64, _TBF_PRATE64 = 1, 4, 5
_HTB_CLASS = struct.Struct("=12s12s5I")  # struct tc_htb_opt
_TBF = struct.Struct("=12s12s3I")  # struct tc_tbf_qopt

# The names that tc prints for EtherTypes (include/uapi/linux/if_ether.h).
_PROTOCOLS = {0x0003: "all", 0x0800: "ip", 0x86DD: "ipv6", 0x0806: "arp", 0x8100: "802.1Q", 0x88A8: "802.1ad"}


def header(message: Message) -> tuple[int, int, int, int]:
    """(ifindex, handle, parent, info) of a tc message. Raises NetlinkError where it is cut short."""
    if len(message.body) < TCMSG.size:
        raise NetlinkError("netlink: a tc message without a header.")
    _, ifindex, handle, parent, info = TCMSG.unpack_from(message.body)
    return ifindex, handle, parent, info


#: struct tc_netem_qopt, include/uapi/linux/pkt_sched.h: latency, limit, loss, gap, duplicate, jitter.
_NETEM = struct.Struct("=6I")


def qdisc(message: Message) -> TcQdisc:
    """An RTM_NEWQDISC or RTM_DELQDISC message. Raises NetlinkError where it can't be taken apart."""
    ifindex, handle, parent, _ = header(message)
    found = attributes(message.body, TCMSG.size)
    kind = text(found.get(TCA_KIND)) or ""
    options = found.get(TCA_OPTIONS, b"")
    shaper, default = None, None
    if kind == "tbf":
        shaper = _tbf(attributes(options))
    elif kind == "htb":
        init = attributes(options).get(_HTB_INIT, b"")
        minor = struct.unpack_from("=3I", init)[2] if len(init) >= 12 else 0
        default = handle_text(handle | minor & 0xFFFF) if minor else None
    return TcQdisc(
        ifindex=ifindex,
        hook="ingress" if parent == TC_H_INGRESS else "root",
        kind=kind,
        handle=handle_text(handle),
        parent=handle_text(parent),
        shaper=shaper,
        default_class=default,
        ingress_block=u32(found.get(TCA_INGRESS_BLOCK)),
        egress_block=u32(found.get(TCA_EGRESS_BLOCK)),
        size_table=TCA_STAB in found,
        copies=kind == "netem" and len(options) >= _NETEM.size and _NETEM.unpack_from(options)[4] > 0,
        stats=stats(found.get(TCA_STATS2), found.get(TCA_STATS)),
    )


def tc_class(message: Message) -> TcClass:
    """An RTM_NEWTCLASS or RTM_DELTCLASS message. Raises NetlinkError where it can't be taken apart."""
    ifindex, handle, parent, leaf = header(message)
    found = attributes(message.body, TCMSG.size)
    kind = text(found.get(TCA_KIND)) or ""
    return TcClass(
        ifindex=ifindex,
        kind=kind,
        handle=handle_text(handle),
        parent=handle_text(parent),
        leaf=handle_text(leaf) if leaf else None,
        shaper=_htb(attributes(found.get(TCA_OPTIONS, b""))) if kind == "htb" else None,
        stats=stats(found.get(TCA_STATS2), found.get(TCA_STATS)),
    )


def _htb(options: dict[int, bytes]) -> Shaper | None:
    main = options.get(_HTB_PARMS, b"")
    if len(main) < _HTB_CLASS.size:
        return None
    rate_spec, ceil_spec, buffer, ceil_buffer, _, level, priority = _HTB_CLASS.unpack_from(main)
    _, _, overhead, _, _, rate = RATESPEC.unpack(rate_spec)
    rate = u64(options.get(_HTB_RATE64)) or rate
    ceil = u64(options.get(_HTB_CEIL64)) or RATESPEC.unpack(ceil_spec)[5]
    return Shaper(
        rate_bps=rate * 8,
        burst_bytes=ticks_to_bytes(rate, buffer),
        ceil_bps=ceil * 8,
        ceil_burst_bytes=ticks_to_bytes(ceil, ceil_buffer),
        overhead_bytes=overhead,
        level=level,
        priority=priority,
    )


def _tbf(options: dict[int, bytes]) -> Shaper | None:
    main = options.get(_TBF_PARMS, b"")
    if len(main) < _TBF.size:
        return None
    rate_spec, peak_spec, limit, buffer, _ = _TBF.unpack_from(main)
    _, _, overhead, _, _, rate = RATESPEC.unpack(rate_spec)
    rate = u64(options.get(_TBF_RATE64)) or rate
    peak = u64(options.get(_TBF_PRATE64)) or RATESPEC.unpack(peak_spec)[5]
    return Shaper(
        rate_bps=rate * 8,
        burst_bytes=ticks_to_bytes(rate, buffer),
        ceil_bps=peak * 8 or None,
        limit_bytes=limit,
        overhead_bytes=overhead,
    )


def tc_filter(message: Message, hook: str, ifindex: int, block: int | None = None) -> TcFilter | None:
    """A filter of an RTM_NEWTFILTER or RTM_DELTFILTER message, as seen at `hook` of interface `ifindex`.

    None for the rows that are no filter: the head that the kernel sends for each pref, and u32's hash tables.
    Raises NetlinkError where the message can't be taken apart.
    """
    there, handle, parent, info = header(message)
    found = attributes(message.body, TCMSG.size)
    kind = text(found.get(TCA_KIND)) or ""
    if TCA_OPTIONS not in found or not handle:
        return None
    options = attributes(found[TCA_OPTIONS])
    if kind == "u32" and _U32_DIVISOR in options:
        return None
    layout = _LAYOUTS.get(kind, _Layout(0, 0, 0))
    class_id = u32(options.get(layout.class_id)) if layout.class_id else None
    legacy = legacy_police(options.get(layout.police), stats(found.get(TCA_STATS2), found.get(TCA_STATS)))
    return TcFilter(
        ifindex=ifindex,
        hook=hook,
        parent=f"block {parent}" if there == BLOCK_IFINDEX else handle_text(parent),
        kind=kind,
        pref=info >> 16,
        protocol=protocol_text(info & 0xFFFF),
        handle=filter_handle_text(kind, handle),
        chain=u32(found.get(TCA_CHAIN)) or 0,
        class_id=handle_text(class_id) if class_id is not None else None,
        matches_all=_matches_all(kind, options),
        actions=actions(options.get(layout.actions) if layout.actions else None) + legacy,
        bpf=_bpf(options) if kind == "bpf" else None,
        block=parent if there == BLOCK_IFINDEX else block,
    )


def protocol_text(value: int) -> str:
    """A filter's protocol as tc prints it; `value` is the low half of tcm_info, which is in network order."""
    number = struct.unpack(">H", struct.pack("=H", value))[0]
    return _PROTOCOLS.get(number, f"{number:#06x}")


def hook_of(parent: int) -> str:
    """Where a filter with this parent sits: `ingress`, `egress` (clsact) or `root`."""
    if parent == CLSACT_EGRESS:
        return "egress"
    return "ingress" if parent in (INGRESS_HANDLE, CLSACT_INGRESS) else "root"


def _bpf(options: dict[int, bytes]) -> BpfProgram:
    tag = options.get(_BPF_TAG)
    return BpfProgram(
        name=text(options.get(_BPF_NAME)) or "",
        id=u32(options.get(_BPF_ID)),
        tag=tag.hex() if tag else None,
        direct_action=bool((u32(options.get(_BPF_FLAGS)) or 0) & _BPF_FLAG_ACT_DIRECT),
    )


def _matches_all(kind: str, options: dict[int, bytes]) -> bool | None:
    if kind == "matchall":
        return True
    if kind == "basic":
        return not _ematches(options.get(_BASIC_EMATCHES))
    if kind == "flower":
        return set(options) <= _FLOWER_PLAIN
    if kind == "u32":
        return _u32_matches_all(options.get(_U32_SEL, b""))
    return None


def _ematches(tree: bytes | None) -> int:
    """Number of extended matches: basic sends a tree with a head that says 0 where it has none (tcf_em_tree_dump)."""
    return u16(attributes(tree).get(_EMATCH_TREE_HEADER)) or 0 if tree is not None else 0


def _u32_matches_all(selector: bytes) -> bool:
    """Whether each key of struct tc_u32_sel has an empty mask: `match u32 0 0`."""
    count = selector[2] if len(selector) >= 16 else 0
    keys = range(16, 16 + 16 * count, 16)  # struct tc_u32_key: be32 mask, be32 value, offset, offset mask
    return all(selector[at : at + 4] == b"\0\0\0\0" for at in keys)
