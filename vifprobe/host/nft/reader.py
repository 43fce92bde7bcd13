# SPDX-License-Identifier: Apache-2.0
"""Limits and drop counters in nft chains that are hooked on an interface (family netdev, and inet's ingress hook).

Asked over nfnetlink: neither nft nor libnftables is needed. Nothing is reset, and a host without nf_tables stays so:
a question to nf_tables would make the kernel load the module, so it is asked only where it is there already.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vifprobe.host.net.netlink import NETLINK_NETFILTER, Message, Netlink, NetlinkError, encoded, reading
from vifprobe.host.nft.hooks import has_legacy_chains, is_loaded
from vifprobe.host.nft.rules import (
    FAMILIES,
    GETCHAIN,
    GETGEN,
    GETOBJ,
    GETRULE,
    GETTABLE,
    BaseChain,
    Counter,
    RateLimit,
    Rule,
    StatefulObject,
    base_chain,
    chain_of_rule,
    dormant_table,
    is_hooked,
    rule,
    stateful_object,
    table_of_object,
)

_NO_NF_TABLES = (errno.EPROTONOSUPPORT, errno.EINVAL, errno.EOPNOTSUPP, errno.EAFNOSUPPORT)


@dataclass(frozen=True)
class NftRule:
    """One rule that packets of an interface come to, with the base chain that it was reached from."""

    base: BaseChain
    chain: str
    rule: Rule

    @property
    def where(self) -> str:
        """Return a short and stable text that identifies the rule on this host."""
        return f"{self.base.hook} {self.base.family} {self.base.table} {self.chain} rule {self.rule.handle}"

    @property
    def shared(self) -> bool:
        """Return True if its counter includes packets of other interfaces or of other rules."""
        counter = self.rule.counter_after
        many = len(self.base.devices) != 1 or self.base.devices[0].endswith("*")
        return many or self.chain != self.base.name or (counter is not None and counter.shared)


@dataclass(frozen=True)
class NftPolicer:
    """A rule with a limit.

    - drops_packets, drops_bytes: dropped for exceeding the limit; None where no counter has them. Bytes are without the
      L2 header at ingress.
    - shared: other interfaces use the limit or its counter, too.
    """

    at: NftRule
    limit: RateLimit
    drops_packets: int | None
    drops_bytes: int | None

    @property
    def where(self) -> str:
        """Return the same as NftRule.where."""
        return self.at.where

    @property
    def hook(self) -> str:
        """Return `ingress` or `egress`."""
        return self.at.base.hook

    @property
    def verdict(self) -> str:
        """Return the rule's verdict on packets that its limit matches."""
        return self.at.rule.verdict

    @property
    def shared(self) -> bool:
        """Return the same as NftRule.shared."""
        return self.at.shared


@dataclass(frozen=True)
class NftState:
    """nft chains and rules of one interface.

    - chains: base chains hooked on it.
    - rules: rules reached from them, in order.
    - others_can_drop: there are later netfilter chains, too (of a bridge, of the IP stack), nft or legacy ones. Only
      read where a chain is hooked on the interface.
    """

    chains: tuple[BaseChain, ...] = ()
    rules: tuple[NftRule, ...] = ()
    others_can_drop: bool = False

    def policers(self) -> tuple[NftPolicer, ...]:
        """Return the rules with a limit."""
        return tuple(
            NftPolicer(at, at.rule.limit, *self._dropped(place))
            for place, at in enumerate(self.rules)
            if at.rule.limit is not None
        )

    @property
    def settings(self) -> tuple[object, ...]:
        """Return everything but the counters: equal as long as the rules are the same."""
        rules = (
            (at.where, at.rule.limit, at.rule.verdict, at.rule.conditions, at.rule.counter_after is None)
            for at in self.rules
        )
        return (self.chains, tuple(rules))

    def holds_any(self, places: frozenset[str]) -> bool:
        """Return True if a rule is at one of these places (`where` without the hook)."""
        return any(at.where.partition(" ")[2] in places for at in self.rules)

    def drops(self, hook: str) -> Counter | None:
        """Return the drops of all rules at `hook`; None where some are not counted, or a named counter is ambiguous.

        shared is true where packets of other interfaces are in it.
        """
        rules = [at for at in self.rules if at.base.hook == hook]
        if any(chain.policy_drops for chain in self.chains if chain.hook == hook):
            return None
        if any(at.rule.verdict == "map" or (at.rule.drops and _counted(at) is None) for at in rules):
            return None
        counted = [counter for at in rules if at.rule.drops and (counter := _counted(at)) is not None]
        shared = any(at.shared for at in rules if at.rule.drops)
        return Counter(sum(one.packets for one in counted), sum(one.bytes for one in counted), shared)

    def _dropped(self, place: int) -> tuple[int | None, int | None]:
        """Return the drops of the limit in self.rules[place]: counted in the rule, or in the next one for the rest."""
        at = self.rules[place]
        if at.rule.limit is not None and at.rule.drops and at.rule.limit.over:
            counter = at.rule.counter_after
        elif at.rule.verdict == "accept":
            counter = self._rest(place)
        else:
            counter = None
        return (None, None) if counter is None else (counter.packets, counter.bytes)

    def _rest(self, place: int) -> Counter | None:
        """Return the counter of a `counter drop` for the same packets right after `LIMIT accept`; None without it."""
        at = self.rules[place]
        if at.rule.limit is None or at.rule.limit.over or place + 1 == len(self.rules):
            return None
        following = self.rules[place + 1]
        same = following.chain == at.chain and following.rule.conditions == at.rule.conditions
        return _counted(following) if same and following.rule.drops and following.rule.limit is None else None


def _counted(at: NftRule) -> Counter | None:
    """Return the rule's counter of dropped packets; None without one. A counter before the limit counts all packets."""
    counter = at.rule.counter_after
    return None if counter is None or counter.shared else counter


class NftReader:
    """Reads nft rules of interfaces repeatedly. While no rule changes, only counters of rules with a limit are read.

    hears_changes: :meth:`forget` is called at each change of rules. Else a change is detected by the generation, which
    nf_tables increments with each transaction, also for one that only adds an element to a set.
    """

    def __init__(self) -> None:
        self.hears_changes = False
        self._is_loaded = False
        self._generation: int | None = None
        self._reader: _Reader | None = None
        self._states: dict[str, NftState] = {}

    def forget(self) -> None:
        """Read all rules again at the next read: they were changed, or may have been."""
        self._generation = None

    def is_changed(self) -> bool:
        """Return True if rules may have changed since the last read, where no notification comes. Raises HostError."""
        if not self._is_loaded:
            self._is_loaded = is_loaded()
        if not self._is_loaded or self._generation is None:
            return self._is_loaded
        if self.hears_changes:
            return False
        with Netlink(NETLINK_NETFILTER) as netlink:
            return _generation(netlink) != self._generation

    def read(self, link_names: Iterable[str]) -> dict[str, NftState]:
        """Return interface name -> nft state. Raises HostError (not root)."""
        wanted = list(dict.fromkeys(link_names))
        self._is_loaded = self._is_loaded or is_loaded()
        if not self._is_loaded:
            return {name: NftState() for name in wanted}
        try:
            with Netlink(NETLINK_NETFILTER) as netlink:
                return self._read(netlink, wanted)
        except NetlinkError as error:
            self._generation = None
            if error.errno in _NO_NF_TABLES:
                self._is_loaded = False
                return {name: NftState() for name in wanted}
            hint = ("Reading nft rules needs root (CAP_NET_ADMIN).",) if error.errno == errno.EPERM else ()
            raise NetlinkError(f"nft rules can't be read: {error.message}", *hint, code=error.errno) from error

    def _read(self, netlink: Netlink, wanted: list[str]) -> dict[str, NftState]:
        now = _generation(netlink)
        is_known = self._generation is not None and (self.hears_changes or now == self._generation)
        if is_known and self._reader is not None:
            self._reader.renew(netlink)
        else:
            self._reader, self._states = _Reader(netlink), {}
            self._reader.read_chains()
        found = {name: self._reader.state_of(name) for name in wanted}
        # Return the same object as long as nothing changed, counters included.
        self._states |= {name: one for name, one in found.items() if self._states.get(name) != one}
        self._generation = now if is_known or _generation(netlink) == now else None
        return {name: self._states[name] for name in wanted}


def _generation(netlink: Netlink) -> int:
    with reading():
        found = netlink.get(GETGEN, encoded(GETGEN, {})).decoded(GETGEN)
        number: int = found.get_attr("NFTA_GEN_ID", 0)
        return number


class _Reader:
    """Reads chains and rules, each chain and table once."""

    def __init__(self, netlink: Netlink) -> None:
        self._netlink = netlink
        self._rules: dict[tuple[str, str, str], list[Rule]] = {}
        self._objects: dict[tuple[str, str], dict[tuple[int, str], StatefulObject]] = {}
        self._chains: list[BaseChain] = []
        self._is_renewed: set[tuple[str, str, str]] = set()

    def read_chains(self) -> None:
        """Read the base chains, in the order in which packets pass them."""
        self._chains = sorted(self.base_chains(), key=lambda chain: (chain.hook, chain.priority))
        self._others: bool | None = None

    def renew(self, netlink: Netlink) -> None:
        """Read counters again from now on; the rules are unchanged."""
        self._netlink = netlink
        self._is_renewed = set(self._rules)
        self._objects = {}

    def state_of(self, link_name: str) -> NftState:
        """Return the nft state of one interface."""
        here = [chain for chain in self._chains if chain.is_on(link_name)]
        if here and self._others is None:
            self._others = self.has_other_chains() or has_legacy_chains()
        return self.state(here, bool(self._others))

    def base_chains(self) -> list[BaseChain]:
        found = []
        for number, family in FAMILIES.items():
            asleep = self._dormant_tables(number)
            chains = (base_chain(row) for row in self._dump(GETCHAIN, number))
            found += [chain for chain in chains if chain and (family, chain.table) not in asleep]
        return found

    def has_other_chains(self) -> bool:
        """Return True if a chain is hooked elsewhere than on a device."""
        for row in self._netlink.dump(GETCHAIN, encoded(GETCHAIN, {})):  # of all families
            if is_hooked(row) and (row.body[0] not in FAMILIES or base_chain(row) is None):
                return True
        return False

    def state(self, chains: list[BaseChain], others_can_drop: bool) -> NftState:
        rules = tuple(at for chain in chains for at in self._reached(chain, chain.name, set()))
        return NftState(tuple(chains), rules, bool(chains) and others_can_drop)

    def _reached(self, base: BaseChain, chain: str, seen: set[str]) -> Iterator[NftRule]:
        """The rules of a chain, those of the chains it jumps to behind the first jump there.

        Each chain once, however many ways lead to it: 16 chains that jump twice to the next one are 65,536 ways.
        """
        seen.add(chain)
        for found in self._rules_of(base, chain):
            yield NftRule(base, chain, found)
            # The kernel takes no loops, and no jumps deeper than 16 (nft_table_validate, NFT_JUMP_STACK_SIZE).
            if found.target and found.target not in seen:
                yield from self._reached(base, found.target, seen)

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

    def _dormant_tables(self, family: int) -> set[tuple[str, str]]:
        """Return the tables that are switched off (`flags dormant`): their chains see no packets."""
        found = (dormant_table(row) for row in self._dump(GETTABLE, family))
        return {(FAMILIES[family], name) for name in found if name is not None}

    def _dump(self, kind: int, family: int, where: Iterable[tuple[str, object]] = ()) -> list[Message]:
        rows = self._netlink.dump(kind, encoded(kind, {"nfgen_family": family}, where))
        return [row for row in rows if row.body[:1] == bytes((family,))]


def _family_number(chain: BaseChain) -> int:
    return next(number for number, name in FAMILIES.items() if name == chain.family)


def _place(base: BaseChain, chain: str) -> list[tuple[str, object]]:
    """Return the attributes of a request for a chain's rules."""
    return [("NFTA_RULE_TABLE", base.table), ("NFTA_RULE_CHAIN", chain)]
