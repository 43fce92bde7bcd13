# SPDX-License-Identifier: Apache-2.0
"""Programs that decide packets before they are counted: said at once (P17), and what is missing is counted (P16)."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from ahead_kit import fighting, tcx_ahead, xdp
from probe_kit import FLOOD_SECONDS, SYN, Require, capturing, command, finish, watching

from vifprobe import Probe, load
from vifprobe.analysis.limit_state import answer_of
from vifprobe.host.net.links import find_link
from vifprobe.kernel.attach import has_tcx, load_empty
from vifprobe.kernel.tcx import NewLinks, program_holders, tcx_programs
from vifprobe.model.layout import Direction
from vifprobe.model.limits import LimitState, Traffic
from vifprobe.model.reading import Finding, Limit, Reading
from vifprobe.testing.net.links import veth_pair
from vifprobe.testing.net.macvtap import macvtap
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.traffic.flood import flood

OUT = Direction.OUTBOUND
COUNT = 10_007
PASS, DROP = 0, 2  # TCX_*
XDP_DROP, XDP_PASS = 1, 2
#: Declared in tests of what is said of a limit: nothing here comes near it.
LIMIT = {OUT: Limit(declared_bps=10_000_000_000)}
WAIT_SECONDS = 60.0

Made = Callable[[], AbstractContextManager[object]]


def p17(found: Reading, hook: str, direction: str = "outbound") -> Finding | None:
    return next((one for one in found.findings if one.id == f"P17-{direction}-{hook}"), None)


def traffic(reading: Reading) -> Traffic:
    """As the run decided it, and as it is decided where nobody declares or enforces a limit."""
    found = answer_of([reading], OUT, declared_known=True, installed_known=True)
    assert found.state is not LimitState.THERE
    assert reading.limit_state(OUT).state is not LimitState.THERE
    assert found.traffic is reading.limit_state(OUT).traffic
    return found.traffic


@contextmanager
def reading_until(probe: Probe, is_enough: Callable[[Reading], object]) -> Iterator[Reading]:
    """The first reading that is enough; the run goes on."""
    for reading in probe.readings(0.1, WAIT_SECONDS):
        if is_enough(reading):
            yield reading
            return
    pytest.fail("it was not said")


@pytest.mark.parametrize("mode", ["native", "generic", "link"])
def test_xdp_at_the_start(tap: Tap, mode: str) -> None:
    """Said in the first reading, with its name, and no limit is said to hold, not even that nothing is sent."""
    with xdp("xdp_pass", XDP_PASS, tap.ifindex, mode), Probe(tap.name, limits=LIMIT) as probe:
        first = next(iter(probe.readings(0.05, WAIT_SECONDS)))
        found = p17(first, "xdp")
        assert found is not None
        assert found.severity == "warning"
        assert "xdp_pass" in found.title
        assert found.evidence["programs"][0]["mode"] == ("generic" if mode == "generic" else "native")
        flood([tap.fd], [SYN], count=COUNT, seconds=FLOOD_SECONDS)
        total = finish(probe)
    assert total.total().packets == COUNT  # it let all of them pass
    assert total.totals[tap.name].missed == 0
    assert p17(total.totals[tap.name], "xdp") is not None
    assert traffic(total.totals[tap.name]) is Traffic.UNKNOWN


@pytest.mark.parametrize("mode", ["native", "generic", "link"])
def test_xdp_that_comes_and_goes(tap: Tap, mode: str) -> None:
    """Said by the reading after it, not said any more some seconds after it has gone; the totals still say it."""
    with Probe(tap.name, limits=LIMIT) as probe:
        readings = iter(probe.readings(0.1, WAIT_SECONDS))
        assert p17(next(readings), "xdp") is None
        with xdp("xdp_drop", XDP_DROP, tap.ifindex, mode):
            came_ns = time.monotonic_ns()
            assert any(p17(reading, "xdp") for reading in readings)
            late_ns = time.monotonic_ns() - came_ns
        assert any(p17(reading, "xdp") is None for reading in readings)
        probe.stop()
        *_, final = readings
        events = [event.detail for _, event in probe.take_events()]
    assert late_ns < 20e9  # a second at most on a machine that is idle
    found = p17(final, "xdp")
    assert found is not None
    if mode != "link":  # of those netlink tells nothing
        assert any(detail.startswith(f"xdp none -> {mode} (program id ") for detail in events), events
        assert any(detail.endswith("-> none") and "xdp" in detail for detail in events), events


def test_what_generic_xdp_drops_is_missed(tap: Tap) -> None:
    """tun counts it as received: it is missing at the hook, and that is a proof."""
    with xdp("xdp_drop", XDP_DROP, tap.ifindex, "generic"), Probe(tap.name) as probe:
        readings = iter(probe.readings(0.1, WAIT_SECONDS))
        # Two looks at the device before, two behind it; packets in between.
        sent, missed = 0, 0
        for reading in readings:
            sent += flood([tap.fd], [SYN], count=1009, seconds=FLOOD_SECONDS).frames
            missed += reading.missed
            if (found := p17(reading, "xdp")) and found.severity == "critical":
                break
        probe.stop()
        *_, final = readings
    assert 0 < final.missed <= sent
    assert final.missed_in == {OUT: final.missed, Direction.INBOUND: 0}
    assert final.missed >= missed
    assert {one.pattern for one in final.findings} >= {"P16", "P17"}
    found = p17(final, "xdp")
    assert found is not None
    assert found.severity == "critical"
    assert found.evidence["unseen_packets"] == final.missed


def test_two_that_both_want_to_be_first(tap: Tap, require: Require) -> None:
    """vifprobe gives in after a few times, at little cost, says so, and counts what it can't see."""
    require("kernel", has_tcx(tap.ifindex), "tcx")
    with Probe(tap.name, limits=LIMIT) as probe:
        readings = iter(probe.readings(0.25, 2 * WAIT_SECONDS))
        next(readings)
        with fighting("fighter", DROP, tap.ifindex):
            given_in = next(reading for reading in readings if len(probe.gaps) == 9)
            begun, begun_ns = resource.getrusage(resource.RUSAGE_SELF), time.monotonic_ns()
            for reading in readings:
                flood([tap.fd], [SYN], count=503, seconds=FLOOD_SECONDS)
                if reading.missed and p17(reading, "tcx"):
                    break
            ended, seconds = resource.getrusage(resource.RUSAGE_SELF), (time.monotonic_ns() - begun_ns) / 1e9
            assert len(probe.gaps) == 9
            assert probe.gaps[-1].end_ns is None
            assert not tcx_programs(tap.ifindex, ingress=True)[0].own
        probe.stop()
        *_, final = readings
    assert p17(given_in, "tcx") is not None
    used = ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime
    assert used < max(1.0, 0.5 * seconds), (used, seconds)
    found = p17(final, "tcx")
    assert found is not None
    assert found.severity == "critical"
    assert final.missed > 0
    assert "fighter" in found.title
    assert traffic(final) is Traffic.UNKNOWN


def test_all_is_seen_again_once_the_other_has_gone(tap: Tap, require: Require) -> None:
    """The gap is over then."""
    require("kernel", has_tcx(tap.ifindex), "tcx")
    with Probe(tap.name) as probe:
        readings = iter(probe.readings(0.25, 2 * WAIT_SECONDS))
        with fighting("fighter", PASS, tap.ifindex):
            next(reading for reading in readings if len(probe.gaps) == 9 and probe.gaps[-1].end_ns is None)
        next(reading for reading in readings if probe.gaps[-1].end_ns is not None)
        flood([tap.fd], [SYN], count=COUNT, seconds=FLOOD_SECONDS)
        probe.stop()
        *_, final = readings
    assert final.offered(OUT).packets == COUNT


def test_the_egress_of_a_macvtap(netns: Netns, require: Require) -> None:
    """What its guest sends passes there."""
    with veth_pair("up0", "up1"), macvtap("macvtap0", "up0") as guest:
        require("kernel", has_tcx(guest.ifindex), "tcx")
        with Probe(guest.name) as probe, tcx_ahead("stranger", PASS, guest.ifindex, ingress=False):
            with reading_until(probe, lambda reading: p17(reading, "tcx")) as reading:
                found = p17(reading, "tcx")
            gaps = probe.gaps
    assert found is not None
    assert "stranger" in found.title
    assert [gap.direction for gap in gaps] == [OUT]


def test_watch_names_who_holds_it_and_fails_on_it(tap: Tap, tmp_path: Path) -> None:
    with xdp("xdp_pass", XDP_PASS, tap.ifindex, "link"):
        ids = [one.id for one in find_link(tap.name).xdp]
        with watching(tmp_path, "--fail-on", "warning") as run:
            printed = run.end(code=3)
        with command("watch", "tap0", "--duration", "200ms", "--fail-on", "critical", folder=tmp_path) as run:
            run.ended(code=0)
    *_, final = map(json.loads, printed.splitlines())
    (found,) = [one for one in final["findings"] if one["pattern"] == "P17"]
    assert found["severity"] == "warning"
    name = Path("/proc/self/comm").read_text().strip()
    assert found["title"].endswith(f"the native xdp program xdp_pass (id {ids[0]}) of {name} (pid {os.getpid()})")


def test_a_capture_keeps_it(tap: Tap, tmp_path: Path) -> None:
    with capturing(tmp_path) as run, xdp("xdp_pass", XDP_PASS, tap.ifindex, "native"):
        events = tmp_path / "capture" / "events.csv"
        run.wait_for(lambda: events.exists() and "xdp none -> native" in events.read_text())
        run.end()
    findings = json.loads((tmp_path / "capture" / "findings.json").read_text())
    (found,) = [one for one in findings if one["pattern"] == "P17"]
    assert found["evidence"]["hook"] == "xdp"
    assert "bpftool net show dev tap0" in found["advice"]
    assert [one.rpartition(" (pid ")[2] for one in found["evidence"]["programs"][0]["held_by"]] == [f"{os.getpid()})"]
    loaded = load(tmp_path / "capture").reading()
    assert p17(loaded, "xdp") is not None


def test_holders_are_looked_for_in_bounded_time() -> None:
    fd = load_empty()
    try:
        begun = time.monotonic()
        assert program_holders([0x7FFFFFFF], seconds=0.05) == {}
        assert time.monotonic() - begun < 5
    finally:
        os.close(fd)


def test_new_links_are_seen_once(tap: Tap) -> None:
    """Other tests and tools may make links meanwhile: it is new at least once after ours."""
    links = NewLinks()
    with xdp("xdp_pass", XDP_PASS, tap.ifindex, "link"):
        assert links.is_new()
