# SPDX-License-Identifier: Apache-2.0
"""Limits in netfilter chains past a device: in those of a bridge and of the IP stack (families bridge, ip, ip6, inet).

A limit that all packets of the device meet is one of the device, enforced elsewhere. Of others (for some of the
packets, for each element of a set, without a rate) it is said that they are there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from vifprobe.host.nft.matches import is_same
from vifprobe.host.nft.place import Place, Way, ways
from vifprobe.host.nft.rules import BaseChain, RateLimit, Rule, SetElement
from vifprobe.host.nft.walk import Met, Packets, Share, Walk
from vifprobe.model.layout import Direction

#: Names in a rule's message without which it has no limit: of expressions, and of xt matches.
MARKERS = tuple(
    name.encode() + b"\0" for name in ("limit", "quota", "connlimit", "dynset", "objref", "hashlimit", "rateest")
)
#: And of those without which no set is looked up, whose elements may hold limits.
SET_MARKER = b"lookup\0"


@dataclass(frozen=True)
class PastLimit:
    """One rule past a device that limits packets of it.

    - limit: None where it is not decoded.
    - what: `limit`, or what limits instead: `quota`, `hashlimit`, ...
    - protocol: of the packets that come to the chain.
    - is_whole: all of these packets meet it, and what exceeds it is dropped.
    - drops_packets: counted by the rule; None: not counted.
    - is_shared: packets of other devices are in its bucket.
    - whose: packets that come to the chain, in words; "" for all.
    - counting: the rule whose counter has the drops, if it is another one.
    """

    base: BaseChain
    chain: str
    rule: Rule
    direction: Direction
    limit: RateLimit | None
    what: str
    protocol: str
    is_whole: bool
    drops_packets: int | None = None
    is_shared: bool = False
    whose: str = ""
    counting: Rule | None = None

    @property
    def chain_name(self) -> str:
        """Return family, table and chain, as nft takes them."""
        return f"{self.base.family} {self.base.table} {self.chain}"

    @property
    def where(self) -> str:
        """Return the rule's place, as NftRule.where."""
        return f"{self.base.hook} {self.chain_name} rule {self.rule.handle}"


@dataclass(frozen=True)
class PastLimits:
    """All limits past one device. problems: what was not evaluated, as text."""

    limits: tuple[PastLimit, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def settings(self) -> tuple[object, ...]:
        """Return everything but the counters."""
        limits = ((one.where, one.direction, one.limit, one.what, one.is_whole) for one in self.limits)
        return (*limits, *self.problems)

    @property
    def unread(self) -> tuple[tuple[Direction, str], ...]:
        """Return what can limit packets of a direction, and is not known to be a limit of all of them."""
        found = [(one.direction, _words(one)) for one in self.limits if not one.is_whole]
        found += [(direction, words) for words in self.problems for direction in Direction]
        return tuple(dict.fromkeys(found))


def _words(one: PastLimit) -> str:
    by = f" by {one.what}" if one.what != "limit" else ""
    whose = one.whose or "packets that match a rule's other conditions"
    if one.rule.matches.keyed_by:
        whose = f"the packets of each element of the set {one.rule.matches.keyed_by}"
    return f"nft limits {whose}{by}: rule {one.rule.handle} in `nft -a list chain {one.chain_name}`"


@dataclass(frozen=True)
class Table:
    """Chains, rules and sets of one table.

    - bases: its base chains.
    - rules: chain -> rules.
    - elements: of the sets that rules look interfaces or verdicts up in.
    - limits: name of a limit object -> limit.
    """

    bases: tuple[BaseChain, ...]
    rules: Mapping[str, Sequence[Rule]]
    elements: Mapping[str, Sequence[SetElement]]
    limits: Mapping[str, RateLimit]
    _indexes: dict[str, _Index] = field(default_factory=dict)

    def index_of(self, chain: str) -> _Index:
        """Return the chain's rules by what they ask for."""
        if chain not in self._indexes:
            self._indexes[chain] = _Index(self.rules.get(chain, ()))
        return self._indexes[chain]


def can_limit(rule: Rule, elements_of: Callable[[str], Iterable[SetElement]]) -> bool:
    """Return True if a rule limits, and something becomes of the packets by it."""
    matches = rule.matches
    if not rule.verdict and not matches.writes:
        return False
    if rule.limit is not None or matches.limiters or matches.object_map:
        return True
    names = [test.set_name for test in matches.interfaces if test.set_name]
    return any(one.limit is not None for name in names for one in elements_of(name))


class _Index:
    """Rules of a chain by the one interface that they are for: of thousands, few are for the packets of one."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = rules
        self.place_of = {rule.handle: place for place, rule in enumerate(rules)}
        self._general: list[int] = []
        self._by_value: dict[str, dict[bytes, list[int]]] = {}
        for place, rule in enumerate(rules):
            tests = [one for one in rule.matches.interfaces if one.is_whole_name and not one.inverted and not one.mask]
            tests = [one for one in tests if not one.set_name]
            if tests:
                self._by_value.setdefault(tests[0].key, {}).setdefault(tests[0].value, []).append(place)
            else:
                self._general.append(place)

    def rules_for(self, packets: Packets) -> list[Rule]:
        """Return the rules that packets may match; of those for an interface at the other end, the ones that accept."""
        places = list(self._general)
        for key, by_value in self._by_value.items():
            value = packets.interfaces.get(key)
            if value is not None:
                places += [place for one, found in by_value.items() if is_same(value, one) for place in found]
            elif key in packets.interfaces:
                found = [place for places in by_value.values() for place in places]
                if key in packets.foreign:
                    found = [one for one in found if self.rules[one].verdict not in ("", "drop", "reject")]
                places += found
        return [self.rules[place] for place in sorted(places)]


def limits_past(place: Place, tables: Iterable[Table]) -> tuple[PastLimit, ...]:
    """Return the rules that limit a device's packets, in the tables that can."""
    return tuple(
        one
        for table in tables
        for base in table.bases
        for way in ways(place, base.family, base.hook, base.priority)
        for one in _limits_in(table, base, way)
    )


def _limits_in(table: Table, base: BaseChain, way: Way) -> Iterable[PastLimit]:
    rules_of = functools.cache(lambda chain: table.index_of(chain).rules_for(way.packets))
    walk = Walk(way.packets, rules_of, lambda name: table.elements.get(name, ()), table.limits)
    for (chain, handle), met in walk.follow(base.name, base.policy_drops).items():
        rules = table.rules[chain]
        place = table.index_of(chain).place_of[handle]
        rule = rules[place]
        if not _concerns(met, rule, way):
            continue
        others = rule.matches.limiters
        drops, counting = _drops(rule, rules[place + 1] if place + 1 < len(rules) else None)
        yield PastLimit(
            base=base,
            chain=chain,
            rule=rule,
            direction=way.direction,
            limit=met.limit,
            what=others[0] if others else "limit",
            protocol=way.protocol,
            is_whole=_is_whole(met, rule, way),
            drops_packets=drops,
            counting=counting,
            is_shared=not met.names_it,
            whose=way.whose,
        )


def _concerns(met: Met, rule: Rule, way: Way) -> bool:
    """Return True if the rule limits packets of the device, or may have them limited by a mark."""
    limits = met.limit is not None or bool(rule.matches.limiters)
    if not limits or met.share is Share.NONE or met.is_foreign or (way.must_name and not met.names_it):
        return False
    return met.enforces or rule.matches.writes


def _is_whole(met: Met, rule: Rule, way: Way) -> bool:
    is_plain = not rule.matches.limiters and not rule.matches.keyed_by and met.limit is not None
    return is_plain and met.enforces and met.share is Share.ALL and not way.whose


def _drops(rule: Rule, following: Rule | None) -> tuple[int | None, Rule | None]:
    """Return the packets that exceeded a limit, where a counter has them, and the following rule if it is its own."""
    if rule.limit is not None and rule.drops and rule.limit.over:
        counter, counting = rule.counter_after, None
    elif rule.verdict == "accept" and following is not None and following.drops and following.limit is None:
        counter, counting = following.counter_after, following
        if following.conditions != rule.conditions:
            return None, None
    else:
        return None, None
    return (None, None) if counter is None or counter.shared else (counter.packets, counting)
