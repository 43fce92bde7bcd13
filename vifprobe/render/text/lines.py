# SPDX-License-Identifier: Apache-2.0
"""`watch` where there is no terminal: one line an interval and tap, for grep, awk and log files.

Words and their order are fixed, figures are aligned, ``?`` is unknown. Every field is a name followed by its figures,
so that ``awk '{print $5}'`` and ``grep -o 'policed *[0-9]* pps'`` go on working.
"""

from __future__ import annotations

from collections.abc import Collection
from decimal import Decimal

from vifprobe.model.layout import Direction, Verdict
from vifprobe.model.limits import LimitState
from vifprobe.model.ports import direction_at, is_guest_port
from vifprobe.model.reading import Counts, Limit, Reading
from vifprobe.render.limit_words import state_words
from vifprobe.render.text.host import host_fields
from vifprobe.render.units import ASCII, UNKNOWN, Glyphs, clean, pad, per_second, percent

#: Classes named at the end of a line.
TOP_CLASSES = 3
_TAP_WIDTH = 15  # IFNAMSIZ - 1


def lines_header(kinds: Collection[str] = ("tap",)) -> str:
    """Legend of the figures, printed once before the first line. kinds: of the devices that are watched."""
    meanings = ["out = from the guest, in = to the guest"] if any(map(is_guest_port, kinds)) else []
    if not all(map(is_guest_port, kinds)):
        meanings.append("received, sent = by a device that is not a guest's port")
    return (
        f"# {', '.join(meanings)}; Mbit/s of frames (as the tap's counters show), 'charged' as the"
        " policer counts; queued = packets in the tap's queue now; ? = unknown; top = share of outbound packets"
    )


def interval_line(reading: Reading, glyphs: Glyphs = ASCII) -> str:
    """One line without its line end. The totals of a run begin with ``total`` in place of the time.

    ``gone 3.217 s`` at the end: the tap was deleted so long after the start of the run, and has no further lines.
    """
    clock = _clock(reading)
    base = reading.repeats
    if base is None:
        before, after = _around_host(reading, glyphs)
    else:
        known = _TEXTS.get(reading.tap)
        if known is None or known[0] is not base or known[1] is not glyphs:
            if len(_TEXTS) >= _TEXTS_MAX:
                _TEXTS.clear()
            known = _TEXTS[reading.tap] = base, glyphs, _around_host(base, glyphs)
        before, after = known[2]
    return " ".join((pad("total", len(clock)) if reading.final else clock, before, host_fields(reading.host), after))


#: Of the reading that others repeat, by tap: its text before and after what the host did.
_TEXTS: dict[str, tuple[Reading, Glyphs, tuple[str, str]]] = {}
_TEXTS_MAX = 4096


def _clock(reading: Reading) -> str:
    moment = reading.at.astimezone()
    clock = moment.strftime("%H:%M:%S")
    if 0 < reading.duration_ns < 950_000_000:  # an interval of a second is a few ms more or less
        clock += f".{moment.microsecond // 1000:03}"
    return clock


def _around_host(reading: Reading, glyphs: Glyphs) -> tuple[str, str]:
    """The line before and after the fields of the host, without the time."""
    limit = reading.limits.get(Direction.OUTBOUND, Limit())
    asked = limit.declared_bps if limit.declared_bps is not None else limit.installed_bps
    passed = _counts(reading, Direction.OUTBOUND, Verdict.PASSED)
    out, into = ("out", "in") if is_guest_port(reading.kind) else ("received", "sent")
    fields = [
        pad(_word(reading.tap, glyphs), _TAP_WIDTH),
        f"{out} {_figures('offered', _offered(reading, Direction.OUTBOUND), reading)}",
        _figures("passed", passed, reading),
        f"charged {_mbit(None if passed is None else passed.charged_bytes, reading)} of {_limit(asked)}",
        _figures("policed", _counts(reading, Direction.OUTBOUND, Verdict.POLICED), reading),
        _figures("dropped", _counts(reading, Direction.OUTBOUND, Verdict.DROPPED), reading),
        f"{into} {_figures('offered', _offered(reading, Direction.INBOUND), reading)}",
        _figures("passed", _counts(reading, Direction.INBOUND, Verdict.PASSED), reading),
        _figures("policed", _counts(reading, Direction.INBOUND, Verdict.POLICED), reading),
        _figures("dropped", _counts(reading, Direction.INBOUND, Verdict.DROPPED), reading),
        f"queued {_waiting(reading):>5}",
        f"missed {reading.missed}",
    ]
    gone = [f"gone {reading.gone_ns / 1e9:.3f} s"] if reading.gone_ns is not None else []
    return " ".join(fields), " ".join(
        [
            f"limit {out} {_state(reading, Direction.OUTBOUND)}",
            f"{into} {_state(reading, Direction.INBOUND)}",
            f"top {_top(reading)}",
            *gone,
        ]
    )


def _state(reading: Reading, direction: Direction) -> str:
    """Two words, as in JSON: of the limit, and of what packets show of it. That a tap is gone has a field already."""
    answer = reading.limit_state(direction)
    is_known = direction in reading.directions and answer.state is not LimitState.GONE
    return state_words(answer) if is_known else f"{UNKNOWN} {UNKNOWN}"


def _waiting(reading: Reading) -> str:
    """Packets that wait in the device's queue at the interval's end: a number, no rate."""
    queued = _counts(reading, direction_at(reading.kind, "egress"), Verdict.QUEUED)
    return UNKNOWN if queued is None else str(queued.packets)


def _word(text: str, glyphs: Glyphs) -> str:
    """A name that stays one field: blanks in it are shown as an escape."""
    return clean(text, glyphs).replace(" ", "\\x20")


def _offered(reading: Reading, direction: Direction) -> Counts | None:
    return reading.offered(direction) if direction in reading.directions else None


def _counts(reading: Reading, direction: Direction, verdict: Verdict) -> Counts | None:
    return reading.counts(direction, verdict) if direction in reading.directions else None


def _figures(name: str, counts: Counts | None, reading: Reading) -> str:
    pps = per_second(None if counts is None else counts.packets, reading)
    return f"{name} {_number(pps, 0):>8} pps {_mbit(None if counts is None else counts.frame_bytes, reading)}"


def _mbit(counted_bytes: int | None, reading: Reading) -> str:
    bytes_per_second = per_second(counted_bytes, reading)
    return _limit(None if bytes_per_second is None else 8 * bytes_per_second)


def _limit(bps: float | None) -> str:
    return f"{_number(None if bps is None else bps / 1e6, 1):>7} Mbit/s"


def _number(value: float | None, decimals: int) -> str:
    """Plain digits for awk. More decimals where a number would else be rounded to 0, which it is not."""
    if value is None:
        return UNKNOWN
    shown = f"{value:.{decimals}f}"
    return format(Decimal(f"{value:.1g}"), "f") if value and not float(shown) else shown


def _top(reading: Reading) -> str:
    """``tcp_syn=96% udp=3%``; ``-`` where nothing was offered."""
    direction = Direction.OUTBOUND
    offered = _offered(reading, direction)
    if offered is None:
        return UNKNOWN
    packets = {code: reading.offered(direction, code).packets for code in reading.classes(direction)}
    ranked = sorted(packets, key=lambda code: (-packets[code], code))[:TOP_CLASSES]
    return (
        " ".join(f"{code.name.lower()}={percent(packets[code], offered.packets)}".replace(" ", "") for code in ranked)
        or "-"
    )
