# SPDX-License-Identifier: Apache-2.0
"""Programs, filters and policers that can drop packets of a tap before they reach the bridge.

The kernel says that tc ingress or netfilter dropped a packet, not who there. Where only a policer can have, it was the
policer; else the programs have to look closer (bpf/progs/police_exit.c, bpf/progs/kfree_skb.c), or it is said that it
is not known.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vifprobe.host.limits import Installed
from vifprobe.host.tc.records import TcAction, TcFilter
from vifprobe.kernel.attach import is_own_filter
from vifprobe.kernel.tcx import TcxProgram, program_name
from vifprobe.model.layout import Verdict
from vifprobe.model.reading import Cells, count

#: So many of those that could drop are named; the programs of a tcx hook can change all day.
_NAMED_MAX = 16
#: Actions that drop only where they are told to, in their `control`. All others also drop what they can't act on.
_PLAIN_ACTIONS = ("gact", "skbedit", "simple", "connmark")


@dataclass(frozen=True)
class DropSources:
    """policers: police actions at tc ingress. others: what else can drop there, in words. nft: whether a chain of nft's
    hangs on the tap's ingress. nft_shared: whether other netfilter chains can drop the tap's packets, too.
    """

    policers: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    nft: bool = False
    nft_shared: bool = False

    @property
    def is_ambiguous(self) -> bool:
        """Return True if the reason TC_INGRESS alone does not decide between the policer and another dropper."""
        return bool(self.policers and self.others)


def drop_sources_of(found: Installed, tcx: Iterable[TcxProgram]) -> DropSources:
    """Of one tap. tcx: the programs at its ingress."""
    policers: list[str] = []
    others = [f"the tcx program {one.name or '?'} (id {one.id})" for one in tcx if not one.own]
    for one in found.tc.filters:
        name = one.bpf.name.partition(":[")[0] if one.bpf else ""
        if one.hook != "ingress" or is_own_filter(one.pref, one.handle, one.bpf.name if one.bpf else ""):
            continue
        policers += [one.where for action in one.actions if action.kind == "police"]
        if (one.bpf is not None and one.bpf.direct_action) or any(map(_can_drop, one.actions)):
            named = name or (program_name(one.bpf.id) if one.bpf and one.bpf.id else "")
            others.append(f"the filter {one.where}{f' ({named})' if named else ''}{_dropping(one)}")
    nft = any(chain.hook == "ingress" for chain in found.nft.chains)
    return DropSources(tuple(policers), tuple(others), nft, nft and found.nft.others_can_drop)


class DropAttribution:
    """Keeps who could have dropped one tap's packets since the start, and says what of it is known.

    guessed: whether drops at tc ingress have at any time counted as policed although others could have done them.
    """

    def __init__(self, found: Installed, now: DropSources) -> None:
        self._others = dict.fromkeys(now.others)
        self._policed_before = _police_drops(found)
        self.guessed = False

    def follow(self, now: DropSources, is_guessing: bool) -> None:
        """Take the drop sources of now. is_guessing: drops at tc ingress count as policed whoever did them."""
        # The kernel tells nobody of a new tcx program: for up to a second its drops have counted as the policer's.
        is_late = bool(now.policers) and any(one not in self._others for one in now.others)
        room = max(0, _NAMED_MAX - len(self._others))
        new = [one for one in now.others if one not in self._others]
        self._others |= dict.fromkeys((*new[:room], *(["others"] if len(new) > room else [])))
        self.guessed |= is_guessing or is_late

    def notes(self, cells: Cells, tc_ingress: int | None, found: Installed) -> list[str]:
        """For whoever reads the counts. cells: at ingress, since the start. tc_ingress: the reason's number."""
        others = ", ".join(self._others) or "something that is not there any more"
        at_tc = cells[cells["reason"] == tc_ingress] if tc_ingress is not None else cells[:0]
        dropped = count(at_tc[at_tc["verdict"] == Verdict.DROPPED]).packets
        policed = count(at_tc[at_tc["verdict"] == Verdict.POLICED]).packets
        said = []
        if dropped:
            said.append(f"{dropped:,} packets were dropped at tc ingress by {others}, not by a policer")
        own = _police_drops(found)
        if self.guessed and policed and own is not None and self._policed_before is not None:
            rose = (own - self._policed_before) & 0xFFFFFFFF  # 32 bits in the kernel
            if rose < policed:
                said.append(f"{policed - rose:,} of {policed:,} packets that count as policed were dropped by {others}")
            else:
                said.append(f"the policer's own counter rose by {rose:,}: it can have dropped all policed packets")
        return said


def _police_drops(found: Installed) -> int | None:
    """Return the drops of the tap's own policers; None if a counter is shared with another tap."""
    limits = [one for one in found.at("ingress") if one.kind == "police"]
    if any(one.shared or one.drops is None for one in limits):
        return None
    return sum(one.drops or 0 for one in limits)


def _can_drop(action: TcAction) -> bool:
    if action.kind == "police":
        return False
    return "drop" in action.control or action.kind not in _PLAIN_ACTIONS


def _dropping(found: TcFilter) -> str:
    kinds = [action.kind for action in found.actions if _can_drop(action)]
    return f" with {', '.join(dict.fromkeys(kinds))}" if kinds else ""
