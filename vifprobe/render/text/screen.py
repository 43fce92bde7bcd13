# SPDX-License-Identifier: Apache-2.0
"""The live screen of `watch`: is the limit working, what is offered, what became of it; for a person in a hurry."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from vifprobe.model.layout import Verdict
from vifprobe.model.limits import LimitAnswer, LimitState
from vifprobe.model.reading import Reading
from vifprobe.render.context import TapContext
from vifprobe.render.limit_words import live_badge
from vifprobe.render.text.host import share_line
from vifprobe.render.text.line import STYLES, Column, Line, Span, cells, head, line
from vifprobe.render.text.sections import Section, fit, fixed, more_line
from vifprobe.render.text.tap_tables import ROOMY, bps, verdict_span
from vifprobe.render.text.tap_view import main_direction, tap_sections
from vifprobe.render.text.terminal import is_live_terminal
from vifprobe.render.units import UNKNOWN, Glyphs, bit_rate, clean, glyphs_for, per_second, si

#: Readings of a tap that are kept for its history: more than any screen is wide.
HISTORY = 240
#: Narrower or lower than this, lines are cut rather than laid out anew.
LEAST_WIDTH = 40


@dataclass(frozen=True)
class Screen:
    """Screen of `watch`: a rich renderable that lays itself out for the width, height and encoding it is given.

    readings: of one or several taps, oldest first. chosen: the tap whose details are shown, else the busiest.
    """

    readings: Sequence[Reading]
    contexts: Mapping[str, TapContext] = field(default_factory=dict)
    chosen: str | None = None
    running: bool = True
    height: int | None = None

    def lines(self, width: int, height: int | None, glyphs: Glyphs) -> list[Line]:
        """The screen as lines of at most `width` columns; all of it where `height` is None."""
        taps = _by_tap(self.readings)
        if not taps:
            return [line("Waiting for the first interval to end ...").fitted(width, glyphs)]
        laid_width = max(width, LEAST_WIDTH)
        busiest = sorted(taps, key=lambda tap: (not taps[tap][-1].gone, _busy(taps[tap][-1])), reverse=True)
        shown = self.chosen if self.chosen in taps else busiest[0]
        sections: list[Section] = []
        if len(taps) > 1:
            sections.append(_overview([taps[tap] for tap in busiest], self.contexts, shown, laid_width, glyphs))
            newest = [taps[tap][-1] for tap in busiest if not taps[tap][-1].gone]
            sections.append(fixed(share_line(newest, laid_width, glyphs), keep=3))
        context = self.contexts.get(shown, TapContext())
        sections += tap_sections(taps[shown], context, laid_width, glyphs, self.running)
        return [row.fitted(width, glyphs) for row in fit(sections, height)]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield one Text a line, made from spans, so that nothing in it is read as markup."""
        for row in self.lines(options.max_width, self.height, glyphs_for(options.encoding)):
            text = Text(no_wrap=True, overflow="crop", end="\n")
            for span in row.spans:
                text.append(span.text, STYLES[span.style])
            yield text


def _by_tap(readings: Sequence[Reading]) -> dict[str, list[Reading]]:
    taps: dict[str, list[Reading]] = {}
    for reading in readings:
        taps.setdefault(reading.tap, []).append(reading)
    return taps


def _busy(reading: Reading) -> float:
    return per_second(reading.offered(main_direction(reading)).packets, reading) or 0.0


def _end_ns(reading: Reading) -> int:
    return reading.start_ns + reading.duration_ns


def _overview_columns(width: int) -> list[Column]:
    columns = [
        Column("", 1, right=False),
        Column("tap (packets/s)", 15, right=False),
        *(Column(title, 7) for title in ("offered", "passed", "policed", "dropped")),
        Column("limit", 10 if width < ROOMY else 17, right=False),
    ]
    if width >= ROOMY:
        columns.insert(6, Column("charged", 11))
    if width >= 100:
        columns.append(Column("domain", width - 81, right=False))
    return columns


def _overview(
    taps: Sequence[Sequence[Reading]], contexts: Mapping[str, TapContext], shown: str, width: int, glyphs: Glyphs
) -> Section:
    """One line a tap, the busiest first: rates in packets/s, what passed in bit/s charged, and the limit's state."""
    columns = _overview_columns(width)
    newest_ns = max(_end_ns(readings[-1]) for readings in taps)

    def row(readings: Sequence[Reading]) -> Line:
        """Drawn only where it is seen: judging hundreds of taps an interval would cost."""
        context = contexts.get(readings[-1].tap, TapContext())
        if readings[-1].gone:
            return cells(columns, _gone_row(readings[-1], context, shown, columns, glyphs), glyphs)
        stale = _end_ns(readings[-1]) + readings[-1].duration_ns < newest_ns
        return cells(columns, _overview_row(readings, context, shown, stale, len(columns), glyphs), glyphs)

    chosen = [readings[-1].tap for readings in taps].index(shown)

    def draw(room: int) -> list[Line]:
        """The busiest taps, and in any case the one whose details stand below."""
        if room >= len(taps):
            return [row(readings) for readings in taps]
        seen = [*taps[: room - 1]]
        if seen and chosen >= len(seen):
            seen[-1] = taps[chosen]
        return [*map(row, seen), more_line(len(taps) - len(seen), "taps", glyphs)]

    return Section(len(taps), min(4, len(taps)), draw, keep=1, grow=3, head=(head(columns, glyphs),))


def _overview_row(
    readings: Sequence[Reading], context: TapContext, shown: str, stale: bool, columns: int, glyphs: Glyphs
) -> list[str | Span]:
    reading = readings[-1]
    direction = main_direction(reading)
    mark = ">" if reading.tap == shown else ""
    offered = reading.offered(direction)
    values: list[str | Span] = [
        mark,
        Span(clean(reading.tap, glyphs), "name"),
        si(per_second(offered.packets, reading)),
    ]
    for verdict in (Verdict.PASSED, Verdict.POLICED, Verdict.DROPPED):
        counts = reading.counts(direction, verdict)
        figure = UNKNOWN if counts is None else si(per_second(counts.packets, reading))
        values.append(verdict_span(figure, verdict, counts))
    state = live_badge(reading.limit_state(direction))
    passed = reading.counts(direction, Verdict.PASSED)
    if columns > 7:
        values.append(bit_rate(None if passed is None else bps(passed.charged_bytes, reading)))
    word, style = state.word, "ok" if state.style == "good" else state.style
    if reading.missed:
        word, style = f"MISSED {si(reading.missed)}", "bad"
    values.append(Span("NO NEWS", "warn") if stale else Span(word, style))
    if columns > 8:
        values.append(clean(context.domain, glyphs))
    return values


def _gone_row(
    reading: Reading, context: TapContext, shown: str, columns: Sequence[Column], glyphs: Glyphs
) -> list[str | Span]:
    """Of a tap that was deleted: nothing is known of it now."""
    state = live_badge(LimitAnswer(LimitState.GONE))
    known: dict[str, str | Span] = {
        columns[0].title: ">" if reading.tap == shown else "",
        columns[1].title: Span(clean(reading.tap, glyphs), "name"),
        "limit": Span(state.word, state.style),
        "domain": clean(context.domain, glyphs),
    }
    return [known.get(column.title, UNKNOWN) for column in columns]


def console_for(stream: TextIO) -> Console:
    """A console that writes what it is given: no markup, emoji or highlighting. NO_COLOR is honoured by rich."""
    return Console(file=stream, markup=False, emoji=False, highlight=False, soft_wrap=False, legacy_windows=False)


class LiveScreen:
    """Draws each interval over the last one; afterwards the terminal is as before, with the last screen left on it.

    The alternate buffer is used only on a real terminal. Leaving the ``with`` block restores the terminal whatever the
    reason; a SIGTERM that nobody else handles becomes SystemExit, so that it leaves that way too.
    """

    def __init__(
        self, stream: TextIO, contexts: Mapping[str, TapContext] | None = None, chosen: str | None = None
    ) -> None:
        self.contexts = dict(contexts or {})
        self.chosen = chosen
        self._console = console_for(stream)
        self._terminal = is_live_terminal(stream)
        self._history: dict[str, deque[Reading]] = {}
        self._live: Live | None = None
        self._sigterm = False

    def __enter__(self) -> LiveScreen:
        if self._terminal:
            # No thread of its own: a screen is drawn when there is something new, and costs nothing in between.
            self._live = Live(
                self._screen(running=True),
                console=self._console,
                screen=True,
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._catch_sigterm()
            self._live.start(refresh=True)
        return self

    def update(self, readings: Sequence[Reading]) -> None:
        """Take one interval's readings, one a tap, and draw."""
        for reading in readings:
            self._history.setdefault(reading.tap, deque(maxlen=HISTORY)).append(reading)
        if self._live is not None:
            self._live.update(self._screen(running=True), refresh=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._live is not None:
                self._live.stop()
                self._live = None
            if self._history:
                self._console.print(self._screen(running=False))
        finally:
            if self._sigterm:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _screen(self, running: bool) -> Screen:
        readings = [reading for history in self._history.values() for reading in history]
        # The last screen stays on the terminal: no longer than that, or its head would scroll away.
        height = self._console.height - (0 if running else 1) if self._terminal else None
        return Screen(readings, self.contexts, self.chosen, running, height)

    def _catch_sigterm(self) -> None:
        """Only where nobody else handles it, and only where Python lets us: in the main thread."""
        if threading.current_thread() is threading.main_thread():
            self._sigterm = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            if self._sigterm:
                signal.signal(signal.SIGTERM, _leave)


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
