# SPDX-License-Identifier: Apache-2.0
"""QoS rules of OVN for ports of this host, from its southbound database: limits that somebody asked for.

The southbound database is what a compute node can reach. It has no table of QoS rules: northd makes logical flows with
`set_meter(RATE, BURST)` of them, in stages of their own.

Source: ovn-sb(5), Port_Binding, Datapath_Binding and Logical_Flow; ovn northd/northd.c (build_qos; stage names
ls_in_qos_meter and ls_out_qos_meter, ls_in_qos and ls_out_qos from 24.09 on); ovn-nb(5), QoS, for the units.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vifprobe.host.ovs import remotes
from vifprobe.host.ovs.ovsdb import OvsdbError, Wanted, mapping, references, rows_of, scalar, strings
from vifprobe.host.ovs.ports import OvsState
from vifprobe.host.ovs.remotes import Remote
from vifprobe.model.layout import Direction

DATABASE = "OVN_Southbound"

_STAGES = {
    "ls_in_qos_meter": Direction.OUTBOUND,
    "ls_out_qos_meter": Direction.INBOUND,
    "ls_in_qos": Direction.OUTBOUND,
    "ls_out_qos": Direction.INBOUND,
}
_FLOW = ("_uuid", "match", "actions", "logical_datapath", "logical_dp_group", "external_ids")
_METER = re.compile(r"\bset_meter\(([0-9]{1,12})(?: *, *([0-9]{1,12}))?\)")
#: The port in a match: `inport == "NAME"`, `outport == {"A", "B"}`, `inport == @GROUP`.
_PORT = re.compile(r'(?:in|out)port *== *(?:"([^"]{1,255})"|\{([^{}]{1,65536})\}|@([\w.$]{1,255}))')
_NAME = re.compile(r'"([^"]{1,255})"')
#: The part of the time that the server may be kept busy with these questions; it is every node's.
_SHARE = 0.01


@dataclass(frozen=True)
class Rule:
    """One QoS rule for packets of a port.

    - direction: of the packets, as of the guest: `from-lport` is outbound.
    - rate_bps, burst_bytes: OVN's kbit/s and kbit (1000). burst_bytes: None where it is left to Open vSwitch.
    - conditions: the rest of the match; "" where all packets of the port meet the rule.
    - cookie: of the flows that implement it: the first 32 bits of the logical flow's UUID.
    """

    direction: Direction
    rate_bps: int
    burst_bytes: int | None = None
    conditions: str = ""
    cookie: int = 0


@dataclass(frozen=True)
class OvnState:
    """Rules of some ports. rules: by logical port, for each port that is bound. problem: why not read; "": read."""

    rules: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)
    problem: str = ""


class OvnReader:
    """Reads the southbound database for some ports, and not more often than a server of many nodes can bear."""

    def __init__(self) -> None:
        self._last: tuple[tuple[object, ...], OvnState, int, int] | None = None

    def read(self, switch: OvsState, ports: Iterable[str]) -> OvnState:
        """Return the rules of logical ports. Takes some seconds at most; never raises, see `problem`."""
        wanted = tuple(sorted(set(ports)))
        if not switch.ovn_remote or not wanted:
            return OvnState()
        asked, now_ns = (switch.ovn_remote, switch.keys, wanted), time.monotonic_ns()
        if self._last is not None:
            before, found, took_ns, at_ns = self._last
            if before == asked and now_ns - at_ns < took_ns / _SHARE:
                return found
        found = read_ovn(switch, wanted)
        ended_ns = time.monotonic_ns()
        self._last = asked, found, ended_ns - now_ns, ended_ns
        return found


def read_ovn(switch: OvsState, ports: tuple[str, ...]) -> OvnState:
    """Ask the first server that answers."""
    servers, problems = remotes.parse(switch.ovn_remote, switch.keys)
    for server in servers:
        try:
            return OvnState(_rules(server, ports))
        except OvsdbError as error:
            problems.append(error.message)
    return OvnState(problem=" ".join(problems) or "no server is named.")


def _rules(server: Remote, ports: tuple[str, ...]) -> dict[str, tuple[Rule, ...]]:
    columns = ("logical_port", "datapath", "tunnel_key")
    bound = rows_of(
        server, DATABASE, [Wanted("Port_Binding", columns, (("logical_port", "==", port),)) for port in ports]
    )
    where = {
        port: found
        for port, rows in zip(ports, bound, strict=True)
        for row in rows
        if (found := next(iter(references(row.get("datapath"))), ""))
    }
    datapaths = sorted(set(where.values()))
    if not datapaths:
        return {}
    # A server has no index for these: one pass over all logical flows for each stage, not for each network.
    own = ((("logical_datapath", "==", ["uuid", datapaths[0]]),),) if len(datapaths) == 1 else ((),)
    if len(datapaths) == 1:
        own = (*own, (("logical_datapath", "==", ["set", []]),))
    flows = [
        Wanted("Logical_Flow", _FLOW, (*narrow, ("priority", ">", 0), ("external_ids", "includes", _stage(stage))))
        for stage in _STAGES
        for narrow in own
    ]
    groups = [
        Wanted("Logical_DP_Group", ("_uuid",), (("datapaths", "includes", ["uuid", datapath]),))
        for datapath in datapaths
    ]
    answers = rows_of(server, DATABASE, [*groups, *flows])
    of_group: dict[str, set[str]] = {}
    for datapath, rows in zip(datapaths, answers, strict=False):
        for row in rows:
            of_group.setdefault(next(iter(references(row.get("_uuid"))), ""), set()).add(datapath)
    rows = [row for answer in answers[len(groups) :] for row in answer]
    members = _members(server, rows)
    return {port: tuple(_of_port(rows, port, datapath, of_group, members)) for port, datapath in where.items()}


def _stage(name: str) -> list[Any]:
    return ["map", [["stage-name", name]]]


def _members(server: Remote, rows: Iterable[Mapping[str, Any]]) -> dict[str, frozenset[str]]:
    """Return the ports of the port groups in matches, by name. northd makes one for each datapath: NUMBER_NAME."""
    groups = {found[3] for row in rows for found in _PORT.finditer(_text(row, "match")) if found[3]}
    if not groups:
        return {}
    (all_groups,) = rows_of(server, DATABASE, [Wanted("Port_Group", ("name", "ports"))])
    found: dict[str, frozenset[str]] = {}
    for row in all_groups:
        name = _text(row, "name")
        for group in {name, name.partition("_")[2]} & groups:
            found[group] = found.get(group, frozenset()) | frozenset(strings(row.get("ports")))
    return found


def _of_port(
    rows: Iterable[Mapping[str, Any]],
    port: str,
    datapath: str,
    of_group: Mapping[str, set[str]],
    members: Mapping[str, frozenset[str]],
) -> Iterable[Rule]:
    for row in rows:
        own = references(row.get("logical_datapath"))
        groups = references(row.get("logical_dp_group"))
        if datapath not in own and not any(datapath in of_group.get(group, ()) for group in groups):
            continue
        meter, direction = _METER.search(_text(row, "actions")), _STAGES.get(_stage_of(row))
        conditions = _conditions(_text(row, "match"), port, members)
        if meter is None or direction is None or conditions is None:
            continue
        burst = int(meter[2]) if meter[2] else 0
        cookie = next(iter(references(row.get("_uuid"))), "")[:8]
        yield Rule(
            direction,
            int(meter[1]) * 1000,
            burst * 1000 // 8 if burst else None,
            conditions,
            int(cookie, 16) if re.fullmatch("[0-9a-f]{8}", cookie) else 0,
        )


def _stage_of(row: Mapping[str, Any]) -> str:
    return str(mapping(row.get("external_ids")).get("stage-name", ""))


def _conditions(match: str, port: str, members: Mapping[str, frozenset[str]]) -> str | None:
    """Return what a match asks besides the port; None where it names other ports only.

    A match with `||` or a negation is not taken apart: it counts as a whole.
    """
    found = _PORT.search(match)
    if found is None:
        return "" if match.strip() == "1" else match
    named = {found[1]} if found[1] else set(_NAME.findall(found[2] or ""))
    named |= members.get(found[3] or "", frozenset())
    if "||" in match or "!" in match:
        return match
    if port not in named:
        return None
    rest = (match[: found.start()] + match[found.end() :]).strip()
    return re.sub(r"^[(\s]*(?:&&)?|&&[\s)]*$|^[\s()]*$", "", rest).strip()


def _text(row: Mapping[str, Any], column: str) -> str:
    value = scalar(row.get(column))
    return value if isinstance(value, str) else ""
