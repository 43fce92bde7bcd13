# SPDX-License-Identifier: Apache-2.0
"""nft changes on interfaces, with the process that made them: nf_tables notifications, combined to transactions.

One `nft` command is one transaction: a notification for each object, and a last one with who asked for it.

Source: net/netfilter/nf_tables_api.c (nf_tables_commit, nf_tables_fill_gen_info); include/uapi/linux/netfilter/
nf_tables.h and nfnetlink.h.
"""

from __future__ import annotations

import socket
from collections import Counter
from dataclasses import dataclass
from typing import Any

from vifprobe.host.net.netlink import NETLINK_NETFILTER, Message, reading
from vifprobe.host.nft.hooks import is_loaded
from vifprobe.host.nft.rules import FAMILIES, GETGEN, GETRULE, GETTABLE

_GROUP = 7  # NFNLGRP_NFTABLES
SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_NEW_GENERATION = 15
_GENMSG_BYTES = 4  # struct nfgenmsg
_NEW_RULE, _DELETE_RULE, _DESTROY_RULE = 6, 8, 28
#: Elements of sets are left out: they change a thousand times a second on some hosts, and set no limit.
_SAID = {
    0: "table added",
    2: "table deleted",
    3: "chain added",
    5: "chain deleted",
    _NEW_RULE: "rule added",
    _DELETE_RULE: "rule deleted",
    18: "object added",
    20: "object deleted",
    26: "table deleted",
    27: "chain deleted",
    _DESTROY_RULE: "rule deleted",
    31: "object deleted",
}


@dataclass(frozen=True)
class NftChange:
    """One transaction in the families that see interfaces.

    - detail: its changes, for people.
    - deleted: deleted rules, named as in NftRule.where, without the hook.
    - adds_limit: it adds a rule with a limit.
    - by_pid, by_comm: process that made it, as the kernel reports it; None where it does not.
    """

    detail: str
    deleted: frozenset[str] = frozenset()
    adds_limit: bool = False
    by_pid: int | None = None
    by_comm: str | None = None


def subscribed(receive_buffer_bytes: int) -> socket.socket | None:
    """Return a socket that receives the notifications; None where nf_tables is not loaded, or it is not permitted.

    Without nf_tables there is no subscription, because that would load the module (nfnetlink_bind).
    """
    if not is_loaded():
        return None
    made = None
    try:
        made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_buffer_bytes)
        made.setblocking(False)
        made.bind((0, 1 << (_GROUP - 1)))
    except OSError:
        if made is not None:
            made.close()
        return None
    return made


class Transactions:
    """Combines notifications, in the order in which they come."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._said: Counter[tuple[str, str]] = Counter()
        self._deleted: set[str] = set()
        self._adds_limit = False

    def lost(self) -> None:
        """Discard the incomplete transaction: notifications were lost."""
        self._clear()

    def take(self, message: Message) -> NftChange | None:
        """Return the transaction that this message ends, if it concerns interfaces; else None.

        Raises NetlinkError for an invalid message.
        """
        kind = message.type & 0xFF
        if message.type >> 8 != _SUBSYSTEM:
            return None
        if len(message.body) < _GENMSG_BYTES:
            return None
        if kind == _NEW_GENERATION:
            with reading():
                return self._end(message.decoded(GETGEN))
        family = FAMILIES.get(message.body[0])
        words = _SAID.get(kind)
        if family is None or words is None:
            return None
        with reading():
            self._gather(kind, f"{family} ", words, message)
        return None

    def _gather(self, kind: int, family: str, words: str, message: Message) -> None:
        # For every kind of object, the table's name is the first attribute.
        table = family + message.decoded(GETTABLE).get_attr("NFTA_TABLE_NAME", "")
        self._said[table, words] += 1
        if kind not in (_NEW_RULE, _DELETE_RULE, _DESTROY_RULE):
            return
        rule = message.decoded(GETRULE)
        if kind == _NEW_RULE:
            listed = rule.get_attr("NFTA_RULE_EXPRESSIONS")
            expressions = [one.get_value() for one in listed["attrs"]] if listed is not None else []
            # A named limit is an objref.
            self._adds_limit |= any(one.get_attr("NFTA_EXPR_NAME") in ("limit", "objref") for one in expressions)
        else:
            chain, handle = rule.get_attr("NFTA_RULE_CHAIN", ""), rule.get_attr("NFTA_RULE_HANDLE", 0)
            self._deleted.add(f"{table} {chain} rule {handle}")

    def _end(self, generation: Any) -> NftChange | None:
        said, deleted, adds_limit = self._said, frozenset(self._deleted), self._adds_limit
        self._clear()
        if not said:
            return None
        tables = dict.fromkeys(table for table, _ in said)
        words = (
            f"{table}: " + ", ".join(_many(number, what) for (one, what), number in said.items() if one == table)
            for table in tables
        )
        pid, comm = generation.get_attr("NFTA_GEN_PROC_PID"), generation.get_attr("NFTA_GEN_PROC_NAME")
        return NftChange("nft " + "; ".join(words), deleted, adds_limit, pid, comm)


def _many(number: int, what: str) -> str:
    noun, _, verb = what.partition(" ")
    return what if number == 1 else f"{number} {noun}s {verb}"
