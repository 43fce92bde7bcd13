# SPDX-License-Identifier: Apache-2.0
"""nft chains, rules and stateful objects out of netlink messages.

Decoded by vifprobe.host.net.nla.nft, which names the kernel's sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vifprobe.host.net.netlink import Message, reading

#: nlmsg_type of messages of each kind: the subsystem (NFNL_SUBSYS_NFTABLES) and NFT_MSG_GET*.
GETTABLE, GETCHAIN, GETRULE, GETGEN, GETOBJ = (10 << 8 | number for number in (1, 4, 7, 16, 19))

FAMILIES = {1: "inet", 5: "netdev"}
_HOOKS = {("netdev", 0): "ingress", ("netdev", 1): "egress", ("inet", 5): "ingress"}

OBJECT_COUNTER, OBJECT_LIMIT = 1, 4
_VERDICTS = {0: "drop", 1: "accept", 3: "queue", -1: "continue", -2: "break", -5: "return"}
_JUMP, _GOTO = -3, -4
_TABLE_DORMANT = 0x1  # NFT_TABLE_F_DORMANT

# Expressions that let every packet go on to the next one; `limit` does not, but is looked at by itself.
_UNCONDITIONAL = {"limit", "counter", "objref", "immediate", "log", "meta", "notrack"}


@dataclass(frozen=True)
class Counter:
    """Packets and bytes (without the L2 header at ingress) of one counter. shared: a named one in several rules."""

    packets: int
    bytes: int
    shared: bool = False


@dataclass(frozen=True)
class RateLimit:
    """A limit: bits per second (rounded down) with a burst in bytes, or packets per second with a burst in packets.

    - over: `limit rate over`: the rule matches packets that exceed; else packets that conform.
    - bucket_bytes: bytes that pass at once after a pause. For a byte limit that is one unit of the rate and the burst
      together, unlike tc (net/netfilter/nft_limit.c, nft_limit_init: tokens_max = unit * (rate + burst) / rate).
    """

    rate_bps: int | None = None
    burst_bytes: int | None = None
    bucket_bytes: int | None = None
    rate_pps: float | None = None
    burst_packets: int | None = None
    over: bool = False


@dataclass(frozen=True)
class Rule:
    """One rule.

    - counter_before, counter_after: counters before and after the limit; without a limit, all are `after`. None: none.
    - verdict: `drop`, `accept`, `reject`, `jump NAME`, ...; "" without one; `map` where a verdict map decides.
    - conditions: all other matches, as raw bytes: equal bytes are equal conditions.
    - matches_all: there are no conditions.
    """

    handle: int
    limit: RateLimit | None
    counter_before: Counter | None
    counter_after: Counter | None
    verdict: str
    conditions: bytes
    matches_all: bool

    @property
    def target(self) -> str | None:
        """Return the name of the chain that the rule jumps or goes to; None without one."""
        word, _, name = self.verdict.partition(" ")
        return name if word in ("jump", "goto") else None

    @property
    def drops(self) -> bool:
        """Return True if packets that reach the end of the rule are dropped."""
        return self.verdict in ("drop", "reject")


@dataclass(frozen=True)
class BaseChain:
    """A chain that is hooked on devices.

    - devices: names; a trailing `*` matches any ending.
    - policy_drops: packets without a verdict of a rule are dropped, and not counted.
    """

    family: str
    table: str
    name: str
    hook: str
    priority: int
    devices: tuple[str, ...]
    policy_drops: bool

    def is_on(self, link_name: str) -> bool:
        """Return True if the chain sees packets of this interface."""
        return any(
            link_name.startswith(device[:-1]) if device.endswith("*") else link_name == device
            for device in self.devices
        )


@dataclass(frozen=True)
class StatefulObject:
    """A named counter or limit."""

    counter: Counter | None = None
    limit: RateLimit | None = None


def base_chain(message: Message) -> BaseChain | None:
    """An NFT_MSG_NEWCHAIN message; None for a chain that is not hooked on devices."""
    with reading():
        found = message.decoded(GETCHAIN)
        family, hook = FAMILIES.get(found["nfgen_family"], ""), found.get_attr("NFTA_CHAIN_HOOK")
        name = _HOOKS.get((family, hook.get_attr("NFTA_HOOK_HOOKNUM", 0))) if hook is not None else None
        if name is None:
            return None
        return BaseChain(
            family=family,
            table=found.get_attr("NFTA_CHAIN_TABLE", ""),
            name=found.get_attr("NFTA_CHAIN_NAME", ""),
            hook=name,
            priority=hook.get_attr("NFTA_HOOK_PRIORITY", 0),
            devices=_devices(hook),
            policy_drops=found.get_attr("NFTA_CHAIN_POLICY") == 0,  # NF_DROP
        )


def _devices(hook: Any) -> tuple[str, ...]:
    several, one = hook.get_attr("NFTA_HOOK_DEVS"), hook.get_attr("NFTA_HOOK_DEV")
    if several is None:
        return () if one is None else (one,)
    return tuple(each.get_value() + "*" * (each.name == "NFTA_DEVICE_PREFIX") for each in several["attrs"])


def is_hooked(message: Message) -> bool:
    """Return True if the chain of an NFT_MSG_NEWCHAIN message is hooked: it sees packets without a jump."""
    with reading():
        return message.decoded(GETCHAIN).get_attr("NFTA_CHAIN_HOOK") is not None


def dormant_table(message: Message) -> str | None:
    """Name of the table of an NFT_MSG_NEWTABLE message, if it is switched off (`flags dormant`)."""
    with reading():
        found = message.decoded(GETTABLE)
        name: str = found.get_attr("NFTA_TABLE_NAME", "")
        return name if found.get_attr("NFTA_TABLE_FLAGS", 0) & _TABLE_DORMANT else None


def stateful_object(message: Message) -> tuple[tuple[int, str], StatefulObject]:
    """((type, name), content) of an NFT_MSG_NEWOBJ message."""
    with reading():
        found = message.decoded(GETOBJ)
        kind, data = found.get_attr("NFTA_OBJ_TYPE", 0), found.get_attr("NFTA_OBJ_DATA")
        key = (kind, found.get_attr("NFTA_OBJ_NAME", ""))
        if kind == OBJECT_COUNTER:
            return key, StatefulObject(counter=_counter(data, found.get_attr("NFTA_OBJ_USE", 0) > 1))
        return key, StatefulObject(limit=_limit(data) if kind == OBJECT_LIMIT else None)


def table_of_object(message: Message) -> str:
    """The table of an NFT_MSG_NEWOBJ message."""
    with reading():
        name: str = message.decoded(GETOBJ).get_attr("NFTA_OBJ_TABLE", "")
        return name


def chain_of_rule(message: Message) -> tuple[str, str]:
    """Table and chain of an NFT_MSG_NEWRULE message."""
    with reading():
        found = message.decoded(GETRULE)
        return found.get_attr("NFTA_RULE_TABLE", ""), found.get_attr("NFTA_RULE_CHAIN", "")


def rule(message: Message, objects: Mapping[tuple[int, str], StatefulObject]) -> Rule:
    """An NFT_MSG_NEWRULE message, named counters and limits looked up in `objects`."""
    with reading():
        return _rule(message.decoded(GETRULE), objects)


def _rule(found: Any, objects: Mapping[tuple[int, str], StatefulObject]) -> Rule:
    limit: RateLimit | None = None
    before: Counter | None = None
    after: Counter | None = None
    verdict, conditions, matches_all = "", b"", True
    listed = found.get_attr("NFTA_RULE_EXPRESSIONS")
    for element in listed["attrs"] if listed is not None else ():
        parts = element.get_value()
        name, data = parts.get_attr("NFTA_EXPR_NAME", ""), parts.get_attr("NFTA_EXPR_DATA")
        referred = _referred(data, objects) if name == "objref" else StatefulObject()
        here = _counter(data, False) if name == "counter" else referred.counter
        this_limit = _limit(data) if name == "limit" else referred.limit
        if this_limit is not None and limit is None:
            limit, before, after = this_limit, after, None
        elif here is not None:
            after = here
        elif name == "immediate" and (said := _verdict(data)) is not None:
            verdict = said
        elif name == "reject":
            verdict = "reject"
        elif name not in ("limit", "counter", "objref", "log"):
            conditions += element.raw
            matches_all &= name in _UNCONDITIONAL
            if name == "lookup" and data is not None and data.get_attr("NFTA_LOOKUP_DREG") == 0:  # NFT_REG_VERDICT
                verdict = "map"
    return Rule(found.get_attr("NFTA_RULE_HANDLE", 0), limit, before, after, verdict, conditions, matches_all)


def _referred(data: Any, objects: Mapping[tuple[int, str], StatefulObject]) -> StatefulObject:
    """A named counter or limit; an empty one where it is of another kind."""
    if data is None:
        return StatefulObject()
    key = (data.get_attr("NFTA_OBJREF_IMM_TYPE", 0), data.get_attr("NFTA_OBJREF_IMM_NAME", ""))
    return objects.get(key, StatefulObject())


def _verdict(data: Any) -> str | None:
    """Return the verdict of an immediate expression; None where it loads a value."""
    for name in ("NFTA_IMMEDIATE_DATA", "NFTA_DATA_VERDICT"):
        data = data.get_attr(name) if data is not None else None
    if data is None:
        return None
    code: int = data.get_attr("NFTA_VERDICT_CODE", 0)
    if code in (_JUMP, _GOTO):
        return f"{'jump' if code == _JUMP else 'goto'} {data.get_attr('NFTA_VERDICT_CHAIN', '')}"
    return _VERDICTS.get(code if code < 0 else code & 0xFF, f"verdict {code}")  # the rest: number of the queue


def _counter(data: Any, shared: bool) -> Counter:
    if data is None:
        return Counter(0, 0, shared)
    return Counter(data.get_attr("NFTA_COUNTER_PACKETS", 0), data.get_attr("NFTA_COUNTER_BYTES", 0), shared)


def _limit(data: Any) -> RateLimit | None:
    if data is None:
        return None
    rate, burst = data.get_attr("NFTA_LIMIT_RATE", 0), data.get_attr("NFTA_LIMIT_BURST", 0)
    unit_seconds = data.get_attr("NFTA_LIMIT_UNIT") or 1
    over = bool(data.get_attr("NFTA_LIMIT_FLAGS", 0) & 1)  # NFT_LIMIT_F_INV
    if data.get_attr("NFTA_LIMIT_TYPE") == 1:  # NFT_LIMIT_PKT_BYTES
        return RateLimit(rate * 8 // unit_seconds, burst, rate + burst, over=over)
    return RateLimit(rate_pps=rate / unit_seconds, burst_packets=burst, over=over)
