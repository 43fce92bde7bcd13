# SPDX-License-Identifier: Apache-2.0
"""Declared limits of a tap: from the user, libvirt's live XML, Proxmox, the Open vSwitch database, and OVN's.

A declared limit is not always installed: :mod:`vifprobe.host.limits` reads the installed ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vifprobe.host.net.links import Link
from vifprobe.model.layout import Direction
from vifprobe.model.limits import DeclaredLimit

if TYPE_CHECKING:  # the XML and JSON modules are imported at their first use, so that the first screen is faster
    from vifprobe.host import proxmox
    from vifprobe.host.libvirt import domains
    from vifprobe.host.ovs import ovn, ports
    from vifprobe.host.procs.processes import Process

OVS_SOCKETS = (Path("/run/openvswitch/db.sock"), Path("/var/run/openvswitch/db.sock"))

# Neutron's hybrid plug: the tap and qvb sit on a Linux bridge, and qvb's peer qvo is the port of Open vSwitch
# (neutron_lib.constants and nova/network/os_vif_util.py: the names share the first 11 characters of the port's id).
_OVS_SIDE = "qvo"
#: Of a QoS rule's match, on a screen.
_CONDITIONS_MAX = 60


@dataclass(frozen=True)
class Declared:
    """Declared limits of one tap, and the sources that could not be read.

    - limits: declared limits.
    - problems: sources that could not be read, as text: they can declare limits, too.
    - ovs: the tap's own interface in Open vSwitch; None where it has none.
    - domain: libvirt's name of the guest; "" where unknown.
    - sources: sources that exist on this host.
    - known_to: sources that know the tap, whether they declare a limit for it or not.
    - macs, ips: addresses assigned to the guest, each with its source.
    """

    limits: tuple[DeclaredLimit, ...] = ()
    problems: tuple[str, ...] = ()
    ovs: ports.OvsInterface | None = None
    domain: str = ""
    sources: tuple[str, ...] = ()
    known_to: tuple[str, ...] = ()
    macs: tuple[tuple[str, str], ...] = ()
    ips: tuple[tuple[str, str], ...] = ()


def declared(link: Link, given: Iterable[DeclaredLimit] = ()) -> Declared:
    """Return the declared limits of one interface. Never raises."""
    return declared_of([link], given)[link.ifindex]


def declared_of(
    links: Iterable[Link],
    given: Iterable[DeclaredLimit] = (),
    *,
    libvirt_directory: Path | None = None,
    ovs_sockets: tuple[Path, ...] | None = None,
    ovn_reader: ovn.OvnReader | None = None,
    proxmox_directory: Path | None = None,
    holders: Mapping[int, Process] | None = None,
) -> dict[int, Declared]:
    """Return ifindex -> declared limits. Takes up to a second, with OVN some seconds; never raises.

    - links: interfaces.
    - given: the user's limits, for each interface.
    - libvirt_directory, ovs_sockets, proxmox_directory: None for the usual paths.
    - ovn_reader: remembers what it has read; None for a new one.
    - holders: ifindex -> process that holds the tap, as far as known.
    """
    from vifprobe.host import proxmox
    from vifprobe.host.libvirt import domains
    from vifprobe.host.ovs import ovn, ports

    links = list(links)
    switch = ports.read_ovs(OVS_SOCKETS if ovs_sockets is None else ovs_sockets)
    own = [switch.interfaces[link.name].iface_id for link in links if link.name in switch.interfaces]
    sources = _Sources(
        domains.live_domains(libvirt_directory or domains.STATUS_DIRECTORY),
        switch,
        (ovn_reader or ovn.OvnReader()).read(switch, filter(None, own)),
        proxmox.guest_limits(links, proxmox_directory or proxmox.DIRECTORY),
    )
    held = holders or {}
    return {link.ifindex: _declared(link, tuple(given), sources, held.get(link.ifindex)) for link in links}


@dataclass(frozen=True)
class _Sources:
    """What was read, of all interfaces."""

    live: domains.LiveDomains
    switch: ports.OvsState
    network: ovn.OvnState
    guests: Mapping[str, proxmox.GuestLimits]


def _declared(link: Link, given: tuple[DeclaredLimit, ...], found: _Sources, holder: Process | None) -> Declared:
    live, switch, network, guest = found.live, found.switch, found.network, found.guests.get(link.name)
    interface, stale = _live(live.interfaces.get(link.name), holder, guest is not None)
    limits = [*given, *(_of_libvirt(interface) if interface else ()), *(guest.limits if guest else ())]
    own = switch.interfaces.get(link.name)
    if own is not None:
        limits += _of_ovn(own, network)
    for port in _ovs_ports(link, interface, switch):
        limits += _of_ovs(port)
    problems = [f"libvirt: {problem}" for problem in (*live.problems, *stale)] if interface is None else []
    problems += [guest.problem] if guest and guest.problem else []
    # Without a server no limit can be declared, unless the tap is a port of a switch.
    if switch.problem and (switch.present or link.master_name.startswith("ovs-")):
        problems.append(f"Open vSwitch: {switch.problem}")
    if network.problem and own is not None and own.iface_id:
        problems.append(f"OVN's southbound database: {network.problem}")
    sources = (["libvirt"] if live.present else []) + (["ovs"] if switch.present else [])
    sources += ["proxmox"] if guest else []
    known = {"libvirt": interface, "proxmox": guest, "ovs": own}
    known_to = tuple(name for name, source in known.items() if source is not None)
    domain = interface.domain if interface else ""
    macs = [(interface.guest_mac, "libvirt")] if interface and interface.guest_mac else []
    macs += [(port.attached_mac, "Open vSwitch") for port in _ovs_ports(link, interface, switch) if port.attached_mac]
    ips = tuple((ip, "libvirt's nwfilter") for ip in interface.guest_ips) if interface else ()
    return Declared(tuple(limits), tuple(problems), own, domain, tuple(sources), known_to, tuple(macs), ips)


def unseen_ports(libvirt_directory: Path | None = None) -> list[tuple[domains.Interface, tuple[DeclaredLimit, ...]]]:
    """Return the ports of guests of this host that have no tap, with their declared limits. Never raises."""
    from vifprobe.host.libvirt import domains

    live = domains.live_domains(libvirt_directory or domains.STATUS_DIRECTORY)
    return [(one, tuple(_of_libvirt(one))) for one in live.without_tap]


def _live(
    interface: domains.Interface | None, holder: Process | None, is_proxmox: bool
) -> tuple[domains.Interface | None, tuple[str, ...]]:
    """Return libvirt's live data of the guest that holds the tap, and why there is none."""
    if holder is None or not holder.is_qemu:
        return interface, ()
    if interface is not None and interface.pid not in (None, holder.pid):
        words = f"the live data of {interface.domain} are of process {interface.pid}"
        return None, (f"{words}, but process {holder.pid} holds the tap",)
    # libvirt starts QEMU with both, always (qemuBuildNameCommandLine, qemuBuildCommandLine).
    if interface is None and holder.guest and holder.uuid and not is_proxmox:
        words = f"no live data of {holder.guest}, whose QEMU (process {holder.pid}) holds the tap"
        return None, (f"{words}: is libvirt in a container?",)
    return interface, ()


def _of_libvirt(interface: domains.Interface) -> Iterable[DeclaredLimit]:
    """Return the limits of `<bandwidth>`: inbound becomes HTB, outbound a policer (virNetDevBandwidthSet).

    And those of Nova's flavor: Nova hands them to libvirt when the guest starts.
    """
    quotas = {one: interface.quota(one.name.lower()) for one in Direction}
    yield from _of_bandwidth(interface.target, "nova", "quota", quotas)
    found: Mapping[Direction, domains.Bandwidth | None] = {
        Direction.OUTBOUND: interface.outbound,
        Direction.INBOUND: interface.inbound,
    }
    yield from _of_bandwidth(interface.target, "libvirt", "bandwidth", found)


def _of_bandwidth(
    tap: str, source: str, kind: str, found: Mapping[Direction, domains.Bandwidth | None]
) -> Iterable[DeclaredLimit]:
    for direction, bandwidth in found.items():
        if bandwidth is not None and bandwidth.rate_bps:
            outbound = direction is Direction.OUTBOUND
            burst_bytes = bandwidth.policer_burst_bytes if outbound else bandwidth.burst_bytes
            yield DeclaredLimit(direction, source, kind, tap, bandwidth.rate_bps, burst_bytes)


def _ovs_ports(link: Link, interface: domains.Interface | None, switch: ports.OvsState) -> Iterable[ports.OvsInterface]:
    """Yield the tap's own OVS interface, and that of the same Neutron port on the other side of a Linux bridge."""
    if link.name in switch.interfaces:
        yield switch.interfaces[link.name]
    from vifprobe.host.taps import neutron_port_prefix

    prefix = neutron_port_prefix(link.name)
    beyond = switch.interfaces.get(f"{_OVS_SIDE}{prefix}") if prefix else None
    if beyond is None and interface is not None and interface.port_id:
        others = (found for found in switch.with_iface_id(interface.port_id) if found.name != link.name)
        beyond = next(others, None)
    if beyond is not None:
        yield beyond


def _of_ovn(port: ports.OvsInterface, network: ovn.OvnState) -> Iterable[DeclaredLimit]:
    """Yield a port's QoS rules."""
    for rule in network.rules.get(port.iface_id or "", ()):
        kind = f"qos {rule.conditions[:_CONDITIONS_MAX]}".rstrip()
        yield DeclaredLimit(rule.direction, "ovn", kind, port.name, rule.rate_bps, rule.burst_bytes)


def _of_ovs(port: ports.OvsInterface) -> Iterable[DeclaredLimit]:
    """Yield a port's limits: policing of packets from the guest, QoS of packets to the guest."""
    if port.rate_bps:
        burst_bytes = port.burst_bytes
        yield DeclaredLimit(Direction.OUTBOUND, "ovs", "policing", port.name, port.rate_bps, burst_bytes)
    if port.rate_pps:
        packets = port.burst_packets
        yield DeclaredLimit(
            Direction.OUTBOUND, "ovs", "packet policing", port.name, rate_pps=port.rate_pps, burst_packets=packets
        )
    # Only the types that shape: linux-noop and the like leave the qdisc to others (ovs-vswitchd.conf.db(5)).
    if port.qos is not None and port.qos.type in ("linux-htb", "linux-hfsc", "egress-policer"):
        queue = next((queue for queue in port.qos.queues if queue.number == 0), None)
        rate_bps = (queue.max_bps if queue and queue.max_bps else None) or port.qos.max_bps
        burst = queue.burst_bits // 8 if queue and queue.burst_bits else None
        if rate_bps:
            yield DeclaredLimit(Direction.INBOUND, "ovs", f"qos {port.qos.type}", port.name, rate_bps, burst)
