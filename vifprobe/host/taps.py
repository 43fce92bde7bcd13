# SPDX-License-Identifier: Apache-2.0
"""The taps of this host, with their guests and ports."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vifprobe.host.libvirt import domains
from vifprobe.host.net.links import Link, LinkCounters, list_links_and_counters
from vifprobe.host.procs import processes
from vifprobe.model.ports import GUEST_PORTS

# Neutron: `tap` and the first 11 characters of the port's id (neutron_lib.constants: TAP_DEVICE_PREFIX; Nova cuts the
# name at NIC_NAME_LEN = 14).
_NEUTRON_TAP = re.compile(r"tap([0-9a-f]{8}-[0-9a-f]{2})")


@dataclass(frozen=True)
class TapPort:
    """One tap. None: unknown, or not readable without root.

    - link, counters: the interface and its device counters.
    - pid, comm: process that holds the tap open.
    - is_qemu: that process is QEMU.
    - domain, domain_uuid: libvirt's name (Nova's `instance-0000001a`) and UUID.
    - instance_name, instance_uuid: OpenStack's.
    - port_id: id of Neutron's port.
    - port_prefix: start of the port id, from the tap's name.
    - interface: libvirt's data of the interface.
    - holder: process that holds the tap open, with what its command line says.
    - bridge: device that it is a port of; `ovs-system` (the OVS datapath, not the OVS bridge) for a port of Open
      vSwitch.
    """

    link: Link
    counters: LinkCounters | None = None
    pid: int | None = None
    comm: str | None = None
    is_qemu: bool = False
    domain: str | None = None
    domain_uuid: str | None = None
    instance_name: str | None = None
    instance_uuid: str | None = None
    port_id: str | None = None
    port_prefix: str | None = None
    interface: domains.Interface | None = None
    holder: processes.Process | None = None

    @property
    def name(self) -> str:
        """Interface name."""
        return self.link.name

    @property
    def ifindex(self) -> int:
        """Interface number."""
        return self.link.ifindex

    @property
    def kind(self) -> str:
        """Return the kind: `tap`, `macvtap` or `ipvtap`; any other for a link given to `describe`."""
        return self.link.kind

    @property
    def bridge(self) -> str | None:
        """Return the device that the tap is a port of; None where there is none."""
        return self.link.master_name or None


def list_taps(libvirt_directory: Path = domains.STATUS_DIRECTORY) -> tuple[TapPort, ...]:
    """Return all taps of this network namespace, by name. Raises HostError where interfaces can't be listed."""
    rows = [(link, counters) for link, counters in list_links_and_counters() if link.kind in GUEST_PORTS]
    return _taps(sorted(rows, key=lambda row: row[0].name), libvirt_directory)


def describe(links: Iterable[Link], libvirt_directory: Path = domains.STATUS_DIRECTORY) -> tuple[TapPort, ...]:
    """Return the data of some links, without counters; processes are searched once for all of them."""
    return _taps([(link, None) for link in links], libvirt_directory)


def neutron_port_prefix(link_name: str) -> str | None:
    """Return the first 11 characters of the Neutron port's id, from the tap's name; None for other names."""
    match = _NEUTRON_TAP.fullmatch(link_name)
    return match[1] if match else None


def _taps(rows: list[tuple[Link, LinkCounters | None]], libvirt_directory: Path) -> tuple[TapPort, ...]:
    held = processes.holders(link for link, _ in rows if link.kind in GUEST_PORTS)
    live = domains.live_domains(libvirt_directory) if rows else domains.LiveDomains()
    return tuple(
        _tap(link, counters, held.get(link.ifindex), live.interfaces.get(link.name)) for link, counters in rows
    )


def _tap(
    link: Link, counters: LinkCounters | None, process: processes.Process | None, interface: domains.Interface | None
) -> TapPort:
    if process and interface and interface.pid not in (None, process.pid):
        interface = None  # a file left behind by another guest that had a tap of this name
    prefix = neutron_port_prefix(link.name)
    port_id = interface.port_id if interface else None
    if prefix is not None and port_id is not None and not port_id.startswith(prefix):
        port_id = None  # an interface id that someone else than Neutron gave
    return TapPort(
        link=link,
        counters=counters,
        pid=process.pid if process else None,
        comm=process.comm if process else None,
        is_qemu=bool(process and process.is_qemu),
        domain=(interface.domain if interface else None) or (process.guest if process else None),
        domain_uuid=(interface.domain_uuid if interface else None) or (process.uuid if process else None),
        instance_name=interface.instance_name if interface else None,
        instance_uuid=interface.instance_uuid if interface else None,
        port_id=port_id,
        port_prefix=prefix,
        interface=interface,
        holder=process,
    )
