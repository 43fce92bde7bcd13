# SPDX-License-Identifier: Apache-2.0
"""Actions and statistics out of decoded attributes: the police action in both of its forms, 64-bit rates included.

Decoded by vifprobe.host.net.nla.action, which names the kernel's sources.
"""

from __future__ import annotations

from typing import Any

from vifprobe.host.tc.records import PoliceAction, Stats, TcAction

# One psched tick is 64 ns in every kernel (include/net/pkt_sched.h: PSCHED_SHIFT 6; /proc/net/psched says the same).
TICK_NS = 64

_LINKLAYER_MASK = 0x0F  # TC_LINKLAYER_MASK
_NO_MTU = 0xFFFFFFFF  # what tcf_police_init makes of no mtu
_CLOCK_TICKS_PER_SECOND = 100  # USER_HZ: jiffies_to_clock_t

_CONTROL = {-1: "continue", 0: "pass", 1: "reclassify", 2: "drop", 3: "pipe", 4: "stolen", 5: "queued", 6: "repeat"}
_CONTROL |= {7: "redirect", 8: "trap"}
_JUMP, _GOTO_CHAIN, _EXTENDED_MASK = 0x10000000, 0x20000000, 0x0FFFFFFF


def control_text(code: int) -> str:
    """An action's verdict as tc writes it: `pass`, `drop`, `continue`, `jump 2`, `goto chain 3`, ..."""
    if code >= 0 and code & ~_EXTENDED_MASK == _JUMP:
        return f"jump {code & _EXTENDED_MASK}"
    if code >= 0 and code & ~_EXTENDED_MASK == _GOTO_CHAIN:
        return f"goto chain {code & _EXTENDED_MASK}"
    return _CONTROL.get(code, f"action {code}")


def ticks_to_bytes(rate_bytes_per_second: int, ticks: int) -> int:
    """Return the bytes at this rate in a time in psched ticks, rounded down: a burst as the user wrote it."""
    return rate_bytes_per_second * ticks * TICK_NS // 1_000_000_000


def stats(found: Any) -> Stats:
    """Return the statistics of a qdisc, class or filter: TCA_STATS2 if present, else the old struct of TCA_STATS."""
    nested, old = found.get_attr("TCA_STATS2"), found.get_attr("TCA_STATS")
    if nested is not None or old is None:
        return _nested_stats(nested)
    return Stats(
        bytes=old["bytes"],
        packets=old["packets"],
        drops=old["drop"],
        overlimits=old["overlimits"],
        backlog_bytes=old["backlog"],
        queue_packets=old["qlen"],
    )


def _nested_stats(found: Any) -> Stats:
    if found is None:
        return Stats()
    basic, queue = found.get_attr("TCA_STATS_BASIC", {}), found.get_attr("TCA_STATS_QUEUE", {})
    return Stats(
        bytes=basic.get("bytes"),
        packets=found.get_attr("TCA_STATS_PKT64", basic.get("packets")),
        drops=queue.get("drops"),
        overlimits=queue.get("overlimits"),
        requeues=queue.get("requeues"),
        backlog_bytes=queue.get("backlog"),
        queue_packets=queue.get("qlen"),
    )


def actions(found: Any) -> tuple[TcAction, ...]:
    """The list in a filter's ACT attribute, in the order in which the actions run."""
    if found is None:
        return ()
    listed = sorted(found["attrs"], key=lambda one: int(one.name.rpartition("_")[2]))
    return tuple(_action(one.get_value()) for one in listed)


def legacy_police(found: Any, filter_stats: Stats) -> tuple[TcAction, ...]:
    """Return the policer in a filter's POLICE attribute; its statistics are the filter's (TCA_STATS)."""
    if found is None:
        return ()
    one = policer(found)
    if one is None:
        return (TcAction("police", stats=filter_stats, legacy=True),)
    return (TcAction("police", one.index, one.exceed_action, one, filter_stats, legacy=True),)


def _action(found: Any) -> TcAction:
    kind = found.get_attr("TCA_ACT_KIND", "")
    counted = _nested_stats(found.get_attr("TCA_ACT_STATS"))
    options = found.get_attr("TCA_ACT_OPTIONS")
    if kind == "police":
        police = policer(options) if options is not None else None
        if police is not None:
            return TcAction(kind, police.index, police.exceed_action, police, counted)
        return TcAction(kind, stats=counted)
    index, control = _generic(options)
    return TcAction(kind, index, control, None, counted)


def _generic(options: Any) -> tuple[int, str]:
    """Index and verdict of an action whose kind is known to vifprobe.host.net.nla.action."""
    attributes = options["attrs"] if isinstance(options, dict) else ()
    for one in attributes:
        found = one.get_value()
        if one.name != "TCA_GACT_PROB" and found is not None:
            control = control_text(found["action"])
            other = options.get_attr("TCA_GACT_PROB")  # now and then it says another
            return found["index"], control if other is None else f"{control} or {control_text(other['paction'])}"
    return 0, ""


def policer(found: Any) -> PoliceAction | None:
    """TCA_POLICE_* attributes; None where the main struct is absent or cut short."""
    value_of = found.get_attr
    main = value_of("TCA_POLICE_TBF")
    if main is None:
        return None
    # The 32-bit fields stay at 2**32 - 1 for rates beyond (psched_ratecfg_getrate); the 64-bit ones then follow.
    rate = value_of("TCA_POLICE_RATE64") or main["rate"]
    peak = value_of("TCA_POLICE_PEAKRATE64") or main["peak"]
    pps = value_of("TCA_POLICE_PKTRATE64", 0)
    times = value_of("TCA_POLICE_TM")
    return PoliceAction(
        index=main["index"],
        rate_bps=rate * 8 or None,
        burst_bytes=ticks_to_bytes(rate, main["burst"]) if rate else None,
        rate_pps=pps or None,
        burst_packets=ticks_to_bytes(pps, value_of("TCA_POLICE_PKTBURST64", 0)) if pps else None,
        peak_bps=peak * 8 or None,
        mtu_bytes=main["mtu"] if main["mtu"] != _NO_MTU else None,
        overhead_bytes=main["rate_overhead"],
        mpu_bytes=main["rate_mpu"],
        linklayer=main["rate___reserved"] & _LINKLAYER_MASK,
        average_rate_bps=value_of("TCA_POLICE_AVRATE", 0) * 8 or None,
        exceed_action=control_text(main["action"]),
        # Absent means 0, TC_ACT_OK: conforming packets are accepted, and no later filter sees them.
        conform_action=control_text(value_of("TCA_POLICE_RESULT", 0)),
        bindings=main["bindcnt"],
        age_seconds=_seconds(times, "install"),
        idle_seconds=_seconds(times, "lastuse"),
    )


def _seconds(times: Any, name: str) -> float | None:
    return None if times is None else times[name] / _CLOCK_TICKS_PER_SECOND
