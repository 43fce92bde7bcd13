# SPDX-License-Identifier: Apache-2.0
"""Programs, filters and policers that can drop packets of a tap before they reach the bridge.

The kernel reports that tc ingress or netfilter dropped a packet, but not which program there. Where only a policer can
drop, the drop is the policer's. Else further programs attribute it (bpf/progs/police_exit.c, bpf/progs/kfree_skb.c), or
a note says that it is unknown.

The kernel side has to be told about each new limit and program. Until then it attributes their drops as before; a note
says how many packets that can be.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vifprobe.host.limits import Installed
from vifprobe.host.tc.records import TcAction, TcFilter
from vifprobe.kernel.attach import is_own_filter
from vifprobe.kernel.tables.counters import Snapshot
from vifprobe.kernel.tcx import TcxProgram, program_name
from vifprobe.model.layout import Verdict
from vifprobe.model.ports import Hook, direction_at
from vifprobe.model.reading import Cells, LostAt, count
from vifprobe.model.reasons import reason_name

#: Names of devices at which packets were lost, by ifindex: a device can have gone when it is shown.
_device_names: dict[int, str] = {}
#: Maximum number of drop sources that are named; the programs of a tcx hook can change all day.
_NAMED_MAX = 16
#: Actions that drop only if their `control` says so. All others also drop packets that they can't process.
_PLAIN_ACTIONS = ("gact", "skbedit", "simple", "connmark")


@dataclass(frozen=True)
class DropSources:
    """Programs that can drop a tap's packets.

    - policers: filters with police actions at tc ingress.
    - others: other programs and filters there that can drop, as text.
    - egress_policers: filters with police actions at tc egress.
    - nft: an nft chain is hooked on the tap's ingress.
    - nft_shared: other netfilter chains can drop the tap's packets, too.
    """

    policers: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    egress_policers: tuple[str, ...] = ()
    nft: bool = False
    nft_shared: bool = False

    @property
    def is_ambiguous(self) -> bool:
        """Return True if the reason TC_INGRESS alone does not decide between the policer and another dropper."""
        return bool(self.policers and self.others)


def drop_sources_of(found: Installed, tcx: Iterable[TcxProgram]) -> DropSources:
    """Return the drop sources of one tap. tcx: the programs at its ingress."""
    policers: dict[str, list[str]] = {"ingress": [], "egress": []}
    others = [f"the tcx program {one.name or '?'} (id {one.id})" for one in tcx if not one.own]
    for one in found.tc.filters:
        name = one.bpf.name.partition(":[")[0] if one.bpf else ""
        if one.hook not in policers or is_own_filter(one.pref, one.handle, one.bpf.name if one.bpf else ""):
            continue
        policers[one.hook] += [one.where for action in one.actions if action.kind == "police"]
        if one.hook == "egress":
            continue
        if (one.bpf is not None and one.bpf.direct_action) or any(map(_can_drop, one.actions)):
            named = name or (program_name(one.bpf.id) if one.bpf and one.bpf.id else "")
            others.append(f"the filter {one.where}{f' ({named})' if named else ''}{_dropping(one)}")
    nft = any(chain.hook == "ingress" for chain in found.nft.chains)
    ingress, egress = (tuple(policers[hook]) for hook in ("ingress", "egress"))
    return DropSources(ingress, tuple(others), egress, nft, nft and found.nft.others_can_drop)


@dataclass(frozen=True)
class _New:
    """A drop source that the kernel side did not know when its first packets were dropped.

    - by: the source, for people.
    - hook, verdict, reason: the drops that can be its own; reason "": any.
    """

    by: str
    hook: Hook
    verdict: Verdict
    reason: str

    def packets(self, cells: Cells, kind: str, reasons: Mapping[int, str]) -> int:
        """Return the number of such drops in cells of a device of this kind."""
        rows = cells[(cells["direction"] == direction_at(kind, self.hook)) & (cells["verdict"] == self.verdict)]
        if reasons:
            rows = rows[[reasons.get(reason) == self.reason for reason in rows["reason"].tolist()]]
        return count(rows).packets


def _new_sources(before: DropSources, now: DropSources) -> list[_New]:
    """Return the sources whose drops had another verdict before the kernel side was told about them."""
    found = []
    if now.policers and not before.policers:
        found.append(_New("the tc policer", "ingress", Verdict.DROPPED, "TC_INGRESS"))
    if now.egress_policers and not before.egress_policers:
        found.append(_New("the tc policer at egress", "egress", Verdict.DROPPED, "TC_EGRESS"))
    if now.nft and not before.nft:
        found.append(_New("the tap's nft chain", "ingress", Verdict.DROPPED, "NETFILTER_DROP"))
    if now.nft_shared and before.nft and not before.nft_shared:
        found.append(_New("another netfilter chain", "ingress", Verdict.POLICED, "NETFILTER_DROP"))
    if now.others and not before.others and not before.policers:
        found.append(_New("another program at tc ingress", "ingress", Verdict.POLICED, "TC_INGRESS"))
    return found


class DropAttribution:
    """Drop sources of one tap since the start of the run, and the notes about uncertain attribution.

    guessed: True if drops at tc ingress counted as policed at a time when others could have dropped there.
    """

    def __init__(self, found: Installed, now: DropSources) -> None:
        self._others = dict.fromkeys(now.others)
        self._policed_before = _police_drops(found)
        self._kind = found.kind
        self._now = now
        self._new: list[_New] = []
        self._late: dict[_New, int] = {}
        self._late_until: dict[_New, int] = {}
        self.guessed = False

    @property
    def has_new(self) -> bool:
        """Return True if `see_late` must be called: a drop source is new."""
        return bool(self._new)

    def follow(self, now: DropSources, is_guessing: bool) -> None:
        """Take the current drop sources. is_guessing: all drops at tc ingress count as policed."""
        # The kernel does not notify of a new tcx program: for up to a second its drops counted as the policer's.
        is_late = bool(now.policers) and any(one not in self._others for one in now.others)
        room = max(0, _NAMED_MAX - len(self._others))
        new = [one for one in now.others if one not in self._others]
        self._others |= dict.fromkeys((*new[:room], *(["others"] if len(new) > room else [])))
        self.guessed |= is_guessing or is_late
        self._new += _new_sources(self._now, now)
        self._now = now

    def see_late(self, before: Cells, now: Cells, reasons: Mapping[int, str]) -> None:
        """Count the drops of new sources so far, once the kernel side has been told about them.

        - before, now: the tap's counts since the start: at the last reading, and now.
        - reasons: names of the kernel's drop reasons.
        """
        for new in self._new:
            until = new.packets(now, self._kind, reasons)
            since = max(new.packets(before, self._kind, reasons), self._late_until.get(new, 0))
            self._late[new] = self._late.get(new, 0) + max(0, until - since)
            self._late_until[new] = until
        self._new.clear()

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
        said = [
            f"up to {packets:,} packets that count as {new.verdict.name.lower()} can have been dropped by {new.by}, "
            "before vifprobe had read that it was there"
            for new, packets in self._late.items()
            if packets
        ]
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


def lost_at(number: int, snapshot: Snapshot) -> tuple[LostAt, ...]:
    """Return the losses of the tap with this number since the start, the most first. In the taps' network namespace."""
    rows = snapshot.device_losses[snapshot.device_losses["tap"] == number].tolist()
    found = [LostAt(_device_name(ifindex), reason, dropped, copies) for _, ifindex, reason, dropped, copies in rows]
    return tuple(sorted(found, key=lambda one: (-one.dropped - one.copies, one)))


def lost_notes(losses: tuple[LostAt, ...], reasons: Mapping[int, str]) -> list[str]:
    """Return notes for readers of the counts. reasons: names of the kernel's drop reasons."""
    said = []
    for one in losses:
        if one.copies:
            said.append(
                f"{one.copies:,} copies of packets, or packets out of a queue, were lost at "
                f"{_lost_place(one, reasons)}; they count as passed"
            )
        if one.dropped:
            said.append(f"{one.dropped:,} packets were dropped at {_lost_place(one, reasons)}")
    return said


def _lost_place(one: LostAt, reasons: Mapping[int, str]) -> str:
    reason = reason_name(one.reason, reasons)
    if not one.device:
        return "further devices"
    if reason == "FULL_RING":
        return f"{one.device}, whose ring is full ({reason})"
    return f"{one.device} ({reason})" if reason else one.device


def _device_name(ifindex: int) -> str:
    if not ifindex:
        return ""
    try:
        _device_names[ifindex] = socket.if_indextoname(ifindex)
    except OSError:  # it has gone
        return _device_names.get(ifindex, f"a device that has gone (ifindex {ifindex})")
    return _device_names[ifindex]
