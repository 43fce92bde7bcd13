# SPDX-License-Identifier: Apache-2.0
"""nft chains, rules and stateful objects out of netlink messages.

Decoded by vifprobe.host.net.nla.nft, which names the kernel's sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vifprobe.host.net.netlink import Message, reading
from vifprobe.host.nft.matches import Matches, MatchReader

#: nlmsg_type of messages of each kind: the subsystem (NFNL_SUBSYS_NFTABLES) and NFT_MSG_GET*.
GETTABLE, GETCHAIN, GETRULE, GETGEN, GETOBJ = (10 << 8 | number for number in (1, 4, 7, 16, 19))
GETSETELEM = 10 << 8 | 13

#: Families of chains that packets of a tap can come to: on the device, and past it.
FAMILIES = {1: "inet", 2: "ip", 5: "netdev", 7: "bridge", 10: "ip6"}
_DEVICE_HOOKS = {("netdev", 0): "ingress", ("netdev", 1): "egress", ("inet", 5): "ingress"}
#: NF_INET_* and NF_BR_* have the same numbers up to here.
_STACK_HOOKS = ("prerouting", "input", "forward", "output", "postrouting")

OBJECT_COUNTER, OBJECT_QUOTA, OBJECT_LIMIT, OBJECT_CONNLIMIT = 1, 2, 4, 5
_OBJECT_LIMITERS = {OBJECT_QUOTA: "quota", OBJECT_CONNLIMIT: "connlimit"}
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
    - matches: the conditions as far as they are understood.
    """

    handle: int
    limit: RateLimit | None
    counter_before: Counter | None
    counter_after: Counter | None
    verdict: str
    conditions: bytes
    matches_all: bool
    matches: Matches = field(default_factory=Matches)

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
    """A chain that is hooked on devices, or somewhere on the way of all packets.

    - devices: names; a trailing `*` matches any ending. None for `prerouting`, `forward`, ...
    - policy_drops: packets without a verdict of a rule are dropped, and not counted.
    """

    family: str
    table: str
    name: str
    hook: str
    priority: int
    devices: tuple[str, ...]
    policy_drops: bool

    @property
    def is_on_devices(self) -> bool:
        """Return True if it is hooked on devices."""
        return self.hook in ("ingress", "egress")

    def is_on(self, link_name: str) -> bool:
        """Return True if the chain sees packets of this interface."""
        return any(
            link_name.startswith(device[:-1]) if device.endswith("*") else link_name == device
            for device in self.devices
        )


@dataclass(frozen=True)
class StatefulObject:
    """A named counter or limit. limiter: `quota` or `connlimit`."""

    counter: Counter | None = None
    limit: RateLimit | None = None
    limiter: str = ""


@dataclass(frozen=True)
class SetElement:
    """An element of a set or map.

    - key: bytes as registers hold them.
    - flags: NFT_SET_ELEM_*.
    - verdict: of a verdict map, as Rule.verdict.
    - object_name: of a map of objects.
    - limit: that it holds.
    """

    key: bytes
    flags: int = 0
    verdict: str = ""
    object_name: str = ""
    limit: RateLimit | None = None


def base_chain(message: Message) -> BaseChain | None:
    """An NFT_MSG_NEWCHAIN message; None for a chain that is not hooked, or that no packet of a tap comes to."""
    with reading():
        found = message.decoded(GETCHAIN)
        family, hook = FAMILIES.get(found["nfgen_family"], ""), found.get_attr("NFTA_CHAIN_HOOK")
        name = _hook_name(family, hook.get_attr("NFTA_HOOK_HOOKNUM", 0)) if hook is not None and family else None
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


def _hook_name(family: str, number: int) -> str | None:
    if family == "netdev" or (family, number) in _DEVICE_HOOKS:
        return _DEVICE_HOOKS.get((family, number))
    return _STACK_HOOKS[number] if number < len(_STACK_HOOKS) else None


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
        limit = _limit(data) if kind == OBJECT_LIMIT else None
        return key, StatefulObject(limit=limit, limiter=_OBJECT_LIMITERS.get(kind, ""))


def set_elements(message: Message) -> list[SetElement]:
    """Elements in an NFT_MSG_NEWSETELEM message: a part of a set."""
    with reading():
        listed = message.decoded(GETSETELEM).get_attr("NFTA_SET_ELEM_LIST_ELEMENTS")
        return [_element(one.get_value()) for one in listed["attrs"]] if listed is not None else []


def _element(found: Any) -> SetElement:
    key, data = found.get_attr("NFTA_SET_ELEM_KEY"), found.get_attr("NFTA_SET_ELEM_DATA")
    limits = _limits_in(found, "NFTA_SET_ELEM_EXPR", "NFTA_SET_ELEM_EXPRESSIONS")
    said = data.get_attr("NFTA_DATA_VERDICT") if data is not None else None
    return SetElement(
        (key.get_attr("NFTA_DATA_VALUE") if key is not None else None) or b"",
        found.get_attr("NFTA_SET_ELEM_FLAGS", 0),
        _verdict_words(said) if said is not None else "",
        found.get_attr("NFTA_SET_ELEM_OBJREF", ""),
        limits[0] if limits else None,
    )


def _limits_in(found: Any, one: str, several: str) -> list[RateLimit]:
    """Limits in an attribute that holds an expression, or in one that holds several."""
    listed = found.get_attr(several)
    single = found.get_attr(one)
    parts = [each.get_value() for each in listed["attrs"]] if listed is not None else []
    parts += [single] if single is not None else []
    limits = [_limit(part.get_attr("NFTA_EXPR_DATA")) for part in parts if part.get_attr("NFTA_EXPR_NAME") == "limit"]
    return [limit for limit in limits if limit is not None]


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
    matches = MatchReader()
    listed = found.get_attr("NFTA_RULE_EXPRESSIONS")
    for element in listed["attrs"] if listed is not None else ():
        parts = element.get_value()
        name, data = parts.get_attr("NFTA_EXPR_NAME", ""), parts.get_attr("NFTA_EXPR_DATA")
        referred = _referred(data, objects) if name == "objref" else StatefulObject()
        here = _counter(data, False) if name == "counter" else referred.counter
        this_limit = _limit(data) if name == "limit" else referred.limit
        if name == "dynset" and data is not None:
            this_limit = _keyed_limit(data, matches)
        if this_limit is not None and limit is None:
            limit, before, after = this_limit, after, None
        elif here is not None:
            after = here
        elif name == "immediate" and (said := _verdict(data)) is not None:
            verdict = said
        elif name == "reject" or (name == "target" and data.get_attr("NAME") == "REJECT"):
            verdict = "reject"
        else:
            matches.take(referred.limiter or name, data)
        if name not in ("limit", "counter", "objref", "log", "reject") and not (name == "immediate" and _verdict(data)):
            # A quota's state is in its bytes.
            conditions += element.raw if name != "quota" else b"quota"
            matches_all &= name in _UNCONDITIONAL
    found_matches = matches.found()
    verdict = "map" if found_matches.verdict_map else verdict
    handle = found.get_attr("NFTA_RULE_HANDLE", 0)
    return Rule(handle, limit, before, after, verdict, conditions, matches_all, found_matches)


def _keyed_limit(data: Any, matches: MatchReader) -> RateLimit | None:
    """Return the limit that each element of a dynset's set gets; None where it is another use of a set."""
    limits = _limits_in(data, "NFTA_DYNSET_EXPR", "NFTA_DYNSET_EXPRESSIONS")
    if not limits:
        return None
    matches.take_keyed_limit(data.get_attr("NFTA_DYNSET_SET_NAME", ""))
    return limits[0]


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
    return None if data is None else _verdict_words(data)


def _verdict_words(data: Any) -> str:
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
