# SPDX-License-Identifier: Apache-2.0
"""What a run costs its host beside the packets: time to the first line, memory, CPU time of polling.

Times are asserted as they are promised with VIFPROBE_TIMING=1, on a machine that does nothing else; else with room.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import pytest
from probe_kit import FIRST_CPU, SYN, watching

from vifprobe.testing.net.taps import Tap
from vifprobe.testing.traffic.flood import writer

IS_TIMED = os.environ.get("VIFPROBE_TIMING") == "1"
FIRST_LINE_SECONDS = 0.8 if IS_TIMED else 60.0
RESIDENT_BYTES = 160 << 20
POLL_SECONDS = 10.0
POLL_SHARE = 0.01 if IS_TIMED else 0.25
STARTS = 5


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its threads so far."""
    # Its name may hold spaces: fields count from behind it (proc_pid_stat(5), utime and stime are 14 and 15).
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """The most memory that a process has had resident so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


@pytest.mark.parametrize("cache", ["compiled anew", "kept code"])
def test_time_to_the_first_line_and_memory(tap: Tap, tmp_path: Path, cache: str) -> None:
    """`watch --json --interval 100ms`, the median of five starts; and the most memory that any of them took."""
    place = str(tmp_path / "cache") if cache == "kept code" else ""
    times, memory = [], []
    for number in range(STARTS + 1):  # the first one fills the caches
        folder = tmp_path / str(number)
        folder.mkdir()
        begun = time.monotonic()
        with watching(folder, "--interval", "100ms", VIFPROBE_CACHE=place) as run:
            times.append(time.monotonic() - begun)
            memory.append(resident_bytes(run.process.pid))
            run.end()
    seconds = statistics.median(times[1:])
    told = ", ".join(f"{each:.2f}" for each in times)
    print(f"{cache}: {seconds:.2f} s to the first line ({told}); {max(memory) >> 20} MiB resident")
    assert max(memory) < RESIDENT_BYTES
    if cache == "kept code" or not IS_TIMED:
        assert seconds < FIRST_LINE_SECONDS


def test_cpu_time_of_polling(tap: Tap, tmp_path: Path) -> None:
    """One tap with traffic, read once a second for ten seconds: under a hundredth of one core."""
    slow = writer([tap.fd], [SYN], count=10**6, seconds=30, cpu=FIRST_CPU, packets_per_second=1009)
    with slow as flooding, watching(tmp_path) as run:
        flooding.start()
        lines = len(run.printed().splitlines())
        before, begun = cpu_seconds(run.process.pid), time.monotonic()
        run.wait_for(lambda: len(run.printed().splitlines()) >= lines + POLL_SECONDS, 60)
        share = (cpu_seconds(run.process.pid) - before) / (time.monotonic() - begun)
        print(f"{100 * share:.2f} % of one core")
        run.end()
    assert share < POLL_SHARE
