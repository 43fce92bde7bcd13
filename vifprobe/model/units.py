# SPDX-License-Identifier: Apache-2.0
"""Durations, rates and sizes as users write them, read as tc(8) reads them. Imports only the errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

from vifprobe.errors import UsageError

# A plain decimal number and a suffix. No sign, no exponent, no inf or nan: none of them can be meant here.
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z]*)\s*", re.ASCII)

_LONGEST = 40  # characters of a value shown back in an error

_DURATION_NS: Mapping[str, int] = {
    "ns": 1,
    "us": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}

# tc(8), "Parameters", RATE: a bare number is bit/s, `bps` is byte/s, k is 1000 and ki is 1024. Suffixes in any case.
_RATE_BPS: dict[str, int] = {"": 1, "bit": 1, "bps": 8}
for _power, _letter in enumerate("kmgt", start=1):
    _RATE_BPS |= {f"{_letter}bit": 1000**_power, f"{_letter}ibit": 1024**_power}
    _RATE_BPS |= {f"{_letter}bps": 8 * 1000**_power, f"{_letter}ibps": 8 * 1024**_power}

# tc(8), "Parameters", SIZE: a bare number is bytes, and here k is 1024 (`kb` and `kbit` alike).
_SIZE_BITS: dict[str, int] = {"": 8, "b": 8}
for _power, _letter in enumerate("kmg", start=1):
    _SIZE_BITS |= {_letter: 8 * 1024**_power, f"{_letter}b": 8 * 1024**_power, f"{_letter}bit": 1024**_power}

_BPS_MAX = 2**63 - 1  # TCA_POLICE_RATE64 and libvirt's kB/s both stay below it
_BYTES_MAX = 2**32 - 1  # tc keeps a burst in 32 bits
_NS_MAX = 2**63 - 1  # the kernel's own clock


def parse_duration_ns(text: str) -> int:
    """Nanoseconds in ``500ms``, ``30s`` or ``5m`` (also ``us``, ``ns``, ``h``).

    A bare number is refused: seconds and milliseconds are both used for it. Raises UsageError.
    """
    example = "Write 500ms, 30s or 5m."
    number, suffix = _quantity(text, "duration", example)
    if not suffix:
        raise UsageError(f"{_shown(text)} is not a duration: the unit is missing.", example)
    return _scaled(text, "duration", number, _DURATION_NS.get(suffix), example, _NS_MAX)


def parse_rate_bps(text: str) -> int:
    """Bits per second in a rate as tc writes it: ``100mbit``, ``12500kbps`` (1000 byte/s each), ``1gbit``.

    A bare number is bit/s, as it is for tc. Fractions of a bit/s are cut off. Raises UsageError.
    """
    example = "Write it as tc does: 100mbit, 1gbit, 12500kbps (kilobytes a second), or a bare number of bit/s."
    number, suffix = _quantity(text, "rate", example)
    return _scaled(text, "rate", number, _RATE_BPS.get(suffix), example, _BPS_MAX)


def parse_size_bytes(text: str) -> int:
    """Bytes in a burst as tc writes it: ``3125kb`` (1024 byte each), ``64k``, ``1mb``, or a bare number of bytes.

    Raises UsageError.
    """
    example = "Write it as tc does: 3125kb (1024 byte each), 1mb, or a bare number of bytes."
    number, suffix = _quantity(text, "size", example)
    bits = _SIZE_BITS.get(suffix)
    return _scaled(text, "size", number, None if bits is None else Fraction(bits, 8), example, _BYTES_MAX)


def _quantity(text: str, what: str, example: str) -> tuple[Fraction, str]:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise UsageError(f"{_shown(text)} is not a {what}.", example)
    return Fraction(match[1] if match[1][-1] != "." else match[1] + "0"), match[2].lower()


def _scaled(text: str, what: str, number: Fraction, unit: int | Fraction | None, example: str, most: int) -> int:
    if unit is None:
        raise UsageError(f"{_shown(text)} is not a {what}: unknown unit.", example)
    value = int(number * unit)
    if not 1 <= value <= most:
        raise UsageError(f"{_shown(text)} is not a {what}: it is {'too large' if value else 'zero'}.", example)
    return value


def _shown(text: str) -> str:
    """The user's value, quoted so that control characters in it are visible."""
    return ascii(text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "...")
