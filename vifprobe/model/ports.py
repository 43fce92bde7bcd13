# SPDX-License-Identifier: Apache-2.0
"""Hook of a device that sees what its guest sends, by the kind of the device: decided here and nowhere else.

| kind | what the guest sends passes |
|---|---|
| tap | ingress, rx: tun hands it to the host's stack (drivers/net/tun.c, tun_get_user) |
| macvtap, ipvtap | egress, tx: it goes to dev_queue_xmit (drivers/net/tap.c, tap_get_user) |
| all others | not a guest's port: outbound is what the device received (rx), inbound what it sent (tx) |

A tun is the one kind without Ethernet headers. No hypervisor gives its guests one (libvirt opens /dev/net/tun with
IFF_TAP alone: src/util/virnetdevtap.c, virNetDevTapCreate); VPNs and containers have them.

The ingress of a macvtap is what comes from the network (drivers/net/macvlan.c, macvlan_handle_frame). libvirt installs
its limits the other way round there for the same reason (virNetDevBandwidthSet, `swapped`).

The kernel side knows hooks only: its OUTBOUND is the ingress of a device, its INBOUND the egress, as for a tap.
"""

from __future__ import annotations

from typing import Literal

from vifprobe.model.layout import ETH_HEADER_BYTES, Direction

Hook = Literal["ingress", "egress"]

#: Kinds of device that a guest hangs on, and the hook that what it sends passes.
_OUTBOUND_HOOKS: dict[str, Hook] = {"tap": "ingress", "macvtap": "egress", "ipvtap": "egress"}
GUEST_PORTS = tuple(_OUTBOUND_HOOKS)
#: Kinds of a guest's port (libvirt's names) without a tap, and why nothing of them is seen.
WITHOUT_TAP = {
    "vhostuser": "a switch in user space (OVS-DPDK, VPP) forwards its packets: they do not pass this kernel",
    "hostdev": "the guest drives a network card or a part of one (SR-IOV): `ip link show` lists a VF's rates",
    "vdpa": "the network card serves the guest's queues itself (vDPA)",
    "user": "QEMU forwards its packets itself, by sockets of its own",
}
#: Kinds that take packets over from the device below within one call of __netif_receive_skb_core (net/core/dev.c:
#: vlan_do_receive, RX_HANDLER_ANOTHER): the tracepoint at its beginning names the device below.
_TAKES_OVER = ("macvtap", "macvlan", "ipvtap", "ipvlan", "vlan", "bond", "team")


def is_guest_port(kind: str) -> bool:
    """Return True if a guest hangs on a device of this kind."""
    return kind in _OUTBOUND_HOOKS or kind in WITHOUT_TAP


def outbound_hook(kind: str) -> Hook:
    """The hook that outbound packets pass; of what is not a guest's port, outbound is what it received."""
    return _OUTBOUND_HOOKS.get(kind, "ingress")


def is_swapped(kind: str) -> bool:
    """Return True if outbound is the device's egress."""
    return outbound_hook(kind) == "egress"


def direction_at(kind: str, hook: Hook) -> Direction:
    """The direction of the packets that pass a hook, as the guest sees it."""
    return Direction.OUTBOUND if outbound_hook(kind) == hook else Direction.INBOUND


def hook_of(kind: str, direction: Direction) -> Hook:
    """The hook that the packets of a direction pass."""
    return "ingress" if direction_at(kind, "ingress") is direction else "egress"


def turned(kind: str, direction: Direction) -> Direction:
    """The guest's direction of one of the kernel side, and the other way round."""
    return opposite(direction) if is_swapped(kind) else direction


def opposite(direction: Direction) -> Direction:
    """The other one."""
    return Direction.INBOUND if direction is Direction.OUTBOUND else Direction.OUTBOUND


def traces_received(kind: str) -> bool:
    """Return True if the tracepoint netif_receive_skb reports what a device of this kind receives."""
    return kind not in _TAKES_OVER


def is_layer_3(kind: str) -> bool:
    """Return True if a device's packets begin with the IP header: its frame bytes are those of the IP packet."""
    return kind == "tun"


def l2_header_bytes(kind: str) -> int:
    """Bytes of each packet that a policer at ingress does not charge."""
    return 0 if is_layer_3(kind) else ETH_HEADER_BYTES


def word(kind: str, direction: Direction) -> str:
    """Return the word for a direction: `outbound` and `inbound`, or `received` and `sent` where there is no guest."""
    if is_guest_port(kind):
        return direction.name.lower()
    return "received" if direction is Direction.OUTBOUND else "sent"


def warning(name: str, kind: str) -> str:
    """For whoever watches what is not a guest's port; "" for one that is."""
    if is_guest_port(kind):
        return ""
    what = f"a {kind} device" if kind not in ("ethernet", "") else "a network device"
    return f"{name} is {what}, not a guest's port: received is what the device received, sent is what it sent"
