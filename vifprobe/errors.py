# SPDX-License-Identifier: Apache-2.0
"""Errors that end a run, each with its exit code."""

from __future__ import annotations

from vifprobe.model.untrusted_text import safe

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_FINDING = 3


class VifprobeError(Exception):
    """A run can't go on. The message names the user's value; `hints` say what was looked at and what to do next.

    Shown on stderr as ``Error: message`` and one indented line a hint, without a traceback. Whatever they were made
    from, they can be shown: see vifprobe.model.untrusted_text.
    """

    exit_code = EXIT_FAILED

    def __init__(self, message: str, *hints: str) -> None:
        self.message = safe(message)
        self.hints = tuple(map(safe, hints))
        super().__init__(self.message)

    def __str__(self) -> str:
        return "\n  ".join((self.message, *self.hints))


class UsageError(VifprobeError):
    """The command line asks for something that can't be meant."""

    exit_code = EXIT_USAGE


class TapError(VifprobeError):
    """The named tap is not there, or is not something that vifprobe can watch."""


class KernelError(VifprobeError):
    """The kernel lacks or refuses something that is needed: the message names the piece and how to get it."""


class HostError(VifprobeError):
    """A source on this host (netlink, libvirt, OVS) could not be read."""


class CaptureError(VifprobeError):
    """A capture folder can't be written, or what was read there is no capture."""


class MissingPieceError(VifprobeError):
    """A library that only this command needs is not installed."""


class TrustError(VifprobeError):
    """Root would run or load what another user can change."""


class OutputError(VifprobeError):
    """Standard output, or a file that rows go to while the run goes on, does not take what is written to it."""


class ReaderGoneError(VifprobeError):
    """Whoever read standard output has closed it (head, less): the end, and no failure."""

    exit_code = EXIT_DONE
