# SPDX-License-Identifier: Apache-2.0
"""nft chains, rules and stateful objects out of netlink messages.

Source: include/uapi/linux/netfilter/nf_tables.h. All numbers of nf_tables are in network order.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from vifprobe.host.net.netlink import Message, attribute_list, attributes, be, text

GENMSG_BYTES = 4  # struct nfgenmsg: family, version, res_id

FAMILIES = {1: "inet", 5: "netdev"}
_HOOKS = {("netdev", 0): "ingress", ("netdev", 1): "egress", ("inet", 5): "ingress"}

_CHAIN_TABLE, _CHAIN_NAME, CHAIN_HOOK, _CHAIN_POLICY = 1, 3, 4, 5
_HOOK_NUMBER, _HOOK_PRIORITY, _HOOK_DEVICE, _HOOK_DEVICES = 1, 2, 3, 4
_DEVICE_NAME, _DEVICE_PREFIX = 1, 2
_RULE_HANDLE, _RULE_EXPRESSIONS = 3, 4
_EXPR_NAME, _EXPR_DATA = 1, 2
_LIMIT_RATE, _LIMIT_UNIT, _LIMIT_BURST, _LIMIT_TYPE, _LIMIT_FLAGS = 1, 2, 3, 4, 5
_COUNTER_BYTES, _COUNTER_PACKETS = 1, 2
_OBJREF_TYPE, _OBJREF_NAME = 1, 2
_OBJECT_NAME, _OBJECT_TYPE, _OBJECT_DATA, _OBJECT_USE = 2, 3, 4, 5
OBJECT_COUNTER, OBJECT_LIMIT = 1, 4
_LOOKUP_DREG = 3
_IMMEDIATE_DATA, _DATA_VERDICT = 2, 2
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_VERDICTS = {0: "drop", 1: "accept", 3: "queue", -1: "continue", -2: "break", -5: "return"}
_JUMP, _GOTO = -3, -4

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

    over: `limit rate over`, the rule goes on for what exceeds; else for what conforms. bucket_bytes: how much passes
    at once after silence, which for a byte limit is one unit of the rate and the burst together, unlike tc
    (net/netfilter/nft_limit.c, nft_limit_init: tokens_max = unit * (rate + burst) / rate).
    """

    rate_bps: int | None = None
    burst_bytes: int | None = None
    bucket_bytes: int | None = None
    rate_pps: float | None = None
    burst_packets: int | None = None
    over: bool = False


@dataclass(frozen=True)
class Rule:
    """One rule. counter_before, counter_after: the counters on either side of the limit; without one, all are `after`.

    verdict: `drop`, `accept`, `reject`, `jump NAME`, ...; "" where it ends without; `map` where a verdict map decides.
    conditions: whatever else must match, as raw bytes: equal bytes are equal conditions. matches_all: there are none.
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
        """Name of the chain that it jumps or goes to."""
        word, _, name = self.verdict.partition(" ")
        return name if word in ("jump", "goto") else None

    @property
    def drops(self) -> bool:
        """Whether the packets that come to its end are dropped."""
        return self.verdict in ("drop", "reject")


@dataclass(frozen=True)
class BaseChain:
    """A chain that is hooked on devices. devices: names, a trailing `*` stands for any ending. policy_drops: what no
    rule decided is dropped, uncounted.
    """

    family: str
    table: str
    name: str
    hook: str
    priority: int
    devices: tuple[str, ...]
    policy_drops: bool

    def is_on(self, link_name: str) -> bool:
        """Whether it sees packets of this interface."""
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
    family = FAMILIES.get(message.body[0], "") if message.body else ""
    found = attributes(message.body, GENMSG_BYTES)
    hook = attributes(found.get(CHAIN_HOOK, b""))
    name = _HOOKS.get((family, be(hook.get(_HOOK_NUMBER)) or 0)) if hook else None
    if name is None:
        return None
    devices = []
    if _HOOK_DEVICES in hook:
        for kind, value in attribute_list(hook[_HOOK_DEVICES]):
            devices.append((text(value) or "") + ("*" if kind == _DEVICE_PREFIX else ""))
    elif _HOOK_DEVICE in hook:
        devices.append(text(hook[_HOOK_DEVICE]) or "")
    return BaseChain(
        family=family,
        table=text(found.get(_CHAIN_TABLE)) or "",
        name=text(found.get(_CHAIN_NAME)) or "",
        hook=name,
        priority=_signed(hook.get(_HOOK_PRIORITY)),
        devices=tuple(devices),
        policy_drops=be(found.get(_CHAIN_POLICY)) == 0,  # NF_DROP
    )


def stateful_object(message: Message) -> tuple[tuple[int, str], StatefulObject]:
    """((type, name), content) of an NFT_MSG_NEWOBJ message."""
    found = attributes(message.body, GENMSG_BYTES)
    kind = be(found.get(_OBJECT_TYPE)) or 0
    data = attributes(found.get(_OBJECT_DATA, b""))
    key = (kind, text(found.get(_OBJECT_NAME)) or "")
    if kind == OBJECT_COUNTER:
        return key, StatefulObject(counter=_counter(data, (be(found.get(_OBJECT_USE)) or 0) > 1))
    return key, StatefulObject(limit=_limit(data) if kind == OBJECT_LIMIT else None)


def rule(message: Message, objects: Mapping[tuple[int, str], StatefulObject]) -> Rule:
    """An NFT_MSG_NEWRULE message, named counters and limits looked up in `objects`."""
    found = attributes(message.body, GENMSG_BYTES)
    limit: RateLimit | None = None
    before: Counter | None = None
    after: Counter | None = None
    verdict, conditions, matches_all = "", b"", True
    for _, element in attribute_list(found.get(_RULE_EXPRESSIONS, b"")):
        parts = attributes(element)
        name = text(parts.get(_EXPR_NAME)) or ""
        data = attributes(parts.get(_EXPR_DATA, b""))
        named = objects.get((be(data.get(_OBJREF_TYPE)) or 0, text(data.get(_OBJREF_NAME)) or ""))
        referred = (named or StatefulObject()) if name == "objref" else StatefulObject()
        here = _counter(data, False) if name == "counter" else referred.counter
        this_limit = _limit(data) if name == "limit" else referred.limit
        if this_limit is not None and limit is None:
            limit, before, after = this_limit, after, None
        elif here is not None:
            after = here
        elif name == "immediate" and _DATA_VERDICT in attributes(data.get(_IMMEDIATE_DATA, b"")):
            verdict = _verdict(attributes(attributes(data[_IMMEDIATE_DATA])[_DATA_VERDICT]))
        elif name == "reject":
            verdict = "reject"
        elif name not in ("limit", "counter", "objref", "log"):
            conditions += element
            matches_all &= name in _UNCONDITIONAL
            if name == "lookup" and be(data.get(_LOOKUP_DREG)) == 0:  # NFT_REG_VERDICT
                verdict = "map"
    return Rule(be(found.get(_RULE_HANDLE)) or 0, limit, before, after, verdict, conditions, matches_all)


def _verdict(data: dict[int, bytes]) -> str:
    code = _signed(data.get(_VERDICT_CODE))
    if code in (_JUMP, _GOTO):
        return f"{'jump' if code == _JUMP else 'goto'} {text(data.get(_VERDICT_CHAIN)) or ''}"
    return _VERDICTS.get(code if code < 0 else code & 0xFF, f"verdict {code}")  # the rest: number of the queue


def _counter(data: dict[int, bytes], shared: bool) -> Counter:
    return Counter(be(data.get(_COUNTER_PACKETS)) or 0, be(data.get(_COUNTER_BYTES)) or 0, shared)


def _limit(data: dict[int, bytes]) -> RateLimit:
    rate = be(data.get(_LIMIT_RATE)) or 0
    unit_seconds = be(data.get(_LIMIT_UNIT)) or 1
    burst = be(data.get(_LIMIT_BURST)) or 0
    over = bool((be(data.get(_LIMIT_FLAGS)) or 0) & 1)  # NFT_LIMIT_F_INV
    if be(data.get(_LIMIT_TYPE)) == 1:  # NFT_LIMIT_PKT_BYTES
        return RateLimit(rate * 8 // unit_seconds, burst, rate + burst, over=over)
    return RateLimit(rate_pps=rate / unit_seconds, burst_packets=burst, over=over)


def _signed(value: bytes | None) -> int:
    return struct.unpack(">i", value)[0] if value is not None and len(value) == 4 else 0
