# SPDX-License-Identifier: Apache-2.0
"""The story that scripts/incident tells: two limited VMs flood, and at each step what the tap's counter shows, what
really passed, and why. In the guest of `scripts/vm --with ovs`: it takes over the Open vSwitch.
"""

from __future__ import annotations

import fcntl
import os
import signal
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from vifprobe import Probe, load
from vifprobe.capture.reader import Capture
from vifprobe.host.net.events import Event
from vifprobe.model.layout import Direction, Verdict
from vifprobe.model.reading import Reading, count
from vifprobe.testing.net.taps import Tap, device_counters, set_link_up, tap
from vifprobe.testing.traffic.flood import Writer, writer
from vifprobe.testing.traffic.scenario import syn_flood_packets
from vifprobe.testing.waiting import wait_until

#: A 2500th of the incident's 100 Mbit/s (quota:vif_outbound_average=12500): less than an emulated guest can send.
AVERAGE, BURST = 5, 6  # kB/s, KiB
RATE_KBIT = AVERAGE * 8
TAPS = ("tap834d76e9-5f", "tapc1d0f2aa-17")
UPLINK, FAR_END, BRIDGE = "uplink", "far-end", "br-int"
CHARGED_SYN = 40
OVS_CHARGED_SYN = 60  # Open vSwitch sets the policer's mpu to a shortest frame (lib/netdev-linux.c)
# include/uapi/linux/if_tun.h
TUNSETOFFLOAD, TUN_F_CSUM = 0x400454D0, 0x01
SECONDS = 900  # bound of the floods
SETTLE, LOOK = 1.5, 6.0
ROUNDS, SLICE = 7, 0.5
ROOM = 1500.0
OUT = Direction.OUTBOUND


@dataclass(frozen=True)
class Seen:
    """Of one tap in one step, packets a second. device: what /proc/net/dev (and so Zabbix) counts as received."""

    device: float
    passed: float
    policed: float

    @property
    def offered(self) -> float:
        """By vifprobe."""
        return self.passed + self.policed


@dataclass
class Step:
    """What was done, what was seen then, and what it means.

    rise: the first tap's counter against how it was without what was done, one beside the other several times: what
    else keeps this host busy changes from second to second. None: not asked.
    """

    title: str
    why: str
    taps: dict[str, Seen] = field(default_factory=dict)
    uplink: float = 0.0  # packets a second that left the host
    events: list[tuple[str, Event]] = field(default_factory=list)
    patterns: frozenset[str] = frozenset()
    rise: float | None = None


class Stage:
    """Two taps, their senders, the switch, and the probe that watches it all."""

    def __init__(self, taps: list[Tap], floods: list[Writer], probe: Probe) -> None:
        self.taps, self.floods, self.probe = taps, floods, probe
        self._readings = probe.readings(0.5, SECONDS)

    def look(self, step: Step) -> Step:
        """Let it settle, then measure."""
        self._pass(SETTLE)
        step.events = self.probe.take_events()
        began, before, left = time.monotonic(), self._devices(), device_counters(UPLINK)["tx_packets"]
        readings = self._pass(LOOK)
        seconds = time.monotonic() - began
        after = self._devices()
        step.uplink = (device_counters(UPLINK)["tx_packets"] - left) / seconds
        for each in self.taps:
            own = [reading for reading in readings if reading.tap == each.name]
            span = sum(reading.duration_ns for reading in own) / 1e9
            passed, policed = (_packets(own, verdict) / span for verdict in (Verdict.PASSED, Verdict.POLICED))
            step.taps[each.name] = Seen((after[each.name] - before[each.name]) / seconds, passed, policed)
        step.patterns = frozenset(finding.pattern for reading in readings for finding in reading.findings)
        return step

    def rise(self, undo: Callable[[], object], redo: Callable[[], object]) -> float:
        """How many times as many packets the first tap's counter sees with something done as without; a median."""
        ratios = []
        for _ in range(ROUNDS):
            undo()
            without = self._rate()
            redo()
            ratios.append(self._rate() / without)
        return statistics.median(ratios)

    def _rate(self) -> float:
        name = self.taps[0].name
        began, before = time.monotonic(), device_counters(name)["rx_packets"]
        self._pass(SLICE)
        return (device_counters(name)["rx_packets"] - before) / (time.monotonic() - began)

    def _devices(self) -> dict[str, int]:
        return {each.name: device_counters(each.name)["rx_packets"] for each in self.taps}

    def _pass(self, seconds: float) -> list[Reading]:
        until, seen = time.monotonic() + seconds, []
        for reading in self._readings:
            seen.append(reading)
            if reading.tap == self.taps[-1].name and time.monotonic() >= until:
                break
        return seen


def _packets(readings: list[Reading], verdict: Verdict) -> int:
    return sum(count(reading.where(OUT, verdict)).packets for reading in readings)


def play(folder: Path) -> Iterator[Step]:
    """Each step once it has been seen. folder: to be made, of a capture of the first two: in the others it would take
    of the processor whose use they tell of.
    """
    with _stage() as stage:
        with _captured(folder):
            yield _both_limited(stage)
            wiped = _wiped(stage)
        yield wiped
        yield _one_stopped(stage)
        yield _policed_by_the_switch(stage)


def _both_limited(stage: Stage) -> Step:
    for each in stage.taps:
        _libvirt_policer(each.name)
    for flood in stage.floods:
        flood.start()
    return stage.look(
        Step(
            f"Two VMs, each limited to {RATE_KBIT / 1000:g} Mbit/s by libvirt; both are hacked and flood.",
            "The policer does its work. But a tap counts a packet as received before the policer sees it, so"
            " /proc/net/dev shows what the guest tried to send, not what passed.",
        )
    )


def _wiped(stage: Stage) -> Step:
    for each in stage.taps:
        fcntl.ioctl(each.fd, TUNSETOFFLOAD, TUN_F_CSUM)
    wait_until(lambda: not any(_is_policed(each.name) for each in stage.taps), ROOM)
    return stage.look(
        Step(
            "The guests' drivers switch an offload on, as they do at boot.",
            "The kernel tells of a changed link; on any such message Open vSwitch deletes what ingress qdisc it did"
            " not make on its port, and libvirt's policer with it. `virsh domiftune` still shows the limit: it"
            " answers from libvirt's memory. Nothing is limited.",
        )
    )


def _one_stopped(stage: Stage) -> Step:
    two = stage.floods[1].pid
    os.kill(two, signal.SIGSTOP)
    step = stage.look(
        Step(
            "One of the VMs is stopped.",
            "The other one rises: what held it back was the host's CPU, which it had to share, and no limit.",
        )
    )
    step.rise = stage.rise(lambda: os.kill(two, signal.SIGCONT), lambda: os.kill(two, signal.SIGSTOP))
    return step


def _policed_by_the_switch(stage: Stage) -> Step:
    one = stage.taps[0].name
    _switch_policer(one, RATE_KBIT)
    step = stage.look(
        Step(
            f"A Neutron QoS policy of {RATE_KBIT / 1000:g} Mbit/s is put on the port.",
            "What leaves falls to the limit. The tap's counter rises all the same: to drop a packet at once is less"
            " work than to forward it, so the guest gets to send more, and the counter counts what is dropped."
            f" (Fewer SYNs pass than under libvirt's limit: Open vSwitch's policer charges {OVS_CHARGED_SYN} bytes"
            f" for each, and not {CHARGED_SYN}.)",
        )
    )
    step.rise = stage.rise(lambda: _switch_policer(one, 0), lambda: _switch_policer(one, RATE_KBIT))
    return step


@contextmanager
def _captured(folder: Path) -> Iterator[None]:
    """What somebody on call would leave running: `vifprobe capture` of both taps, ended by SIGTERM."""
    command = (sys.executable, "-m", "vifprobe", "capture", *TAPS, "-d", f"{SECONDS}s", "-o", str(folder))
    with subprocess.Popen([*command, "--direction", "outbound", "--no-host"], stdout=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: (folder / "timeline.csv").exists() or process.poll() is not None, ROOM)
            if process.poll() is None:
                yield
            process.terminate()
            if process.wait(ROOM):
                raise RuntimeError(f"vifprobe capture ended with {process.returncode}, see above")
        finally:
            process.kill()


@contextmanager
def _stage() -> Iterator[Stage]:
    lab = Path(__file__).parent
    subprocess.run([lab / "start-ovs"], check=True)
    with ExitStack() as stack:
        _run("ovs-vsctl", "--may-exist", "add-br", BRIDGE)
        # A dummy would take packets for nothing; a line's card has work with each, and its host with it. Without IPv6,
        # or the two ends would say something of their own.
        _run("ip", "link", "add", UPLINK, "type", "veth", "peer", "name", FAR_END)
        stack.callback(_run, "ip", "link", "delete", UPLINK)
        for end in (UPLINK, FAR_END):
            Path(f"/proc/sys/net/ipv6/conf/{end}/disable_ipv6").write_text("1")
            set_link_up(end)
        _run("ovs-vsctl", "add-port", BRIDGE, UPLINK)
        stack.callback(_run, "ovs-vsctl", "--if-exists", "del-br", BRIDGE)
        taps = [stack.enter_context(tap(name, vnet_hdr=True)) for name in TAPS]
        for each in taps:
            _run("ovs-vsctl", "add-port", BRIDGE, each.name)
            _run("ovs-ofctl", "add-flow", BRIDGE, f"in_port={each.name},actions=output:{UPLINK}")
        # On one CPU, which they have to share, as busy guests of a node share its CPUs.
        cpu = min(os.sched_getaffinity(0))
        floods = [
            stack.enter_context(writer(each.fds, syn_flood_packets(each), count=10**9, seconds=SECONDS, cpu=cpu))
            for each in taps
        ]
        probe = stack.enter_context(Probe(*TAPS, directions=(OUT,)))
        yield Stage(taps, floods, probe)


def _libvirt_policer(device: str) -> None:
    """What virNetDevBandwidthSet runs (libvirt, src/util/virnetdevbandwidth.c)."""
    police = f"police rate {AVERAGE}kbps burst {BURST}kb mtu 64kb drop flowid :1"
    added = f"tc filter add dev {device} parent ffff: protocol all u32 match u32 0 0 {police}"
    for command in (f"tc qdisc add dev {device} ingress", added):
        _run(*command.split())


def _switch_policer(device: str, rate_kbit: int) -> None:
    """As Neutron's agent asks Open vSwitch for it; done when the kernel has it. rate_kbit: 0 for none."""
    options = (f"ingress_policing_rate={rate_kbit}", f"ingress_policing_burst={BURST * 8}")
    _run("ovs-vsctl", "set", "interface", device, *options)
    wait_until(lambda: _is_policed(device) == bool(rate_kbit), ROOM)


def _is_policed(device: str) -> bool:
    return "police" in _run("tc", "filter", "show", "dev", device, "parent", "ffff:", may_fail=True)


def _run(*command: str, may_fail: bool = False) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and not may_fail:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def tell(number: int, step: Step, say: Callable[[str], None]) -> None:
    """One step, for people."""
    say(f"\n{number}. {step.title}\n")
    say(f"   {'packets a second':<18}{'tap counter':>14}{'passed':>14}{'policed':>14}")
    for name, seen in step.taps.items():
        say(f"   {name:<18}{seen.device:>14,.0f}{seen.passed:>14,.0f}{seen.policed:>14,.0f}")
    left = step.uplink * CHARGED_SYN * 8 / 1e6
    say(f"   leave the host: {step.uplink:,.0f} packets/s, {left:.2f} Mbit/s as a policer counts them\n")
    if step.rise is not None:
        say(f"   {next(iter(step.taps))}: its counter sees {step.rise:.2f} times what it sees without that\n")
    for name, event in step.events:
        if event.kind in ("qdisc_del", "filter_new", "gap", "limit_gap"):
            who = f", by {event.by_words} (pid {event.by_pid})" if event.by_words else ""
            say(f"   {name}: {event.kind}: {event.detail}{who}")
    if step.patterns:
        say(f"   findings: {', '.join(sorted(step.patterns, key=lambda one: int(one[1:])))}")
    say(textwrap.fill(step.why, 110, initial_indent="   ", subsequent_indent="   "))


def tell_findings(capture: Capture, say: Callable[[str], None]) -> None:
    """What a capture concludes, for people."""
    for name, finding in capture.findings:
        say(textwrap.fill(f"{name}: {finding.pattern} {finding.title}", 110, subsequent_indent="      "))


def main() -> None:
    """Play and tell."""
    if not os.environ.get("VIFPROBE_VM"):
        sys.exit("incident: only in the guest of scripts/vm (scripts/incident starts it)")
    print(f"The incident at 1:2500, on kernel {os.uname().release}.", flush=True)
    folder = Path(os.environ.get("VIFPROBE_RESULTS", ".")) / "incident"
    for number, step in enumerate(play(folder), start=1):
        tell(number, step, lambda text: print(text, flush=True))
    print(f"\nWhat `vifprobe capture {' '.join(TAPS)}` found in steps 1 and 2, read alone:\n")
    tell_findings(load(folder), print)


if __name__ == "__main__":
    main()
