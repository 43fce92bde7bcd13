# SPDX-License-Identifier: Apache-2.0
"""Features of this kernel and rights of this process. Always probed, never derived from a version number."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vifprobe.errors import KernelError
from vifprobe.kernel import libbpf
from vifprobe.kernel.btf import Btf
from vifprobe.kernel.reasons import SUBSYSTEM_SHIFT, read_reasons
from vifprobe.kernel.symbols import function_ranges

# include/uapi/linux/capability.h
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
#: QDISC_DROP (5.18); QDISC_OVERLIMIT, QDISC_CONGESTED, CAKE_FLOOD, FQ_BAND_LIMIT, FQ_FLOW_LIMIT and others (6.14)
_QDISC_REASONS = ("QDISC_", "CAKE_", "FQ_")
#: Name in bpf/progs/kfree_skb.c -> struct and member.
_MEMBERS = {
    "SKB_DEV": ("sk_buff", "dev"),
    "SKB_LEN": ("sk_buff", "len"),
    "SKB_PROTOCOL": ("sk_buff", "protocol"),
    "SKB_IIF": ("sk_buff", "skb_iif"),
    "SKB_CB": ("sk_buff", "cb"),
    # struct qdisc_skb_cb, include/net/sch_generic.h: in an anonymous struct since 5.12.
    "CB_PKT_LEN": ("qdisc_skb_cb", "pkt_len"),
    "DEV_IFINDEX": ("net_device", "ifindex"),
    "DEV_NET": ("net_device", "nd_net"),
    "NET_NS": ("net", "ns"),
    "NS_COMMON_INUM": ("ns_common", "inum"),
}
_NETNS_MEMBERS = ("DEV_NET", "NET_NS", "NS_COMMON_INUM")
#: Name in bpf/lib/chains.c -> struct and member; -1 where this kernel has none (ipv6_statistics: CONFIG_IPV6).
_CHAIN_MEMBERS = {
    "NET_MIB": ("net", "mib"),
    "MIB_IP": ("netns_mib", "ip_statistics"),
    "MIB_IPV6": ("netns_mib", "ipv6_statistics"),
    "BPF_ARRAY_PPTRS": ("bpf_array", "pptrs"),
    "NF_STATE_PF": ("nf_hook_state", "pf"),
    "NF_STATE_HOOK": ("nf_hook_state", "hook"),
}
#: Members needed to find the IP stack's counters.
IP_COUNTER_MEMBERS = ("DEV_NET", "NET_MIB", "MIB_IP", "BPF_ARRAY_PPTRS")

#: r0 = 0; *(u64 *)(r10 - 8) = r0; lock *(u64 *)(r10 - 8) ? r0 : r0; exit
_CMPXCHG = bytes.fromhex("b700000000000000 7b0af8ff00000000 db0af8fff1000000 9500000000000000")
#: r1 = r10 - 8; r2 = 8; r3 = 0; call bpf_probe_read_kernel; r0 = 0; exit
_READ_KERNEL = bytes.fromhex(
    "bfa1000000000000 07010000f8ffffff b702000008000000 b703000000000000 8500000071000000 b700000000000000"
    "9500000000000000"
)

#: r0 = 0; exit
_NOTHING = bytes.fromhex("b700000000000000 9500000000000000")


@dataclass(frozen=True)
class Features:
    """Drop-related features of the running kernel.

    - kfree_skb_btf_id: BTF id of the tracepoint's type.
    - offsets_bytes: offsets of the struct members that bpf/progs/kfree_skb.c and bpf/lib/chains.c read, by their names
      there; -1: not in this kernel.
    - has_drop_reason: kfree_skb has the reason as an argument (since 5.17).
    - reasons: reason number -> name as tracefs prints it (TC_INGRESS, OVS_DROP_METER, …), see
      vifprobe.kernel.reasons; empty before 5.17.
    - tc_ingress, netfilter: address ranges of the functions that free packets dropped there: (low half of the start, of
      the end). Looked up only before 5.17, else (0, 0).
    - tc_egress, free_list: address ranges for drops at egress. Looked up only where no queueing discipline has a drop
      reason (before 5.18), else (0, 0).
    """

    kfree_skb_btf_id: int
    offsets_bytes: dict[str, int]
    has_drop_reason: bool
    reasons: dict[int, str]
    tc_ingress: tuple[int, int] = (0, 0)
    netfilter: tuple[int, int] = (0, 0)
    tc_egress: tuple[int, int] = (0, 0)
    free_list: tuple[int, int] = (0, 0)

    @property
    def qdisc_reasons(self) -> frozenset[int]:
        """Return the numbers of the queueing disciplines' drop reasons (include/net/dropreason-core.h)."""
        return frozenset(
            number
            for number, name in self.reasons.items()
            if name.startswith(_QDISC_REASONS) and not number >> SUBSYSTEM_SHIFT
        )

    @property
    def qdisc_subsystem(self) -> int | None:
        """Return the number of the subsystem of queueing disciplines (net-next of 2026); None without one.

        Up to now such a reason reaches kfree_skb as QDISC_DROP (net/sched/sch_generic.c, __tcf_kfree_skb_list).
        """
        numbers = (number for number, name in self.reasons.items() if name == "QDISC" and number >> SUBSYSTEM_SHIFT)
        return next((number >> SUBSYSTEM_SHIFT for number in numbers), None)

    def reason_number(self, name: str) -> int | None:
        """Return the running kernel's number of a reason; None where it has none of that name."""
        return next((number for number, known in self.reasons.items() if known == name), None)


def read_features() -> Features:
    """Return the features, read from the running kernel's BTF. Raises KernelError."""
    with Btf() as btf:
        # (skb, location, reason[, rx_sk]); before commit c504e5c2f964 of 5.17 (skb, location).
        has_reason = btf.tracepoint_arguments("kfree_skb") >= 3
        names = read_reasons(btf) if has_reason else {}
        has_qdisc_reason = "QDISC_DROP" in names.values()
        nowhere = ((0, 0), (0, 0))
        places = nowhere if has_reason else function_ranges("__netif_receive_skb_core", "nf_hook_slow")
        queue = nowhere if has_qdisc_reason else function_ranges("__dev_queue_xmit", "kfree_skb_list")
        return Features(
            kfree_skb_btf_id=btf.tracepoint_id("kfree_skb"),
            offsets_bytes=_offsets_bytes(btf),
            has_drop_reason=has_reason,
            reasons=names,
            tc_ingress=places[0],
            netfilter=places[1],
            tc_egress=queue[0],
            free_list=queue[1],
        )


def _offsets_bytes(btf: Btf) -> dict[str, int]:
    # CONFIG_NET_NS=n: there is one namespace, and devices have no member for it.
    has_netns = Path("/proc/self/ns/net").exists()
    found = {
        name: btf.offset_bytes(struct, member) if has_netns or name not in _NETNS_MEMBERS else -1
        for name, (struct, member) in _MEMBERS.items()
    }
    for name, (struct, member) in _CHAIN_MEMBERS.items():
        try:
            found[name] = btf.offset_bytes(struct, member)
        except KernelError:
            found[name] = -1
    return found


_TRACEPOINTS = ("netif_receive_skb", "net_dev_queue", "net_dev_start_xmit", "net_dev_xmit", "consume_skb")
#: Name in bpf/lib/skb.c -> struct and member.
_TRACE_FIELDS = {
    "SKB_DEV": ("sk_buff", "dev"),
    "SKB_LEN": ("sk_buff", "len"),
    "SKB_DATA_LEN": ("sk_buff", "data_len"),
    "SKB_HEAD": ("sk_buff", "head"),
    "SKB_DATA": ("sk_buff", "data"),
    "SKB_END": ("sk_buff", "end"),
    "SKB_MAC_HEADER": ("sk_buff", "mac_header"),
    "SKB_CB": ("sk_buff", "cb"),
    "SKB_VLAN_TCI": ("sk_buff", "vlan_tci"),
    "SKB_VLAN_PROTO": ("sk_buff", "vlan_proto"),
    "NET_DEVICE_IFINDEX": ("net_device", "ifindex"),
    "SHARED_INFO_DATAREF": ("skb_shared_info", "dataref"),
    "SHARED_INFO_GSO_SIZE": ("skb_shared_info", "gso_size"),
    # struct qdisc_skb_cb, include/net/sch_generic.h: pkt_len is in an anonymous struct since 5.12.
    "QDISC_CB_PKT_LEN": ("qdisc_skb_cb", "pkt_len"),
}


@dataclass(frozen=True)
class TraceFields:
    """Offsets and BTF ids for the tracepoint programs.

    - offsets_bytes: for bpf/lib/skb.c, by the names there.
    - btf_ids: of the tracepoints and functions that the programs of bpf/progs attach to, by name. __skb_gso_segment: 0
      where the kernel's BTF does not have it.
    """

    offsets_bytes: dict[str, int]
    btf_ids: dict[str, int]


def read_trace_fields() -> TraceFields:
    """Return the fields, read from the running kernel's BTF. Raises KernelError.

    Needed to follow inbound packets, and on kernels without tcx.
    """
    with Btf() as btf:
        offsets = {name: btf.offset_bytes(*field) for name, field in _TRACE_FIELDS.items()}
        bit = btf.offset_bits("sk_buff", "vlan_present")
        if bit is None:
            # Since 6.2 (commit 354259fa73e2): tagged is vlan_all != 0.
            offsets |= {"SKB_VLAN": btf.offset_bytes("sk_buff", "vlan_all"), "SKB_VLAN_BYTES": 4, "SKB_VLAN_MASK": -1}
        else:
            offsets |= {"SKB_VLAN": bit // 8, "SKB_VLAN_BYTES": 1, "SKB_VLAN_MASK": 1 << bit % 8}
        cloned = btf.offset_bits("sk_buff", "cloned")
        if cloned is None:
            raise KernelError("struct sk_buff of this kernel has no member cloned.")
        offsets |= {"SKB_CLONED": cloned // 8, "SKB_CLONED_MASK": 1 << cloned % 8}
        ids = {name: btf.tracepoint_id(name) for name in _TRACEPOINTS}
        return TraceFields(offsets, ids | {"__skb_gso_segment": btf.function_id("__skb_gso_segment") or 0})


def capabilities() -> set[str]:
    """Return the effective capabilities of this process, of those that vifprobe uses. Raises KernelError."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError as error:
        words = (error.strerror or str(error)).lower()
        raise KernelError(f"/proc/self/status: {words}.", "Run vifprobe where /proc is mounted.") from error
    mask = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)
    return {name for name, bit in _CAPABILITIES.items() if mask >> bit & 1}


def missing_capabilities() -> list[str]:
    """Return the names of the missing capabilities; CAP_SYS_ADMIN includes CAP_BPF and CAP_PERFMON."""
    have = capabilities()
    wanted = ["CAP_NET_ADMIN"] if "CAP_SYS_ADMIN" in have else ["CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON"]
    return [name for name in wanted if name not in have]


def require_capabilities() -> None:
    """Raise KernelError with the names of missing capabilities: the kernel itself only says "not permitted"."""
    if missing := missing_capabilities():
        raise KernelError(
            f"not permitted: this process lacks {', '.join(missing)}.",
            "Loading BPF programs and attaching them to a tap needs root: run it with sudo.",
        )
    require_bpf()


def require_bpf() -> None:
    """Raise KernelError where bpf() is refused despite the capabilities: tried with an empty program.

    Other errors are ignored here: loading the real programs reports them.
    """
    try:
        os.close(libbpf.load_tc_program("vifprobe_probe", _NOTHING))
    except PermissionError as error:
        raise KernelError(
            f"not permitted: the kernel refuses bpf() ({error.strerror}), although no capability is missing.",
            "Known causes: seccomp of a container (docker --security-opt) or a service (SystemCallFilter=), a "
            "security module, kernel lockdown.",
        ) from error
    except OSError:
        pass


@cache
def takes_cmpxchg() -> bool:
    """Return True where programs can use atomic cmpxchg (5.12, commit 5ffa25502b5a): tried with a minimal program."""
    return _takes(_CMPXCHG)


@cache
def takes_kernel_reads() -> bool:
    """Return True where tc programs may read kernel memory; False under kernel lockdown (kernel_lockdown(7))."""
    return _takes(_READ_KERNEL)


def _takes(code: bytes) -> bool:
    try:
        os.close(libbpf.load_tc_program("vifprobe_probe", code))
    except OSError:
        return False
    return True


def kernel_version() -> str:
    """Return the kernel release, as `uname -r`."""
    return os.uname().release
