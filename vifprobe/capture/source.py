# SPDX-License-Identifier: Apache-2.0
"""The files of a capture folder, each checked before it is used: kind, size, sum, and what its rows hold."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from vifprobe.capture import csvio
from vifprobe.capture import rows as r
from vifprobe.capture.bounds import CSV_BYTES_MAX, JSON_BYTES_MAX, ROWS_MAX, SAMPLES_BYTES_MAX, TIMELINE_ROWS_MAX
from vifprobe.capture.codecs import printable
from vifprobe.capture.csvio import Row, Table
from vifprobe.capture.files import digest, read_regular
from vifprobe.capture.manifest import FILES, MANIFEST, SAMPLES, Manifest, from_json
from vifprobe.capture.tables import (
    BIN_COUNTERS,
    CELL_COUNTERS,
    Bins,
    bins_of,
    by_tap,
    cells_of,
    has_known_bucket,
    merge_bins,
    no_bins,
)
from vifprobe.errors import CaptureError
from vifprobe.model.untrusted_text import quoted

_SUM_MAX = 2**62
Kind = TypeVar("Kind", r.HistogramRow, r.LostRow)


@dataclass
class Source:
    """The files of one folder, checked against the manifest as they are read. Its methods raise CaptureError."""

    folder_fd: int
    manifest: Manifest = field(init=False)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        content = self._content(MANIFEST)
        if content is None:
            raise CaptureError(
                f"{MANIFEST}: no such file: this is not a capture.",
                "Expected a folder that `vifprobe capture` or `vifprobe replay` has written.",
            )
        self.manifest = from_json(content)
        names = [tap.name for tap in self.manifest.taps]
        if len(set(names)) < len(names):
            raise CaptureError(f"{MANIFEST}: taps: {quoted(names)}.", "Expected each name once.")
        if not self.manifest.complete:
            self.warnings.append(f"incomplete: {printable(self.manifest.error or 'the manifest does not say why')}")
        for name, rows in self.manifest.left_out.items():
            self.warnings.append(f"{name}: {rows} rows left out: more than a reader takes; totals have them.")
        strangers = [name for name in self.manifest.sha256 if name not in FILES]
        if strangers:
            self.warnings.append(f"{MANIFEST}: unknown files left out: {quoted(', '.join(strangers))}.")

    @property
    def _sealed(self) -> bool:
        """Return True if the manifest lists every file: its writer came to its end."""
        return self.manifest.complete or bool(self.manifest.sha256)

    def _content(self, name: str) -> bytes | None:
        try:
            return read_regular(self.folder_fd, name, JSON_BYTES_MAX if name.endswith(".json") else CSV_BYTES_MAX)
        except OSError as error:
            raise CaptureError(f"{name}: {(error.strerror or str(error)).lower()}.", "Expected a plain file.") from None

    def _check(self, name: str, found: str | None) -> None:
        expected = self.manifest.sha256.get(name)
        if expected is None or found == expected:
            return
        if found is None:
            raise CaptureError(f"{name}: missing, but {MANIFEST} lists it.", "Expected the folder as it was written.")
        raise CaptureError(
            f"{name}: not what the capture wrote.",
            f"Its sha256 is {found}, expected {quoted(expected)}: it was changed, or damaged on its way.",
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
                self._check(SAMPLES, digest(self.folder_fd, SAMPLES, bytes_max=SAMPLES_BYTES_MAX))
            except FileNotFoundError:
                self._check(SAMPLES, None)
            except OSError as error:
                raise CaptureError(f"{SAMPLES}: {error.strerror}.", "Expected a plain file.") from None

    def _content_of(self, table: Table[Any], rows_max: int) -> bytes | None:
        """Content of a table's file, None where it is not there."""
        content = self.read(table.file)
        if content is None and self.manifest.complete and table in (csvio.HISTOGRAM, csvio.TIMELINE):
            raise CaptureError(f"{table.file}: not there.", "Every complete capture has one.")
        if content is not None and (lines := content.count(b"\n")) > rows_max + 1:
            raise CaptureError(f"{table.file}: {lines} lines.", f"At most {rows_max} rows are read.")
        return content

    def rows(self, table: Table[Row]) -> tuple[Row, ...] | None:
        """The rows of a table, None where its file is not there."""
        content = self._content_of(table, ROWS_MAX)
        if content is None:
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
        for name in CELL_COUNTERS:
            if sum(getattr(row, name) for row in rows or ()) > _SUM_MAX:
                raise CaptureError(f"{table.file}: all {name} together are more than 2^62.", "Expected counts.")
        return rows

    def lost(self, histogram: tuple[r.HistogramRow, ...]) -> tuple[r.LostRow, ...]:
        """lost.csv, where it goes with the histogram: a run that died between writing the two has an older one."""
        rows = self.kinds(csvio.LOST) or ()
        counted = by_tap(histogram)
        try:
            for tap, lost in by_tap(rows).items():
                cells_of(counted.get(tap, ()), lost)
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
        table, numbers = csvio.TIMELINE, {tap.name: number for number, tap in enumerate(self.manifest.taps)}
        content, parts, first = self._content_of(table, TIMELINE_ROWS_MAX), [no_bins()], 2
        for rows in (
            csvio.decode_some(table, content or b"", self._sealed, self.warnings) if content is not None else ()
        ):
            self._check_taps(table, rows, first)
            first += len(rows)
            parts.append(bins_of(rows, numbers, self.manifest.start_monotonic_ns))
        bins = np.concatenate(parts)
        for name in BIN_COUNTERS:
            # In floating point, which does not start over: a sum of 2^62 or more may have.
            if sum(float(part[name].sum(dtype=np.float64)) for part in parts) > _SUM_MAX:
                raise CaptureError(f"{table.file}: all {name} together are more than 2^62.", "Expected counts.")
        return merge_bins(bins)

    def _check_taps(self, table: Table[Any], rows: Sequence[Any], first_line: int = 2) -> None:
        known = {tap.name for tap in self.manifest.taps}
        for line, row in enumerate(rows, first_line):
            if row.tap not in known:
                expected = f"Expected one of {MANIFEST}: {quoted(known)}."
                raise CaptureError(f"{table.file}: line {line}: tap is {quoted(row.tap)}.", expected)
