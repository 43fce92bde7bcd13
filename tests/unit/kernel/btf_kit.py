# SPDX-License-Identifier: Apache-2.0
"""Made-up type information of a kernel and its modules (include/uapi/linux/btf.h)."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_ENUM = 6
Enum = Mapping[str, int]


@dataclass
class Text:
    """The names of one file; `start`: offset of its first one, behind those of vmlinux."""

    start: int = 0
    data: bytearray = field(default_factory=bytearray)

    def add(self, name: str) -> int:
        """Add a name and return its offset."""
        at = self.start + len(self.data)
        self.data += name.encode() + b"\0"
        return at


def write(path: Path, enums: Mapping[str, Enum], others: Sequence[str] = (), behind: int = 0) -> int:
    """Write a file with these enums, and with other names; return the length of its names.

    behind: for a module, the length of vmlinux's names.
    """
    text = Text(behind, bytearray() if behind else bytearray(b"\0"))
    types = b""
    for name, values in enums.items():
        is_signed = any(value < 0 for value in values.values())
        types += struct.pack("=III", text.add(name), is_signed << 31 | _ENUM << 24 | len(values), 4)
        for one, value in values.items():
            types += struct.pack("=II", text.add(one), value & 0xFFFFFFFF)
    for name in others:
        text.add(name)
    head = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(text.data))
    path.write_bytes(head + types + text.data)
    return len(text.data)
