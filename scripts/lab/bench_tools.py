# SPDX-License-Identifier: Apache-2.0
"""Other programs that watch a tap, for comparison."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from vifprobe.errors import VifprobeError


@dataclass(frozen=True)
class Tool:
    """Another program that watches. ready: what it prints once it does."""

    name: str
    program: str
    command: tuple[str, ...]
    ready: bytes


_COUNT_REASONS = 'BEGIN { printf("ready\\n") } tracepoint:skb:kfree_skb { @[args->reason] = count(); }'
# netqtop looks its interface up in /sys, which shows the namespace that it was mounted in.
_NETQTOP = "mount -t sysfs sysfs /sys && exec netqtop-bpfcc -n tap0 -i 1"
TOOLS = (
    Tool("tcpdump", "tcpdump", ("tcpdump", "-p", "-n", "-i", "tap0", "-s", "96", "-w", "/dev/null"), b"listening on"),
    Tool("bpftrace", "bpftrace", ("bpftrace", "-e", _COUNT_REASONS), b"ready"),
    Tool("netqtop", "netqtop-bpfcc", ("unshare", "--mount", "sh", "-c", _NETQTOP), b"TX"),
)


@contextmanager
def attached(tool: Tool, cpu: int) -> Iterator[None]:
    """Another tool, in this namespace and on the other CPU, from the moment that it watches."""
    process = subprocess.Popen(
        ["taskset", "-c", str(cpu), *tool.command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said = b""
    try:
        while process.stdout and tool.ready not in said:
            line = process.stdout.readline()
            if not line:
                raise VifprobeError(said.decode(errors="replace").strip().splitlines()[-1] if said else "it ended")
            said += line
        yield
    finally:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=5)
        if process.poll() is None:
            process.kill()
            process.wait()


def refuses(tool: Tool, cpu: int) -> str | None:
    """Why a tool can't be measured here, None where it can."""
    if shutil.which(tool.program) is None:
        return f"{tool.program} is not installed"
    try:
        with attached(tool, cpu):
            return None
    except VifprobeError as error:
        return error.message
