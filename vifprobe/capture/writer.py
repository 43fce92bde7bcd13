# SPDX-License-Identifier: Apache-2.0
"""Writes a capture folder while the capture runs, so that however it ends, what was seen so far can be read."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from vifprobe.capture import csvio
from vifprobe.capture.bounds import CSV_BYTES_MAX, ROWS_MAX, TIMELINE_ROWS_MAX
from vifprobe.capture.csvio import Row, Table
from vifprobe.capture.findings import findings_json
from vifprobe.capture.flood import flood_rows, top_rows
from vifprobe.capture.folder import Folder, Stream
from vifprobe.capture.manifest import FILES, FINDINGS, MANIFEST, SAMPLES, Manifest, SampleCounts, to_json
from vifprobe.capture.rows import EventRow, HostRow
from vifprobe.capture.samples import SampleEncoder, Samples
from vifprobe.capture.tables import Bins, drop_rows, histogram_rows, lost_rows, timeline_rows
from vifprobe.capture.totals import Totals, with_totals
from vifprobe.errors import CaptureError

__all__ = ["CaptureWriter", "Totals"]

# Space set aside for manifest and totals: a tap's histogram is a few hundred rows of about 100 bytes.
_RESERVE_BYTES = 256 * 1024
_RESERVE_BYTES_PER_TAP = 64 * 1024


class CaptureWriter:
    """One capture folder, from its first file to its end. Use it in a `with` block, from one thread.

    manifest.json is there first and says ``complete: false`` until :meth:`finish` is through. Leaving the block
    before that, by an exception or otherwise, leaves it so, with the reason in `error`. A kill leaves it so too.

    After a failed write (a full disk) every ``add_`` method raises again, but :meth:`finish` can still be tried: space
    for the totals was set aside at the start.

    directory: is made, mode 0700; its parent must be there. manifest: see manifest.begin. force: replace an earlier
    capture there; files that no capture writes stay. Raises CaptureError, as all methods do.
    """

    def __init__(self, directory: str | os.PathLike[str], manifest: Manifest, *, force: bool = False) -> None:
        self.manifest = manifest
        self._error: CaptureError | None = None
        self._open = True
        self._streams: dict[str, Stream] = {}
        self._encoder: SampleEncoder | None = None
        self._unreadable: dict[str, str] = {}
        self._folder = Folder(Path(directory), force, _RESERVE_BYTES + _RESERVE_BYTES_PER_TAP * len(manifest.taps))
        try:
            self._folder.replace(MANIFEST, to_json(manifest))
            self._stream(csvio.TIMELINE)
            self._stream(csvio.EVENTS)
        except BaseException:
            self._folder.abandon()
            raise

    def __enter__(self) -> CaptureWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._open:
            return
        if error is None:
            self.fail("the run ended before the totals were written")
        else:
            self.fail(error.message if isinstance(error, CaptureError) else f"{type(error).__name__}: {error}")

    def _stream(self, table: Table[Any]) -> Stream:
        if table.file not in self._streams:
            self._streams[table.file] = Stream(self._folder, table.file, table.header())
        return self._streams[table.file]

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Add to an error what was kept, and have the manifest say it at once."""
        try:
            yield
        except CaptureError as error:
            kept = ", ".join(f"{stream.rows} rows of {stream.name}" for stream in self._streams.values())
            told = CaptureError(error.message, *error.hints, f"Kept: {kept}; {MANIFEST} says complete: false.")
            self._error = self._error or told
            self._write_manifest_if_possible(self._error.message)
            raise told from error

    def _write_manifest_if_possible(self, why: str) -> None:
        # Where even this fails, the manifest that is there already says complete: false.
        with suppress(CaptureError):
            self._folder.replace(MANIFEST, to_json(replace(self.manifest, complete=False, error=why)))

    def _lines(self, table: Table[Row], rows: Iterable[Row]) -> bytes:
        """The rows as lines. One that no reader would take is left out and :meth:`finish` says so; the rest is kept."""
        rows = list(rows)
        try:
            return table.encode(rows)
        except ValueError:
            lines = []
        for row in rows:
            try:
                lines.append(table.encode([row]))
            except ValueError as error:
                self._unreadable.setdefault(table.file, f"{table.file}: rows left out, the first for its {error}")
        return b"".join(lines)

    def _append(self, table: Table[Row], rows: Iterable[Row]) -> None:
        if not self._open:
            raise ValueError(f"{self._folder.path}: nothing can be added after the end")
        if self._error:
            raise self._error
        lines = self._lines(table, rows)
        with self._telling():
            stream = self._stream(table)
            if self._has_room(stream, lines):
                stream.append(lines)

    def _has_room(self, stream: Stream, lines: bytes) -> bool:
        """Return True if a reader accepts these lines, too. If not, they are counted and left out of the file."""
        left_out, rows = self.manifest.left_out, lines.count(b"\n")
        rows_max = TIMELINE_ROWS_MAX if stream.name == csvio.TIMELINE.file else ROWS_MAX
        fits = stream.rows + rows <= rows_max and stream.size_bytes + len(lines) <= CSV_BYTES_MAX
        if fits and stream.name not in left_out:
            return True
        counted = {**left_out, stream.name: left_out.get(stream.name, 0) + rows}
        self.manifest = replace(self.manifest, left_out=counted)
        return False

    def add_bins(self, bins: Bins) -> None:
        """Add time bins (dtype layout.BIN) to timeline.csv; ``bins["tap"]`` is the tap's place in manifest.taps.

        Bins that are over; packets that a bin gains later are given as a bin of their own, and add up.
        """
        taps = dict(enumerate(tap.name for tap in self.manifest.taps))
        rows = timeline_rows(bins, taps, self.manifest.start_monotonic_ns, self.manifest.bin_ns)
        self._append(csvio.TIMELINE, rows)

    def add_events(self, rows: Iterable[EventRow]) -> None:
        """Add to events.csv."""
        self._append(csvio.EVENTS, rows)

    def add_host(self, rows: Iterable[HostRow]) -> None:
        """Add to host.csv, which is made with the first of them."""
        self._append(csvio.HOST, rows)

    def begin_samples(self, limit: int, span_ns: int, reasons: Mapping[int, str]) -> None:
        """Make samples.pcapng, for about `limit` packets in span_ns. reasons: see Totals. Before the first of them."""
        taps = {tap.name: tap.kind for tap in self.manifest.taps}
        start = self.manifest.start, self.manifest.start_monotonic_ns
        self._encoder = SampleEncoder(taps, *start, limit, span_ns, reasons)
        with self._telling():
            self._streams[SAMPLES] = Stream(self._folder, SAMPLES, self._encoder.header())

    def add_samples(self, rows: Samples, now_ns: int | None = None) -> None:
        """Add sampled packets (dtype layout.SAMPLE) to samples.pcapng, where begun: as many as the limit allows.

        now_ns: how far the span of begin_samples() has come; None: by the clock.
        """
        if self._encoder is None:
            return
        if self._error:
            raise self._error
        stream = self._streams[SAMPLES]
        now_ns = time.monotonic_ns() if now_ns is None else now_ns
        with self._telling():
            stream.append_blocks(self._encoder.blocks(rows, stream.rows, now_ns))

    def _samples(self, lost: int) -> SampleCounts | None:
        if self._encoder is None:
            return None
        taken, written = self._encoder.taken, self._streams[SAMPLES].rows
        return SampleCounts(taken, written, taken - written, lost)

    def _replace(self, table: Table[Row], rows: Iterable[Row] | None) -> None:
        if rows is not None:
            self._folder.replace(table.file, table.header() + self._lines(table, rows))

    def _write_totals(self, totals: Totals) -> None:
        """Most telling first: on a full disk the later ones may not fit."""
        by_name = sorted(totals.readings, key=lambda reading: reading.tap)
        by_tap = [(reading.cells, reading.tap) for reading in by_name]
        drops = [row for cells, tap in by_tap for row in drop_rows(cells, tap, totals.reasons, totals.locate)]
        self._replace(csvio.HISTOGRAM, [row for cells, tap in by_tap for row in histogram_rows(cells, tap)])
        self._replace(csvio.DROPS, drops)
        self._replace(csvio.LOST, [row for cells, tap in by_tap for row in lost_rows(cells, tap, totals.reasons)])
        self._replace(csvio.RECONCILE, sorted(totals.reconcile, key=lambda row: row[:3]))
        found = [(reading.tap, finding) for reading in by_name for finding in reading.findings]
        self._folder.replace(FINDINGS, findings_json(found))
        self._replace(csvio.POLICER, totals.policer)
        flood, top = totals.flood, totals.top
        if any(reading.flood for reading in by_name):
            flood = [row for one in by_name for row in flood_rows(one.tap, one.flood)] if flood is None else flood
            top = [row for one in by_name for row in top_rows(one.tap, one.flood)] if top is None else top
        self._replace(csvio.FLOOD, flood)
        self._replace(csvio.TOP, top)
        tried_out = [row for reading in by_name for row in reading.what_ifs]
        self._replace(csvio.WHAT_IF, tried_out or None)

    def checkpoint(self, totals: Totals) -> None:
        """Save the totals so far: what a kill or a crash after this leaves."""
        self.manifest = replace(with_totals(self.manifest, totals), samples=self._samples(totals.lost_samples))
        with self._telling():
            self._write_totals(totals)
            self._folder.replace(MANIFEST, to_json(self.manifest))

    def finish(self, totals: Totals, error: str | None = None) -> Manifest:
        """Write the totals and close the folder; nothing can be added after it.

        error: why the run did not come to its end although its totals are known (a signal, a tap that was deleted);
        the manifest then says ``complete: false``, as it does after an earlier failed write. Returns the manifest.
        """
        self.manifest = replace(with_totals(self.manifest, totals), samples=self._samples(totals.lost_samples))
        with self._telling():
            self._write_totals(totals)
            why = error or (self._error.message if self._error else next(iter(self._unreadable.values()), None))
            sums = self._folder.digests(name for name in FILES if name != MANIFEST)
            self.manifest = replace(self.manifest, sha256=sums, complete=why is None, error=why)
            self._folder.replace(MANIFEST, to_json(self.manifest))
        self._close()
        return self.manifest

    def fail(self, why: str) -> None:
        """End without totals; the manifest names the reason. Never raises: what was written stays as it is."""
        if not self._open:
            return
        if self.manifest.end is None:
            now = datetime.now(timezone.utc).astimezone()
            self.manifest = replace(self.manifest, end=now, end_monotonic_ns=time.monotonic_ns())
        self._write_manifest_if_possible(self._error.message if self._error else why)
        self._close()

    def _close(self) -> None:
        self._open = False
        for stream in self._streams.values():
            stream.close()
        self._folder.close()
