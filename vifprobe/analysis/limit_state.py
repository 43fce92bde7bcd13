# SPDX-License-Identifier: Apache-2.0
"""Is the limit that was asked for in force? Decided here, once, for all who show it.

What is set comes first: a limit that is wrong, leaves packets out or is on another interface stays so whatever the
packets do. Where nothing is wrong with what is set, the packets decide. What no figure holds leaves it unknown.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from vifprobe.analysis import tolerance
from vifprobe.analysis.drop_evidence import is_limit_like
from vifprobe.analysis.policer import SetUp, enforced_past, matches, uncovered
from vifprobe.model.layout import Direction, Verdict
from vifprobe.model.limits import DeclaredLimit, Doubt, InstalledLimit, LimitAnswer, LimitState, Traffic
from vifprobe.model.reading import Limit, Reading

#: Readings that are looked at together: a burst may pass once, but not again and again.
WINDOW = 10
#: Findings that prove that nothing enforces what was declared.
_NOTHING_ENFORCED = ("P1", "P12", "P13")
#: Nobody can say that a limit holds beside these.
_DENIED = (Doubt.MISSED, Doubt.DECIDED_EARLIER, Doubt.UNWATCHED)


@dataclass(frozen=True)
class Seen:
    """Counts of one direction in one reading. None: the verdicts are not known.

    passed_bits: as the policer charges. missed_packets: that are in no figure. decided_earlier: programs decide packets
    before they are counted (P17). unwatched: for a part of the time nobody looked. limit_like: others dropped packets
    as a limit does.
    """

    duration_ns: int
    offered_packets: int
    policed_packets: int | None
    passed_packets: int | None
    passed_bits: int | None
    missed_packets: int = 0
    decided_earlier: bool = False
    unwatched: bool = False
    limit_like: bool = False

    @property
    def is_silent(self) -> bool:
        """Return True if no packet came and none was missed."""
        return not self.offered_packets and not self.missed_packets and not self.decided_earlier


def seen(
    reading: Reading, direction: Direction, unwatched: bool = False, reasons: Mapping[int, str] | None = None
) -> Seen | None:
    """Return the counts of a direction in a reading; None where that was not watched.

    reasons: names of the kernel's drop reasons; None: who dropped is not known.
    """
    if direction not in reading.directions:
        return None
    counted = Seen(
        duration_ns=reading.duration_ns,
        offered_packets=0,
        policed_packets=0 if reading.verdicts else None,
        passed_packets=0 if reading.verdicts else None,
        passed_bits=0 if reading.verdicts else None,
        missed_packets=reading.missed_of(direction),
        decided_earlier=any(one.id.startswith(f"P17-{direction.name.lower()}") for one in reading.findings),
        unwatched=unwatched,
    )
    rows = reading.where(direction)
    if not len(rows):
        return counted
    verdicts, packets = rows["verdict"], rows["packets"]
    limit_like = reasons is not None and is_limit_like(rows, reasons)
    counted = replace(counted, offered_packets=int(packets.sum()), limit_like=limit_like)
    if not reading.verdicts or (verdicts == Verdict.UNKNOWN).any():
        return replace(counted, policed_packets=None, passed_packets=None, passed_bits=None)
    passed = verdicts == Verdict.PASSED
    return replace(
        counted,
        policed_packets=int(packets[verdicts == Verdict.POLICED].sum()),
        passed_packets=int(packets[passed].sum()),
        passed_bits=8 * int(rows["charged_bytes"][passed].sum()),
    )


def limit_answer(
    set_up: SetUp,
    direction: Direction,
    looked: Sequence[Seen] = (),
    proved: Collection[str] = (),
    doubt: Doubt | None = None,
) -> LimitAnswer:
    """The answer for one direction.

    looked: its last readings since the limit is what it is, the newest last; WINDOW at most. proved: ids of findings
    (`P5-outbound`). doubt: why packets show nothing, where that is known already.
    """
    traffic, doubt = _traffic(set_up, direction, looked, doubt)
    missed = sum(one.missed_packets for one in looked) if doubt is Doubt.MISSED else 0
    is_policed = bool(looked and looked[-1].policed_packets)
    state = _as_set(set_up, direction, proved, is_policed)
    if state is LimitState.UNKNOWN and traffic is Traffic.HOLDS and set_up.declared_in(direction):
        state = LimitState.THERE  # not to be read, but its doing is seen
    if state is LimitState.ABSENT and traffic is not Traffic.EXCEEDS and any(one.limit_like for one in looked):
        return LimitAnswer(LimitState.UNKNOWN, traffic, Doubt.DROPPED, missed)
    if state in (LimitState.THERE, LimitState.UNDECLARED, LimitState.UNKNOWN):
        if traffic is Traffic.EXCEEDS:
            state = LimitState.NOT_HELD
        elif doubt in _DENIED:
            state = LimitState.UNKNOWN
        elif state is LimitState.UNKNOWN and doubt is not Doubt.VERDICTS:
            doubt = Doubt.NOT_READ
    return LimitAnswer(state, traffic, doubt, missed)


def answers_of(
    reading: Reading, declared_known: bool = False, installed_known: bool = False
) -> dict[Direction, LimitAnswer]:
    """The answers for a reading of which only the limits are known, not who declares or enforces what.

    declared_known, installed_known: whether a limit of None means that there is none.
    """
    return {one: answer_of([reading], one, declared_known, installed_known) for one in reading.directions}


def answer_of(
    readings: Sequence[Reading], direction: Direction, declared_known: bool = False, installed_known: bool = False
) -> LimitAnswer:
    """The same of one direction, by the newest of `readings` and those just before it; totals stand for themselves."""
    newest = readings[-1]
    alike = [one for one in readings[-WINDOW:] if one.final == newest.final]
    looked = [found for one in alike if (found := seen(one, direction)) is not None]
    set_up = _set_up_of(newest, direction, declared_known, installed_known)
    return limit_answer(set_up, direction, looked, {one.id for one in newest.findings})


def _set_up_of(reading: Reading, direction: Direction, declared_known: bool, installed_known: bool) -> SetUp:
    limit, tap = reading.limits.get(direction, Limit()), reading.tap
    declared = DeclaredLimit(direction, "user", "option", tap, limit.declared_bps)
    installed = InstalledLimit(direction, "tc", "police", "", tap, limit.installed_bps, rate_pps=limit.installed_pps)
    is_installed = limit.installed_bps is not None or limit.installed_pps is not None
    if is_installed:
        installed = replace(installed, burst_bytes=limit.burst_bytes)
    else:
        declared = replace(declared, burst_bytes=limit.burst_bytes)
    return SetUp(
        tap,
        (declared,) if limit.declared_bps is not None else (),
        (installed,) if is_installed else (),
        declared_unknown=() if declared_known else ("not read",),
        enforced_unknown=() if installed_known else ("not read",),
        kind=reading.kind,
    )


def _as_set(set_up: SetUp, direction: Direction, proved: Collection[str], is_policed: bool) -> LimitState:
    """By what is set, and what findings prove. is_policed: packets were, by whatever it is."""
    name = direction.name.lower()
    asked, held = set_up.declared_in(direction), set_up.enforced_in(direction)
    is_unread = bool(set_up.unknown_in(direction))
    if not held and enforced_past(set_up, direction):
        return LimitState.ELSEWHERE
    if asked and not held:
        is_proved = any(one.startswith(f"{pattern}-{name}") for one in proved for pattern in _NOTHING_ENFORCED)
        if is_policed and not is_proved:
            return LimitState.THERE  # something does it, though nothing was recognised
        return LimitState.UNKNOWN if is_unread else LimitState.ABSENT
    if not held:
        if is_policed:
            return LimitState.POLICED
        return LimitState.UNKNOWN if is_unread or set_up.declared_unknown else LimitState.NONE
    if f"P5-{name}" in proved:
        return LimitState.BYPASSED
    main = set_up.main_declared(direction)
    if asked and not any(matches(one, other) for one in ([main] if main else asked) for other in held):
        return LimitState.DIFFERS
    if uncovered(set_up, direction):
        return LimitState.HOLES
    return LimitState.THERE if asked else LimitState.UNDECLARED


def _traffic(
    set_up: SetUp, direction: Direction, looked: Sequence[Seen], doubt: Doubt | None
) -> tuple[Traffic, Doubt | None]:
    if doubt is not None or not looked:
        return Traffic.UNKNOWN, doubt or Doubt.NOT_SEEN
    newest = looked[-1]
    if newest.policed_packets is None:
        return Traffic.UNKNOWN, _denied(looked) or Doubt.VERDICTS
    if _exceeds(set_up, direction, looked[-1:]) or _exceeds(set_up, direction, looked):
        return Traffic.EXCEEDS, None
    if (denied := _denied(looked)) is not None:
        return Traffic.UNKNOWN, denied
    if not newest.offered_packets:
        return Traffic.IDLE, None
    if not set_up.declared_in(direction) and not set_up.enforced_in(direction):
        return Traffic.UNKNOWN, None  # there is nothing to hold them against
    return (Traffic.HOLDS if newest.policed_packets else Traffic.UNDER), None


def _denied(looked: Sequence[Seen]) -> Doubt | None:
    """Why figures are not the whole truth."""
    if any(one.missed_packets for one in looked):
        return Doubt.MISSED
    if looked[-1].decided_earlier:
        return Doubt.DECIDED_EARLIER
    return Doubt.UNWATCHED if looked[-1].unwatched else None


def _exceeds(set_up: SetUp, direction: Direction, looked: Sequence[Seen]) -> bool:
    """Return True if more passed than the limit lets through, in bits as the policer charges or in packets.

    A burst that is not known counts as 0. Of the declared burst and the installed one the larger counts: where they are
    not the same, that is said already.
    """
    seconds = sum(one.duration_ns for one in looked) / 1e9
    held, declared = _held_to_all(set_up, direction), set_up.main_declared(direction)
    in_packets = [one for one in held if one.rate_pps is not None]
    if in_packets:
        least = min(in_packets, key=lambda one: one.rate_pps or 0)
        packets = sum(one.passed_packets or 0 for one in looked)
        if packets > tolerance.most(least.rate_pps or 0, seconds, least.burst_packets or 0) + 1:
            return True
    installed = min((one for one in held if one.rate_bps is not None), key=lambda one: one.rate_bps or 0, default=None)
    rate_bps = declared.rate_bps if declared is not None else installed.rate_bps if installed is not None else None
    if rate_bps is None:
        return False
    bursts = (declared.burst_bytes if declared else None, installed.at_once_bytes if installed else None)
    bits = sum(one.passed_bits or 0 for one in looked)
    return bits > tolerance.most(rate_bps, seconds, 8 * max(one or 0 for one in bursts))


def _held_to_all(set_up: SetUp, direction: Direction) -> list[InstalledLimit]:
    """The limits that every packet meets; where there are none, all."""
    held = list(set_up.enforced_in(direction))
    return [one for one in held if one.protocol == "all" and one.matches_all in (True, None)] or held
