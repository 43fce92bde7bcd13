# SPDX-License-Identifier: Apache-2.0
"""`watch --json`: one object an interval, one line each. Imports no rich, which would delay the first line."""

from __future__ import annotations

import json
import secrets
from datetime import timezone
from itertools import chain
from typing import Any

from vifprobe.model.flood import Flood
from vifprobe.model.host_cost import HostCost
from vifprobe.model.layout import Direction, PacketClass, Verdict
from vifprobe.model.limits import LimitAnswer
from vifprobe.model.ports import direction_at, is_guest_port
from vifprobe.model.reading import Counts, Finding, Limit, Reading
from vifprobe.model.whatif import Share, WhatIfRow, by_limit, total
from vifprobe.render.text.host import host_object

#: Raised when a key changes its meaning; keys are only ever added.
SCHEMA = 1

_Object = dict[str, Any]
_ENCODER = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(", ", ": "))


def reading_object(reading: Reading) -> _Object:
    """One line of ``watch --json`` as a dict. Keys are only ever added. Unknown is None, never 0.

    Every packet class is there, seen or not, so that a script can ask for one and get a number.
    """
    return {
        "schema": SCHEMA,
        "tap": reading.tap,
        "at": _at(reading),
        "start_ns": int(reading.start_ns),
        "duration_ns": int(reading.duration_ns),
        "final": reading.final,
        "outbound": _direction(reading, Direction.OUTBOUND),
        "inbound": _direction(reading, Direction.INBOUND),
        "missed": int(reading.missed),
        "verdicts": reading.verdicts or None,
        "host": host_object(reading.host),
        "findings": [finding_object(finding) for finding in reading.findings],
        "flood": {direction.name.lower(): _flood(flood) for direction, flood in reading.flood.items()} or None,
        "gone": reading.gone,
        "gone_ns": reading.gone_ns,
        "kind": reading.kind,
        "guest_port": is_guest_port(reading.kind),
        "missed_bytes": int(reading.missed_bytes),
        "late_verdicts": int(reading.late_verdicts),
        "recursion_misses": int(reading.recursion_misses),
    }


def reading_line(reading: Reading) -> str:
    """One line of ``watch --json``, without its line end: `reading_object` as `dumps` writes it."""
    base = reading.repeats
    if base is None:
        return dumps(reading_object(reading))
    known = _TEXTS.get(reading.tap)
    if known is None or known[0] is not base:
        if len(_TEXTS) >= _TEXTS_MAX:
            _TEXTS.clear()
        known = _TEXTS[reading.tap] = base, _pieces(base)
    values = [
        dumps(_at(reading)),
        str(int(reading.start_ns)),
        str(int(reading.duration_ns)),
        _host_text(reading.host),
        *(dumps(flood.measures["seconds"].value) for flood in reading.flood.values()),
    ]
    pieces = known[1]
    return "".join(chain(*zip(pieces, values, strict=False), pieces[len(values) :]))


#: Of the reading that others repeat, by tap: the text between what is different in each of them.
_TEXTS: dict[str, tuple[Reading, list[str]]] = {}
_TEXTS_MAX = 4096
_HOST_TEXT: list[tuple[HostCost, str]] = []
#: Stands in a text where a value goes. No other text holds it: it is drawn anew in each process.
_GAP = secrets.token_hex(16)


def _pieces(base: Reading) -> list[str]:
    whole = reading_object(base)
    for name in ("at", "start_ns", "duration_ns", "host"):
        whole[name] = _GAP
    for flood in (whole["flood"] or {}).values():
        flood["measures"]["seconds"]["value"] = _GAP
    return dumps(whole).split(f'"{_GAP}"')


def _host_text(cost: HostCost | None) -> str:
    """Taps without packets whose process is the same, or not known, share one."""
    if not _HOST_TEXT or _HOST_TEXT[0][0] is not cost:
        if cost is None:
            return "null"
        _HOST_TEXT[:] = [(cost, dumps(host_object(cost)))]
    return _HOST_TEXT[0][1]


def _at(reading: Reading) -> str:
    return reading.at.astimezone(timezone.utc).isoformat(timespec="microseconds")


def _flood(flood: Flood) -> _Object:
    """Each measure with its unit and by how much it can be off: 0 is exact."""
    return {
        "measures": {name: one._asdict() for name, one in flood.measures.items()},
        "top": [one._asdict() for one in flood.top],
    }


def dumps(value: Any) -> str:
    """One line of ASCII without its line end: a name's control characters and odd bytes are escaped by JSON."""
    return _ENCODER.encode(value)


def _direction(reading: Reading, direction: Direction) -> _Object:
    watched = direction in reading.directions
    verdicts = [Verdict.PASSED, Verdict.POLICED, Verdict.DROPPED]
    if direction is direction_at(reading.kind, "egress") or direction is Direction.INBOUND:
        verdicts.append(Verdict.QUEUED)
    found: _Object = {"offered": _counts(reading.offered(direction) if watched else None)}
    for verdict in verdicts:
        found[verdict.name.lower()] = _counts(reading.counts(direction, verdict) if watched else None)
    found["bypass"] = _counts(reading.bypass(direction) if watched else None)
    found["overpoliced"] = _counts(reading.overpoliced(direction) if watched else None)
    seen = reading.classes(direction)
    found["classes"] = {
        code.name.lower(): _class(reading, direction, code) if code in seen else _class_unseen(watched)
        for code in PacketClass
    }
    found["limit"] = {**_limit(reading.limits.get(direction, Limit())), **_state(reading, direction)}
    found["what_if"] = [_what_if(limit, rows) for limit, rows in by_limit(reading.what_ifs, direction).items()]
    found["unsized"] = _counts(reading.unsized(direction) if watched else None)
    return found


def _what_if(limit: str, rows: list[WhatIfRow]) -> _Object:
    """Packets that a --what-if limit would have passed and stopped; by class, those that came."""
    classes = {row.packet_class.name.lower(): _passed_and_stopped(total([row])) for row in rows}
    return {"limit": limit, **_passed_and_stopped(total(rows)), "classes": classes}


def _passed_and_stopped(share: Share) -> _Object:
    return {
        "passed": {"packets": share.passed_packets, "frame_bytes": share.passed_frame_bytes},
        "stopped": {"packets": share.stopped_packets, "frame_bytes": share.stopped_frame_bytes},
    }


def _class(reading: Reading, direction: Direction, code: PacketClass) -> _Object:
    found: _Object = {"offered": _counts(reading.offered(direction, code))}
    for verdict in (Verdict.PASSED, Verdict.POLICED, Verdict.DROPPED):
        found[verdict.name.lower()] = _counts(reading.counts(direction, verdict, code))
    return found


def _class_unseen(watched: bool) -> _Object:
    """None of a class was offered, so none of it had any verdict; unless nobody looked."""
    nothing = Counts() if watched else None
    return {name: _counts(nothing) for name in ("offered", "passed", "policed", "dropped")}


def _counts(counts: Counts | None) -> _Object | None:
    return None if counts is None else {name: int(value) for name, value in counts._asdict().items()}


def _limit(limit: Limit) -> _Object:
    return {
        "declared_bps": _whole(limit.declared_bps),
        "installed_bps": _whole(limit.installed_bps),
        "installed_pps": _whole(limit.installed_pps),
        "burst_bytes": _whole(limit.burst_bytes),
    }


def _state(reading: Reading, direction: Direction) -> _Object:
    if direction not in reading.directions:
        return {"state": None, "traffic": None, "doubt": None}
    return answer_object(reading.limit_state(direction))


def answer_object(answer: LimitAnswer) -> _Object:
    """Return the state of a limit in the words of vifprobe.model.limits."""
    return {
        "state": answer.state.value,
        "traffic": answer.traffic.value,
        "doubt": None if answer.doubt is None else answer.doubt.value,
    }


def _whole(value: int | None) -> int | None:
    return None if value is None else int(value)


def finding_object(finding: Finding) -> _Object:
    """A finding as a line of JSON names it; its evidence is in `policer --json` and findings.json."""
    return {"id": finding.id, "pattern": finding.pattern, "severity": finding.severity, "title": finding.title}
