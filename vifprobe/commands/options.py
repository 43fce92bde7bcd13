# SPDX-License-Identifier: Apache-2.0
"""Options and parameter types that several commands share."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import click

from vifprobe.analysis.reading import Finding, Limit, Reading
from vifprobe.errors import EXIT_DONE, EXIT_FINDING, UsageError
from vifprobe.layout import Charge, Direction
from vifprobe.units import parse_duration_ns, parse_rate_bps, parse_size_bytes

_Function = TypeVar("_Function", bound=Callable[..., Any])

SEVERITIES = ("info", "warning", "critical")
#: By bytes: --rate is one of bits.
CHARGES = {charge.name.lower(): charge for charge in Charge if charge is not Charge.PACKET}
DIRECTIONS = {
    "both": (Direction.OUTBOUND, Direction.INBOUND),
    "outbound": (Direction.OUTBOUND,),
    "inbound": (Direction.INBOUND,),
}


class _Parsed(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3 only
    """A text that one of the functions of vifprobe.units reads."""

    def __init__(self, name: str, parse: Callable[[str], int]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return self._parse(str(value))
        except UsageError as error:
            self.fail(" ".join((error.message, *error.hints)), param, ctx)


DURATION = _Parsed("duration", parse_duration_ns)
RATE = _Parsed("rate", parse_rate_bps)
SIZE = _Parsed("size", parse_size_bytes)


def tap_options(function: _Function) -> _Function:
    """TAP..., --direction, --netns, --rate, --burst, --charge, --create-qdisc, --no-host."""
    for option in (
        click.option("--no-host", is_flag=True, help="Don't count what the host does: CPU time, context switches."),
        click.option("--create-qdisc", is_flag=True, help="On kernels without tcx: add a clsact qdisc."),
        click.option(
            "--charge",
            type=click.Choice(list(CHARGES)),
            default="installed",
            show_default=True,
            help="What the ideal bucket with that limit takes for a packet.",
        ),
        click.option("--burst", type=SIZE, help="Burst of that limit, such as 3125kb."),
        click.option("--rate", type=RATE, help="Declared limit to hold the packets against, such as 100mbit."),
        click.option("--netns", metavar="NAME", help="Network namespace of the taps: name, path or pid."),
        click.option("--direction", type=click.Choice(list(DIRECTIONS)), default="both", show_default=True),
        click.argument("taps", nargs=-1, required=True, metavar="TAP..."),
    ):
        function = option(function)
    return function


fail_on = click.option(
    "--fail-on", type=click.Choice(SEVERITIES), help=f"Exit {EXIT_FINDING} on a finding of this severity or above."
)


def declared_limits(direction: str, rate: int | None, burst: int | None) -> dict[Direction, Limit]:
    """The user's own limit, for each watched direction."""
    if rate is None:
        if burst is not None:
            raise UsageError("--burst says nothing without --rate.", "Give both: --rate 100mbit --burst 3125kb.")
        return {}
    return dict.fromkeys(DIRECTIONS[direction], Limit(declared_bps=rate, burst_bytes=burst))


def exit_code(readings: list[Reading], severity: str | None) -> int:
    """EXIT_FINDING where a finding reaches the severity that the user asked to fail on."""
    findings = [finding for reading in readings for finding in reading.findings]
    return EXIT_FINDING if fails(findings, severity) else EXIT_DONE


def fails(findings: Iterable[Finding], severity: str | None) -> bool:
    """Whether a finding reaches this severity."""
    if severity is None:
        return False
    return any(SEVERITIES.index(finding.severity) >= SEVERITIES.index(severity) for finding in findings)


@contextmanager
def ended_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """SIGINT and SIGTERM call `stop`; a second SIGINT is a KeyboardInterrupt, for whoever can't wait."""

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
