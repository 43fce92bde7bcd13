# SPDX-License-Identifier: Apache-2.0
"""manifest.json: what was captured, when, how, and whether it came to its end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, timezone
from enum import Enum
from typing import Any, TypeVar

from vifprobe.capture.bounds import SPAN_NS_MAX, TAPS_MAX
from vifprobe.capture.csvio import TABLES
from vifprobe.capture.jsonio import JsonObject, dump, load, moment
from vifprobe.errors import CaptureError
from vifprobe.model.layout import Direction
from vifprobe.model.limits import Doubt, LimitAnswer, LimitState, Traffic
from vifprobe.model.reading import Limit
from vifprobe.model.untrusted_text import quoted
from vifprobe.version import __version__

#: Raised when the meaning of something in a capture changes. Additions don't raise it.
SCHEMA = 1
MANIFEST = "manifest.json"
FINDINGS = "findings.json"
SAMPLES = "samples.pcapng"
#: Every name that a capture may give to a file.
FILES = (MANIFEST, *(table.file for table in TABLES), FINDINGS, SAMPLES)

#: What a manifest says from the start, until the run can say better: true if the run is killed.
NOT_ENDED = "the capture did not end: it is still running, or it was killed"

Json = Mapping[str, Any]
Word = TypeVar("Word", bound=Enum)
_COUNT_MAX = 2**72 - 1  # of what others count or set, as in the tables


@dataclass(frozen=True)
class SampleCounts:
    """taken: sampled packets that came from the kernel side, all weights of which add up to what was counted. written:
    to samples.pcapng; the others are left_out, beyond the limit, and the weights there make up for them. lost:
    overwritten before they were read.
    """

    taken: int
    written: int
    left_out: int
    lost: int


@dataclass(frozen=True)
class CoverageGap:
    """A span without coverage of a tap, monotonic ns from the capture's start; duration None: until the end."""

    tap: str
    start_ns: int
    duration_ns: int | None
    why: str


@dataclass(frozen=True)
class TapEntry:
    """One captured tap. domain, port: libvirt domain and Neutron port, None where unknown.

    hooks: direction -> tcx, clsact, ingress or tracepoint. The fields from `verdicts` on are those of its last
    Reading (see vifprobe.model.reading); duration_ns and at are None until totals were written. gone_ns: when it was
    deleted, None where it was there at the end. kind: of the device. limit_states: None in earlier captures.
    """

    name: str
    ifindex: int
    domain: str | None = None
    port: str | None = None
    hooks: Mapping[Direction, str] = field(default_factory=dict)
    verdicts: str = ""
    missed: int = 0
    missed_in: Mapping[Direction, int] = field(default_factory=dict)
    start_ns: int = 0
    duration_ns: int | None = None
    at: datetime | None = None
    limits: Mapping[Direction, Limit] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    directions: tuple[Direction, ...] = tuple(Direction)
    gone_ns: int | None = None
    kind: str = "tap"
    missed_bytes: int = 0
    late_verdicts: int = 0
    recursion_misses: int = 0
    limit_states: Mapping[Direction, LimitAnswer] | None = None


@dataclass(frozen=True)
class Manifest:
    """All that manifest.json holds. Times with a zone are wall clock, `_ns` is the monotonic clock (CLOCK_MONOTONIC).

    bin_ns: length of a time bin. samples: None where none were taken. left_out: file name -> rows beyond what a reader
    takes (see capture.bounds). error: why it is not complete. sha256: file name -> hex digest.
    """

    taps: tuple[TapEntry, ...]
    start: datetime
    start_monotonic_ns: int
    bin_ns: int
    host: str = ""
    kernel_version: str = ""
    vifprobe_version: str = __version__
    options: Json = field(default_factory=dict)
    end: datetime | None = None
    end_monotonic_ns: int | None = None
    gaps: tuple[CoverageGap, ...] = ()
    samples: SampleCounts | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    complete: bool = False
    error: str | None = NOT_ENDED
    schema: int = SCHEMA

    @property
    def hook(self) -> str:
        """The hooks used, each once; "" where unknown."""
        return ", ".join(sorted({hook for tap in self.taps for hook in tap.hooks.values()}))

    @property
    def verdicts(self) -> str:
        """Source of the verdicts: "reason", "inferred", both where taps differ, "" where unknown."""
        return ", ".join(sorted({tap.verdicts for tap in self.taps} - {""}))

    @property
    def missed(self) -> int:
        """Packets of all taps that were seen but are in no cell."""
        return sum(tap.missed for tap in self.taps)


def begin(
    taps: Iterable[TapEntry], bin_ns: int, options: Json | None = None, start_monotonic_ns: int | None = None
) -> Manifest:
    """The manifest of a capture that starts on this host now, or at an instant of the monotonic clock just past."""
    now, monotonic_ns = datetime.now(timezone.utc).astimezone(), time.monotonic_ns()
    start_ns = monotonic_ns if start_monotonic_ns is None else start_monotonic_ns
    return Manifest(
        taps=tuple(taps),
        start=now - timedelta(microseconds=(monotonic_ns - start_ns) // 1000),
        start_monotonic_ns=start_ns,
        bin_ns=bin_ns,
        host=os.uname().nodename,
        kernel_version=os.uname().release,
        options=options or {},
    )


def _time(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


def _tap_json(tap: TapEntry) -> dict[str, Any]:
    return {
        "name": tap.name,
        "ifindex": tap.ifindex,
        "domain": tap.domain,
        "port": tap.port,
        "hooks": {direction.name.lower(): hook for direction, hook in sorted(tap.hooks.items())},
        "verdicts": tap.verdicts,
        "missed": tap.missed,
        "missed_in": {direction.name.lower(): packets for direction, packets in sorted(tap.missed_in.items())},
        "start_ns": tap.start_ns,
        "duration_ns": tap.duration_ns,
        "at": _time(tap.at),
        "limits": {direction.name.lower(): asdict(limit) for direction, limit in sorted(tap.limits.items())},
        "notes": tap.notes,
        "directions": tap.directions,
        "gone_ns": tap.gone_ns,
        "kind": tap.kind,
        "missed_bytes": tap.missed_bytes,
        "late_verdicts": tap.late_verdicts,
        "recursion_misses": tap.recursion_misses,
        "limit_states": None
        if tap.limit_states is None
        else {direction.name.lower(): _state_json(one) for direction, one in sorted(tap.limit_states.items())},
    }


def _state_json(answer: LimitAnswer) -> dict[str, Any]:
    return {
        "state": answer.state.value,
        "traffic": answer.traffic.value,
        "doubt": None if answer.doubt is None else answer.doubt.value,
        "missed_packets": answer.missed_packets,
    }


def to_json(manifest: Manifest) -> bytes:
    """The content of manifest.json."""
    content = {
        "schema": manifest.schema,
        "complete": manifest.complete,
        "error": manifest.error,
        "vifprobe_version": manifest.vifprobe_version,
        "kernel_version": manifest.kernel_version,
        "host": manifest.host,
        "start": _time(manifest.start),
        "end": _time(manifest.end),
        "start_monotonic_ns": manifest.start_monotonic_ns,
        "end_monotonic_ns": manifest.end_monotonic_ns,
        "bin_ns": manifest.bin_ns,
        "hook": manifest.hook,
        "verdicts": manifest.verdicts,
        "missed": manifest.missed,
        "taps": [_tap_json(tap) for tap in manifest.taps],
        "gaps": [asdict(gap) for gap in manifest.gaps],
        "samples": None if manifest.samples is None else asdict(manifest.samples),
        "left_out": dict(sorted(manifest.left_out.items())),
        "options": dict(manifest.options),
        "sha256": dict(sorted(manifest.sha256.items())),
    }
    return dump(content)


def _limit(keys: JsonObject) -> Limit:
    return Limit(
        declared_bps=keys.maybe_whole("declared_bps", 0, _COUNT_MAX),
        installed_bps=keys.maybe_whole("installed_bps", 0, _COUNT_MAX),
        installed_pps=keys.maybe_whole("installed_pps", 0, _COUNT_MAX),
        burst_bytes=keys.maybe_whole("burst_bytes", 0, _COUNT_MAX),
    )


def _missed_in(keys: JsonObject) -> dict[Direction, int]:
    missed_in = JsonObject(MANIFEST, keys.path("missed_in"), keys.maybe("missed_in", dict) or {})
    return {direction: missed_in.whole(name, 0, _COUNT_MAX) for direction, name in missed_in.directions().items()}


def _limit_states(keys: JsonObject) -> dict[Direction, LimitAnswer] | None:
    found = keys.maybe("limit_states", dict)
    if found is None:
        return None
    states = JsonObject(MANIFEST, keys.path("limit_states"), found)
    return {direction: _limit_state(states.object(name)) for direction, name in states.directions().items()}


def _limit_state(keys: JsonObject) -> LimitAnswer:
    """Words that a later version added are unknown here."""
    return LimitAnswer(
        _member(LimitState, keys.get("state", str)) or LimitState.UNKNOWN,
        _member(Traffic, keys.get("traffic", str)) or Traffic.UNKNOWN,
        _member(Doubt, keys.maybe("doubt", str)),
        keys.whole("missed_packets", 0, _COUNT_MAX),
    )


def _member(words: type[Word], word: str | None) -> Word | None:
    return next((one for one in words if one.value == word), None)


def _tap(keys: JsonObject) -> TapEntry:
    hooks, limits = keys.object("hooks"), keys.object("limits")
    return TapEntry(
        name=keys.get("name", str),
        ifindex=keys.whole("ifindex", 0, 2**32 - 1),
        domain=keys.maybe("domain", str),
        port=keys.maybe("port", str),
        hooks={direction: hooks.get(name, str) for direction, name in hooks.directions().items()},
        verdicts=keys.get("verdicts", str),
        missed=keys.whole("missed", 0, _COUNT_MAX),
        missed_in=_missed_in(keys),
        start_ns=keys.whole("start_ns", -SPAN_NS_MAX, SPAN_NS_MAX),
        duration_ns=keys.maybe_whole("duration_ns", 0, SPAN_NS_MAX),
        at=keys.maybe_parsed("at", moment),
        limits={direction: _limit(limits.object(name)) for direction, name in limits.directions().items()},
        notes=tuple(str(note) for note in keys.get("notes", list)),
        directions=keys.codes("directions", Direction),
        gone_ns=keys.maybe_whole("gone_ns", -SPAN_NS_MAX, SPAN_NS_MAX),
        kind=keys.maybe("kind", str) or "tap",
        missed_bytes=keys.maybe_whole("missed_bytes", 0, _COUNT_MAX) or 0,
        late_verdicts=keys.maybe_whole("late_verdicts", 0, _COUNT_MAX) or 0,
        recursion_misses=keys.maybe_whole("recursion_misses", 0, _COUNT_MAX) or 0,
        limit_states=_limit_states(keys),
    )


def _gap(keys: JsonObject) -> CoverageGap:
    return CoverageGap(
        keys.get("tap", str),
        keys.whole("start_ns", -SPAN_NS_MAX, SPAN_NS_MAX),
        keys.maybe_whole("duration_ns", 0, SPAN_NS_MAX),
        keys.get("why", str),
    )


def _samples(keys: JsonObject) -> SampleCounts:
    return SampleCounts(**{name: keys.whole(name, 0, _COUNT_MAX) for name in ("taken", "written", "left_out", "lost")})


def _left_out(keys: JsonObject) -> dict[str, int]:
    counts = JsonObject(MANIFEST, "left_out", keys.maybe("left_out", dict) or {})
    return {name: counts.whole(name, 0, _COUNT_MAX) for name in FILES if counts.maybe(name, int)}


def from_json(data: bytes) -> Manifest:
    """The manifest in the content of manifest.json; keys that are not known are left out.

    Raises CaptureError for what is no manifest of a capture, or one of a newer schema.
    """
    keys = JsonObject(MANIFEST, "", load(MANIFEST, data))
    schema = keys.get("schema", int)
    if schema != SCHEMA:
        raise CaptureError(
            f"{MANIFEST}: schema {schema}; vifprobe {__version__} reads schema {SCHEMA}.",
            f"It was written by vifprobe {quoted(keys.maybe('vifprobe_version', str))}: read it with that or a later.",
        )
    taps = keys.objects("taps")
    if len(taps) > TAPS_MAX:
        raise CaptureError(f"{MANIFEST}: {len(taps)} taps.", f"Expected {TAPS_MAX} at most.")
    return Manifest(
        taps=tuple(map(_tap, taps)),
        start=keys.parsed("start", moment),
        start_monotonic_ns=keys.whole("start_monotonic_ns", 0, SPAN_NS_MAX),
        bin_ns=keys.whole("bin_ns", 1, SPAN_NS_MAX),
        host=keys.get("host", str),
        kernel_version=keys.get("kernel_version", str),
        vifprobe_version=keys.get("vifprobe_version", str),
        samples=_samples(keys.object("samples")) if keys.maybe("samples", dict) else None,
        options=keys.get("options", dict),
        end=keys.maybe_parsed("end", moment),
        end_monotonic_ns=keys.maybe_whole("end_monotonic_ns", 0, SPAN_NS_MAX),
        gaps=tuple(_gap(each) for each in keys.objects("gaps")),
        left_out=_left_out(keys),
        sha256={str(name): str(digest) for name, digest in keys.get("sha256", dict).items()},
        complete=keys.get("complete", bool),
        error=keys.maybe("error", str),
        schema=schema,
    )
