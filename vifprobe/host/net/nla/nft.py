# SPDX-License-Identifier: Apache-2.0
"""nf_tables messages: tables, chains, rules, objects, generations.

pyroute2 0.9.7 (netlink/nfnetlink/nftsocket.py) has classes for them that put names in the place of numbers: a verdict
with a queue's number becomes None, and the bytes of an expression, by which two conditions are held against each
other, are gone. It lacks NFTA_DEVICE_PREFIX.

Source: include/uapi/linux/netfilter/nf_tables.h; net/netfilter/nf_tables_api.c. All numbers are in network order.
"""

from __future__ import annotations

from typing import Any

from pyroute2.netlink import nlmsg_atoms
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES
from pyroute2.netlink.nfnetlink import nftsocket as of

from vifprobe.host.net.nla.base import nla, nlmsg


class nft_msg(nlmsg):
    """struct nfgenmsg; its res_id is the low half of a generation, which NFTA_GEN_ID has whole."""

    __slots__ = ()
    fields = (("nfgen_family", "B"), ("version", "B"), ("res_id", "2x"))


class nft_gen_msg(nft_msg):
    __slots__ = ()
    nla_map = ((1, "NFTA_GEN_ID", "be32"), (2, "NFTA_GEN_PROC_PID", "be32"), (3, "NFTA_GEN_PROC_NAME", "asciiz"))


class nft_table_msg(nft_msg):
    __slots__ = ()
    nla_map = ((1, "NFTA_TABLE_NAME", "asciiz"), (2, "NFTA_TABLE_FLAGS", "be32"))


class nft_chain_msg(nft_msg):
    __slots__ = ()
    nla_map = (
        (1, "NFTA_CHAIN_TABLE", "asciiz"),
        (3, "NFTA_CHAIN_NAME", "asciiz"),
        (4, "NFTA_CHAIN_HOOK", "hook"),
        (5, "NFTA_CHAIN_POLICY", "be32"),
    )

    class hook(nla):
        __slots__ = ()
        nla_map = (
            (1, "NFTA_HOOK_HOOKNUM", "be32"),
            (2, "NFTA_HOOK_PRIORITY", "sbe32"),
            (3, "NFTA_HOOK_DEV", "asciiz"),
            (4, "NFTA_HOOK_DEVS", "devices"),
        )

        class devices(nla):
            """As many as there are; a prefix stands for any ending."""

            __slots__ = ()
            nla_map = ((1, "NFTA_DEVICE_NAME", "asciiz"), (2, "NFTA_DEVICE_PREFIX", "asciiz"))


class nft_limit(nla):
    __slots__ = ()
    nla_map = (
        (1, "NFTA_LIMIT_RATE", "be64"),
        (2, "NFTA_LIMIT_UNIT", "be64"),
        (3, "NFTA_LIMIT_BURST", "be32"),
        (4, "NFTA_LIMIT_TYPE", "be32"),
        (5, "NFTA_LIMIT_FLAGS", "be32"),
    )


class nft_counter(nla):
    __slots__ = ()
    nla_map = ((1, "NFTA_COUNTER_BYTES", "be64"), (2, "NFTA_COUNTER_PACKETS", "be64"))


class nft_objref(nla):
    __slots__ = ()
    nla_map = (
        (1, "NFTA_OBJREF_IMM_TYPE", "be32"),
        (2, "NFTA_OBJREF_IMM_NAME", "asciiz"),
        (3, "NFTA_OBJREF_SET_SREG", "be32"),
        (4, "NFTA_OBJREF_SET_NAME", "asciiz"),
    )


class nft_lookup(nla):
    __slots__ = ()
    nla_map = (
        (1, "NFTA_LOOKUP_SET", "asciiz"),
        (2, "NFTA_LOOKUP_SREG", "be32"),
        (3, "NFTA_LOOKUP_DREG", "be32"),
        (5, "NFTA_LOOKUP_FLAGS", "be32"),
    )


class nft_meta(nla):
    __slots__ = ()
    nla_map = ((1, "NFTA_META_DREG", "be32"), (2, "NFTA_META_KEY", "be32"), (3, "NFTA_META_SREG", "be32"))


class nft_payload(nla):
    __slots__ = ()
    nla_map = ((1, "DREG", "be32"), (5, "SREG", "be32"))


class nft_ct(nla):
    __slots__ = ()
    nla_map = ((1, "DREG", "be32"), (4, "SREG", "be32"))


class nft_bitwise(nla):
    """Its source register is no store."""

    __slots__ = ()
    nla_map = ((2, "DREG", "be32"),)


class nft_data(nla):
    __slots__ = ()
    nla_map = ((1, "NFTA_DATA_VALUE", "cdata"), (2, "NFTA_DATA_VERDICT", "verdict"))

    class verdict(nla):
        """code: signed; that of a queue has its number in the upper half (NF_QUEUE_NR)."""

        __slots__ = ()
        nla_map = ((1, "NFTA_VERDICT_CODE", "sbe32"), (2, "NFTA_VERDICT_CHAIN", "asciiz"))


class nft_cmp(nla):
    __slots__ = ()
    nla_map = ((1, "NFTA_CMP_SREG", "be32"), (2, "NFTA_CMP_OP", "be32"), (3, "NFTA_CMP_DATA", "nft_data"))
    nft_data = nft_data


class nft_match(nla):
    """An xt match, or (NAME alone) an xt target: NFTA_TARGET_NAME is 1, too."""

    __slots__ = ()
    nla_map = ((1, "NAME", "asciiz"), (3, "NFTA_MATCH_INFO", "cdata"))


class nft_immediate(nla):
    __slots__ = ()
    nla_map = ((1, "DREG", "be32"), (2, "NFTA_IMMEDIATE_DATA", "nft_data"))
    nft_data = nft_data


#: NFTA_EXPR_DATA by the expression's name (struct nft_expr_type: name). Those of others are conditions, held as bytes.
EXPRESSIONS: dict[str, type] = {
    "limit": nft_limit,
    "counter": nft_counter,
    "objref": nft_objref,
    "lookup": nft_lookup,
    "immediate": nft_immediate,
    "meta": nft_meta,
    "cmp": nft_cmp,
    "payload": nft_payload,
    "ct": nft_ct,
    "bitwise": nft_bitwise,
    "match": nft_match,
    "target": nft_match,
}


class nft_expr(nla):
    __slots__ = ()
    nla_map = ((1, "NFTA_EXPR_NAME", "asciiz"), (2, "NFTA_EXPR_DATA", "get_data"))

    @staticmethod
    def get_data(self: Any, **_: object) -> Any:
        """Class of NFTA_EXPR_DATA by the name, which nf_tables_fill_expr_info puts ahead of it."""
        return EXPRESSIONS.get(self.get_attr("NFTA_EXPR_NAME"), nlmsg_atoms.none)


class nft_expressions(nla):
    """As many as there are."""

    __slots__ = ()
    nla_map = ((1, "NFTA_LIST_ELEM", "nft_expr"),)
    nft_expr = nft_expr


class nft_dynset(nla):
    """One expression in EXPR, or several in EXPRESSIONS."""

    __slots__ = ()
    nla_map = (
        (1, "NFTA_DYNSET_SET_NAME", "asciiz"),
        (7, "NFTA_DYNSET_EXPR", "nft_expr"),
        (9, "NFTA_DYNSET_FLAGS", "be32"),
        (10, "NFTA_DYNSET_EXPRESSIONS", "nft_expressions"),
    )
    nft_expr = nft_expr
    nft_expressions = nft_expressions


EXPRESSIONS["dynset"] = nft_dynset


class nft_rule_msg(nft_msg):
    __slots__ = ()
    nla_map = (
        (1, "NFTA_RULE_TABLE", "asciiz"),
        (2, "NFTA_RULE_CHAIN", "asciiz"),
        (3, "NFTA_RULE_HANDLE", "be64"),
        (4, "NFTA_RULE_EXPRESSIONS", "expressions"),
    )
    expressions = nft_expressions


#: NFTA_OBJ_DATA by the object's type.
OBJECTS: dict[int, type] = {1: nft_counter, 4: nft_limit}


class nft_obj_msg(nft_msg):
    __slots__ = ()
    nla_map = (
        (1, "NFTA_OBJ_TABLE", "asciiz"),
        (2, "NFTA_OBJ_NAME", "asciiz"),
        (3, "NFTA_OBJ_TYPE", "be32"),
        (4, "NFTA_OBJ_DATA", "get_data"),
        (5, "NFTA_OBJ_USE", "be32"),
    )

    @staticmethod
    def get_data(self: Any, **_: object) -> Any:
        """Class of NFTA_OBJ_DATA by the type, which nf_tables_fill_obj_info puts ahead of it."""
        return OBJECTS.get(self.get_attr("NFTA_OBJ_TYPE"), nlmsg_atoms.none)


class nft_set_elem_list_msg(nft_msg):
    __slots__ = ()
    nla_map = (
        (1, "NFTA_SET_ELEM_LIST_TABLE", "asciiz"),
        (2, "NFTA_SET_ELEM_LIST_SET", "asciiz"),
        (3, "NFTA_SET_ELEM_LIST_ELEMENTS", "elements"),
    )

    class elements(nla):
        """As many as there are."""

        __slots__ = ()
        nla_map = ((1, "NFTA_LIST_ELEM", "element"),)

        class element(nla):
            """flags: NFT_SET_ELEM_INTERVAL_END 1, NFT_SET_ELEM_CATCHALL 2."""

            __slots__ = ()
            nla_map = (
                (1, "NFTA_SET_ELEM_KEY", "nft_data"),
                (2, "NFTA_SET_ELEM_DATA", "nft_data"),
                (3, "NFTA_SET_ELEM_FLAGS", "be32"),
                (7, "NFTA_SET_ELEM_EXPR", "nft_expr"),
                (9, "NFTA_SET_ELEM_OBJREF", "asciiz"),
                (10, "NFTA_SET_ELEM_KEY_END", "nft_data"),
                (11, "NFTA_SET_ELEM_EXPRESSIONS", "nft_expressions"),
            )
            nft_data = nft_data
            nft_expr = nft_expr
            nft_expressions = nft_expressions


_CLASSES = {
    nft_table_msg: (of.NFT_MSG_NEWTABLE, of.NFT_MSG_GETTABLE, of.NFT_MSG_DELTABLE),
    nft_chain_msg: (of.NFT_MSG_NEWCHAIN, of.NFT_MSG_GETCHAIN, of.NFT_MSG_DELCHAIN),
    nft_rule_msg: (of.NFT_MSG_NEWRULE, of.NFT_MSG_GETRULE, of.NFT_MSG_DELRULE),
    nft_gen_msg: (of.NFT_MSG_NEWGEN, of.NFT_MSG_GETGEN),
    nft_set_elem_list_msg: (of.NFT_MSG_NEWSETELEM, of.NFT_MSG_GETSETELEM),
    nft_obj_msg: (of.NFT_MSG_NEWOBJ, of.NFT_MSG_GETOBJ, of.NFT_MSG_DELOBJ),
}
#: nlmsg_type -> class.
NFT_MESSAGES: dict[int, type] = {
    NFNL_SUBSYS_NFTABLES << 8 | number: made for made, numbers in _CLASSES.items() for number in numbers
}
