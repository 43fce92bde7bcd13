# SPDX-License-Identifier: Apache-2.0
"""Limits that the Open vSwitch database declares for a port: policing, QoS and queues; and the owner of the port.

The database has the declared limits, as libvirt's XML does. The installed ones are read from `tc`.

Source: ovs-vswitchd.conf.db(5), tables Interface, Port and QoS; lib/netdev-linux.c for the units and defaults.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vifprobe.host.declared import OVS_SOCKETS
from vifprobe.host.ovs.ovsdb import OvsdbError, UnknownColumnError, mapping, references, scalar, select, strings, whole
from vifprobe.host.ovs.remotes import Keys

DATABASE = "Open_vSwitch"

# What OVS takes where a rate is set and no burst (netdev_linux_set_policing).
DEFAULT_BURST_KBIT = 8000
DEFAULT_BURST_KPACKETS = 16

_INTERFACE = ("_uuid", "name", "type", "ofport", "ingress_policing_rate", "ingress_policing_burst", "external_ids")
_PACKETS = ("ingress_policing_kpkts_rate", "ingress_policing_kpkts_burst")  # from 2.16 on
_TABLES = {
    "Port": ("_uuid", "name", "interfaces", "qos"),
    "Bridge": ("name", "ports", "datapath_type"),
    "QoS": ("_uuid", "type", "queues", "other_config"),
    "Queue": ("_uuid", "other_config"),
    "Open_vSwitch": ("external_ids",),
    "SSL": ("private_key", "certificate", "ca_cert"),
}


@dataclass(frozen=True)
class Queue:
    """One queue of a QoS: its number, and the limits set in it in bits per second and bits; None: not set."""

    number: int
    max_bps: int | None = None
    min_bps: int | None = None
    burst_bits: int | None = None


@dataclass(frozen=True)
class Qos:
    """A port's QoS, which shapes what leaves through it: for a tap, what goes to the guest."""

    type: str
    max_bps: int | None = None
    queues: tuple[Queue, ...] = ()


@dataclass(frozen=True)
class OvsInterface:
    """One interface of Open vSwitch, in its own units: kbit/s (1000), kbit, kilopackets/s, kilopackets; 0: not set.

    - bridge: the OVS bridge, not the datapath.
    - datapath: `system` (the kernel's) or `netdev` (userspace).
    - ofport: OpenFlow port number; None while it has none.
    - iface_id, vm_id, attached_mac: external ids, set by Nova and Neutron; None where not set.
    """

    name: str
    port: str = ""
    bridge: str = ""
    type: str = ""
    datapath: str = ""
    ofport: int | None = None
    policing_rate_kbit: int = 0
    policing_burst_kbit: int = 0
    policing_rate_kpackets: int = 0
    policing_burst_kpackets: int = 0
    iface_id: str | None = None
    vm_id: str | None = None
    attached_mac: str | None = None
    qos: Qos | None = None

    @property
    def rate_bps(self) -> int | None:
        """Return the policing rate of packets from the interface in bits per second; None for no limit."""
        return self.policing_rate_kbit * 1000 or None

    @property
    def burst_bytes(self) -> int | None:
        """The policer's bucket as OVS hands it to tc: 1024 bit a kbit, unlike the rate (tc_add_policer)."""
        if not self.policing_rate_kbit:
            return None
        return (self.policing_burst_kbit or DEFAULT_BURST_KBIT) * 1024 // 8

    @property
    def rate_pps(self) -> int | None:
        """Return the policing rate in packets per second; None for no limit."""
        return self.policing_rate_kpackets * 1000 or None

    @property
    def burst_packets(self) -> int | None:
        """Return the policing burst in packets; None without a packet limit."""
        return (self.policing_burst_kpackets or DEFAULT_BURST_KPACKETS) * 1000 if self.policing_rate_kpackets else None


@dataclass(frozen=True)
class OvsState:
    """The interfaces of the OVS database.

    - interfaces: by name.
    - present: there is a server.
    - problem: why the database could not be read; "" where it was read. So "not declared" and "unknown" differ.
    - ovn_remote: where OVN's southbound database is; "" without OVN.
    - keys: for connections to other databases.
    """

    interfaces: Mapping[str, OvsInterface] = field(default_factory=dict)
    present: bool = False
    problem: str = ""
    ovn_remote: str = ""
    keys: Keys = field(default_factory=Keys)

    def with_iface_id(self, prefix: str) -> tuple[OvsInterface, ...]:
        """Return the interfaces whose external iface-id begins with `prefix`: those of one Neutron port."""
        return tuple(found for found in self.interfaces.values() if (found.iface_id or "").startswith(prefix))


def read_ovs(sockets: tuple[Path, ...] = OVS_SOCKETS) -> OvsState:
    """The whole database as far as limits go, within about a second. Never raises: see `problem`."""
    absent = "no socket is named"
    for path in sockets:
        try:
            return _state(_read(path))
        except OvsdbError as error:
            if not error.absent:
                return OvsState(present=True, problem=error.message)
            absent = error.message
    return OvsState(problem=absent)


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        return select(path, DATABASE, {"Interface": _INTERFACE + _PACKETS, **_TABLES})
    except UnknownColumnError:
        return select(path, DATABASE, {"Interface": _INTERFACE, **_TABLES})


def _state(tables: dict[str, list[dict[str, Any]]]) -> OvsState:
    bridges = {port: bridge for bridge in tables["Bridge"] for port in references(bridge.get("ports"))}
    ports = {one: port for port in tables["Port"] for one in references(port.get("interfaces"))}
    queues = {_uuid(row): row for row in tables["Queue"]}
    shapes = {_uuid(row): _qos(row, queues) for row in tables["QoS"]}
    found = {}
    for row in tables["Interface"]:
        port = ports.get(_uuid(row), {})
        interface = _interface(row, port, bridges.get(_uuid(port), {}))
        qos = next((shapes[one] for one in references(port.get("qos")) if one in shapes), None)
        found[interface.name] = replace(interface, qos=qos)
    settings = mapping(next(iter(tables["Open_vSwitch"]), {}).get("external_ids"))
    return OvsState(found, True, ovn_remote=_ovn_remote(settings), keys=_keys(next(iter(tables["SSL"]), {})))


def _ovn_remote(settings: Mapping[Any, Any]) -> str:
    """Return the remote of this host's chassis, else that of all (ovn-controller(8))."""
    own = f"ovn-remote-{settings.get('system-id')}"
    return _id_of(settings, own) or _id_of(settings, "ovn-remote") or ""


def _keys(row: Mapping[str, Any]) -> Keys:
    key, certificate, authority = (
        next(iter(strings(row.get(name))), "") for name in ("private_key", "certificate", "ca_cert")
    )
    return Keys(key, certificate, authority)


def _interface(row: Mapping[str, Any], port: Mapping[str, Any], bridge: Mapping[str, Any]) -> OvsInterface:
    ids = mapping(row.get("external_ids"))
    return OvsInterface(
        name=_name(row),
        port=_name(port),
        bridge=_name(bridge),
        type=next(iter(strings(row.get("type"))), ""),
        datapath=next(iter(strings(bridge.get("datapath_type"))), "") or "system",
        ofport=whole(row.get("ofport")) or None,
        policing_rate_kbit=whole(row.get("ingress_policing_rate")),
        policing_burst_kbit=whole(row.get("ingress_policing_burst")),
        policing_rate_kpackets=whole(row.get("ingress_policing_kpkts_rate")),
        policing_burst_kpackets=whole(row.get("ingress_policing_kpkts_burst")),
        iface_id=_id_of(ids, "iface-id"),
        vm_id=_id_of(ids, "vm-id"),
        attached_mac=_id_of(ids, "attached-mac"),
    )


def _qos(row: Mapping[str, Any], queues: Mapping[str, Mapping[str, Any]]) -> Qos:
    made = []
    for number, reference in sorted(mapping(row.get("queues")).items(), key=str):
        config = mapping(queues.get(next(iter(references(reference)), ""), {}).get("other_config"))
        if isinstance(number, int):
            made.append(
                Queue(number, _number(config, "max-rate"), _number(config, "min-rate"), _number(config, "burst"))
            )
    kind = next(iter(strings(row.get("type"))), "")
    return Qos(kind, _number(mapping(row.get("other_config")), "max-rate"), tuple(made))


def _name(row: Mapping[str, Any]) -> str:
    return next(iter(strings(row.get("name"))), "")


def _uuid(row: Mapping[str, Any]) -> str:
    return next(iter(references(row.get("_uuid"))), "")


def _id_of(pairs: Mapping[Any, Any], key: str) -> str | None:
    value = scalar(pairs.get(key))
    return value if isinstance(value, str) and value else None


def _number(pairs: Mapping[Any, Any], key: str) -> int | None:
    value = pairs.get(key)
    return int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value) else None
