# SPDX-License-Identifier: Apache-2.0
"""Of one tap with one limit and one kind of traffic, `watch`, `capture` and `policer` say the same."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_kit import run

from vifprobe import load
from vifprobe.model.layout import Direction
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.traffic.flood import writer
from vifprobe.testing.traffic.scenario import syn_flood_packets

Require = Callable[[str, object, str], None]


@dataclass(frozen=True)
class Case:
    """A limit of the tap (None: no limit), the one that is declared, and the state that follows.

    add: command that sets the limit. rate: that is declared, "" for none.
    """

    state: str
    direction: str = "outbound"
    add: str = ""
    rate: str = "100kbit"
    needs: str = "nft"


def nft(rule: str) -> str:
    chain = "add chain netdev t c { type filter hook ingress device tap0 priority 0; }"
    return f"nft 'add table netdev t; {chain}; add rule netdev t c {rule}'"


def over(rate_bytes: int) -> str:
    return f"limit rate over {rate_bytes} bytes/second burst 4096 bytes counter drop"


def tbf(rate: str) -> str:
    return f"tc qdisc add dev tap0 root tbf rate {rate} burst 4kb latency 50ms"


CASES = {
    "there": Case("there", add=nft(over(12_500))),
    "differs": Case("differs", add=nft(over(100_000))),
    "holes": Case("holes", add=nft(f"meta protocol ip6 {over(12_500)}")),
    "absent": Case("absent"),
    "none": Case("none", rate=""),
    "undeclared": Case("undeclared", add=nft(over(12_500)), rate=""),
    "inbound there": Case("there", "inbound", tbf("100kbit"), needs="tc"),
    "inbound differs": Case("differs", "inbound", tbf("800kbit"), needs="tc"),
    "inbound absent": Case("absent", "inbound"),
    "inbound undeclared": Case("undeclared", "inbound", tbf("100kbit"), "", needs="tc"),
}


@contextmanager
def sending(tap: Tap) -> Iterator[None]:
    """A flood of SYNs of 640 kbit/s as a policer charges."""
    frames = syn_flood_packets(tap)
    with writer(tap.fds, frames, count=10**9, seconds=600, packets_per_second=2_000) as started:
        started.start()
        yield


def command(name: str, case: Case, *more: str) -> list[str]:
    declared = ["--rate", case.rate, "--burst", "4kb"] if case.rate else []
    return [name, "tap0", "--direction", case.direction, *declared, *more]


@pytest.mark.parametrize("name", CASES)
def test_all_commands_say_the_same(name: str, tap: Tap, tmp_path: Path, require: Require) -> None:
    case = CASES[name]
    if case.add:
        done = subprocess.run(shlex.split(case.add), capture_output=True, text=True, check=False)
        require(case.needs, done.returncode == 0, f"`{case.add}`: {done.stderr.strip()}")
    folder = tmp_path / "capture"
    with sending(tap):
        *_, total = run(*command("watch", case, "--duration", "1s", "--json")).objects
        audit = json.loads(run(*command("policer", case, "--duration", "1s", "--json")).out)[case.direction]
        assert run(*command("capture", case, "-d", "1s", "-o", str(folder))).code == 0
    limit = total[case.direction]["limit"]
    of_capture = load(folder).reading().limit_state(Direction[case.direction.upper()])
    assert limit["state"] == audit["state"] == of_capture.state.value == case.state
    if case.direction == "outbound":
        assert limit["traffic"] == audit["traffic"] == of_capture.traffic.value
        assert name not in ("there", "undeclared") or limit["traffic"] == "holds"
