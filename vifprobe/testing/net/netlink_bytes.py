# SPDX-License-Identifier: Apache-2.0
"""Netlink attributes as bytes, for messages as the kernel sends them."""

from __future__ import annotations

import struct

_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: nla_len, nla_type (include/uapi/linux/netlink.h)


def attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute, padded to a multiple of 4 bytes."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + b"\0" * (-len(value) % 4)
