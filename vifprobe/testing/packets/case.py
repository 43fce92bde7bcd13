# SPDX-License-Identifier: Apache-2.0
"""One row of the packet table: a frame, and what a probe must say of it through TEST_RUN and on a real tap."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from vifprobe.model.layout import Ethertype, PacketClass, size_bucket
from vifprobe.testing.net.taps import GsoType, Tap, gso_packet
from vifprobe.testing.packets.frames import ETH_HEADER_BYTES, VLAN_TAG_BYTES, EtherType
from vifprobe.testing.packets.rules import expected_charged_bytes, expected_wire_bytes

#: TEST_RUN takes one page less what the kernel keeps around the frame: headroom and struct skb_shared_info
#: (net/bpf/test_run.c, bpf_test_init), on x86-64 384 bytes.
TEST_RUN_MAX_BYTES = 3600
#: Shortest IP frames that TEST_RUN takes: it wants the fixed header (net/bpf/test_run.c, bpf_prog_test_run_skb).
TEST_RUN_MIN_BYTES: dict[int, int] = {EtherType.IPV4: 34, EtherType.IPV6: 54}
#: The outer tag and the EtherType behind it must be there, or the kernel frees the frame before tc sees it
#: (net/core/skbuff.c, skb_vlan_untag).
TAGGED_MIN_BYTES = ETH_HEADER_BYTES + VLAN_TAG_BYTES + 2
#: What Linux knows as a tag (include/linux/if_vlan.h, eth_type_vlan).
TAG_TYPES = (EtherType.VLAN, EtherType.QINQ)


class Run(Enum):
    """The two ways to show a frame to a tc program."""

    TEST_RUN = "BPF_PROG_TEST_RUN"  # tags stay in the bytes
    TAP = "real tap"  # the kernel strips the outer tag first


@dataclass(frozen=True)
class Gso:
    """Segmentation that the guest asks for; `header_bytes` is all that is repeated in each segment."""

    size: int
    transport_offset: int
    header_bytes: int
    kind: GsoType = GsoType.TCPV4


@dataclass(frozen=True)
class Case:
    """A frame and what a probe must say of it. `ethertype` is `vlan` for a tagged frame in both runs."""

    name: str
    frame: bytes
    packet_class: PacketClass
    ethertype: Ethertype
    gso: Gso | None = None

    @property
    def is_tagged(self) -> bool:
        """Whether the kernel strips a tag from this frame at a tap."""
        return self._outer_type in TAG_TYPES

    def runs(self, run: Run) -> bool:
        """Whether the frame gets to a tc program at all that way."""
        length = len(self.frame)
        if run is Run.TAP:
            return length >= (TAGGED_MIN_BYTES if self.is_tagged else ETH_HEADER_BYTES)
        shortest = TEST_RUN_MIN_BYTES.get(self._outer_type, ETH_HEADER_BYTES)
        return shortest <= length <= TEST_RUN_MAX_BYTES

    def frame_bytes(self, run: Run) -> int:
        """skb->len at tc ingress."""
        return len(self.frame) - self._stripped_bytes(run)

    def size_bucket(self, run: Run) -> int:
        """Number of the size bucket."""
        return size_bucket(self.frame_bytes(run))

    def wire_bytes(self, run: Run) -> int:
        """What Ethernet carries for it; the same in both runs, as the tag counts either way."""
        stripped = self._stripped_bytes(run)
        if self.gso is None:
            return expected_wire_bytes(self.frame_bytes(run), stripped_tag_bytes=stripped)
        return expected_wire_bytes(
            self.frame_bytes(run),
            gso_size=self.gso.size,
            header_bytes=self.gso.header_bytes - stripped,
            stripped_tag_bytes=stripped,
        )

    def charged_bytes(self, run: Run) -> int:
        """`__sk_buff.wire_len`: at a tap's ingress without L2 header and tag; in TEST_RUN the frame's length."""
        if run is Run.TEST_RUN:
            return len(self.frame)
        return expected_charged_bytes(len(self.frame), stripped_tag_bytes=self._stripped_bytes(run))

    def packet(self, tap: Tap) -> bytes:
        """What to write to the tap; a GSO case needs one with a virtio-net header."""
        if self.gso is None:
            return tap.packet(self.frame)
        return gso_packet(
            self.frame,
            gso_size=self.gso.size,
            transport_offset=self.gso.transport_offset,
            gso_type=self.gso.kind,
        )

    @property
    def _outer_type(self) -> int:
        return int.from_bytes(self.frame[12:14], "big")

    def _stripped_bytes(self, run: Run) -> int:
        return VLAN_TAG_BYTES if run is Run.TAP and self.is_tagged else 0
