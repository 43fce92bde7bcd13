# SPDX-License-Identifier: Apache-2.0
"""Follow a device's packets through a base chain: which rules they come to, and what becomes of them there.

Only conditions on interfaces are evaluated. Where a rule has others, some of the packets may match: a statement about
all of them is then not made. Everything that limits counts as such a condition.

Source: net/netfilter/nf_tables_core.c (nft_do_chain): a verdict ends the walk, but for `return` and the end of a chain
that was jumped to; `accept` ends it for this base chain alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from vifprobe.host.nft.matches import InterfaceTest, is_same
from vifprobe.host.nft.rules import RateLimit, Rule, SetElement

DROP, PASS = 1, 2
_INTERVAL_END, _CATCHALL = 1, 2  # NFT_SET_ELEM_*


class Share(IntEnum):
    """Share of a device's packets."""

    NONE = 0
    SOME = 1
    ALL = 2


@dataclass(frozen=True)
class Packets:
    """Which packets are followed.

    - interfaces: key of a test (`iifname`) -> value; None: not known. A key that is not there has no value.
    - foreign: keys that name the other end of the packets' way. A rule that names another interface there limits that
      one.
    """

    interfaces: Mapping[str, bytes | None]
    foreign: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Met:
    """A rule in a chain that packets come to.

    - share: of the packets that meet its conditions; NONE: all of them were decided before.
    - enforces: it limits, and what exceeds its limit is dropped, there or behind it.
    - limit: its limit for these packets; None without one that is decoded.
    - is_foreign: it names an interface at the other end.
    - names_it: it names the interface itself.
    """

    share: Share
    enforces: bool
    limit: RateLimit | None
    is_foreign: bool = False
    names_it: bool = False


class _Effect(NamedTuple):
    """What a rule does: on which share of the packets that come to it, and the verdicts that it can give.

    is_sure: all packets of that share get one of the verdicts.
    """

    share: Share
    verdicts: tuple[str, ...]
    is_sure: bool
    limit: RateLimit | None
    is_foreign: bool
    names_it: bool


class Walk:
    """Follows packets through the chains of one table.

    - rules_of: rules of a chain.
    - elements_of: elements of a set or map.
    - limits: name of a limit object -> limit.
    """

    def __init__(
        self,
        packets: Packets,
        rules_of: Callable[[str], Sequence[Rule]],
        elements_of: Callable[[str], Sequence[SetElement]],
        limits: Mapping[str, RateLimit],
    ) -> None:
        self._packets, self._rules_of, self._elements_of, self._limits = packets, rules_of, elements_of, limits
        self._effects: dict[tuple[str, int], _Effect] = {}
        self._fates: dict[tuple[str, int], list[int]] = {}
        self._walked: dict[tuple[str, Share, int], tuple[Share, bool]] = {}
        self.met: dict[tuple[str, int], Met] = {}

    def follow(self, chain: str, policy_drops: bool) -> dict[tuple[str, int], Met]:
        """Return (chain, handle) -> what was met, of all rules in chains that the packets come to."""
        self._walk(chain, Share.ALL, DROP if policy_drops else PASS)
        return self.met

    def _walk(self, chain: str, share: Share, policy: int) -> tuple[Share, bool]:
        """Return the share of packets that comes back from a chain, and True if some were accepted in it.

        - share: of packets that come to the chain.
        - policy: fates of packets that come back.
        """
        key = (chain, share, policy)
        if key in self._walked:
            return self._walked[key]
        came, returned, are_accepted = share, False, False
        fates = self._fates_of(chain, policy)
        for place, rule in enumerate(self._rules_of(chain)):
            effect = self._effect(chain, rule)
            if effect.share is Share.NONE:
                continue
            self._note(chain, rule, min(share, effect.share), effect, fates[place + 1], policy)
            if share is Share.NONE:
                continue
            is_decided = effect.is_sure and effect.share is Share.ALL
            for verdict in effect.verdicts:
                target = verdict.partition(" ")[2]
                if verdict.startswith("jump "):
                    back, accepted = self._walk(target, min(share, effect.share), fates[place + 1])
                    are_accepted |= accepted
                    share = back if is_decided else min(share, Share.SOME) if accepted else share
                    continue
                if verdict.startswith("goto "):
                    back, accepted = self._walk(target, min(share, effect.share), policy)
                    are_accepted |= accepted
                    returned |= back is not Share.NONE
                elif verdict == "return":
                    returned = True
                elif verdict in ("drop", "reject"):
                    share = Share.NONE if is_decided else share
                    continue
                elif verdict in ("", "continue", "break"):
                    continue
                else:  # accept, queue
                    are_accepted = True
                share = Share.NONE if is_decided else min(share, Share.SOME)
        comes_back = share is not Share.NONE or returned
        result = (Share.NONE if not comes_back else min(came, Share.SOME) if are_accepted else came, are_accepted)
        self._walked[key] = result
        return result

    def _fates_of(self, chain: str, policy: int) -> list[int]:
        """Return what can become of packets that come to each rule of a chain; last: to its end."""
        key = (chain, policy)
        if key not in self._fates:
            rules = self._rules_of(chain)
            fates = [policy] * (len(rules) + 1)
            self._fates[key] = fates
            for place in reversed(range(len(rules))):
                effect = self._effect(chain, rules[place])
                fates[place] = fates[place + 1]
                if effect.share is not Share.NONE:
                    fate = self._fate(effect, fates[place + 1], policy)
                    is_decided = effect.is_sure and effect.share is Share.ALL
                    fates[place] = fate if is_decided else fate | fates[place + 1]
        return self._fates[key]

    def _fate(self, effect: _Effect, behind: int, policy: int) -> int:
        """Return what can become of the packets that get a verdict. behind: of those that come to the next rule."""
        found = 0
        for verdict in effect.verdicts:
            word, _, target = verdict.partition(" ")
            if word in ("jump", "goto"):
                found |= self._fates_of(target, behind if word == "jump" else policy)[0]
            else:
                known = {"drop": DROP, "reject": DROP, "accept": PASS, "return": policy}
                known |= dict.fromkeys(("", "continue", "break"), behind)
                found |= known.get(word, DROP | PASS)  # a queue
        return found or behind

    def _note(self, chain: str, rule: Rule, share: Share, effect: _Effect, behind: int, policy: int) -> None:
        enforces, limit = False, effect.limit
        if limit is not None or rule.matches.limiters:
            matched = self._fate(effect, behind, policy)
            over = limit is not None and limit.over
            exceeding, conforming = (matched, behind) if over else (behind, matched)
            if rule.matches.limiters:  # whichever way round they match
                exceeding = conforming = matched | behind
            enforces = bool(exceeding & DROP and conforming & PASS) and matched != behind
        before = self.met.get((chain, rule.handle))
        if before is not None:
            share, enforces = max(share, before.share), enforces or before.enforces
        self.met[chain, rule.handle] = Met(share, enforces, limit, effect.is_foreign, effect.names_it)

    def _effect(self, chain: str, rule: Rule) -> _Effect:
        key = (chain, rule.handle)
        if key not in self._effects:
            self._effects[key] = self._effect_of(rule)
        return self._effects[key]

    def _effect_of(self, rule: Rule) -> _Effect:
        matches = rule.matches
        share, limit, is_sure = (Share.SOME if matches.others else Share.ALL), rule.limit, True
        names_it = False
        for test in matches.interfaces:
            found, element = self._tested(test)
            share = min(share, found)
            limit = limit or (element.limit if element else None)
            names_it |= found is Share.ALL and not test.inverted
        verdicts: tuple[str, ...] = (rule.verdict,)
        if matches.object_map:
            found, elements = self._looked_up(matches.object_key, matches.object_map)
            share = min(share, found)
            limits = [self._limits.get(one.object_name) for one in elements]
            limit = limit or next((one for one in limits if one is not None), None)
        if matches.verdict_map:
            found, elements = self._looked_up(matches.verdict_key, matches.verdict_map)
            share = min(share, found)
            verdicts = tuple(dict.fromkeys(one.verdict for one in elements)) or ("",)
            is_sure = found is Share.ALL
            names_it |= found is Share.ALL
        is_sure &= limit is None and not matches.limiters
        foreign = any(one.key in self._packets.foreign and not one.inverted for one in matches.interfaces)
        return _Effect(share, verdicts, is_sure, limit, foreign, names_it)

    def _tested(self, test: InterfaceTest) -> tuple[Share, SetElement | None]:
        """Return the share of the packets that pass a test, and the element of a set that they match."""
        if test.set_name:
            found, elements = self._looked_up(test, test.set_name)
            element = elements[0] if len(elements) == 1 and found is not Share.NONE else None
        else:
            if test.key not in self._packets.interfaces:
                return Share.NONE, None
            value, element = self._packets.interfaces[test.key], None
            if value is None or not test.is_exact:
                return Share.SOME, None
            found = Share.ALL if is_same(value, test.value, test.mask) else Share.NONE
        if test.inverted:
            found = {Share.ALL: Share.NONE, Share.NONE: Share.ALL}.get(found, found)
        return found, element

    def _looked_up(self, test: InterfaceTest | None, name: str) -> tuple[Share, Sequence[SetElement]]:
        """Return the share of the packets that is in a set, and the elements that these can be."""
        elements = self._elements_of(name)
        if test is None:
            return Share.SOME, elements
        if test.key not in self._packets.interfaces:
            return Share.NONE, ()
        value = self._packets.interfaces[test.key]
        if value is None:
            return Share.SOME, elements
        return _in_set(value, elements)


def _in_set(value: bytes, elements: Sequence[SetElement]) -> tuple[Share, Sequence[SetElement]]:
    """Look a value up. Of longer keys it is the first part: then some of the packets are in the set."""
    if any(one.flags & _INTERVAL_END for one in elements):
        return _in_intervals(value, elements)
    found = [one for one in elements if not one.flags & _CATCHALL and one.key[: len(value)] == value]
    if found:
        whole = all(len(one.key) <= len(value) for one in found)
        return (Share.ALL if whole else Share.SOME), found
    rest = [one for one in elements if one.flags & _CATCHALL]
    return (Share.ALL if rest else Share.NONE), rest


def _in_intervals(value: bytes, elements: Sequence[SetElement]) -> tuple[Share, Sequence[SetElement]]:
    """Look a value up in half-open intervals: an element begins one, one with INTERVAL_END ends it."""
    at: SetElement | None = None
    for one in sorted(elements, key=lambda one: (one.key, not one.flags & _INTERVAL_END)):
        if one.flags & _CATCHALL:
            continue
        if one.key > value:
            break
        at = None if one.flags & _INTERVAL_END else one
    return (Share.ALL, (at,)) if at is not None else (Share.NONE, ())
