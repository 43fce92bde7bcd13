# SPDX-License-Identifier: Apache-2.0
"""Options for samples, and for the findings that come from samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from vifprobe.analysis.findings.thresholds import FloodThresholds, flood_thresholds
from vifprobe.commands.files import read_text
from vifprobe.errors import UsageError
from vifprobe.kernel.tables.samples import SAMPLES_PER_SECOND

_Function = TypeVar("_Function", bound=Callable[..., Any])
_FILE_BYTES_MAX = 64 * 1024


def flood_options(function: _Function) -> _Function:
    """Add --no-samples, --threshold and --thresholds."""
    for option in (
        click.option("--thresholds", metavar="FILE", help="Thresholds, one NAME=VALUE a line; # begins a comment."),
        click.option("--threshold", multiple=True, metavar="NAME=VALUE", help="Threshold of S1 to S6 (docs/flood.md)."),
        click.option("--no-samples", is_flag=True, help="Sample no packet headers: no SYN measures, no S1 to S6."),
    ):
        function = option(function)
    return function


def samples_wanted(no_samples: bool) -> int:
    """Return the samples per second; 0 for none."""
    return 0 if no_samples else SAMPLES_PER_SECOND


def thresholds_wanted(settings: tuple[str, ...], file: str | None) -> FloodThresholds:
    """Return the thresholds of the file and of the options; an option overrides the file. Raises UsageError."""
    lines: list[str] = []
    if file is not None:
        try:
            lines = read_text(file, _FILE_BYTES_MAX).splitlines()
        except OSError as error:
            raise UsageError(f"{file}: {error.strerror}.", "Expected a text file for --thresholds.") from error
    told = [text for line in lines if (text := line.partition("#")[0].strip())]
    return flood_thresholds([*told, *settings])
