# SPDX-License-Identifier: Apache-2.0
"""tc actions and statistics: what pyroute2's classes lack, in their form.

| here | pyroute2 0.9.7 |
|---|---|
| stats2: TCA_STATS_PKT64 | UNKNOWN: packets in 32 bits |
| police: TM, RATE64, PEAKRATE64, PKTRATE64, PKTBURST64 | UNKNOWN: a packet rate looks like no limit |
| csum, ct, ctinfo, gate, ife, mpls, nat, pedit, sample, simple, skbmod, tunnel_key | hexadecimal text |
| gact: PROB | left out |

Source: include/uapi/linux/pkt_cls.h, gen_stats.h and tc_act/; net/sched/act_api.c (tcf_action_dump_1,
tcf_action_copy_stats), act_*.c; net/core/gen_stats.c.
"""

from __future__ import annotations

from typing import Any

from pyroute2.netlink.rtnl.tcmsg import act_police, common

from vifprobe.host.net.nla.base import bounded, nla


class stats(nla):
    """struct tc_stats, include/uapi/linux/pkt_sched.h."""

    __slots__ = ()
    fields = (
        ("bytes", "Q"),
        ("packets", "I"),
        ("drop", "I"),
        ("overlimits", "I"),
        ("bps", "I"),
        ("pps", "I"),
        ("qlen", "I"),
        ("backlog", "I"),
    )


class stats2(nla):
    """TCA_STATS2, TCA_ACT_STATS.

    TCA_STATS_BASIC has 32 bits of packets; PKT64 comes only once they are not enough (gnet_stats_copy_basic, 5.5).
    """

    __slots__ = ()
    nla_map = (
        (1, "TCA_STATS_BASIC", "basic"),
        (3, "TCA_STATS_QUEUE", "queue"),
        (8, "TCA_STATS_PKT64", "uint64"),
    )

    class basic(bounded, common.stats2.basic):
        __slots__ = ()

    class queue(bounded, common.stats2.queue):
        __slots__ = ()


class tcf_t(nla):
    """struct tcf_t: clock ticks before now."""

    __slots__ = ()
    fields = (("install", "Q"), ("lastuse", "Q"), ("expires", "Q"), ("firstuse", "Q"))


class police(nla):
    """tcf_police_dump (net/sched/act_police.c): 64-bit rates since 5.1, packet rates since 5.13.

    The rate tables (TCA_POLICE_RATE, _PEAKRATE) are for requests only.
    """

    __slots__ = ()
    nla_map = (
        ("TCA_POLICE_UNSPEC", "none"),
        ("TCA_POLICE_TBF", "police_tbf"),
        ("TCA_POLICE_RATE", "none"),
        ("TCA_POLICE_PEAKRATE", "none"),
        ("TCA_POLICE_AVRATE", "uint32"),
        ("TCA_POLICE_RESULT", "int32"),
        ("TCA_POLICE_TM", "tcf_t"),
        ("TCA_POLICE_PAD", "none"),
        ("TCA_POLICE_RATE64", "uint64"),
        ("TCA_POLICE_PEAKRATE64", "uint64"),
        ("TCA_POLICE_PKTRATE64", "uint64"),
        ("TCA_POLICE_PKTBURST64", "uint64"),
    )
    tcf_t = tcf_t

    class police_tbf(bounded, act_police.options.police_tbf):
        """struct tc_police. rate___reserved: linklayer, in the lower four bits (TC_LINKLAYER_MASK)."""


class tc_gen(nla):
    """tc_gen of include/uapi/linux/pkt_cls.h, which each action's own struct begins with."""

    __slots__ = ()
    fields = (("index", "I"), ("capab", "I"), ("action", "i"), ("refcnt", "i"), ("bindcnt", "i"))


_TC_GEN = tc_gen


class gact(nla):
    __slots__ = ()
    nla_map = ((2, "TCA_GACT_PARMS", "tc_gen"), (3, "TCA_GACT_PROB", "tc_gact_p"))
    tc_gen = tc_gen

    class tc_gact_p(nla):
        """struct tc_gact_p: a second verdict, for a part of the packets."""

        __slots__ = ()
        fields = (("ptype", "H"), ("pval", "H"), ("paction", "i"))


class pedit(nla):
    """Options of pedit. TCA_PEDIT_PARMS_EX has the same struct, for extended keys (tcf_pedit_dump)."""

    __slots__ = ()
    nla_map = ((2, "TCA_PEDIT_PARMS", "tc_gen"), (4, "TCA_PEDIT_PARMS_EX", "tc_gen"))
    tc_gen = tc_gen


def _with_tc_gen(number: int, name: str) -> type:
    """Return a class for the options of an action of which only index and verdict are read."""

    class options(nla):
        __slots__ = ()
        nla_map = ((number, name, "tc_gen"),)
        tc_gen = _TC_GEN

    return options


#: By the name that the kernel gives an action (struct tc_action_ops: kind).
ACTIONS: dict[str, type] = {
    "police": police,
    "gact": gact,
    "pedit": pedit,
    "mirred": _with_tc_gen(2, "TCA_MIRRED_PARMS"),
    "bpf": _with_tc_gen(2, "TCA_ACT_BPF_PARMS"),
    "skbedit": _with_tc_gen(2, "TCA_SKBEDIT_PARMS"),
    "vlan": _with_tc_gen(2, "TCA_VLAN_PARMS"),
    "sample": _with_tc_gen(2, "TCA_SAMPLE_PARMS"),
    "tunnel_key": _with_tc_gen(2, "TCA_TUNNEL_KEY_PARMS"),
    "skbmod": _with_tc_gen(2, "TCA_SKBMOD_PARMS"),
    "simple": _with_tc_gen(2, "TCA_DEF_PARMS"),
    "mpls": _with_tc_gen(2, "TCA_MPLS_PARMS"),
    "gate": _with_tc_gen(2, "TCA_GATE_PARMS"),
    "csum": _with_tc_gen(1, "TCA_CSUM_PARMS"),
    "nat": _with_tc_gen(1, "TCA_NAT_PARMS"),
    "ife": _with_tc_gen(1, "TCA_IFE_PARMS"),
    "connmark": _with_tc_gen(1, "TCA_CONNMARK_PARMS"),
    "ct": _with_tc_gen(1, "TCA_CT_PARMS"),
    "ctinfo": _with_tc_gen(3, "TCA_CTINFO_ACT"),
}


class tca_act_prio(nla):
    """A list of actions, by the order in which they run (TCA_ACT_MAX_PRIO)."""

    __slots__ = ()
    nla_map = tuple((order, f"TCA_ACT_PRIO_{order}", "tca_act") for order in range(common.TCA_ACT_MAX_PRIO + 1))

    class tca_act(nla):
        __slots__ = ()
        nla_map = (
            (1, "TCA_ACT_KIND", "asciiz"),
            (2, "TCA_ACT_OPTIONS", "get_options"),
            (4, "TCA_ACT_STATS", "stats2"),
        )
        stats2 = stats2

        @staticmethod
        def get_options(self: Any, **_: object) -> type:
            """Class of TCA_ACT_OPTIONS by the kind, which tcf_action_dump_1 puts ahead of it."""
            return ACTIONS.get(self.get_attr("TCA_ACT_KIND"), nla.cdata)
