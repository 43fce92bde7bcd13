# SPDX-License-Identifier: Apache-2.0
"""The measures of one direction's SYNs, from exact counts and from samples. docs/flood.md says what each one means."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vifprobe.analysis.flood.addresses import Knowledge, address, is_impossible
from vifprobe.analysis.flood.estimates import Groups, Spread, collisions, evenness, group, share
from vifprobe.analysis.flood.gaps import GapHistogram
from vifprobe.analysis.flood.habits import fingerprint_words, number_habit, sequence_habit
from vifprobe.model.flood import Estimate, Flood, Measure, Top
from vifprobe.model.layout import Direction, PacketClass, Verdict
from vifprobe.model.reading import Cells, count

Array = npt.NDArray[Any]
Named = Iterator[tuple[str, Measure]]

#: Keys listed of each kind.
TOP_KEYS = 10
#: Classes that acknowledge something: a handshake's last packet is one of them, sent by who sent the SYN.
_ACKNOWLEDGING = (PacketClass.TCP_ACK, PacketClass.TCP_DATA, PacketClass.TCP_FIN)


class Sampled(NamedTuple):
    """SYNs sampled in a span. weights: of `rows`. seen: how many samples came; lost: how many did not."""

    rows: Array
    weights: Array
    spread: Spread
    gaps: GapHistogram
    seen: int
    lost: int


def flood_of(
    direction: Direction,
    cells: Cells,
    duration_ns: int,
    directions: tuple[Direction, ...],
    sampled: Sampled,
    knowledge: Knowledge,
    kernel: Mapping[str, Measure],
) -> Flood:
    """Everything that is known. cells: exact counts of the span. kernel: what the kernel side measured itself."""
    measures = dict(_counted(direction, cells, duration_ns, directions))
    syns = int(measures["syn_packets"].value or 0)
    measures |= kernel
    measures["sampled_syn_packets"] = Measure(sampled.seen, "packets")
    measures["lost_samples"] = Measure(sampled.lost, "packets")
    if not len(sampled.rows) or not syns:
        return Flood(measures)
    spread = sampled.spread._replace(missing=max(sampled.spread.missing, _missing(sampled.spread, syns)))
    sampled = sampled._replace(spread=spread)
    keys = _keys(sampled)
    measures |= {name: found for name, found in _distinct(keys, sampled) if name not in measures}
    measures |= dict(_spread_out(keys, sampled, syns))
    measures |= dict(_habits(sampled))
    if direction is Direction.OUTBOUND:
        measures |= dict(_sources(sampled, knowledge))
    offered = sum(int(cells["packets"][row]) for row in np.flatnonzero(cells["direction"] == direction))
    measures |= dict(sampled.gaps.measures(duration_ns / offered if offered else None))
    return Flood(measures, tuple(_top(keys, sampled, syns)))


def _missing(spread: Spread, syns: int) -> float:
    """Share of the SYNs that nothing was drawn from, where each sample stands for itself alone."""
    return max(0.0, 1 - spread.weight / syns) if not spread.squares else 0.0


def _counted(direction: Direction, cells: Cells, duration_ns: int, directions: tuple[Direction, ...]) -> Named:
    """From cells alone: exact."""
    syns = packets = acknowledging = came_back = 0
    policed: int | None = 0
    other = Direction.INBOUND if direction is Direction.OUTBOUND else Direction.OUTBOUND
    if len(cells):  # of most taps of a host, most of the time, there are none
        own = cells[cells["direction"] == direction]
        syn_rows = own[own["packet_class"] == PacketClass.TCP_SYN]
        syns, packets = count(syn_rows).packets, count(own).packets
        known = not (syn_rows["verdict"] == Verdict.UNKNOWN).any()
        policed = count(syn_rows[syn_rows["verdict"] == Verdict.POLICED]).packets if known else None
        acknowledging = count(own[np.isin(own["packet_class"], _ACKNOWLEDGING)]).packets
        back = cells[(cells["direction"] == other) & (cells["packet_class"] == PacketClass.TCP_SYNACK)]
        came_back = count(back).packets
    answers = came_back if other in directions else None
    completed = [acknowledging, syns - (policed or 0), *([] if answers is None else [answers])]
    seconds = duration_ns / 1e9
    yield "seconds", Measure(round(seconds, 9), "s")
    yield "syn_packets", Measure(syns, "packets")
    yield "syn_pps", Measure(syns / seconds if seconds > 0 else None, "packets/s")
    yield "syn_share", Measure(syns / packets if packets else None, "of 1")
    yield "syn_policed_packets", Measure(policed, "packets")
    yield "synack_back_packets", Measure(answers, "packets")
    yield "synack_per_syn", Measure(None if answers is None or not syns else answers / syns, "packets")
    yield "handshakes_completed_max", Measure(min(completed), "handshakes")


def _keys(sampled: Sampled) -> dict[str, Groups]:
    """Equal keys of each kind taken together."""
    rows, weights = sampled.rows, sampled.weights
    destination = (rows["destination_low"], rows["destination_high"])
    return {
        "source": group((rows["source_low"], rows["source_high"]), weights),
        "destination": group(destination, weights),
        "port": group((rows["destination_port"],), weights),
        "endpoint": group((rows["destination_port"], *destination), weights),
        "fingerprint": group(tuple(rows[name] for name in ("version", "ttl", "window", "mss", "options")), weights),
    }


def _distinct(keys: dict[str, Groups], sampled: Sampled) -> Named:
    """Where every SYN was sampled, exact; else the kernel side's estimate is taken, and nothing where there is none."""
    for name, kind in (("sources", "source"), ("destinations", "destination"), ("destination_ports", "port")):
        known = sampled.spread.is_exact
        yield name, Measure(len(keys[kind].weights) if known else None, "different")


def _spread_out(keys: dict[str, Groups], sampled: Sampled, syns: int) -> Named:
    for kind in ("source", "destination", "port"):
        yield f"{kind}_entropy", _measure(evenness(keys[kind], sampled.weights, sampled.spread), "of 1")
    found = collisions(keys["endpoint"])
    yield "syn_per_endpoint", Measure(max(1.0, syns * found.value), "packets", syns * found.error)
    for kind in ("destination", "endpoint"):
        best = keys[kind].of_row == keys[kind].weights.argmax()
        yield f"{kind}_top_share", _measure(share(best, sampled.weights, sampled.spread), "of 1")


def _habits(sampled: Sampled) -> Named:
    rows, weights, spread = sampled.rows, sampled.weights, sampled.spread
    yield "no_options_share", _measure(share(rows["options"] == 0, weights, spread), "of 1")
    v4 = rows["version"] == 4
    for name, habit in (
        ("sequence", sequence_habit(rows, weights, spread)),
        ("ip_id", number_habit(rows["ip_id"][v4], 2**16, rows["at_ns"][v4], weights[v4], spread)),
        ("source_port", number_habit(rows["source_port"], 2**16, rows["at_ns"], weights, spread)),
        ("window", number_habit(rows["window"], 2**16, rows["at_ns"], weights, spread)),
        ("ttl", number_habit(rows["ttl"], 2**8, rows["at_ns"], weights, spread)),
    ):
        if habit.word:
            yield f"{name}_{habit.word}_share", _measure(habit.share, "of 1")


def _sources(sampled: Sampled, knowledge: Knowledge) -> Named:
    """Sources that are not the port's own, of the kinds of which an address is known."""
    rows, weights, spread = sampled.rows, sampled.weights, sampled.spread
    judged = knowledge.can_judge(rows)
    unknown: Estimate | None = None
    if judged.any():
        unknown = share(judged & ~knowledge.is_own_ip(rows), weights, spread)
    yield "unknown_source_share", Measure(None, "of 1") if unknown is None else _measure(unknown, "of 1")
    own_mac = knowledge.is_own_mac(rows)
    foreign = None if own_mac is None else share(~own_mac, weights, spread)
    yield "foreign_mac_share", Measure(None, "of 1") if foreign is None else _measure(foreign, "of 1")
    yield "impossible_source_share", _measure(share(is_impossible(rows), weights, spread), "of 1")


def _measure(found: Estimate, unit: str) -> Measure:
    return Measure(round(found.value, 9), unit, round(found.error, 9))


def _top(keys: dict[str, Groups], sampled: Sampled, syns: int) -> Iterator[Top]:
    """The most frequent keys; a share of the sample is that share of all SYNs, which are counted exactly."""
    total = float(sampled.weights.sum())
    for kind, groups in keys.items():
        for number in np.argsort(-groups.weights, kind="stable")[:TOP_KEYS]:
            row = sampled.rows[groups.first[number]]
            part = min(1.0, float(groups.weights[number]) / total)
            packets, error = round(part * syns), math.ceil(sampled.spread.error_of(part) * syns)
            sizes = np.average(sampled.rows["frame_bytes"][groups.of_row == number])
            yield Top(kind, _key_words(kind, row), packets, round(packets * float(sizes)), min(error, syns))


def _key_words(kind: str, row: Any) -> str:
    if kind == "source":
        return str(address(int(row["source_high"]), int(row["source_low"])))
    destination = str(address(int(row["destination_high"]), int(row["destination_low"])))
    if kind == "destination":
        return destination
    if kind == "port":
        return str(int(row["destination_port"]))
    if kind == "endpoint":
        port = int(row["destination_port"])
        return f"[{destination}]:{port}" if ":" in destination else f"{destination}:{port}"
    return fingerprint_words(row)
