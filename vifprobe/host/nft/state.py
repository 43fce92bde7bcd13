# SPDX-License-Identifier: Apache-2.0
"""nft chains and rules of one interface, as they were read."""

from __future__ import annotations

from dataclasses import dataclass, field

from vifprobe.host.nft.past import PastLimits
from vifprobe.host.nft.rules import BaseChain, Counter, RateLimit, Rule
from vifprobe.host.nft.walk import Met, Share


@dataclass(frozen=True)
class NftRule:
    """One rule in a chain that packets of an interface may come to, with the base chain that it was reached from.

    - met: what the interface's packets find there; None: they do not come to it.
    """

    base: BaseChain
    chain: str
    rule: Rule
    met: Met | None = None

    @property
    def where(self) -> str:
        """Return a short and stable text that identifies the rule on this host."""
        return f"{self.base.hook} {self.base.family} {self.base.table} {self.chain} rule {self.rule.handle}"

    @property
    def chain_name(self) -> str:
        """Return family, table and chain, as nft takes them."""
        return f"{self.base.family} {self.base.table} {self.chain}"

    @property
    def shared(self) -> bool:
        """Return True if its counter includes packets of other interfaces or of other rules."""
        counter = self.rule.counter_after
        many = len(self.base.devices) != 1 or self.base.devices[0].endswith("*")
        many &= not self._names_one
        return many or self.chain != self.base.name or (counter is not None and counter.shared)

    @property
    def _names_one(self) -> bool:
        """Return True if the rule names the one interface whose packets come to it."""
        tests = self.rule.matches.interfaces
        return any(not one.set_name and not one.inverted and one.is_whole_name for one in tests)


@dataclass(frozen=True)
class NftPolicer:
    """A rule with a limit.

    - limit: for packets of this interface; None for a quota and what else is not decoded.
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
    def enforces(self) -> bool:
        """Return True if packets come to it, and those that exceed it are dropped."""
        return self.at.met is not None and self.at.met.enforces and self.at.met.share is not Share.NONE

    @property
    def matches_all(self) -> bool:
        """Return True if all packets of the interface come to it; of protocols that the chain sees."""
        return self.at.met is not None and self.at.met.share is Share.ALL

    @property
    def per_element(self) -> bool:
        """Return True if each element of a set has such a limit."""
        return bool(self.at.rule.matches.keyed_by)

    @property
    def shared(self) -> bool:
        """Return the same as NftRule.shared."""
        return self.at.shared


@dataclass(frozen=True)
class NftState:
    """nft chains and rules of one interface.

    - chains: base chains hooked on it.
    - rules: rules reached from them, in order.
    - past: limits in chains past the interface.
    - others_can_drop: there are later netfilter chains, too (of a bridge, of the IP stack), nft or legacy ones. Only
      read where a chain is hooked on the interface.
    """

    chains: tuple[BaseChain, ...] = ()
    rules: tuple[NftRule, ...] = ()
    others_can_drop: bool = False
    past: PastLimits = field(default_factory=PastLimits)

    def policers(self) -> tuple[NftPolicer, ...]:
        """Return the rules with a limit that packets of the interface come to, or would but for rules ahead of it."""
        return tuple(
            NftPolicer(at, at.met.limit, *self._dropped(place))
            for place, at in enumerate(self.rules)
            if at.met is not None and at.met.limit is not None
        )

    @property
    def settings(self) -> tuple[object, ...]:
        """Return everything but the counters: equal as long as the rules are the same."""
        rules = (
            (at.where, at.met, at.rule.verdict, at.rule.conditions, at.rule.counter_after is None) for at in self.rules
        )
        return (self.chains, tuple(rules), self.past.settings)

    @property
    def unread(self) -> tuple[tuple[str, str], ...]:
        """Return (hook, words) of rules on the interface that limit its packets in a way that is not decoded."""
        return tuple(
            (at.base.hook, f"nft limits packets by {what}: `nft -a list chain {at.chain_name}`, rule {at.rule.handle}")
            for at in self.rules
            if (what := _undecoded(at))
        )

    def holds_any(self, places: frozenset[str]) -> bool:
        """Return True if a rule is at one of these places (`where` without the hook)."""
        return any(at.where.partition(" ")[2] in places for at in self.rules)

    def drops(self, hook: str) -> Counter | None:
        """Return the drops of all rules at `hook`; None where some are not counted, or a named counter is ambiguous.

        shared is true where packets of other interfaces are in it.
        """
        rules = [at for at in self.rules if at.base.hook == hook and at.met is not None]
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


def _undecoded(at: NftRule) -> str:
    """Return what limits packets in this rule, if that is no rate for all that it matches; "" for none."""
    met, matches = at.met, at.rule.matches
    if met is None or met.share is Share.NONE or not (met.enforces or matches.writes):
        return ""
    if matches.keyed_by:
        return f"the element of the set {matches.keyed_by} that they match"
    if matches.limiters:
        return matches.limiters[0]
    return "a mark that the rule sets" if met.limit is not None and not met.enforces else ""


def _counted(at: NftRule) -> Counter | None:
    """Return the rule's counter of dropped packets; None without one. A counter before the limit counts all packets."""
    counter = at.rule.counter_after
    return None if counter is None or counter.shared else counter
