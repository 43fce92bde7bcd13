# SPDX-License-Identifier: Apache-2.0
"""Sampled headers taken apart, all at once: addresses, ports, and what a TCP stack puts into a SYN.

Offsets: IEEE 802.1Q, RFC 791, RFC 8200 and RFC 4302 (extension headers), RFC 9293 (TCP and its options).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vifprobe.model.layout import EXTENSION_HEADERS_MAX, VLAN_TAGS_MAX, Ethertype, PacketClass, SampleFlag
from vifprobe.model.records import SAMPLE_HEADER_BYTES

Array = npt.NDArray[Any]

#: What is known of one sampled packet. `version`: 4, 6, 1 for ARP, 0 where there is none or the bytes end too soon.
#: Addresses: IPv4 as IPv4-mapped IPv6 (RFC 4291, 2.5.5.2); of ARP the sender's and the target's. `mss`: -1 without
#: one. `ip_id`: -1 in IPv6. `options`: four bits an option, see OPTION_LETTERS. Below `has_tcp` all is 0 without TCP.
PACKET = np.dtype(
    [
        ("direction", np.uint8),
        ("packet_class", np.uint8),
        ("verdict", np.uint8),
        ("version", np.uint8),
        ("weight", np.uint32),
        ("frame_bytes", np.uint32),
        ("at_ns", np.int64),
        ("gap_ns", np.int64),
        ("source_mac", np.uint64),
        ("destination_mac", np.uint64),
        ("arp_mac", np.uint64),
        ("source_high", np.uint64),
        ("source_low", np.uint64),
        ("destination_high", np.uint64),
        ("destination_low", np.uint64),
        ("ttl", np.uint8),
        ("has_tcp", np.bool_),
        ("source_port", np.uint16),
        ("destination_port", np.uint16),
        ("ip_id", np.int32),
        ("mss", np.int32),
        ("sequence", np.uint32),
        ("window", np.uint16),
        ("options", np.uint64),
    ]
)

#: Letter of each code in `options`, from 1 up; 0 ends the list. p0f and others write layouts in this way.
OPTION_LETTERS = {1: "E", 2: "N", 3: "M", 4: "W", 5: "S", 6: "T", 7: "F", 14: "?", 15: "!"}
_OTHER, _BROKEN = 14, 15
#: TCP option kind (IANA) -> code: end, no-operation, MSS, window scale, SACK permitted, timestamps, fast open.
_KINDS = {0: 1, 1: 2, 2: 3, 3: 4, 4: 5, 8: 6, 34: 7}
_OPTIONS_MAX = 15  # codes that 60 bits hold; what follows is left out

_VLAN_TYPES = (0x8100, 0x88A8)
_IPV4, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD
#: By Ethertype; 0: not known from that alone.
_TYPES = np.array([{Ethertype.IPV4: _IPV4, Ethertype.IPV6: _IPV6}.get(one, 0) for one in Ethertype])
_TCP, _AH, _FRAGMENT = 6, 51, 44
#: Extension headers whose length is (byte 1 + 1) * 8: hop-by-hop, routing, destination options, mobility, HIP, shim6.
_EXTENSIONS = (0, 43, 60, 135, 139, 140)
MAPPED = 0xFFFF_0000_0000  # the lower half of an IPv4-mapped address without its last 32 bits


def pick(rows: Array, which: Array) -> Array:
    """rows[which] for a mask; `take` copies whole rows, ten times as fast as an index does for structured ones."""
    return np.asarray(rows.take(np.flatnonzero(which)))


def join(first: Array, second: Array) -> Array:
    """Both tables in one; as bytes, for the same reason."""
    if not len(first) or not len(second):
        return first if len(first) else second
    whole = np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in (first, second)])
    return np.asarray(whole.view(first.dtype))


class _Bytes:
    """Big-endian numbers at an offset of each row; 0 beyond the row's valid bytes, which `holds` tells of."""

    def __init__(self, samples: Array) -> None:
        self._flat = np.ascontiguousarray(samples["headers"]).reshape(-1)
        self._rows = np.arange(len(samples), dtype=np.int64) * SAMPLE_HEADER_BYTES
        self._valid = np.minimum(samples["header_bytes"].astype(np.int64), SAMPLE_HEADER_BYTES)

    def holds(self, end: Array) -> Array:
        """Return, for each row, True if the bytes before `end` are there."""
        known: Array = end <= self._valid
        return known

    def u8(self, at: Array | int) -> Array:
        where = np.asarray(at, dtype=np.int64)
        found = self._flat[self._rows + np.minimum(where, SAMPLE_HEADER_BYTES - 1)].astype(np.int64)
        return np.where(where < self._valid, found, 0)

    def u16(self, at: Array | int) -> Array:
        return self.u8(at) << 8 | self.u8(np.asarray(at) + 1)

    def u32(self, at: Array | int) -> Array:
        return self.u16(at) << 16 | self.u16(np.asarray(at) + 2)

    def u48(self, at: Array | int) -> Array:
        return self.u16(at) << 32 | self.u32(np.asarray(at) + 2)

    def u64(self, at: Array | int) -> Array:
        return self.u32(at).astype(np.uint64) << np.uint64(32) | self.u32(np.asarray(at) + 4).astype(np.uint64)


def packets_of(samples: Array) -> Array:
    """Rows of layout.SAMPLE -> rows of PACKET, in the same order."""
    data, rows = _Bytes(samples), np.zeros(len(samples), PACKET)
    for name in ("direction", "packet_class", "verdict", "weight", "frame_bytes", "at_ns", "gap_ns"):
        rows[name] = samples[name]
    layer_3 = samples["flags"] & SampleFlag.LAYER_3 != 0
    rows["destination_mac"], rows["source_mac"] = np.where(layer_3, 0, [data.u48(0), data.u48(6)])
    rows["ip_id"] = rows["mss"] = -1
    ethertype, at = _behind_tags(data, len(samples))
    at = np.where(layer_3, 0, at)
    ethertype = np.where(layer_3, _TYPES[samples["ethertype"]], ethertype)
    _arp(data, rows, at, ethertype == _ARP)
    tcp4, at4 = _ipv4(data, rows, at, ethertype == _IPV4)
    tcp6, at6 = _ipv6(data, rows, at, ethertype == _IPV6)
    _tcp(data, rows, np.where(tcp6, at6, at4), tcp4 | tcp6)
    return rows


def _behind_tags(data: _Bytes, length: int) -> tuple[Array, Array]:
    """EtherType behind the tags, and where its packet starts."""
    at = np.full(length, 14, np.int64)
    ethertype = data.u16(12)
    for _ in range(VLAN_TAGS_MAX):
        tagged = np.isin(ethertype, _VLAN_TYPES)
        ethertype = np.where(tagged, data.u16(at + 2), ethertype)
        at = np.where(tagged, at + 4, at)
    return ethertype, at


def _arp(data: _Bytes, rows: Array, at: Array, here: Array) -> None:
    """Ethernet and IPv4 only (RFC 826)."""
    here = here & (data.u16(at + 2) == _IPV4) & (data.u16(at + 4) == 0x0604) & data.holds(at + 28)
    if not here.any():
        return
    rows["version"][here] = 1
    rows["arp_mac"][here] = data.u48(at + 8)[here]
    rows["source_low"][here] = data.u32(at + 14)[here] | MAPPED
    rows["destination_low"][here] = data.u32(at + 24)[here] | MAPPED


def _ipv4(data: _Bytes, rows: Array, at: Array, here: Array) -> tuple[Array, Array]:
    """Fills in what IPv4 rows have; which of them go on with TCP, and where."""
    first = data.u8(at)
    header = (first & 15) * 4
    here = here & (first >> 4 == 4) & (header >= 20) & data.holds(at + 20)
    protocol, behind = data.u8(at + 9), at + header
    ah = here & (protocol == _AH)
    protocol = np.where(ah, data.u8(behind), protocol)
    behind = np.where(ah, behind + (data.u8(behind + 1) + 2) * 4, behind)
    for name, values in (
        ("version", 4),
        ("ttl", data.u8(at + 8)),
        ("ip_id", data.u16(at + 4)),
        ("source_low", data.u32(at + 12) | MAPPED),
        ("destination_low", data.u32(at + 16) | MAPPED),
    ):
        rows[name] = np.where(here, np.asarray(values).astype(rows.dtype[name]), rows[name])
    return here & (protocol == _TCP) & (data.u16(at + 6) & 0x1FFF == 0), behind


def _ipv6(data: _Bytes, rows: Array, at: Array, here: Array) -> tuple[Array, Array]:
    """As `_ipv4`, behind extension headers."""
    here = here & (data.u8(at) >> 4 == 6) & data.holds(at + 40)
    if not here.any():
        return here, at
    rows["version"][here] = 6
    rows["ttl"][here] = data.u8(at + 7)[here]
    for name, offset in (("source_high", 8), ("source_low", 16), ("destination_high", 24), ("destination_low", 32)):
        rows[name][here] = data.u64(at + offset)[here]
    upper, behind, first = data.u8(at + 6), at + 40, here.copy()
    for _ in range(EXTENSION_HEADERS_MAX):
        follows, length = data.u8(behind), data.u8(behind + 1)
        extension, fragment, ah = np.isin(upper, _EXTENSIONS), upper == _FRAGMENT, upper == _AH
        first &= ~(fragment & (data.u16(behind + 2) & 0xFFF8 != 0))
        step = np.where(extension, (length + 1) * 8, np.where(ah, (length + 2) * 4, np.where(fragment, 8, 0)))
        upper, behind = np.where(step > 0, follows, upper), behind + step
    return first & (upper == _TCP), behind


def _tcp(data: _Bytes, rows: Array, at: Array, here: Array) -> None:
    here = here & data.holds(at + 20)
    rows["has_tcp"] = here
    for name, values in (
        ("source_port", data.u16(at)),
        ("destination_port", data.u16(at + 2)),
        ("sequence", data.u32(at + 4)),
        ("window", data.u16(at + 14)),
    ):
        rows[name] = np.where(here, values, 0)
    syn = np.flatnonzero(here & np.isin(rows["packet_class"], (PacketClass.TCP_SYN, PacketClass.TCP_SYNACK)))
    _options(data, rows, at, syn)


def _options(data: _Bytes, rows: Array, at: Array, which: Array) -> None:
    """Walks through the options of some rows, one option of each at a time."""
    here = np.zeros(len(rows), np.bool_)
    here[which] = True
    now, end = at + 20, at + np.maximum(data.u8(at + 12) >> 4, 5) * 4
    cut = here & ~data.holds(end)
    layout, mss = np.zeros(len(rows), np.uint64), np.full(len(rows), -1, np.int64)
    for number in range(_OPTIONS_MAX):
        here = here & ~cut & (now < end)
        if not here.any():
            break
        kind, length = data.u8(now), data.u8(now + 1)
        single = kind <= 1
        broken = here & ~single & ((length < 2) | (now + length > end))
        code = np.full(len(rows), _OTHER, np.int64)
        for each, letter in _KINDS.items():
            code[kind == each] = letter
        code[broken] = _BROKEN
        layout[here] |= (code.astype(np.uint64) << np.uint64(4 * number))[here]
        mss = np.where(here & ~broken & (kind == 2) & (length == 4), data.u16(now + 2), mss)
        now = np.where(single, now + 1, now + length)
        here = here & ~broken & (kind != 0)
    layout[cut] = _BROKEN
    rows["options"][which], rows["mss"][which] = layout[which], mss[which]


def option_letters(layout: int) -> str:
    """`MSTNW`: the options in their order; "" for none."""
    letters = ""
    while layout:
        letters += OPTION_LETTERS[layout & 15]
        layout >>= 4
    return letters
