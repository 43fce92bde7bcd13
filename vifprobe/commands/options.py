# SPDX-License-Identifier: Apache-2.0
"""Options and parameter types that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from string import hexdigits
from typing import Any, TypeVar

import click

from vifprobe.errors import EXIT_DONE, EXIT_FINDING, UsageError
from vifprobe.model.layout import Bucket, Charge, Direction
from vifprobe.model.reading import Finding, Limit, Reading
from vifprobe.model.units import parse_duration_ns, parse_rate_bps, parse_size_bytes
from vifprobe.model.whatif import WhatIf

_Function = TypeVar("_Function", bound=Callable[..., Any])

BIN_MIN_NS = 1_000_000
SEVERITIES = ("info", "warning", "critical")
#: Values of --charge: all that count bytes, because --rate is in bits.
CHARGES = {charge.name.lower(): charge for charge in Charge if charge is not Charge.PACKET}
DIRECTIONS = {
    "both": (Direction.OUTBOUND, Direction.INBOUND),
    "outbound": (Direction.OUTBOUND,),
    "inbound": (Direction.INBOUND,),
}


class _Parsed(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3 only
    """Text that a function of vifprobe.model.units parses."""

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


class _WhatIfType(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3 only
    """Limit of --what-if."""

    name = "limit"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> WhatIf:
        if isinstance(value, WhatIf):
            return value
        try:
            return parse_what_if(str(value))
        except UsageError as error:
            self.fail(" ".join((error.message, *error.hints)), param, ctx)


def parse_what_if(text: str) -> WhatIf:
    """Parse ``pps=50000[,burst=5000]`` or ``rate=100mbit[,burst=3125kb][,charge=wire]``. Raises UsageError.

    Without a burst, the burst is what the rate passes in one second, as in libvirt.
    """
    parts = [part.partition("=")[::2] for part in text.split(",")]
    given = {name.strip(): value.strip() for name, value in parts}
    by_packets = "pps" in given
    known = {"pps", "burst"} if by_packets else {"rate", "burst", "charge"}
    if len(given) < len(parts) or set(given) - known or not given.keys() & {"pps", "rate"}:
        raise UsageError(f"invalid limit {text!r}.", _WHAT_IF_EXAMPLE)
    if by_packets:
        numbers = [_whole(given[name], name) for name in ("pps", "burst") if name in given]
        return WhatIf(text, Bucket(numbers[0], numbers[-1], Charge.PACKET))
    charge = given.get("charge", "installed")
    if charge not in CHARGES:
        raise UsageError(f"charge={charge}: unknown charge.", f"Give one of {', '.join(CHARGES)}.")
    bytes_per_second = parse_rate_bps(given["rate"]) // 8
    if not bytes_per_second:
        raise UsageError(f"rate={given['rate']}: less than 1 byte per second.", _WHAT_IF_EXAMPLE)
    burst_bytes = parse_size_bytes(given["burst"]) if "burst" in given else bytes_per_second
    return WhatIf(text, Bucket(bytes_per_second, burst_bytes, CHARGES[charge]))


_WHAT_IF_EXAMPLE = "Write pps=50000, or rate=100mbit,burst=3125kb,charge=wire."
_PPS_MAX = 10**9  # one a nanosecond: the bucket's finest step


def _whole(text: str, name: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 0 < int(text[:20]) <= _PPS_MAX:
        raise UsageError(f"{name}={text}: expected a whole number of packets from 1 to {_PPS_MAX}.", _WHAT_IF_EXAMPLE)
    return int(text)


class _MacType(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3 only
    """Unicast MAC address, as bytes."""

    name = "mac"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        if isinstance(value, bytes):
            return value
        digits = str(value).replace(":", "").replace("-", "")
        if len(digits) != 12 or set(digits) - set(hexdigits) or int(digits[:2], 16) & 1:
            self.fail(f"{value!r} is not a unicast MAC address. Write it as fa:16:3e:01:02:03.", param, ctx)
        return bytes.fromhex(digits)


WHAT_IF = _WhatIfType()
MAC = _MacType()
RATE = _Parsed("rate", parse_rate_bps)
SIZE = _Parsed("size", parse_size_bytes)


def _bin(ctx: click.Context, param: click.Parameter, value: int) -> int:
    if value < BIN_MIN_NS:
        raise UsageError(f"--bin: a time bin of {value / 1e6:g} ms is too short.", "Use 1ms or more.")
    return value


def folder_options(function: _Function) -> _Function:
    """Add --bin, --samples and --force: the options of a capture folder."""
    bin_help = "Width of a time bin of the timeline."
    for option in (
        click.option("--force", is_flag=True, help="Replace an earlier capture in this folder."),
        click.option(
            "--samples",
            type=click.IntRange(1, 10_000_000),
            default=100_000,
            show_default=True,
            help="Write the headers of at most about this many packets to samples.pcapng.",
        ),
        click.option("--bin", "bin_ns", type=DURATION, default="10ms", show_default=True, callback=_bin, help=bin_help),
    ):
        function = option(function)
    return function


def charge_option(function: _Function) -> _Function:
    """Add --charge."""
    return click.option(
        "--charge",
        type=click.Choice(list(CHARGES)),
        default="installed",
        show_default=True,
        help="Bytes that the ideal bucket charges for a packet. installed: as tc does at the tap.",
    )(function)


what_if_option = click.option(
    "--what-if",
    "what_if",
    type=WHAT_IF,
    multiple=True,
    metavar="LIMIT",
    help="Limit to try without installing it: pps=50000 or rate=100mbit,burst=3125kb,charge=wire. Can be repeated.",
)


direction_option = click.option(
    "--direction",
    type=click.Choice(list(DIRECTIONS)),
    default="both",
    show_default=True,
    help="outbound: packets from the guest; inbound: packets to the guest.",
)


def tap_options(function: _Function) -> _Function:
    """Add TAP..., --direction, --netns, --rate, --burst, --charge, --what-if, --create-qdisc and --no-host."""
    for option in (
        click.option("--no-host", is_flag=True, help="Do not measure the host cost (CPU time, context switches)."),
        click.option("--create-qdisc", is_flag=True, help="On kernels without tcx: add a clsact qdisc for the run."),
        charge_option,
        what_if_option,
        click.option("--burst", type=SIZE, help="Burst of that limit, such as 3125kb."),
        click.option("--rate", type=RATE, help="Declared limit to compare packets with, such as 100mbit."),
        click.option("--netns", metavar="NAME", help="Network namespace of the taps: name, path or pid."),
        direction_option,
        click.argument("taps", nargs=-1, required=True, metavar="TAP..."),
    ):
        function = option(function)
    return function


fail_on = click.option(
    "--fail-on", type=click.Choice(SEVERITIES), help=f"Exit {EXIT_FINDING} on a finding of this severity or above."
)


def declared_limit(rate: int | None, burst: int | None) -> Limit | None:
    """Return the limit of --rate and --burst; None if there is none. Raises UsageError for --burst alone."""
    if rate is None and burst is not None:
        raise UsageError("--burst needs --rate.", "Give both: --rate 100mbit --burst 3125kb.")
    return None if rate is None else Limit(declared_bps=rate, burst_bytes=burst)


def declared_limits(direction: str, rate: int | None, burst: int | None) -> dict[Direction, Limit]:
    """Return the limit of --rate and --burst for each watched direction."""
    limit = declared_limit(rate, burst)
    return {} if limit is None else dict.fromkeys(DIRECTIONS[direction], limit)


def exit_code(readings: list[Reading], severity: str | None) -> int:
    """Return EXIT_FINDING if a finding reaches the severity of --fail-on, else EXIT_DONE."""
    findings = [finding for reading in readings for finding in reading.findings]
    return EXIT_FINDING if fails(findings, severity) else EXIT_DONE


def fails(findings: Iterable[Finding], severity: str | None) -> bool:
    """Return True if a finding reaches this severity."""
    if severity is None:
        return False
    return any(_rank(finding.severity) >= _rank(severity) for finding in findings)


def _rank(severity: str) -> int:
    """Return the rank of a severity; an unknown one (capture of a newer version) has the highest rank."""
    return SEVERITIES.index(severity) if severity in SEVERITIES else len(SEVERITIES)
