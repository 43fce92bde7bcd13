# SPDX-License-Identifier: Apache-2.0
"""A frame that a bridge sends to several ports has passed if one copy was sent; a copy's loss is that of its port.

The last port gets the skb itself, all others get clones. The order of ports decides which loses what.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from inbound_kit import guest
from probe_kit import FIRST_CPU, FLOOD_SECONDS, KERNEL, OUT, SYN, Require, Watched, watch_flood

from vifprobe import Probe
from vifprobe.kernel.features import read_features
from vifprobe.model.layout import Verdict
from vifprobe.model.reading import LostAt
from vifprobe.render.context import losses
from vifprobe.testing.net.links import bridge_with
from vifprobe.testing.net.taps import Tap, device_counters
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.traffic.flood import writer

COUNT = 2_003 if KERNEL else 20_011
RING, LONGER = 503, 701  # what fits into the rings of the hung taps
#: Else only the skb itself is named, not clones.
NAMES_CLONES = read_features().has_drop_reason
BROADCAST = b"\xff" * 6 + SYN[6:]


@dataclass
class Port:
    """A further port: `read` by a guest, or hung behind a ring of this length."""

    name: str
    ring: int = 0
    tap: Tap | None = None
    got: int = 0


def lengthen(name: str, packets: int) -> None:
    subprocess.run(["ip", "link", "set", name, "txqueuelen", str(packets)], check=True)


def run(tap: Tap, ports: Sequence[Port], frame: bytes = SYN, before: str = "") -> Watched:
    """COUNT frames to all ports, which are added to the bridge in this order; before: a shell line."""
    with ExitStack() as stack:
        for port in ports:
            port.tap = stack.enter_context(make_tap(port.name))
            lengthen(port.name, port.ring or 2 * COUNT)
        stack.enter_context(bridge_with(tap, *(port.tap for port in ports if port.tap)))
        subprocess.run(before, shell=True, check=True)  # noqa: S602 - a fixed line
        with ExitStack() as reading:
            guests = {port.name: reading.enter_context(guest(port.tap)) for port in ports if port.tap and not port.ring}
            flooding = stack.enter_context(writer([tap.fd], [frame], count=COUNT, seconds=FLOOD_SECONDS, cpu=FIRST_CPU))
            probe = stack.enter_context(Probe(tap.name))
            found = watch_flood(probe, [flooding])
        for port in ports:
            port.got = guests[port.name].packets if port.name in guests else COUNT - lost(port)
    assert found.total().packets == COUNT
    return found


def lost(port: Port) -> int:
    """As the device itself counted."""
    return device_counters(port.name)["tx_dropped"]


def of(found: Watched) -> dict[str, tuple[int, int]]:
    """Packets lost by device: dropped, copies."""
    return {one.device: (one.dropped, one.copies) for one in found.totals["tap0"].lost_at}


#: The guest behind `read` reads; `hung` and `longer` are rings that nobody reads.
ORDERS = [
    ("read", "hung"),
    ("hung", "read"),
    ("hung", "read", "longer"),
    ("longer", "hung", "read"),
    ("read", "longer", "hung"),
]
PORTS = {"read": 0, "hung": RING, "longer": LONGER}


@pytest.mark.parametrize("frame", [SYN, BROADCAST], ids=["unknown", "broadcast"])
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_passed_if_one_copy_was_sent(tap: Tap, order: tuple[str, ...], frame: bytes) -> None:
    """The guest that reads got all; each loss is named with its device, and with the count of the device."""
    ports = [Port(name, PORTS[name]) for name in order]
    found = run(tap, ports, frame)
    assert found.total(Verdict.PASSED).packets == COUNT == next(port.got for port in ports if not port.ring)
    if not NAMES_CLONES:
        return
    assert of(found) == {port.name: (0, COUNT - port.ring) for port in ports if port.ring}
    notes = found.totals["tap0"].notes
    assert any(f"{COUNT - RING:,} copies" in note and "hung, whose ring is full" in note for note in notes), notes


@pytest.mark.parametrize("order", [("hung", "longer"), ("longer", "hung")], ids="-".join)
def test_dropped_if_no_copy_was_sent(tap: Tap, order: tuple[str, ...]) -> None:
    """As many pass as fit into the longer ring."""
    ports = [Port(name, PORTS[name]) for name in order]
    found = run(tap, ports)
    assert found.total(Verdict.PASSED).packets == LONGER
    assert found.total(Verdict.DROPPED).packets == COUNT - LONGER
    assert sum(port.got for port in ports) == RING + LONGER
    if not NAMES_CLONES:
        return
    by_device = of(found)
    assert {name: sum(counts) for name, counts in by_device.items()} == {p.name: COUNT - p.ring for p in ports}
    assert sum(dropped for dropped, _ in by_device.values()) == COUNT - LONGER


def test_a_copy_in_a_queue_was_sent(tap: Tap) -> None:
    """The guest behind a shaper gets it later; `hung`, added first, has the skb itself."""
    shaped = "tc qdisc add dev read root tbf rate 8kbit burst 2000 limit 100000000"
    found = run(tap, [Port("hung", RING), Port("read", 0)], before=shaped)
    assert found.total(Verdict.PASSED).packets == COUNT
    assert of(found) == {"hung": (0, COUNT - RING)}


def test_the_device_is_named_where_there_is_one_port(tap: Tap, require: Require) -> None:
    """No copy: the packets are dropped there, and the words say where."""
    require("kernel", NAMES_CLONES, "drop reasons")
    found = run(tap, [Port("hung", RING)])
    total = found.totals["tap0"]
    assert found.total(Verdict.DROPPED).packets == COUNT - RING
    assert [one[:1] + one[2:] for one in total.lost_at] == [("hung", COUNT - RING, 0)]
    (loss,) = losses(total, OUT, Verdict.DROPPED, {total.lost_at[0].reason: "FULL_RING"})
    assert loss.words == "the ring of hung is full: its guest reads too slowly"


def test_the_queue_of_a_device_is_named(tap: Tap, require: Require) -> None:
    """A qdisc that is full."""
    require("kernel", read_features().qdisc_reasons, "drop reasons of qdiscs")
    found = run(tap, [Port("read", 0)], before="tc qdisc add dev read root tbf rate 8kbit burst 2000 limit 4000")
    (loss,) = found.totals["tap0"].lost_at
    assert isinstance(loss, LostAt)
    assert loss.device == "read"
    assert loss.dropped == found.total(Verdict.DROPPED).packets > 0
    assert loss.copies == 0
