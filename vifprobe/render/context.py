# SPDX-License-Identifier: Apache-2.0
"""Context of a tap that a view needs besides its readings, and the words for drop reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from vifprobe.model.layout import Direction, Verdict
from vifprobe.model.ports import direction_at
from vifprobe.model.reading import Counts, Reading, count
from vifprobe.model.reasons import reason_name


@dataclass(frozen=True)
class TapContext:
    """A tap's surroundings.

    domain: libvirt's name of the VM, "" where not known. reasons: the running kernel's drop reasons, number -> name
    (without ``SKB_DROP_REASON_``). declared_known, installed_known: the places that declare or enforce a limit were
    read, so that a limit of None means that there is none; otherwise None means unknown.
    """

    domain: str = ""
    reasons: Mapping[int, str] = field(default_factory=dict)
    declared_known: bool = False
    installed_known: bool = False


class Loss(NamedTuple):
    """Packets lost for one reason. `name` is the kernel's, `words` explain it ("" where there are none)."""

    name: str
    words: str
    counts: Counts


#: Maximum number of devices that are named beside a drop reason.
_DEVICES_MAX = 3
#: Kernel include/net/dropreason-core.h says what each means; here in the words of someone who runs VMs.
REASON_WORDS: Mapping[str, str] = {
    "BRIDGE_INGRESS_STP_STATE": "the bridge port is not forwarding (STP)",
    "CAKE_FLOOD": "CAKE, a flow that does not slow down",
    "CPU_BACKLOG": "this CPU's receive backlog is full",
    "DEV_READY": "the device is not up or has no queue",
    "DUALPI2_STEP_DROP": "DualPI2: its queue is congested",
    "FQ_BAND_LIMIT": "fq's limit of packets of one band",
    "FQ_FLOW_LIMIT": "fq's limit of packets of one flow",
    "FQ_HORIZON_LIMIT": "fq: its time to leave is too far ahead",
    "FULL_RING": "the tap's ring is full: the guest reads too slowly",
    "IP_CSUM": "wrong IP checksum",
    "IP_INHDR": "broken IP header",
    "IP_INNOROUTES": "the host has no route for it",
    "IP_INVALID_SOURCE": "source address not allowed",
    "IP_RPFILTER": "reverse path filter: spoofed source address",
    "IPV6DISABLED": "IPv6 is off on this interface",
    "MAC_INVALID_SOURCE": "source MAC is not allowed",
    "NEIGH_FAILED": "the next hop does not answer ARP or ND",
    "NETFILTER_DROP": "a netfilter rule (nft, iptables)",
    "NO_TX_TARGET": "the bridge has no port to send it to",
    "NOMEM": "the host is out of memory for packets",
    "NOT_SPECIFIED": "the kernel gives no reason",
    # net/openvswitch/drop.h and actions.c
    "OVS_DROP_ACTION_ERROR": "an action of Open vSwitch failed",
    "OVS_DROP_CONNTRACK": "the conntrack of Open vSwitch refused it",
    "OVS_DROP_DEFERRED_LIMIT": "too many deferred actions in Open vSwitch",
    "OVS_DROP_EXPLICIT": "a drop action of Open vSwitch",
    "OVS_DROP_EXPLICIT_WITH_ERROR": "Open vSwitch dropped it: its flow tables ended in an error",
    "OVS_DROP_FRAG_INVALID_PROTO": "Open vSwitch cannot fragment this protocol",
    "OVS_DROP_FRAG_L2_TOO_LONG": "Open vSwitch cannot fragment behind such a long L2 header",
    "OVS_DROP_IP_TTL": "TTL or hop limit ended in Open vSwitch",
    "OVS_DROP_LAST_ACTION": "the flow of Open vSwitch sends it nowhere",
    "OVS_DROP_METER": "a meter of Open vSwitch",
    "OVS_DROP_RECURSION_LIMIT": "Open vSwitch: too many nested actions",
    "OTHERHOST": "addressed to another host's MAC",
    "PKT_TOO_BIG": "longer than the next MTU",
    "PKT_TOO_SMALL": "shorter than its headers",
    "QDISC_DROP": "a qdisc",
    # include/net/dropreason-core.h and dropreason-qdisc.h
    "QDISC_CONGESTED": "a qdisc (CoDel, PIE, RED): its queue is congested",
    "QDISC_OVERLIMIT": "a qdisc's queue is full",
    "QDISC_DROP_CAKE_FLOOD": "CAKE, a flow that does not slow down",
    "QDISC_DROP_CONGESTED": "a qdisc (CoDel, PIE, RED): its queue is congested",
    "QDISC_DROP_FLOW_LIMIT": "a qdisc's limit of packets of one flow",
    "QDISC_DROP_FQ_BAND_LIMIT": "fq's limit of packets of one band",
    "QDISC_DROP_FQ_HORIZON_LIMIT": "fq: its time to leave is too far ahead",
    "QDISC_DROP_GENERIC": "a qdisc",
    "QDISC_DROP_MAXFLOWS": "a qdisc: too many flows",
    "QDISC_DROP_OVERLIMIT": "a qdisc's queue is full",
    "TAP_FILTER": "the tap's own filter",
    "TAP_TXFILTER": "the tap's address filter",
    "TC_EGRESS": "a tc filter at egress",
    "TC_INGRESS": "tc at the tap's ingress",
    "UNHANDLED_PROTO": "nobody here takes this protocol",
    "VLAN_FILTER": "this VLAN is not allowed on the bridge port",
    "XDP": "an XDP program",
}


def losses(reading: Reading, direction: Direction, verdict: Verdict, reasons: Mapping[int, str]) -> list[Loss]:
    """Each reason for which packets of this verdict were lost, the most frequent first."""
    rows = reading.where(direction, verdict)
    found = []
    for code in np.unique(rows["reason"]):
        name = reason_name(int(code), reasons) or "reason unknown"
        name = f"reason {name}" if name.startswith("0x") else name
        words = _words_behind(name, int(code), reading, direction) or REASON_WORDS.get(name, "")
        found.append(Loss(name, words, count(rows[rows["reason"] == code])))
    return sorted(found, key=lambda loss: (-loss.counts.packets, loss.name))


def _words_behind(name: str, code: int, reading: Reading, direction: Direction) -> str:
    """Words for a loss at another device; "" for others: packets to the guest are lost at the tap itself."""
    if direction is not direction_at(reading.kind, "ingress"):
        return ""
    devices = [one.device for one in reading.lost_at if one.reason == code and one.dropped and one.device]
    if name == "FULL_RING":
        where = f"the ring of {_list(devices)}" if devices else "a ring behind the tap"
        return f"{where} is full: its guest reads too slowly"
    return f"the qdisc of {_list(devices)}" if devices and REASON_WORDS.get(name, "").startswith("a qdisc") else ""


def _list(devices: list[str]) -> str:
    return ", ".join(devices[:_DEVICES_MAX]) + (" ..." if len(devices) > _DEVICES_MAX else "")
