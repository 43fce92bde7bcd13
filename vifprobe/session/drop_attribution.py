# SPDX-License-Identifier: Apache-2.0
"""Programs, filters and policers that can drop packets of a tap before they reach the bridge.

The kernel reports that tc ingress or netfilter dropped a packet, but not which program there. Where only a policer can
drop, the drop is the policer's. Else further programs attribute it (bpf/progs/police_exit.c, bpf/progs/kfree_skb.c), or
a note says that it is unknown.
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

#: Maximum number of drop sources that are named; the programs of a tcx hook can change all day.
_NAMED_MAX = 16
#: Actions that drop only if their `control` says so. All others also drop packets that they can't process.
_PLAIN_ACTIONS = ("gact", "skbedit", "simple", "connmark")


@dataclass(frozen=True)
class DropSources:
    """Programs that can drop a tap's packets at ingress.

    - policers: filters with police actions at tc ingress.
    - others: other programs and filters there that can drop, as text.
    - nft: an nft chain is hooked on the tap's ingress.
    - nft_shared: other netfilter chains can drop the tap's packets, too.
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
    """Return the drop sources of one tap. tcx: the programs at its ingress."""
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
    """Drop sources of one tap since the start of the run, and the notes about uncertain attribution.

    guessed: True if drops at tc ingress counted as policed at a time when others could have dropped there.
    """

    def __init__(self, found: Installed, now: DropSources) -> None:
        self._others = dict.fromkeys(now.others)
        self._policed_before = _police_drops(found)
        self.guessed = False

    def follow(self, now: DropSources, is_guessing: bool) -> None:
        """Take the current drop sources. is_guessing: all drops at tc ingress count as policed."""
        # The kernel does not notify of a new tcx program: for up to a second its drops counted as the policer's.
        is_late = bool(now.policers) and any(one not in self._others for one in now.others)
        room = max(0, _NAMED_MAX - len(self._others))
        new = [one for one in now.others if one not in self._others]
        self._others |= dict.fromkeys((*new[:room], *(["others"] if len(new) > room else [])))
        self.guessed |= is_guessing or is_late

    def notes(self, cells: Cells, tc_ingress: int | None, found: Installed) -> list[str]:
        """Return notes for readers of the counts.

        - cells: counts at ingress since the start.
        - tc_ingress: number of the drop reason TC_INGRESS; None where the kernel has no drop reasons.
        - found: the limits as they were read last.
        """
        others = ", ".join(self._others) or "a program or filter that has been removed"
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
