# SPDX-License-Identifier: Apache-2.0
"""tc messages: qdiscs, classes and filters, with what pyroute2's tcmsg lacks.

| here | pyroute2 0.9.7 |
|---|---|
| TCA_CHAIN, TCA_INGRESS_BLOCK, TCA_EGRESS_BLOCK | UNKNOWN |
| tbf: RATE64, PRATE64 | UNKNOWN |
| bpf: TAG, ID | UNKNOWN |
| flower, cgroup, route | hexadecimal text |
| basic, flow: POLICE (the legacy form) | hexadecimal text |
| matchall: CLASSID in host order | in network order |

Source: include/uapi/linux/rtnetlink.h, pkt_cls.h and pkt_sched.h; net/sched/cls_*.c, sch_htb.c, sch_tbf.c, sch_netem.c.
"""

from __future__ import annotations

import struct
from typing import Any

from pyroute2.netlink.rtnl.tcmsg import cls_basic, sched_htb, sched_netem, sched_tbf
from pyroute2.netlink.rtnl.tcmsg import tcmsg as pyroute2_tcmsg

from vifprobe.host.net.nla.action import police, stats, stats2, tca_act_prio
from vifprobe.host.net.nla.base import CutShortError, bounded, nla, nlmsg

_U32_SEL = struct.Struct("=BBBxHHhhI")  # struct tc_u32_sel
_U32_KEY = struct.Struct(">IIii")  # struct tc_u32_key


class _filter(nla):
    """TCA_OPTIONS of a filter: its actions, and its policer of the legacy form (net/sched/cls_api.c, tcf_exts_dump)."""

    __slots__ = ()
    police = police
    tca_act_prio = tca_act_prio


class u32(_filter):
    __slots__ = ()
    nla_map = (
        (1, "TCA_U32_CLASSID", "uint32"),
        (4, "TCA_U32_DIVISOR", "uint32"),
        (5, "TCA_U32_SEL", "u32_sel"),
        (6, "TCA_U32_POLICE", "police"),
        (7, "TCA_U32_ACT", "tca_act_prio"),
    )

    class u32_sel(nla.cdata):
        """struct tc_u32_sel, of which the keys are wanted: (mask, value) of each."""

        __slots__ = ()

        @classmethod
        def value_at(cls, data: bytes, offset: int, length: int) -> list[tuple[int, int]]:
            """Raises CutShortError where it has fewer keys than it says."""
            found = super().value_at(data, offset, length)
            count = found[2] if len(found) >= _U32_SEL.size else 0
            if len(found) < _U32_SEL.size + count * _U32_KEY.size:
                raise CutShortError(f"{len(found)} bytes for {count} keys")
            return [_U32_KEY.unpack_from(found, _U32_SEL.size + _U32_KEY.size * place)[:2] for place in range(count)]


class basic(_filter):
    """The kernel sends a tree of matches with a head that says 0 where it has none (tcf_em_tree_dump)."""

    __slots__ = ()
    nla_map = (
        (1, "TCA_BASIC_CLASSID", "uint32"),
        (2, "TCA_BASIC_EMATCHES", "ematch_tree"),
        (3, "TCA_BASIC_ACT", "tca_act_prio"),
        (4, "TCA_BASIC_POLICE", "police"),
    )

    class ematch_tree(nla):
        __slots__ = ()
        nla_map = ((1, "TCA_EMATCH_TREE_HDR", "header_"),)

        class header_(bounded, cls_basic.options.parse_basic_ematch_tree.tcf_parse_header):
            __slots__ = ()


class matchall(_filter):
    __slots__ = ()
    nla_map = ((1, "TCA_MATCHALL_CLASSID", "uint32"), (2, "TCA_MATCHALL_ACT", "tca_act_prio"))


class flower(_filter):
    """Attributes without a class here are keys, kept as UNKNOWN (net/sched/cls_flower.c, fl_dump)."""

    __slots__ = ()
    unknown = ("UNKNOWN", nla.cdata)
    nla_map = (
        (1, "TCA_FLOWER_CLASSID", "uint32"),
        (3, "TCA_FLOWER_ACT", "tca_act_prio"),
        (8, "TCA_FLOWER_KEY_ETH_TYPE", "be16"),
        (22, "TCA_FLOWER_FLAGS", "uint32"),
        (86, "TCA_FLOWER_IN_HW_COUNT", "uint32"),
    )


class bpf(_filter):
    """net/sched/cls_bpf.c, cls_bpf_dump_ebpf_info: tag and id since 4.12."""

    __slots__ = ()
    nla_map = (
        (1, "TCA_BPF_ACT", "tca_act_prio"),
        (2, "TCA_BPF_POLICE", "police"),
        (3, "TCA_BPF_CLASSID", "uint32"),
        (6, "TCA_BPF_FD", "uint32"),
        (7, "TCA_BPF_NAME", "asciiz"),
        (8, "TCA_BPF_FLAGS", "uint32"),
        (10, "TCA_BPF_TAG", "cdata"),
        (11, "TCA_BPF_ID", "uint32"),
    )


class fw(_filter):
    __slots__ = ()
    nla_map = (
        (1, "TCA_FW_CLASSID", "uint32"),
        (2, "TCA_FW_POLICE", "police"),
        (4, "TCA_FW_ACT", "tca_act_prio"),
    )


class cgroup(_filter):
    __slots__ = ()
    nla_map = ((1, "TCA_CGROUP_ACT", "tca_act_prio"), (2, "TCA_CGROUP_POLICE", "police"))


class flow(_filter):
    __slots__ = ()
    nla_map = ((9, "TCA_FLOW_ACT", "tca_act_prio"), (10, "TCA_FLOW_POLICE", "police"))


class route(_filter):
    __slots__ = ()
    nla_map = (
        (1, "TCA_ROUTE4_CLASSID", "uint32"),
        (5, "TCA_ROUTE4_POLICE", "police"),
        (6, "TCA_ROUTE4_ACT", "tca_act_prio"),
    )


class htb(nla):
    __slots__ = ()
    nla_map = (
        (1, "TCA_HTB_PARMS", "htb_parms"),
        (2, "TCA_HTB_INIT", "htb_glob"),
        (6, "TCA_HTB_RATE64", "uint64"),
        (7, "TCA_HTB_CEIL64", "uint64"),
    )

    class htb_parms(bounded, sched_htb.options.htb_parms):
        """struct tc_htb_opt."""

    class htb_glob(bounded, sched_htb.options.htb_glob):
        """struct tc_htb_glob."""


class tbf(nla):
    __slots__ = ()
    nla_map = (
        (1, "TCA_TBF_PARMS", "tbf_parms"),
        (4, "TCA_TBF_RATE64", "uint64"),
        (5, "TCA_TBF_PRATE64", "uint64"),
    )

    class tbf_parms(bounded, sched_tbf.options.tbf_parms):
        """struct tc_tbf_qopt."""


class netem(nla):
    """struct tc_netem_qopt, without the attributes behind it."""

    __slots__ = ()
    fields = sched_netem.options.fields


#: TCA_OPTIONS by the kind of a qdisc, class or filter; those of other kinds are not taken apart.
OPTIONS: dict[str, type] = {
    made.__name__: made for made in (basic, bpf, cgroup, flow, flower, fw, htb, matchall, netem, route, tbf, u32)
}


class tcmsg(nlmsg):
    """RTM_{NEW,DEL}{QDISC,TCLASS,TFILTER}; encoded, RTM_GET*."""

    __slots__ = ()
    fields = pyroute2_tcmsg.fields
    nla_map = (
        (1, "TCA_KIND", "asciiz"),
        (2, "TCA_OPTIONS", "get_options"),
        (3, "TCA_STATS", "stats"),
        (7, "TCA_STATS2", "stats2"),
        (8, "TCA_STAB", "cdata"),
        (11, "TCA_CHAIN", "uint32"),
        (13, "TCA_INGRESS_BLOCK", "uint32"),
        (14, "TCA_EGRESS_BLOCK", "uint32"),
    )
    stats = stats
    stats2 = stats2

    @staticmethod
    def get_options(self: Any, **_: object) -> type:
        """Class of TCA_OPTIONS by the kind, which the kernel puts ahead of them (tc_fill_qdisc, tcf_fill_node)."""
        return OPTIONS.get(self.get_attr("TCA_KIND"), nla.cdata)
