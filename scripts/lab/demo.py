# SPDX-License-Identifier: Apache-2.0
"""The story that scripts/demo plays: a limited VM does its work, then floods; watched first, then captured.

Nothing of this machine's own network is touched: all of it happens in a network namespace that ends with this process.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import FrameType

from vifprobe import load
from vifprobe.capture.reader import Capture
from vifprobe.errors import EXIT_FAILED, VifprobeError
from vifprobe.model.layout import Direction, PacketClass, Verdict
from vifprobe.model.reading import Counts
from vifprobe.testing.net.netns import private_netns
from vifprobe.testing.traffic.flood import Writer, writer
from vifprobe.testing.traffic.scenario import Guest, guest, ordinary_packets, syn_flood_packets
from vifprobe.testing.waiting import wait_until

# A tenth of the limits that public clouds sell, so that a small machine can play it: 10 Mbit/s.
AVERAGE, BURST = 1250, 312  # quota:vif_outbound_average in kB/s and _burst in KiB
ORDINARY_PPS = 700
FLOOD_PPS = 160_000  # of 40 charged bytes each: five times the limit
WATCH_SECONDS, CAPTURE_SECONDS = 10, 5
CALM_SECONDS = {WATCH_SECONDS: 4.0, CAPTURE_SECONDS: 1.5}  # ordinary traffic alone, before the flood sets in
START_SECONDS = 120.0  # for vifprobe to compile and attach, on the slowest machine
END_SECONDS = 0.5  # senders go on for so long after the command's own time
KILL_SECONDS = 5.0


def main() -> int:
    """Play it; the exit code is that of the first command that failed."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description="A VM, a limit and a SYN flood, watched.")
    default = f"capture-demo-{time.strftime('%Y%m%d-%H%M%S')}"
    parser.add_argument("-o", "--output", metavar="DIR", default=default, help="capture folder (default: %(default)s)")
    folder = Path(parser.parse_args().output)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        with private_netns(), guest(average=AVERAGE, burst=BURST) as vm:
            code = play(vm, folder)
        if code:
            return code
        say("The tap, its namespace and the senders are gone; the folder stays.")
        return code
    except BrokenPipeError:
        # The reader (head, less) has gone: that is its right. Keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (VifprobeError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        kept = f" {folder} keeps what was captured." if folder.exists() else ""
        print(f"\nStopped; network, processes and namespace of the demo are gone.{kept}", file=sys.stderr)
        return 128 + signal.SIGINT


def play(vm: Guest, folder: Path) -> int:
    """The two commands, each with ordinary traffic first and then the flood."""
    say(
        f"A VM's tap, {vm.tap.name}, in a network namespace of its own. The VM may send {_mbit(vm.policer.rate_bps)},"
        f" held by {vm.policer.words}. It sends {ORDINARY_PPS} packets/s of ordinary traffic, and"
        f" {CALM_SECONDS[WATCH_SECONDS]:g} seconds from now {FLOOD_PPS:,} SYN/s on top.",
    )
    code = during_flood(vm, "watch", "--duration", f"{WATCH_SECONDS}s", seconds=WATCH_SECONDS)
    if code:
        return code
    say("The same once more, now kept as evidence:")
    to_folder = ("-d", f"{CAPTURE_SECONDS}s", "-o", str(folder))
    code = during_flood(vm, "capture", *to_folder, seconds=CAPTURE_SECONDS)
    if code:
        return code
    give_to_caller(folder)
    say(*story(load(folder), vm))
    say(
        f"The evidence, in {folder}/ :",
        "  histogram.csv  packets by class, size and verdict",
        "  timeline.csv   packets by verdict, every 10 ms",
        "  drops.csv      who dropped packets, and why",
        "  reconcile.csv  compared with the kernel's own counters",
    )
    print(f"To read one:  column -s, -t {shlex.quote(str(folder))}/histogram.csv | less -S", flush=True)
    return 0


def during_flood(vm: Guest, command: str, *options: str, seconds: int) -> int:
    """Run `vifprobe COMMAND` on the VM's tap, with a flood that sets in after a while; gives its exit code."""
    # As the owner of the VM was told; where the domain's XML or OVS declares it, vifprobe finds it there.
    limit = (
        "--rate",
        f"{vm.policer.rate_bps // 1_000_000}mbit",
        "--burst",
        f"{math.ceil(vm.policer.bucket_bytes / 1024)}kb",
    )
    # The VM only sends here; and this process stays in the namespace, so its id names it.
    arguments = [command, vm.tap.name, "--netns", str(os.getpid()), "--direction", "outbound", *limit, *options]
    print(f"\n$ vifprobe {shlex.join(arguments)}", flush=True)  # in one piece, to copy
    calm = CALM_SECONDS[seconds]
    with (
        sender(vm, ordinary_packets(vm.tap), ORDINARY_PPS, seconds + END_SECONDS) as ordinary,
        sender(vm, syn_flood_packets(vm.tap), FLOOD_PPS, seconds - calm + END_SECONDS) as flood,
        running(sys.executable, "-m", "vifprobe", *arguments) as process,
    ):
        # A slow machine compiles for a while; the story begins when somebody is watching.
        wait_until(lambda: process.poll() is not None or has_bpf_link(process.pid), START_SECONDS, poll_seconds=0.05)
        ordinary.start()
        try:
            return process.wait(calm)
        except subprocess.TimeoutExpired:
            flood.start()
        code = process.wait()
        for one in (ordinary, flood):
            one.wait()
        return code


def sender(vm: Guest, packets: list[bytes], pps: int, seconds: float) -> AbstractContextManager[Writer]:
    """A process that plays the guest, bounded in time and count."""
    return writer(vm.tap.fds, packets, count=round(seconds * pps), seconds=seconds, packets_per_second=pps)


def has_bpf_link(pid: int) -> bool:
    """Whether a process has attached something: the kernel tells of each descriptor what it is (proc_pid_fdinfo(5))."""
    with suppress(OSError):  # descriptors and processes come and go
        return any("link_type:" in entry.read_text() for entry in Path(f"/proc/{pid}/fdinfo").iterdir())
    return False


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has ended when the block has, by SIGTERM if need be."""
    process = subprocess.Popen(command)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(KILL_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def story(capture: Capture, vm: Guest) -> list[str]:
    """What the numbers above mean, for someone who sees them for the first time."""
    out, reading = Direction.OUTBOUND, capture.reading()
    counted = next((row.delta for row in capture.reconcile if row.counter == "device rx_packets"), None)
    offered, passed = reading.offered(out), reading.counts(out, Verdict.PASSED)
    syns = reading.offered(out, PacketClass.TCP_SYN)
    policed_syns = reading.counts(out, Verdict.POLICED, PacketClass.TCP_SYN)
    data = reading.offered(out, PacketClass.TCP_DATA)
    policed_data = reading.counts(out, Verdict.POLICED, PacketClass.TCP_DATA)
    if passed is None or policed_syns is None or policed_data is None:
        return ["What became of the packets could not be known on this kernel; `vifprobe doctor` says why."]
    if not policed_syns.packets:
        return ["This machine is too slow to send more than the limit: nothing was policed."]
    bits_per_byte_second = 8 / (reading.duration_ns / 1e9)
    charged, wire = passed.charged_bytes * bits_per_byte_second, passed.wire_bytes * bits_per_byte_second
    points = {
        "flood": f"{_share(syns, offered)} of the packets were SYNs, of which the policer dropped"
        f" {_share(policed_syns, syns)}.",
        "work": f"It can't tell good from bad: {_share(policed_data, data)} of the VM's own TCP data went with them.",
        "limit": f"{_mbit(charged)} passed as the policer counts it, of {_mbit(vm.policer.rate_bps)} and a burst.",
        "uplink": f"On the wire the same packets are {_mbit(wire)}: a SYN of 54 bytes is charged as 40 and takes 84 of"
        " Ethernet.",
    }
    if counted is not None:
        points["counters"] = f"/proc/net/dev counted {counted:,} packets received: the dropped ones too."
    return ["What this shows:", *(f"  {name:<9} {text}" for name, text in points.items())]


def _share(part: Counts, whole: Counts) -> str:
    return f"{part.packets / whole.packets:.1%}" if whole.packets else "none"


def give_to_caller(folder: Path) -> None:
    """Under sudo: the evidence belongs to who asked for it."""
    if "SUDO_UID" in os.environ:
        for path in (folder, *folder.iterdir()):
            os.chown(path, int(os.environ["SUDO_UID"]), int(os.environ["SUDO_GID"]))


def say(*lines: str) -> None:
    """A paragraph, set off from what is above; long lines go on below the text of their label."""
    wrapped = (textwrap.fill(line, 79, subsequent_indent=" " * 12 if line[:1] == " " else "") for line in lines)
    print("", *wrapped, sep="\n", flush=True)


def _mbit(bps: float) -> str:
    return f"{bps / 1e6:.3g} Mbit/s"


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
