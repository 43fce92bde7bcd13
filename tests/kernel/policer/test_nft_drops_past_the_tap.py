# SPDX-License-Identifier: Apache-2.0
"""A flood of mixed classes through a limit past the tap: the rule's own counters, and a device behind that counts."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from host_fixtures import can, run
from host_reading import link_counters
from probe_kit import FLOOD_SECONDS, KERNEL, watch_flood

from vifprobe import Probe
from vifprobe.host.declared import declared_of
from vifprobe.host.net.links import find_link
from vifprobe.model.layout import Direction, PacketClass, Verdict
from vifprobe.model.limits import LimitState
from vifprobe.model.reading import Limit, Reading, count
from vifprobe.session.audit import auditor
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.packets import frames as f
from vifprobe.testing.packets.frames import EtherType, TcpFlag
from vifprobe.testing.traffic.flood import writer
from vifprobe.testing.traffic.scenario import forwarded

Require = Callable[[str, object, str], None]
OUT = Direction.OUTBOUND
COUNT = 10_007
#: A mix whose frames have the same rank in each round; none of them makes a bridge answer.
FRAMES = [
    f.eth(f.ipv4(f.udp(bytes(19))), EtherType.IPV4),
    f.eth(f.ipv6(f.udp(bytes(19))), EtherType.IPV6),
    f.eth(f.ipv4(f.tcp(TcpFlag.SYN, destination_port=80)), EtherType.IPV4),
    f.eth(f.ipv4(f.tcp(TcpFlag.ACK, bytes(641))), EtherType.IPV4),
    f.pad(f.eth(f.arp(), EtherType.ARP)),
]
OVER, UNDER = "limit rate over 20000 bytes/second", "limit rate 20000 bytes/second"
RULES = {
    "bridge": ("bridge", "forward", f'iifname "tap0" {OVER} counter name policed drop\ncounter name passed'),
    "bridge prerouting": ("bridge", "prerouting", f"{OVER} counter name policed drop\ncounter name passed"),
    "accept and drop": (
        "bridge",
        "forward",
        f'iifname "tap0" {UNDER} counter name passed accept\niifname "tap0" counter name policed drop',
    ),
    "verdict map": ("bridge", "forward", "iifname vmap { tap0 : jump mine }"),
    "meter": (
        "bridge",
        "forward",
        f'iifname "tap0" add @m {{ ether saddr {OVER} }} counter name policed drop\ncounter name passed',
    ),
    "quota": (
        "bridge",
        "forward",
        'iifname "tap0" quota over 50000 bytes counter name policed drop\ncounter name passed',
    ),
}
HEAD = (
    "counter policed { }\ncounter passed { }\nset m {\ntype ether_addr\nsize 4096\nflags dynamic\n}\n"
    f"chain mine {{\n{OVER} counter name policed drop\ncounter name passed\n}}"
)
#: Of these a rate for all of the tap's packets is known.
WHOLE = ("bridge", "bridge prerouting", "accept and drop", "verdict map")


def counted(family: str, name: str) -> int:
    (found,) = [
        item["counter"]["packets"]
        for item in json.loads(run(f"nft -j list counter {family} t {name}"))["nftables"]
        if "counter" in item
    ]
    return int(found)


def arrived() -> int:
    """Packets that came to the device behind the bridge: a dummy sends them, an ifb drops what nobody redirected."""
    counters = link_counters(find_link("uplink").ifindex)
    return counters.tx_packets + counters.rx_dropped


@pytest.fixture
def quiet(netns: Netns) -> None:
    """No bridge of this namespace has anything to say of its own."""
    for name in ("all", "default"):
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")


@pytest.fixture(autouse=True)
def nobody_else_declares(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a libvirt nor an Open vSwitch of this host has a say."""
    away = functools.partial(declared_of, libvirt_directory=tmp_path / "no", ovs_sockets=(tmp_path / "no",))
    monkeypatch.setattr(auditor, "declared_of", away)


def calls_iptables() -> bool:
    """Have br_netfilter hand the bridge's IPv4 packets to the IP stack's chains."""
    setting = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    if setting.exists() or can("modprobe br_netfilter"):
        setting.write_text("1")
    return setting.exists()


def flooded(tap: Tap) -> tuple[Reading, int, dict[str, int]]:
    """The totals of a flood through the bridge, the packets that came out, and the drops by reason."""
    before = arrived()
    limits = {OUT: Limit(declared_bps=80_000_000)}
    with (
        writer(tap.fds, FRAMES, count=COUNT, seconds=FLOOD_SECONDS) as flood,
        Probe(tap.name, limits=limits) as probe,
    ):
        totals = watch_flood(probe, [flood]).totals["tap0"]
        reasons = probe.features.reasons
    dropped = totals.where(OUT, Verdict.DROPPED)
    codes = set(dropped["reason"].tolist())
    by_reason = {reasons.get(code, ""): count(dropped[dropped["reason"] == code]).packets for code in codes}
    return totals, arrived() - before, by_reason


def check(totals: Reading, came_out: int, by_reason: dict[str, int], policed: int) -> None:
    """Each packet is dropped or passed as the rule's counters and the device behind say, and P1 is not raised."""
    assert sum(by_reason.values()) == policed > COUNT // 2
    if not KERNEL:  # older ones give no reason
        assert set(by_reason) == {"NETFILTER_DROP"}
    assert count(totals.where(OUT, Verdict.PASSED)).packets == came_out == COUNT - policed
    assert totals.offered(OUT, PacketClass.ARP).packets == COUNT // len(FRAMES)
    assert "P1" not in {finding.pattern for finding in totals.findings}


@pytest.mark.parametrize("which", RULES)
def test_a_limit_past_the_tap_under_a_flood(quiet: None, tap: Tap, which: str, require: Require) -> None:
    family, hook, rules = RULES[which]
    with forwarded(tap):
        chain = f"{HEAD}\nchain c {{\ntype filter hook {hook} priority -200\n{rules}\n}}"
        try:
            run("nft -f -", text=f"table {family} t {{\n{chain}\n}}\n")
        except AssertionError as error:
            require("kernel", False, f"nft tables of family {family}: {error}")
        totals, came_out, by_reason = flooded(tap)
        policed, passed = counted(family, "policed"), counted(family, "passed")
    assert policed + passed == COUNT
    check(totals, came_out, by_reason, policed)
    assert totals.limit_state(OUT).state is (LimitState.ELSEWHERE if which in WHOLE else LimitState.UNKNOWN)


@pytest.mark.parametrize("tool", ["iptables-nft", "iptables-legacy"])
def test_hashlimit_of_iptables_under_a_flood(quiet: None, tap: Tap, tool: str, require: Require) -> None:
    """IPv4 alone comes to it: what is not IPv4 passes, and the limit is unknown, with the command that shows it."""
    require("tools", shutil.which(tool), tool)
    rule = (
        "-m physdev --physdev-in tap0 -m hashlimit --hashlimit-above 5/min --hashlimit-name probe --hashlimit-burst 3"
    )
    with forwarded(tap):
        require("kernel", calls_iptables(), "br_netfilter")
        require("kernel", can(f"{tool} -A FORWARD {rule} -j DROP"), f"{tool} with hashlimit")
        totals, came_out, by_reason = flooded(tap)
        listed = [line.split() for line in run(f"{tool} -nvxL FORWARD").splitlines() if "limit:" in line]
        policed = int(listed[0][0])
    check(totals, came_out, by_reason, policed)
    assert totals.limit_state(OUT).state is LimitState.UNKNOWN


def test_a_chain_that_br_netfilter_takes_ip_packets_past(quiet: None, tap: Tap, require: Require) -> None:
    """Of priority 0 in the bridge's forward hook: before br_nf_forward_ip became br_nf_forward, no IP comes."""
    family, hook, rules = RULES["bridge"]
    with forwarded(tap):
        require("kernel", calls_iptables(), "br_netfilter")
        chain = f"{HEAD}\nchain c {{\ntype filter hook {hook} priority 0\n{rules}\n}}"
        run("nft -f -", text=f"table {family} t {{\n{chain}\n}}\n")
        totals, came_out, by_reason = flooded(tap)
        came = counted(family, "policed") + counted(family, "passed")
    assert sum(by_reason.values()) + came_out == COUNT
    assert totals.limit_state(OUT).state is (LimitState.ELSEWHERE if came == COUNT else LimitState.UNKNOWN)
