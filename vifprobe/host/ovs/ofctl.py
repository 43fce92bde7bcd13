# SPDX-License-Identifier: Apache-2.0
"""Asking a bridge through ovs-ofctl, which comes with Open vSwitch: bounded in time and length.

Source: ovs-ofctl(8).
"""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Iterator

from vifprobe.errors import HostError
from vifprobe.process.capabilities import Capability, inherited
from vifprobe.process.children import ENVIRONMENT, WORKING_DIRECTORY, program

TOOL = "ovs-ofctl"
SECONDS = 2.0
OUTPUT_MAX = 64 * 1024 * 1024
_READ_BYTES = 1 << 18


class MeterError(HostError):
    """Flows or meters could not be read: some may be there."""


def is_installed() -> bool:
    """Return True if ovs-ofctl is there."""
    return program(TOOL) is not None


def ask(*arguments: str) -> str:
    """Return what the tool prints. Raises MeterError where it does not end within some seconds, or fails."""
    return b"".join(pieces(*arguments)).decode(errors="replace")


def pieces(*arguments: str) -> Iterator[bytes]:
    """Yield what the tool prints as it comes, whole lines at a time. Raises MeterError, as `ask`.

    A bridge that speaks only OpenFlow before 1.3, which has no meters, has nothing to say.
    """
    command = [program(TOOL) or TOOL, "-O", "OpenFlow13", f"--timeout={max(1, round(SECONDS))}", *arguments]
    try:
        with inherited(Capability.DAC_OVERRIDE):
            asked = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=WORKING_DIRECTORY,
                env=ENVIRONMENT,
            )
    except OSError as error:
        raise MeterError(f"{TOOL} can't be run: {error.strerror}.") from error
    last = b""
    with asked:
        try:
            for piece in _read(asked, time.monotonic() + SECONDS + 1):
                last = piece or last
                if b"version negotiation failed" not in piece:
                    yield piece
        finally:
            asked.kill()
    words = last.decode(errors="replace")
    if asked.returncode and "version negotiation failed" not in words:
        raise MeterError(f"{TOOL} {arguments[0]}: {words.strip()[-200:]!a}.")


def _read(asked: subprocess.Popen[bytes], deadline: float) -> Iterator[bytes]:
    """Yield whole lines until the command has ended."""
    assert asked.stdout is not None  # noqa: S101 - it is a pipe
    rest, length = b"", 0
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([asked.stdout], [], [], left)[0]:
            raise MeterError(f"{TOOL} did not end within {SECONDS + 1:g} s.")
        data = os.read(asked.stdout.fileno(), _READ_BYTES)
        if not data:
            asked.wait()
            yield rest
            return
        length += len(data)
        if length > OUTPUT_MAX:
            raise MeterError(f"{TOOL} wrote more than {OUTPUT_MAX} bytes.")
        whole, newline, rest = (rest + data).rpartition(b"\n")
        if newline:
            yield whole + newline
