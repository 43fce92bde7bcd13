# SPDX-License-Identifier: Apache-2.0
"""Advice by who declares a tap's limits: what that back end can do, and how it is told to."""

from __future__ import annotations

from collections.abc import Iterable

from vifprobe.analysis.policer import SetUp

#: Who declares or enforces, in words.
SOURCES = {
    "user": "the command line",
    "ovs": "Open vSwitch",
    "ovn": "OVN",
    "nova": "Nova's flavor",
    "proxmox": "Proxmox",
}

_SET_AGAIN = {
    "libvirt": "`virsh domiftune`",
    "nova": "a hard reboot by Nova, which writes the guest's definition anew",
    "ovs": "`ovs-vsctl set interface`",
    "ovn": "ovn-controller (`ovn-appctl -t ovn-controller recompute`)",
    "proxmox": "`qm set`",
}
# Neutron's rule needs ML2/OVS from 2023.2 on; the OVN driver has none (Neutron, QoS guide, "packet rate limit").
# libvirt's <bandwidth> and Proxmox's rate= are in bytes alone.
_PACKET_LIMIT = {
    "ovn": "OVN has no rule for packet rates: a policer with `pkts_rate` at the tap can limit them.",
    "ovs": "Neutron's packet_rate_limit rule (ML2/OVS), or Open vSwitch's `ingress_policing_kpkts_rate`.",
    "libvirt": "libvirt and Nova limit bytes alone: a policer with `pkts_rate` at the tap can limit packets, until the "
    "guest starts again.",
    "proxmox": "Proxmox limits bytes alone: a policer with `pkts_rate` at the tap can limit packets, until the guest "
    "starts again.",
}
_ANY = (
    "Neutron's packet_rate_limit rule (ML2/OVS), Open vSwitch's `ingress_policing_kpkts_rate`, or police `pkts_rate`."
)


def set_again(sources: Iterable[str]) -> str:
    """Return how the limits of some sources are set again, in words; of none that is known: generally."""
    found = [_SET_AGAIN[one] for one in dict.fromkeys(sources) if one in _SET_AGAIN]
    return " or ".join(found) or "the program that declares it"


def packet_limit(set_up: SetUp) -> str:
    """Return how packets can be limited on this tap."""
    sources = {one.source for one in set_up.declared} | {one.source for one in set_up.elsewhere} | {*set_up.known_to}
    return next((_PACKET_LIMIT[one] for one in _PACKET_LIMIT if one in sources), _ANY)
