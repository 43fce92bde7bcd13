# SPDX-License-Identifier: Apache-2.0
"""OpenFlow flows that send packets of a port through a meter: also in later tables, where the port is in registers.

- Neutron with Open vSwitch: `in_port` for packets from the guest, `dl_dst` and `dl_vlan` for packets to it.
- OVN: table 0 writes the datapath into `metadata` and the port into `reg14`; later tables match these. `reg15` is the
  port that a packet goes to.

Source: ovs-ofctl(8) and ovs-fields(7) for the text; ovn include/ovn/logical-fields.h (MFF_LOG_DATAPATH, MFF_LOG_INPORT,
MFF_LOG_OUTPORT), controller/physical.c (table 0); neutron agent/linux/openvswitch_agent/.../br_int.py
(apply_meter_to_port).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from vifprobe.model.layout import Direction

#: Bytes of a flow's text that make it worth parsing; all others are skipped as they come.
_MARKS = (b"meter:", b"REG14", b"->reg14", b"conjunction(")
_METER = re.compile(r"\bmeter:([0-9]{1,10})\b")
_CONJUNCTION = re.compile(r"\bconjunction\(([0-9]{1,10}),")
_NUMBER = r"(0x[0-9a-fA-F]{1,16}|[0-9]{1,20})"
_DATAPATH = re.compile(
    rf"\b(?:(?:set_field|load):{_NUMBER}->(?:metadata|OXM_OF_METADATA\[\])|write_metadata:{_NUMBER})"
)
_INPORT = re.compile(rf"\b(?:set_field|load):{_NUMBER}->(?:reg14|NXM_NX_REG14\[\])")
#: Parts of a flow that are not its match, and those of the match that only say whose packets these are.
_NO_MATCH = frozenset(
    (
        *("cookie", "duration", "table", "n_packets", "n_bytes", "priority", "idle_timeout", "hard_timeout"),
        *("idle_age", "hard_age", "importance", "send_flow_rem", "reset_counts", "no_packet_counts"),
        *("no_byte_counts", "check_overlap"),
    )
)
_WHOSE = frozenset(("in_port", "metadata", "reg14", "reg15", "dl_dst", "eth_dst", "dl_vlan", "vlan_tci", "conj_id"))


@dataclass(frozen=True)
class MeterUse:
    """One meter in the way of a port's packets.

    - number: OpenFlow number of the meter.
    - direction: of the packets.
    - conditions: what the flow asks of a packet besides being the port's, as ovs-ofctl writes it; "" for nothing.
    - cookie: of the flow. OVN: the first 32 bits of the logical flow's UUID.
    """

    number: int
    direction: Direction
    conditions: str
    cookie: int


@dataclass(frozen=True)
class _Flow:
    table: int
    cookie: int
    match: Mapping[str, str]
    actions: str
    meters: tuple[int, ...]

    @property
    def conditions(self) -> str:
        return ",".join(f"{key}={value}" if value else key for key, value in self.match.items() if key not in _WHOSE)


@dataclass(frozen=True)
class PortKeys:
    """How flows name one port.

    - ofport: OpenFlow port number.
    - macs: MAC addresses of the guest.
    - logical: OVN's (metadata, reg14) of its packets.
    """

    ofport: int
    macs: frozenset[str] = frozenset()
    logical: frozenset[tuple[int, int]] = frozenset()


@dataclass
class Flows:
    """The flows of one bridge that have to do with meters. Feed it the lines of `ovs-ofctl dump-flows`."""

    _metered: list[_Flow] = field(default_factory=list)
    _logical: dict[int, set[tuple[int, int]]] = field(default_factory=dict)
    _conjunctive: dict[int, list[_Flow]] = field(default_factory=dict)
    _first_outport_table: int = 1 << 16

    def feed(self, text: bytes) -> int:
        """Take whole lines. Return how many bytes of them are kept."""
        if not any(mark in text for mark in _MARKS):
            return 0
        kept = 0
        for line in text.split(b"\n"):
            if any(mark in line for mark in _MARKS):
                kept += len(line)
                self._take(parse_flow(line.decode(errors="replace")))
        return kept

    def _take(self, flow: _Flow) -> None:
        match = flow.match
        if flow.meters:
            self._metered.append(flow)
            if "reg15" in match and "reg14" not in match:
                self._first_outport_table = min(self._first_outport_table, flow.table)
        if "in_port" in match and (port := _whole(match["in_port"])) is not None:
            datapath, inport = _DATAPATH.search(flow.actions), _INPORT.search(flow.actions)
            if datapath and inport:
                found = int(datapath[1] or datapath[2], 0), int(inport[1], 0)
                self._logical.setdefault(port, set()).add(found)
        elif "reg14" in match or "reg15" in match:
            for number in {int(one) for one in _CONJUNCTION.findall(flow.actions)}:
                self._conjunctive.setdefault(number, []).append(flow)

    @property
    def has_meters(self) -> bool:
        """Return True if a flow names a meter."""
        return bool(self._metered)

    def keys(self, ofport: int, macs: Iterable[str] = ()) -> PortKeys:
        """Return how the flows name a port."""
        return PortKeys(ofport, frozenset(one.lower() for one in macs), frozenset(self._logical.get(ofport, ())))

    def uses(self, port: PortKeys) -> tuple[MeterUse, ...]:
        """Return the meters in the way of this port's packets, each once for a direction and its conditions."""
        found = {}
        for flow in self._metered:
            direction = self._direction(flow, port)
            if direction is None:
                continue
            for number in flow.meters:
                found[number, direction, flow.conditions] = MeterUse(number, direction, flow.conditions, flow.cookie)
        return tuple(found.values())

    def _direction(self, flow: _Flow, port: PortKeys) -> Direction | None:
        """Return the direction of this port's packets that meet the flow; None where they do not."""
        match = flow.match
        if "in_port" in match:
            return Direction.OUTBOUND if _whole(match["in_port"]) == port.ofport else None
        mac = match.get("dl_dst", match.get("eth_dst"))
        if "metadata" not in match:
            return Direction.INBOUND if mac is not None and mac.lower() in port.macs else None
        for datapath, number in sorted(port.logical):
            if not _meets(match["metadata"], datapath):
                continue
            named = [flow, *self._conjunctive.get(_whole(match.get("conj_id", "")) or 0, ())]
            if not any("reg14" in one.match or "reg15" in one.match for one in named):
                # A rule for the whole logical switch: its ingress pipeline comes before its egress pipeline.
                return Direction.OUTBOUND if flow.table < self._first_outport_table else Direction.INBOUND
            for one in named:
                if "reg15" in one.match and _meets(one.match["reg15"], number):
                    return Direction.INBOUND
                if "reg14" in one.match and "reg15" not in one.match and _meets(one.match["reg14"], number):
                    return Direction.OUTBOUND
        return None

    def shared(self) -> frozenset[int]:
        """Return the numbers of the meters that packets of several ports go through."""
        users: dict[int, set[tuple[str, ...]]] = {}
        for flow in self._metered:
            for number in flow.meters:
                users.setdefault(number, set()).update(self._users(flow))
        return frozenset(number for number, found in users.items() if len(found) > 1)

    def _users(self, flow: _Flow) -> set[tuple[str, ...]]:
        match = flow.match
        if (port := _whole(match.get("in_port", ""))) is not None:
            logical = sorted(self._logical.get(port, ()))
            return {tuple(map(str, logical[0]))} if logical else {("in_port", str(port))}
        if "metadata" in match:
            named = [flow, *self._conjunctive.get(_whole(match.get("conj_id", "")) or 0, ())]
            ports = {
                one.match.get("reg15", one.match.get("reg14", ""))
                for one in named
                if "reg14" in one.match or "reg15" in one.match
            }
            datapath = _whole(match["metadata"])
            if not ports:
                return {tuple(map(str, one)) for found in self._logical.values() for one in found if one[0] == datapath}
            return {(str(datapath), str(_whole(one))) for one in ports}
        mac = match.get("dl_dst", match.get("eth_dst"))
        return {("mac", mac)} if mac is not None else {("any",), ("other",)}


def parse_flow(line: str) -> _Flow:
    """Parse a line of `dump-flows`. Parts that are unknown count as conditions."""
    head, _, actions = line.partition("actions=")
    match, table, cookie = {}, 0, 0
    for part in re.split(r"[ ,]+", head.strip()):
        key, _, value = part.partition("=")
        if key == "table":
            table = _whole(value) or 0
        elif key == "cookie":
            cookie = _whole(value) or 0
        elif key and key not in _NO_MATCH:
            match[key] = value
    return _Flow(table, cookie, match, actions, tuple(int(one) for one in _METER.findall(actions)))


def _meets(pattern: str, value: int) -> bool:
    """Return True if a value matches `VALUE` or `VALUE/MASK`."""
    text, _, mask = pattern.partition("/")
    wanted, bits = _whole(text), _whole(mask) if mask else -1
    return wanted is not None and bits is not None and wanted & bits == value & bits


def _whole(text: str) -> int | None:
    """Return the number that ovs-ofctl has written; None for something else."""
    return int(text, 0) if re.fullmatch(r"0x[0-9a-fA-F]{1,16}|0|[1-9][0-9]{0,19}", text) else None
