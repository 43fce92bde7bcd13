# SPDX-License-Identifier: Apache-2.0
"""Chains, rules and sets out of the kernel, each read once; then only the counters of rules with a limit."""

from __future__ import annotations

import functools
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from vifprobe.host.net.links import Link
from vifprobe.host.net.netlink import Message, Netlink, encoded
from vifprobe.host.nft.hooks import has_legacy_chains
from vifprobe.host.nft.matches import name_bytes
from vifprobe.host.nft.past import MARKERS, SET_MARKER, PastLimit, PastLimits, Table, can_limit, limits_past
from vifprobe.host.nft.place import Place, place_of
from vifprobe.host.nft.rules import (
    FAMILIES,
    GETCHAIN,
    GETOBJ,
    GETRULE,
    GETSETELEM,
    GETTABLE,
    BaseChain,
    RateLimit,
    Rule,
    SetElement,
    StatefulObject,
    base_chain,
    chain_of_rule,
    dormant_table,
    is_hooked,
    rule,
    set_elements,
    stateful_object,
    table_of_object,
)
from vifprobe.host.nft.state import NftRule, NftState
from vifprobe.host.nft.walk import Packets, Walk

#: Rules of one table that are evaluated, at most.
_RULES_MAX = 5_000
#: Names of anonymous sets: `__set%d`, `__map%d`.
_ANONYMOUS = "__"


class Reader:
    """Reads chains and rules, each chain and table once.

    uses_sets: interfaces are looked up in named sets, whose elements can change without a notification.
    """

    def __init__(self, netlink: Netlink) -> None:
        self._netlink = netlink
        self._rules: dict[tuple[str, str, str], list[Rule]] = {}
        self._objects: dict[tuple[str, str], dict[tuple[int, str], StatefulObject]] = {}
        self._chains: list[BaseChain] = []
        self._is_renewed: set[tuple[str, str, str]] = set()
        self._elements: dict[tuple[str, str, str], list[SetElement]] = {}
        self._past: _PastReader | None = None
        self.uses_sets = False

    def read_chains(self) -> None:
        """Read the base chains, in the order in which packets pass them."""
        every = sorted(self.base_chains(), key=lambda chain: (chain.hook, chain.priority))
        self._chains = [chain for chain in every if chain.is_on_devices]
        self._past = _PastReader(self, [chain for chain in every if not chain.is_on_devices])
        self._others: bool | None = None

    def renew(self, netlink: Netlink) -> None:
        """Read counters again from now on; the rules are unchanged."""
        self._netlink = netlink
        self._is_renewed = set(self._rules)
        self._objects = {}

    def state_of(self, link: Link) -> NftState:
        """Return the nft state of one interface."""
        here = [chain for chain in self._chains if chain.is_on(link.name)]
        if here and self._others is None:
            self._others = self.has_other_chains() or has_legacy_chains()
        state = self.state(here, bool(self._others), link)
        return replace(state, past=self._past.of(link)) if self._past is not None else state

    def base_chains(self) -> list[BaseChain]:
        """Return the chains that are hooked where packets of a tap can come."""
        found = []
        for number, family in FAMILIES.items():
            asleep = self._dormant_tables(number)
            chains = (base_chain(row) for row in self._dump(GETCHAIN, number))
            found += [chain for chain in chains if chain and (family, chain.table) not in asleep]
        return found

    def has_other_chains(self) -> bool:
        """Return True if a chain is hooked elsewhere than on a device."""
        for row in self._netlink.dump(GETCHAIN, encoded(GETCHAIN, {})):  # of all families
            if not is_hooked(row):
                continue
            chain = base_chain(row) if row.body[0] in FAMILIES else None
            if chain is None or not chain.is_on_devices:
                return True
        return False

    def state(self, chains: list[BaseChain], others_can_drop: bool, link: Link) -> NftState:
        """Return the state of an interface with these chains hooked on it."""
        rules = tuple(at for chain in chains for at in self._met(chain, link))
        return NftState(tuple(chains), rules, bool(chains) and others_can_drop)

    def _met(self, base: BaseChain, link: Link) -> list[NftRule]:
        """The rules of a chain on devices, with what packets of one of these find there."""
        keys = ("iif", "iifname") if base.hook == "ingress" else ("oif", "oifname")
        values = dict(zip(keys, (link.ifindex.to_bytes(4, sys.byteorder), name_bytes(link.name)), strict=True))
        rules_of, elements_of = functools.partial(self._rules_of, base), functools.partial(self.elements_of, base)
        walk = Walk(Packets(values), rules_of, elements_of, self.limits_of(base))
        met = walk.follow(base.name, base.policy_drops)
        came_to = {chain for chain, _ in met}
        found = self._reached(base, base.name, set(), came_to)
        return [replace(at, met=met.get((at.chain, at.rule.handle))) for at in found]

    def _reached(self, base: BaseChain, chain: str, seen: set[str], mapped: set[str]) -> Iterator[NftRule]:
        """The rules of a chain, those of the chains it jumps to behind the first jump there.

        Each chain once, however many ways lead to it: 16 chains that jump twice to the next one are 65,536 ways.
        mapped: chains that a verdict map may lead to.
        """
        seen.add(chain)
        for found in self._rules_of(base, chain):
            yield NftRule(base, chain, found)
            targets = [found.target] if found.target else []
            if found.verdict == "map":
                words = (one.verdict.split() for one in self.elements_of(base, found.matches.verdict_map))
                targets = [word[1] for word in words if len(word) == 2 and word[1] in mapped]
            # The kernel takes no loops, and no jumps deeper than 16 (nft_table_validate, NFT_JUMP_STACK_SIZE).
            for target in targets:
                if target not in seen:
                    yield from self._reached(base, target, seen, mapped)

    def _rules_of(self, base: BaseChain, chain: str) -> list[Rule]:
        key = (base.family, base.table, chain)
        if key not in self._rules:
            objects = self._objects_of(base)
            rows = self._dump(GETRULE, _family_number(base), _place(base, chain))
            # Kernels that ignore the filter send the rules of all chains.
            wanted = (base.table, chain)
            self._rules[key] = [rule(row, objects) for row in rows if chain_of_rule(row) == wanted]
        elif key in self._is_renewed:
            self._is_renewed.discard(key)
            self._rules[key] = self._with_counters(base, chain, self._rules[key])
        return self._rules[key]

    def _with_counters(self, base: BaseChain, chain: str, rules: list[Rule]) -> list[Rule]:
        """Return the rules with current counters of those with a limit, and of the rule after each."""
        limits = [place for place, found in enumerate(rules) if found.limit is not None]
        counted = sorted({*limits, *(place + 1 for place in limits if place + 1 < len(rules))})
        if not counted:
            return rules
        objects, found = self._objects_of(base), list(rules)
        fields = {"nfgen_family": _family_number(base)}
        for place in counted:
            where = [*_place(base, chain), ("NFTA_RULE_HANDLE", rules[place].handle)]
            row = self._netlink.get(GETRULE, encoded(GETRULE, fields, where))
            found[place] = rule(row, objects)
        return found

    def _objects_of(self, base: BaseChain) -> dict[tuple[int, str], StatefulObject]:
        key = (base.family, base.table)
        if key not in self._objects:
            rows = self._dump(GETOBJ, _family_number(base), [("NFTA_OBJ_TABLE", base.table)])
            mine = [row for row in rows if table_of_object(row) == base.table]
            self._objects[key] = dict(stateful_object(row) for row in mine)
        return self._objects[key]

    def elements_of(self, base: BaseChain, name: str) -> list[SetElement]:
        """Return the elements of a set or map of the chain's table; of an anonymous one they never change."""
        key = (base.family, base.table, name)
        self.uses_sets |= not name.startswith(_ANONYMOUS)
        if key not in self._elements:
            where = [("NFTA_SET_ELEM_LIST_TABLE", base.table), ("NFTA_SET_ELEM_LIST_SET", name)]
            rows = self._dump(GETSETELEM, _family_number(base), where)
            self._elements[key] = [one for row in rows for one in set_elements(row)]
        return self._elements[key]

    def _dormant_tables(self, family: int) -> set[tuple[str, str]]:
        """Return the tables that are switched off (`flags dormant`): their chains see no packets."""
        found = (dormant_table(row) for row in self._dump(GETTABLE, family))
        return {(FAMILIES[family], name) for name in found if name is not None}

    def all_rules(self, family: str, tables: Collection[str]) -> dict[str, dict[str, list[Message]]]:
        """Return table -> chain -> messages of rules, of those of some tables in which rules may limit."""
        number = next(number for number, name in FAMILIES.items() if name == family)
        found: dict[str, dict[str, list[Message]]] = {}
        for row in self._dump(GETRULE, number):
            table, chain = chain_of_rule(row)
            if table in tables:
                found.setdefault(table, {}).setdefault(chain, []).append(row)
        return {
            table: chains
            for table, chains in found.items()
            if any(_may_limit(row) for rows in chains.values() for row in rows)
        }

    def take_rules(self, base: BaseChain, rows: Iterable[Message]) -> list[Rule]:
        """Decode the rules of a chain that were read already."""
        objects = self._objects_of(base)
        return [rule(row, objects) for row in rows]

    def fresh(self, base: BaseChain, chain: str, handle: int) -> Rule:
        """Return a rule with its current counters."""
        where = [*_place(base, chain), ("NFTA_RULE_HANDLE", handle)]
        row = self._netlink.get(GETRULE, encoded(GETRULE, {"nfgen_family": _family_number(base)}, where))
        return rule(row, self._objects_of(base))

    def limits_of(self, base: BaseChain) -> dict[str, RateLimit]:
        """Return name -> limit of the named limits of the chain's table."""
        return {name: one.limit for (_, name), one in self._objects_of(base).items() if one.limit is not None}

    def _dump(self, kind: int, family: int, where: Iterable[tuple[str, object]] = ()) -> list[Message]:
        rows = self._netlink.dump(kind, encoded(kind, {"nfgen_family": family}, where))
        return [row for row in rows if row.body[:1] == bytes((family,))]


def _may_limit(row: Message) -> bool:
    return SET_MARKER in row.body or any(marker in row.body for marker in MARKERS)


def _family_number(chain: BaseChain) -> int:
    return next(number for number, name in FAMILIES.items() if name == chain.family)


def _place(base: BaseChain, chain: str) -> list[tuple[str, object]]:
    """Return the attributes of a request for a chain's rules."""
    return [("NFTA_RULE_TABLE", base.table), ("NFTA_RULE_CHAIN", chain)]


class _PastReader:
    """Reads the tables past the interfaces in which rules can limit, when they are asked for."""

    def __init__(self, reader: Reader, chains: list[BaseChain]) -> None:
        self._reader, self._chains = reader, chains
        self._tables: list[Table] | None = None
        self._problems: list[str] = []
        self._found: dict[Place, tuple[PastLimit, ...]] = {}

    def of(self, link: Link) -> PastLimits:
        """Return the limits past an interface, with their counters."""
        if not self._chains:
            return PastLimits()
        if self._tables is None:
            self._tables = list(self._read())
        if not self._tables and not self._problems:
            return PastLimits()
        with Netlink() as netlink:
            place = place_of(netlink, link)
        is_new = place not in self._found
        if is_new:
            self._found[place] = limits_past(place, self._tables)
        found = self._found[place] if is_new else tuple(map(self._counted, self._found[place]))
        return PastLimits(found, tuple(self._problems) if not place.is_hidden else ())

    def _counted(self, one: PastLimit) -> PastLimit:
        """Return a limit with its current count of drops."""
        if one.drops_packets is None:
            return one
        counting = one.counting or one.rule
        counter = self._reader.fresh(one.base, one.chain, counting.handle).counter_after
        return one if counter is None else replace(one, drops_packets=counter.packets)

    def _read(self) -> Iterator[Table]:
        """Yield the tables in which rules limit."""
        for family in dict.fromkeys(chain.family for chain in self._chains):
            bases = [chain for chain in self._chains if chain.family == family]
            for table, chains in self._reader.all_rules(family, {chain.table for chain in bases}).items():
                here = [one for one in bases if one.table == table]
                if not self._limits(here[0], chains):
                    continue
                number = sum(map(len, chains.values()))
                if number <= _RULES_MAX:
                    yield self._table(here, chains)
                    continue
                self._problems.append(
                    f"nft table {family} {table}: some of its {number:,} rules limit, but they are too many to be "
                    f"evaluated: `nft list table {family} {table}`"
                )

    def _limits(self, base: BaseChain, chains: Mapping[str, list[Message]]) -> bool:
        """Return True if a rule of the table limits: only those that may are decoded for that."""
        elements_of = functools.partial(self._reader.elements_of, base)
        rows = [row for rows in chains.values() for row in rows if _may_limit(row)]
        return any(can_limit(one, elements_of) for one in self._reader.take_rules(base, rows))

    def _table(self, bases: list[BaseChain], chains: Mapping[str, list[Message]]) -> Table:
        base, reader = bases[0], self._reader
        rules = {chain: reader.take_rules(base, rows) for chain, rows in chains.items()}
        names = {name for each in rules.values() for one in each for name in one.matches.set_names}
        elements = {name: reader.elements_of(base, name) for name in names}
        return Table(tuple(bases), rules, elements, reader.limits_of(base))
