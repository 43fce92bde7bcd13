# SPDX-License-Identifier: Apache-2.0
"""The kernel's counters of an interface's packets, and what each of them counts, to compare a probe's counts with.

Directions are those of a tap, whose ingress is outbound; those of other devices are translated at the end
(vifprobe.model.ports).

| counter | counts |
|---|---|
| device rx_packets, rx_bytes | all received packets, dropped later or not (tun counts them after it hands them over) |
| device rx_dropped | refused by the driver, or taken by no protocol after tc |
| device tx_packets, tx_bytes | read by the guest from the tap's ring |
| device tx_dropped | not taken by the tap's driver: the ring was full |
| tc ingress ... | seen and dropped at tc ingress while a filter is there, by any filter |
| tc police ... | offered to one police action, and dropped by it |
| tc root packets, bytes | sent by the egress queueing tree, to the driver: a GSO frame as its segments, or none of it |
| tc root drops | dropped by that tree, by all its parts |
| tc root backlog | queued there now: a gauge |
| tc root packets + drops + backlog | all packets that arrived there |
| tc class ... | the same of one class of it |
| nft drops ... | dropped by all rules of the chains hooked on the interface |
| policer drops | received packets that tc's policers and nft dropped, in total |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum

from vifprobe.host.limits import Installed, installed_of
from vifprobe.host.net.links import Link, LinkCounters, list_links_and_counters
from vifprobe.host.tc.records import Stats
from vifprobe.model.layout import Direction
from vifprobe.model.limits import InstalledLimit
from vifprobe.model.ports import turned


class CounterMeaning(Enum):
    """Packets that a counter counts, in a probe's terms.

    - OFFERED, PASSED, POLICED, DROPPED: as a probe's verdicts. Inbound: PASSED are packets read by the guest, POLICED
      those dropped by the queueing tree, DROPPED those dropped by the driver.
    - SENT: handed to the driver.
    - ARRIVED: came to the queueing tree.
    - QUEUED: in the queueing tree now, a gauge.
    - PART: only a part of these, or packets that a probe does not count.
    """

    OFFERED = "offered"
    PASSED = "passed"
    POLICED = "policed"
    DROPPED = "dropped"
    SENT = "sent"
    ARRIVED = "arrived"
    QUEUED = "queued"
    PART = "part"


class Unit(Enum):
    """Unit of a counter.

    - PACKETS: packets.
    - FRAME_BYTES: of a device, with the outer VLAN tag, which the kernel removes before tc ingress.
    - CHARGED_BYTES: without the L2 header at ingress.
    - LENGTH_BYTES: the same, where a policer charges more than that: its statistics have the length.
    """

    PACKETS = "packets"
    FRAME_BYTES = "frame_bytes"
    CHARGED_BYTES = "charged_bytes"
    LENGTH_BYTES = "length_bytes"


@dataclass(frozen=True)
class CounterSample:
    """One counter at one moment.

    - counter: name with its source, unique on the interface and the same in each read.
    - direction, counts, unit: of the counted packets.
    - value: of the counter.
    - bits: the counter wraps at 2**bits.
    - shared: the counter includes packets of other interfaces.
    - slack: maximum difference from the counted packets, in `unit`: packets between the driver and the guest.
    """

    counter: str
    direction: Direction
    counts: CounterMeaning
    unit: Unit
    value: int
    bits: int = 64
    shared: bool = False
    slack: int = 0


#: Packets that vhost takes from the ring at once (drivers/vhost/net.c, VHOST_NET_BATCH); longest frame with its tag.
_VHOST_BATCH = 64
_FRAME_BYTES_MAX = 65_535 + 18
#: Kinds whose drivers count what they receive before GRO merges it (net/core/gro.c, dev_gro_receive): network cards,
#: and veth with NAPI (drivers/net/veth.c, veth_poll).
_MERGING = ("ethernet", "veth")
#: Qdiscs with a class for each queue of the device, hundreds of them. The queue of a packet is unknown, and the root
#: has the sum of all (net/sched/sch_mq.c, mq_dump_common; sch_mqprio.c, mqprio_dump).
_QUEUE_EACH = ("mq", "mqprio")


def read_counters_of(
    links: Iterable[Link], previous: dict[int, tuple[CounterSample, ...]] | None = None
) -> dict[int, tuple[CounterSample, ...]]:
    """Return ifindex -> counters of many interfaces, from the same few dumps. Raises HostError.

    previous: result of the last call, to follow counters that wrap; None for none.
    """
    links = list(links)
    devices = {link.ifindex: (link, counters) for link, counters in list_links_and_counters()}
    limits = installed_of(links)
    found = {}
    for link in links:
        own = limits[link.ifindex].as_of_a_tap()
        samples = (*_device(*devices.get(link.ifindex, (link, None))), *_installed(own))
        growing = unwrapped(samples, (previous or {}).get(link.ifindex, ()))
        every = (*growing, *_total(own, growing), *_arrived(own, growing))
        found[link.ifindex] = tuple(replace(one, direction=turned(link.kind, one.direction)) for one in every)
    return found


def unwrapped(samples: Iterable[CounterSample], previous: Iterable[CounterSample]) -> tuple[CounterSample, ...]:
    """Return the samples with 2**bits added for each wrap of a counter since `previous`.

    A value that fell from the upper half of its range to the lower one has wrapped. Another value that fell belongs to
    a new object, and stays unchanged.
    """
    before = {sample.counter: sample.value for sample in previous}
    return tuple(_unwrapped(sample, before.get(sample.counter, 0)) for sample in samples)


def _unwrapped(sample: CounterSample, before: int) -> CounterSample:
    turn = 1 << sample.bits
    turns, rest = divmod(before, turn)
    if rest >= turn // 2 > sample.value:
        turns += 1
    elif sample.value < rest:
        turns = 0
    return replace(sample, value=sample.value + turns * turn)


def _device(link: Link, counters: LinkCounters | None) -> Iterator[CounterSample]:
    if counters is None:
        return
    out, into = Direction.OUTBOUND, Direction.INBOUND
    # Other drivers count after sending: the number of packets that they hold is unknown.
    passed, dropped = (
        (CounterMeaning.PASSED, CounterMeaning.DROPPED)
        if link.kind in ("tap", "tun")
        else (CounterMeaning.PART, CounterMeaning.PART)
    )
    ring = (link.tx_queue_length + _VHOST_BATCH) * link.tx_queues
    packets, frame_bytes = Unit.PACKETS, Unit.FRAME_BYTES
    offered = CounterMeaning.PART if link.kind in _MERGING else CounterMeaning.OFFERED
    yield CounterSample("device rx_packets", out, offered, packets, counters.rx_packets)
    yield CounterSample("device rx_bytes", out, offered, frame_bytes, counters.rx_bytes)
    yield CounterSample("device rx_dropped", out, CounterMeaning.PART, packets, counters.rx_dropped)
    yield CounterSample("device tx_packets", into, passed, packets, counters.tx_packets, slack=ring)
    in_ring = ring * _FRAME_BYTES_MAX
    yield CounterSample("device tx_bytes", into, passed, frame_bytes, counters.tx_bytes, slack=in_ring)
    yield CounterSample("device tx_dropped", into, dropped, packets, counters.tx_dropped)


def _installed(found: Installed) -> Iterator[CounterSample]:
    nft_hooks = {chain.hook for chain in found.nft.chains}
    police = [limit for limit in found.limits if limit.kind == "police"]
    # Only where a single place drops received packets, its count is that of all policed packets.
    places = len([limit for limit in police if limit.direction is Direction.OUTBOUND]) + ("ingress" in nft_hooks)
    whole = CounterMeaning.POLICED if places == 1 else CounterMeaning.PART
    yield from _ingress(found, CounterMeaning.PART if "ingress" in nft_hooks else CounterMeaning.POLICED)
    yield from _root(found)
    for limit in police:
        yield from _police(found, limit, whole)
    if "ingress" in nft_hooks:
        yield from _nft(found, "ingress", Direction.OUTBOUND, whole)
    if "egress" in nft_hooks:
        yield from _nft(found, "egress", Direction.INBOUND, CounterMeaning.PART)


def _ingress(found: Installed, drops: CounterMeaning) -> Iterator[CounterSample]:
    qdisc, out = found.tc.ingress, Direction.OUTBOUND
    # clsact counts both directions together: the count of one direction can't be compared with it.
    if qdisc is None or qdisc.kind != "ingress":
        return
    yield from _sample("tc ingress bytes", out, CounterMeaning.PART, Unit.CHARGED_BYTES, qdisc.stats.bytes)
    yield from _sample("tc ingress packets", out, CounterMeaning.PART, Unit.PACKETS, qdisc.stats.packets)
    yield from _sample("tc ingress drops", out, drops, Unit.PACKETS, qdisc.stats.drops, 32)


def _root(found: Installed) -> Iterator[CounterSample]:
    qdisc = found.tc.root
    if qdisc is None or qdisc.kind in ("noqueue", "noop"):
        return
    # With a size table, charged bytes differ from the length.
    sized = any(one.size_table for one in found.tc.qdiscs)
    yield from _queue("tc root", qdisc.stats, sized, is_all=True)
    if qdisc.kind in _QUEUE_EACH:
        return
    # HTB's only class, to which all unclassified packets go: it counts the same packets as the root.
    alone = len(found.tc.classes) == 1 and qdisc.default_class == found.tc.classes[0].handle
    for one in found.tc.classes:
        yield from _queue(f"tc class {one.handle}", one.stats, sized, is_all=alone)


def _queue(name: str, stats: Stats, sized: bool, is_all: bool) -> Iterator[CounterSample]:
    into = Direction.INBOUND
    sent, policed = (
        (CounterMeaning.SENT, CounterMeaning.POLICED) if is_all else (CounterMeaning.PART, CounterMeaning.PART)
    )
    counted = CounterMeaning.PART if sized else sent
    yield from _sample(f"{name} bytes", into, counted, Unit.CHARGED_BYTES, stats.bytes)
    yield from _sample(f"{name} packets", into, sent, Unit.PACKETS, stats.packets)
    yield from _sample(f"{name} drops", into, policed, Unit.PACKETS, stats.drops, 32)
    if is_all:
        yield from _sample(f"{name} backlog", into, CounterMeaning.QUEUED, Unit.PACKETS, stats.queue_packets)


def _police(found: Installed, limit: InstalledLimit, drops: CounterMeaning) -> Iterator[CounterSample]:
    ahead = next(iter(at.where for at in found.tc.filters if at.hook == "ingress"), "")
    takes_all = limit.matches_all and limit.protocol == "all" and limit.where.startswith(f"{ahead} ")
    counts = CounterMeaning.PART if limit.shared or limit.direction is Direction.INBOUND else drops
    offered = CounterMeaning.OFFERED if takes_all and limit.direction is Direction.OUTBOUND else CounterMeaning.PART
    for name, counted, unit, value, bits in (
        ("drops", counts, Unit.PACKETS, limit.drops, 32),
        ("packets", CounterMeaning.PART, Unit.PACKETS, limit.packets, 64),  # a guest's GSO frame is 0 packets here
        ("bytes", CounterMeaning.PART if limit.shared else offered, _bytes_unit(found), limit.bytes, 64),
    ):
        counter = f"tc police {name}: {limit.where}"
        yield from _sample(counter, limit.direction, counted, unit, value, bits, limit.shared)


def _bytes_unit(found: Installed) -> Unit:
    """Return the unit of statistics: act_police and nft count the length, without the bucket's overhead and mpu."""
    main = found.main(Direction.OUTBOUND)
    return Unit.LENGTH_BYTES if main is not None and (main.overhead_bytes or main.mpu_bytes) else Unit.CHARGED_BYTES


def _nft(found: Installed, hook: str, direction: Direction, counts: CounterMeaning) -> Iterator[CounterSample]:
    drops = found.nft.drops(hook)
    if drops is None:
        return
    counts = CounterMeaning.PART if drops.shared else counts
    for name, unit, value in (("packets", Unit.PACKETS, drops.packets), ("bytes", _bytes_unit(found), drops.bytes)):
        yield from _sample(f"nft drops {name}: {hook}", direction, counts, unit, value, shared=drops.shared)


def _total(found: Installed, samples: Iterable[CounterSample]) -> Iterator[CounterSample]:
    """Yield the drops of all policers of received packets, where there are several and each one counts its drops."""
    drops = [
        one
        for one in samples
        if one.direction is Direction.OUTBOUND
        and one.unit is Unit.PACKETS
        and one.counter.startswith(("tc police drops", "nft drops"))
    ]
    nft_is_silent = found.nft.drops("ingress") is None
    if len(drops) < 2 or nft_is_silent or any(one.shared for one in drops):
        return
    total = sum(one.value for one in drops)
    yield CounterSample("policer drops", Direction.OUTBOUND, CounterMeaning.POLICED, Unit.PACKETS, total)


def _arrived(found: Installed, samples: Iterable[CounterSample]) -> Iterator[CounterSample]:
    """Yield the number of packets that arrived at the root: sent, dropped and queued ones.

    Copies that a queue makes are counted only when they leave it.
    """
    parts = {one.counter: one.value for one in samples if one.counter.startswith("tc root ")}
    names = [f"tc root {name}" for name in ("packets", "drops", "backlog")]
    if parts.keys() >= set(names):
        total = sum(parts[name] for name in names)
        name = "tc root packets + drops + backlog"
        counts = CounterMeaning.PART if any(one.copies for one in found.tc.qdiscs) else CounterMeaning.ARRIVED
        yield CounterSample(name, Direction.INBOUND, counts, Unit.PACKETS, total)


def _sample(
    counter: str,
    direction: Direction,
    counts: CounterMeaning,
    unit: Unit,
    value: int | None,
    bits: int = 64,
    shared: bool = False,
) -> Iterator[CounterSample]:
    if value is not None:
        yield CounterSample(counter, direction, counts, unit, value, bits, shared)
