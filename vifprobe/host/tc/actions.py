# SPDX-License-Identifier: Apache-2.0
"""Actions and statistics out of netlink attributes: the police action in both of its forms, 64-bit rates included.

Source: include/uapi/linux/pkt_cls.h, net/sched/act_police.c (tcf_police_dump), net/sched/act_api.c
(tcf_action_dump_1, tcf_action_copy_stats), net/core/gen_stats.c.
"""

from __future__ import annotations

import struct

from vifprobe.host.net.netlink import attribute_list, attributes, text, u32, u64
from vifprobe.host.tc.records import PoliceAction, Stats, TcAction

# One psched tick is 64 ns in every kernel (include/net/pkt_sched.h: PSCHED_SHIFT 6; /proc/net/psched says the same).
TICK_NS = 64

TCA_STATS = 3
TCA_STATS2 = 7
TCA_ACT_KIND = 1
TCA_ACT_OPTIONS = 2
TCA_ACT_STATS = 4

_STATS_BASIC = 1
_STATS_QUEUE = 3
_STATS_PKT64 = 8
_BASIC = struct.Struct("=QI")
_QUEUE = struct.Struct("=5I")
_TC_STATS = struct.Struct("=Q7I")  # struct tc_stats, include/uapi/linux/pkt_sched.h

RATESPEC = struct.Struct("=BBHhHI")  # cell_log, linklayer, overhead, cell_align, mpu, rate in byte/s
_POLICE = struct.Struct("=IiIII12s12siiI")  # index action limit burst mtu rate peakrate refcnt bindcnt capab
_TIMES = struct.Struct("=4Q")  # struct tcf_t: install, lastuse, expires, firstuse; in clock ticks before now
_NO_MTU = 0xFFFFFFFF  # what tcf_police_init makes of no mtu
_CLOCK_TICKS_PER_SECOND = 100  # USER_HZ: jiffies_to_clock_t

_POLICE_TBF, _POLICE_AVRATE, _POLICE_RESULT, _POLICE_TM = 1, 4, 5, 6
_POLICE_RATE64, _POLICE_PEAKRATE64, _POLICE_PKTRATE64, _POLICE_PKTBURST64 = 8, 9, 10, 11

_CONTROL = {-1: "continue", 0: "pass", 1: "reclassify", 2: "drop", 3: "pipe", 4: "stolen", 5: "queued", 6: "repeat"}
_CONTROL |= {7: "redirect", 8: "trap"}
_JUMP, _GOTO_CHAIN, _EXTENDED_MASK = 0x10000000, 0x20000000, 0x0FFFFFFF

_GACT_PROB = 3

# Where each action's struct with tc_gen at its head is (include/uapi/linux/tc_act/): 2 for all but these.
_GENERIC_AT_1 = ("csum", "nat", "ife", "connmark", "ct", "ctinfo")
_GENERIC_AT_2 = (
    "gact",
    "mirred",
    "bpf",
    "skbedit",
    "vlan",
    "pedit",
    "sample",
    "tunnel_key",
    "skbmod",
    "simple",
    "mpls",
)


def control_text(code: int) -> str:
    """An action's verdict as tc writes it: `pass`, `drop`, `continue`, `jump 2`, `goto chain 3`, ..."""
    if code >= 0 and code & ~_EXTENDED_MASK == _JUMP:
        return f"jump {code & _EXTENDED_MASK}"
    if code >= 0 and code & ~_EXTENDED_MASK == _GOTO_CHAIN:
        return f"goto chain {code & _EXTENDED_MASK}"
    return _CONTROL.get(code, f"action {code}")


def ticks_to_bytes(rate_bytes_per_second: int, ticks: int) -> int:
    """What passes at this rate within a time in psched ticks, rounded down: a burst as the user wrote it."""
    return rate_bytes_per_second * ticks * TICK_NS // 1_000_000_000


def stats(nested: bytes | None, old: bytes | None = None) -> Stats:
    """TCA_STATS2 or TCA_ACT_STATS where there, else the old struct of TCA_STATS."""
    if nested is not None:
        return _nested_stats(attributes(nested))
    if old is not None and len(old) >= _TC_STATS.size:
        sent_bytes, packets, drops, overlimits, _, _, queued, backlog = _TC_STATS.unpack_from(old)
        return Stats(sent_bytes, packets, drops, overlimits, None, backlog, queued)
    return Stats()


def _nested_stats(found: dict[int, bytes]) -> Stats:
    basic, queue = found.get(_STATS_BASIC, b""), found.get(_STATS_QUEUE, b"")
    sent_bytes, packets = _BASIC.unpack_from(basic) if len(basic) >= _BASIC.size else (None, None)
    queued, backlog, drops, requeues, overlimits = (
        _QUEUE.unpack_from(queue) if len(queue) >= _QUEUE.size else (None,) * 5
    )
    # TCA_STATS_BASIC holds 32 bits of packets; PKT64 follows only once they are not enough (gnet_stats_copy_basic).
    whole = u64(found.get(_STATS_PKT64))
    return Stats(
        bytes=sent_bytes,
        packets=packets if whole is None else whole,
        drops=drops,
        overlimits=overlimits,
        requeues=requeues,
        backlog_bytes=backlog,
        queue_packets=queued,
    )


def actions(nested: bytes | None) -> tuple[TcAction, ...]:
    """The list in a filter's ACT attribute, in the order in which the actions run."""
    if nested is None:
        return ()
    return tuple(_action(value) for _, value in sorted(attribute_list(nested), key=lambda item: item[0]))


def legacy_police(nested: bytes | None, filter_stats: Stats) -> tuple[TcAction, ...]:
    """The policer in a filter's POLICE attribute; its statistics are the filter's (TCA_STATS beside TCA_OPTIONS)."""
    if nested is None:
        return ()
    found = policer(nested)
    if found is None:
        return (TcAction("police", stats=filter_stats, legacy=True),)
    return (TcAction("police", found.index, found.exceed_action, found, filter_stats, legacy=True),)


def _action(nested: bytes) -> TcAction:
    found = attributes(nested)
    kind = text(found.get(TCA_ACT_KIND)) or ""
    counted = stats(found.get(TCA_ACT_STATS))
    options = found.get(TCA_ACT_OPTIONS, b"")
    if kind == "police":
        police = policer(options)
        if police is not None:
            return TcAction(kind, police.index, police.exceed_action, police, counted)
    index, control = _generic(kind, attributes(options))
    return TcAction(kind, index, control, None, counted)


def _generic(kind: str, options: dict[int, bytes]) -> tuple[int, str]:
    """Index and verdict from struct tc_gen: index, capab, action, refcnt, bindcnt."""
    place = 2 if kind in _GENERIC_AT_2 else 1 if kind in _GENERIC_AT_1 else None
    value = options.get(place, b"") if place is not None else b""
    if len(value) < 12:
        return 0, ""
    index, _, action = struct.unpack_from("=IIi", value)
    control = control_text(action)
    if kind == "gact" and len(options.get(_GACT_PROB, b"")) >= 8:  # struct tc_gact_p: now and then it says another
        control += " or " + control_text(struct.unpack_from("=HHi", options[_GACT_PROB])[2])
    return index, control


def policer(nested: bytes) -> PoliceAction | None:
    """TCA_POLICE_* attributes; None where the main struct is absent or cut short."""
    found = attributes(nested)
    main = found.get(_POLICE_TBF, b"")
    if len(main) < _POLICE.size:
        return None
    index, action, _, burst_ticks, mtu, rate_spec, peak_spec, _, bindings, _ = _POLICE.unpack_from(main)
    _, linklayer, overhead, _, mpu, rate = RATESPEC.unpack(rate_spec)
    peak = RATESPEC.unpack(peak_spec)[5]
    # The 32-bit fields stay at 2**32 - 1 for rates beyond (psched_ratecfg_getrate); the 64-bit ones then follow.
    rate = u64(found.get(_POLICE_RATE64)) or rate
    peak = u64(found.get(_POLICE_PEAKRATE64)) or peak
    pps = u64(found.get(_POLICE_PKTRATE64)) or 0
    average = u32(found.get(_POLICE_AVRATE)) or 0
    age, idle = _times(found.get(_POLICE_TM))
    conform = found.get(_POLICE_RESULT, b"\0\0\0\0")
    return PoliceAction(
        index=index,
        rate_bps=rate * 8 or None,
        burst_bytes=ticks_to_bytes(rate, burst_ticks) if rate else None,
        rate_pps=pps or None,
        burst_packets=ticks_to_bytes(pps, u64(found.get(_POLICE_PKTBURST64)) or 0) if pps else None,
        peak_bps=peak * 8 or None,
        mtu_bytes=mtu if mtu != _NO_MTU else None,
        overhead_bytes=overhead,
        mpu_bytes=mpu,
        linklayer=linklayer & 0x0F,
        average_rate_bps=average * 8 or None,
        exceed_action=control_text(action),
        # Absent means 0, TC_ACT_OK: what conforms is accepted and no later filter sees it.
        conform_action=control_text(struct.unpack_from("=i", conform)[0]) if len(conform) >= 4 else "",
        bindings=bindings,
        age_seconds=age,
        idle_seconds=idle,
    )


def _times(value: bytes | None) -> tuple[float | None, float | None]:
    if value is None or len(value) < _TIMES.size:
        return None, None
    install, last_use, _, _ = _TIMES.unpack_from(value)
    return install / _CLOCK_TICKS_PER_SECOND, last_use / _CLOCK_TICKS_PER_SECOND
