# SPDX-License-Identifier: Apache-2.0
"""What this kernel and this process can do. Probed, never concluded from a version number."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vifprobe.kernel.btf import Btf
from vifprobe.kernel.symbols import function_range

# include/uapi/linux/capability.h
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
_REASON_PREFIXES = ("SKB_DROP_REASON_", "SKB_")


@dataclass(frozen=True)
class Features:
    """kfree_skb_btf_id: of the tracepoint's type. skb_iif_offset_bytes: of sk_buff.skb_iif. has_drop_reason: kfree_skb tells why (since 5.17).

    reasons: reason number -> name as tracefs prints it (TC_INGRESS, NETFILTER_DROP, …), empty before 5.17.
    tc_ingress, netfilter: where the functions lie that free what they drop there: (low half of the start, of the end).
    Looked up only before 5.17, else (0, 0).
    """

    kfree_skb_btf_id: int
    skb_iif_offset_bytes: int
    has_drop_reason: bool
    reasons: dict[int, str]
    tc_ingress: tuple[int, int] = (0, 0)
    netfilter: tuple[int, int] = (0, 0)

    def reason_number(self, name: str) -> int | None:
        """The running kernel's number of a reason, None where it has none of that name."""
        return next((number for number, known in self.reasons.items() if known == name), None)


def read_features() -> Features:
    """Ask the running kernel's BTF."""
    with Btf() as btf:
        # (skb, location, reason[, rx_sk]); before commit c504e5c2f964 of 5.17 (skb, location).
        has_reason = btf.tracepoint_arguments("kfree_skb") >= 3
        reasons = btf.enum("skb_drop_reason") if has_reason else {}
        return Features(
            kfree_skb_btf_id=btf.tracepoint_id("kfree_skb"),
            skb_iif_offset_bytes=btf.offset_bytes("sk_buff", "skb_iif"),
            has_drop_reason=has_reason,
            reasons={value: _plain(name) for name, value in reasons.items()},
            tc_ingress=(0, 0) if has_reason else function_range("__netif_receive_skb_core"),
            netfilter=(0, 0) if has_reason else function_range("nf_hook_slow"),
        )


def _plain(name: str) -> str:
    for prefix in _REASON_PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def capabilities() -> set[str]:
    """Effective capabilities of this process, of those that matter here."""
    status = Path("/proc/self/status").read_text()
    mask = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)
    return {name for name, bit in _CAPABILITIES.items() if mask >> bit & 1}


def missing_capabilities() -> list[str]:
    """Names of the capabilities that are needed and not there; CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON."""
    have = capabilities()
    wanted = ["CAP_NET_ADMIN"] if "CAP_SYS_ADMIN" in have else ["CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON"]
    return [name for name in wanted if name not in have]


def kernel_version() -> str:
    """`uname -r`."""
    return os.uname().release
