# SPDX-License-Identifier: Apache-2.0
"""Reads a capture folder back into the model that the live run had.

A folder may come from someone else: nothing in it is followed (links, names with a path), and each number, name and
time is checked before it is used.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vifprobe.analysis.limit_state import answers_of
from vifprobe.capture import csvio
from vifprobe.capture import rows as r
from vifprobe.capture.codecs import printable
from vifprobe.capture.findings import findings_from_json
from vifprobe.capture.flood import floods_of
from vifprobe.capture.manifest import FINDINGS, Manifest, TapEntry
from vifprobe.capture.source import Source
from vifprobe.capture.tables import Bins, by_tap, cells_of
from vifprobe.errors import CaptureError
from vifprobe.model.reading import Finding, Reading


@dataclass(frozen=True)
class Capture:
    """Content of a capture folder. Rows in the order of the files; () where a file is not there.

    histogram: None where the run ended before any totals were written. bins: dtype layout.BIN on the monotonic clock of
    the capturing host, ``bins["tap"]`` is the place in manifest.taps; rows of one bin added up. findings: each with the
    tap it is about. warnings: what a reader of the numbers must know (incomplete, lines left out).
    """

    directory: Path
    manifest: Manifest
    histogram: tuple[r.HistogramRow, ...] | None
    bins: Bins
    drops: tuple[r.DropRow, ...] = ()
    lost: tuple[r.LostRow, ...] = ()
    policer: tuple[r.PolicerRow, ...] = ()
    reconcile: tuple[r.ReconcileRow, ...] = ()
    flood: tuple[r.FloodRow, ...] = ()
    top: tuple[r.TopRow, ...] = ()
    host: tuple[r.HostRow, ...] = ()
    events: tuple[r.EventRow, ...] = ()
    findings: tuple[tuple[str, Finding], ...] = ()
    what_ifs: tuple[r.WhatIfRow, ...] = ()
    warnings: tuple[str, ...] = ()

    def readings(self) -> tuple[Reading, ...]:
        """The totals of each tap, as the live run had them at its end; () where no totals were written.

        Their cells have the drop reasons' numbers of the capturing kernel (see `reasons`), but no location (0): the
        places are in `drops`, summed over packet classes.
        """
        if self.histogram is None:
            return ()
        tables = (self.histogram, self.lost, self.flood, self.top, self.what_ifs)
        rows = tuple(by_tap(table) for table in tables)
        findings: dict[str, list[Finding]] = {}
        for name, finding in self.findings:
            findings.setdefault(name, []).append(finding)
        return tuple(
            self._reading(tap, tuple(table.get(tap.name, []) for table in rows), findings.get(tap.name, []))
            for tap in self.manifest.taps
            if tap.duration_ns is not None
        )

    @property
    def reasons(self) -> dict[int, str]:
        """Number -> name of each drop reason in the readings' cells, as the capturing kernel has them."""
        return {row.reason_code: row.reason for row in self.lost}

    def reading(self, tap: str | None = None) -> Reading:
        """The totals of one tap; without a name, of the only one. Raises CaptureError where there are none of it."""
        readings = {reading.tap: reading for reading in self.readings()}
        if tap is None and len(readings) == 1:
            return next(iter(readings.values()))
        if tap in readings:
            return readings[tap]
        names = [printable(entry.name) for entry in self.manifest.taps]
        wanted = printable(tap or "")
        if wanted in names or not readings:
            raise CaptureError(f"{self.directory}: no totals{f' of {wanted}' if tap else ''}.", *self.warnings)
        if tap is None:
            raise CaptureError(f"{self.directory}: {len(names)} taps.", f"Name one: {', '.join(names)}.")
        closest = difflib.get_close_matches(wanted, names, 1, 0) or names
        raise CaptureError(
            f"{wanted}: no such tap in {self.directory}.", f"Of {len(names)} taps the closest is {closest[0]}."
        )

    def _reading(self, tap: TapEntry, tables: tuple[list[Any], ...], findings: list[Finding]) -> Reading:
        """The totals of a tap. tables: its rows of histogram, lost, flood, top and what_ifs."""
        histogram, lost, flood, top, what_ifs = tables
        reading = Reading(
            tap=tap.name,
            at=tap.at or self.manifest.end or self.manifest.start,
            start_ns=tap.start_ns,
            duration_ns=tap.duration_ns or 0,
            cells=cells_of(histogram, lost),
            missed=tap.missed,
            missed_in=tap.missed_in,
            missed_bytes=tap.missed_bytes,
            late_verdicts=tap.late_verdicts,
            recursion_misses=tap.recursion_misses,
            verdicts=tap.verdicts,
            limits=tap.limits,
            findings=tuple(findings),
            notes=tap.notes,
            final=True,
            directions=tap.directions,
            gone_ns=tap.gone_ns,
            kind=tap.kind,
            flood=floods_of(tap.name, flood, top),
            what_ifs=tuple(what_ifs),
            limit_states=tap.limit_states or {},
        )
        return replace(reading, limit_states=answers_of(reading)) if tap.limit_states is None else reading


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        hint = (
            "Captures are their owner's alone: read it as that user, or as root."
            if isinstance(error, PermissionError)
            else "Expected a folder that `vifprobe capture` has written."
        )
        raise CaptureError(f"{directory}: {(error.strerror or str(error)).lower()}.", hint) from None
    try:
        yield fd
    except CaptureError as error:
        raise CaptureError(f"{directory}/{error.message}", *error.hints) from None
    finally:
        os.close(fd)


def _load(directory: Path, source: Source) -> Capture:
    histogram = source.kinds(csvio.HISTOGRAM)
    lost = source.lost(histogram or ())
    bins = source.bins()
    if histogram is None:
        packets = int(bins["packets"].sum())
        source.warnings.append(f"no totals: the run ended before they were written; the timeline has {packets} packets")
    source.check_samples()
    findings = source.read(FINDINGS)
    rows = source.rows
    return Capture(
        directory=directory,
        manifest=source.manifest,
        histogram=histogram,
        bins=bins,
        drops=rows(csvio.DROPS) or (),
        lost=lost,
        policer=rows(csvio.POLICER) or (),
        reconcile=rows(csvio.RECONCILE) or (),
        flood=rows(csvio.FLOOD) or (),
        top=rows(csvio.TOP) or (),
        host=rows(csvio.HOST) or (),
        events=rows(csvio.EVENTS) or (),
        findings=() if findings is None else tuple(findings_from_json(findings)),
        what_ifs=rows(csvio.WHAT_IF) or (),
        warnings=tuple(source.warnings),
    )


def load(directory: str | os.PathLike[str]) -> Capture:
    """Read a capture folder, complete or not.

    Raises CaptureError, which names the file, the line and what was expected, for a folder that is no capture, that
    was changed or damaged since, or that a newer version wrote.
    """
    path = Path(directory)
    with _opened(path) as folder_fd:
        return _load(path, Source(folder_fd))
