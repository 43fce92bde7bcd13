# SPDX-License-Identifier: Apache-2.0
"""Reads a capture folder back into the model that the live run had.

A folder may come from someone else: nothing in it is followed (links, names with a path), and each number, name and
time is checked before it is used.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from vifprobe.analysis.reading import Finding, Reading
from vifprobe.capture import csvio
from vifprobe.capture import rows as r
from vifprobe.capture.codecs import printable
from vifprobe.capture.csvio import Row, Table, show
from vifprobe.capture.files import digest, read_regular
from vifprobe.capture.findings import findings_from_json
from vifprobe.capture.flood import floods_of
from vifprobe.capture.manifest import FILES, FINDINGS, MANIFEST, SAMPLES, Manifest, TapEntry, from_json
from vifprobe.capture.tables import Bins, bins_of, cells_of, has_known_bucket
from vifprobe.errors import CaptureError

Kind = TypeVar("Kind", r.HistogramRow, r.LostRow)


@dataclass(frozen=True)
class Capture:
    """What a capture folder holds. Rows in the order of the files; () where a file is not there.

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
        return tuple(self._reading(tap) for tap in self.manifest.taps if tap.duration_ns is not None)

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

    def _reading(self, tap: TapEntry) -> Reading:
        at = tap.at or self.manifest.end or self.manifest.start
        return Reading(
            tap=tap.name,
            at=at,
            start_ns=tap.start_ns,
            duration_ns=tap.duration_ns or 0,
            cells=cells_of(
                (row for row in self.histogram or () if row.tap == tap.name),
                (row for row in self.lost if row.tap == tap.name),
            ),
            missed=tap.missed,
            missed_in=tap.missed_in,
            verdicts=tap.verdicts,
            limits=tap.limits,
            findings=tuple(finding for name, finding in self.findings if name == tap.name),
            notes=tap.notes,
            final=True,
            directions=tap.directions,
            gone_ns=tap.gone_ns,
            flood=floods_of(tap.name, self.flood, self.top),
            what_ifs=tuple(row for row in self.what_ifs if row.tap == tap.name),
        )


@dataclass
class _Source:
    """The files of one folder, checked against the manifest as they are read."""

    folder_fd: int
    manifest: Manifest = field(init=False)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        content = self._content(MANIFEST)
        if content is None:
            raise CaptureError(
                f"{MANIFEST}: not there, so this is no capture.",
                "Expected a folder that `vifprobe capture` or `vifprobe replay` has written.",
            )
        self.manifest = from_json(content)
        names = [tap.name for tap in self.manifest.taps]
        if len(set(names)) < len(names):
            raise CaptureError(f"{MANIFEST}: taps: {show(names)}.", "Expected each name once.")
        if not self.manifest.complete:
            self.warnings.append(f"incomplete: {printable(self.manifest.error or 'the manifest does not say why')}")
        strangers = [name for name in self.manifest.sha256 if name not in FILES]
        if strangers:
            self.warnings.append(f"{MANIFEST}: unknown files left out: {show(', '.join(strangers))}.")

    @property
    def _sealed(self) -> bool:
        """Whether the manifest lists every file: its writer came to its end."""
        return self.manifest.complete or bool(self.manifest.sha256)

    def _content(self, name: str) -> bytes | None:
        try:
            return read_regular(self.folder_fd, name)
        except OSError as error:
            raise CaptureError(f"{name}: {(error.strerror or str(error)).lower()}.", "Expected a plain file.") from None

    def _check(self, name: str, found: str | None) -> None:
        expected = self.manifest.sha256.get(name)
        if expected is None or found == expected:
            return
        if found is None:
            raise CaptureError(f"{name}: not there, but {MANIFEST} lists it.", "Expected the folder as it was written.")
        raise CaptureError(
            f"{name}: not what the capture wrote.",
            f"Its sha256 is {found}, expected {show(expected)}: it was changed, or damaged on its way.",
        )

    def read(self, name: str) -> bytes | None:
        """Content of a file, checked; None where the capture has none of that name."""
        content = self._content(name)
        self._check(name, None if content is None else hashlib.sha256(content).hexdigest())
        if content is not None and self._sealed and name not in self.manifest.sha256:
            self.warnings.append(f"{name}: left out: {MANIFEST} does not list it.")
            return None
        return content

    def check_samples(self) -> None:
        """The one file that is not read here."""
        if SAMPLES in self.manifest.sha256:
            try:
                self._check(SAMPLES, digest(self.folder_fd, SAMPLES))
            except FileNotFoundError:
                self._check(SAMPLES, None)
            except OSError as error:
                raise CaptureError(f"{SAMPLES}: {error.strerror}.", "Expected a plain file.") from None

    def rows(self, table: Table[Row]) -> tuple[Row, ...] | None:
        """The rows of a table, None where its file is not there."""
        content = self.read(table.file)
        if content is None:
            if self.manifest.complete and table.file in (csvio.HISTOGRAM.file, csvio.TIMELINE.file):
                raise CaptureError(f"{table.file}: not there.", "Every complete capture has one.")
            return None
        # What has a sum was written to its end, whatever became of the run.
        decoded = csvio.decode(table, content, finished=self._sealed)
        self.warnings += decoded.warnings
        return decoded.rows

    def kinds(self, table: Table[Kind]) -> tuple[Kind, ...] | None:
        """histogram.csv or lost.csv, its taps and buckets checked."""
        rows = self.rows(table)
        self._check_taps(table, rows or ())
        for line, row in enumerate(rows or (), 2):
            if not has_known_bucket(row):
                edges = f"{row.size_min_bytes} to {row.size_max_bytes}"
                raise CaptureError(
                    f"{table.file}: line {line}: no size bucket goes from {edges} bytes.",
                    "Expected both edges of a bucket of this version.",
                )
        return rows

    def lost(self, histogram: tuple[r.HistogramRow, ...]) -> tuple[r.LostRow, ...]:
        """lost.csv, where it goes with the histogram: a run that died between writing the two has an older one."""
        rows = self.kinds(csvio.LOST) or ()
        try:
            for tap in {row.tap for row in rows}:
                cells_of((row for row in histogram if row.tap == tap), (row for row in rows if row.tap == tap))
        except ValueError as error:
            if self._sealed:
                raise CaptureError(
                    f"{csvio.LOST.file}: {error}.", f"Expected at most {csvio.HISTOGRAM.file}."
                ) from None
            self.warnings.append(f"{csvio.LOST.file}: left out: {error}.")
            return ()
        return rows

    def bins(self) -> Bins:
        """timeline.csv as bins."""
        rows = self.rows(csvio.TIMELINE) or ()
        self._check_taps(csvio.TIMELINE, rows)
        numbers = {tap.name: number for number, tap in enumerate(self.manifest.taps)}
        try:
            return bins_of(rows, numbers, self.manifest.start_monotonic_ns)
        except OverflowError:
            raise CaptureError(f"{csvio.TIMELINE.file}: a start beyond 64 bits.", "Expected nanoseconds.") from None

    def _check_taps(self, table: Table[Any], rows: tuple[Any, ...]) -> None:
        known = {tap.name for tap in self.manifest.taps}
        for line, row in enumerate(rows, 2):
            if row.tap not in known:
                raise CaptureError(
                    f"{table.file}: line {line}: tap is {show(row.tap)}.", f"Expected one of {MANIFEST}: {show(known)}."
                )


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


def _load(directory: Path, source: _Source) -> Capture:
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
        return _load(path, _Source(folder_fd))
