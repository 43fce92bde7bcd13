# SPDX-License-Identifier: Apache-2.0
"""Names of drop reasons for people."""

from __future__ import annotations

from collections.abc import Mapping

#: A reason's subsystem is in these bits (include/net/dropreason.h, SKB_DROP_REASON_SUBSYS_MASK).
SUBSYSTEM_MASK = 0xFFFF0000


def reason_name(code: int, reasons: Mapping[int, str]) -> str:
    """Return the kernel's name of a drop reason; "" for 0 (unknown).

    - reasons: number -> name. A subsystem's number without a reason has the name of the subsystem.

    A reason without a name is `OPENVSWITCH 0x5` where its subsystem has one (its module was not loaded when the names
    were read), else `0x5`.
    """
    if not code:
        return ""
    if code in reasons:
        return reasons[code].removeprefix("SKB_DROP_REASON_")
    subsystem = reasons.get(code & SUBSYSTEM_MASK, "") if code & SUBSYSTEM_MASK else ""
    return f"{subsystem} 0x{code & ~SUBSYSTEM_MASK:x}" if subsystem else f"0x{code:x}"
