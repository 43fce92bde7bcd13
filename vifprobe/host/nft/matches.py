# SPDX-License-Identifier: Apache-2.0
"""Conditions of an nft rule: which interface they name, what limits in them, what may be decided on later.

Only conditions on interfaces are evaluated (vifprobe.host.nft.walk); of all others it is known that they are there.

Source: include/uapi/linux/netfilter/nf_tables.h; net/netfilter/nft_meta.c, nft_cmp.c, nft_lookup.c, nft_dynset.c;
for physdev include/uapi/linux/netfilter/xt_physdev.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

#: NFT_META_IIF, OIF, IIFNAME, OIFNAME, BRI_IIFNAME, BRI_OIFNAME.
_META = {4: "iif", 5: "oif", 6: "iifname", 7: "oifname", 17: "ibrname", 18: "obrname"}
#: Keys of what is not the device itself: of the way in, and of the way out.
INPUT_KEYS = frozenset(("iif", "iifname", "ibrname", "physin"))
_NAME_BYTES = 16  # IFNAMSIZ
_PHYSDEV = struct.Struct("=16s16s16s16sBB")
_PHYSDEV_IN, _PHYSDEV_OUT = 0x01, 0x02  # XT_PHYSDEV_OP_IN, _OUT
#: xt matches that limit, as iptables-nft hands them to nf_tables.
XT_LIMITERS = ("hashlimit", "limit", "quota", "connlimit", "rateest")
#: Expressions that change a packet, hand it on, or remember it: a later rule or filter can decide by that.
_WRITING = ("dup", "fwd", "queue", "nat", "redir", "masq", "tproxy", "synproxy", "dynset")
#: Expressions without an effect on this packet's way.
_PLAIN = ("log", "notrack", "counter")
#: xt targets of the same kind; REJECT is read as a verdict.
_PLAIN_TARGETS = ("LOG", "NFLOG", "AUDIT", "TRACE", "REJECT")


@dataclass(frozen=True)
class InterfaceTest:
    """A condition on an interface.

    - key: `iifname`, `oifname`, `iif`, `oif`, `ibrname`, `obrname`, `physin` or `physout`.
    - value, mask: bytes to compare with; a shorter value is a prefix. Empty for a set.
    - set_name: set or map that is looked up; "" for a single value.
    - inverted: the packet must not match.
    - is_exact: the test is understood. Else (`<`, `>=`) it may match.
    """

    key: str
    value: bytes = b""
    mask: bytes = b""
    set_name: str = ""
    inverted: bool = False
    is_exact: bool = True

    @property
    def is_whole_name(self) -> bool:
        """Return True if it is a test for one interface: a number, or a name to its end."""
        return self.is_exact and (self.key in ("iif", "oif") or b"\0" in self.value)


@dataclass(frozen=True)
class Matches:
    """All conditions of a rule.

    - interfaces: on interfaces, in order.
    - others: there are other conditions, too.
    - verdict_map: name of the map that decides; "" without one. verdict_key: the interface that it is looked up by,
      or None.
    - object_map: name of the map that gives the limit of the rule; "" without one. object_key: as verdict_key.
    - keyed_by: name of the set whose elements hold one limit each; "" without one.
    - limiters: what limits besides `limit`: `quota`, `connlimit`, `hashlimit`, ...
    - writes: it changes something by which a later rule can decide.
    """

    interfaces: tuple[InterfaceTest, ...] = ()
    others: bool = False
    verdict_map: str = ""
    verdict_key: InterfaceTest | None = None
    object_map: str = ""
    object_key: InterfaceTest | None = None
    keyed_by: str = ""
    limiters: tuple[str, ...] = ()
    writes: bool = False

    @property
    def set_names(self) -> tuple[str, ...]:
        """Return the sets and maps that decide which packets the rule is for, or what becomes of them."""
        tests = (one.set_name for one in self.interfaces)
        return tuple(name for name in (*tests, self.verdict_map, self.object_map) if name)


@dataclass
class MatchReader:
    """Takes the expressions of one rule, in order. Registers are followed as far as they hold an interface."""

    _registers: dict[int, str] = field(default_factory=dict)
    _tests: list[InterfaceTest] = field(default_factory=list)
    _found: dict[str, Any] = field(default_factory=dict)
    _limiters: list[str] = field(default_factory=list)

    def found(self) -> Matches:
        """Return the conditions so far."""
        return Matches(tuple(self._tests), limiters=tuple(self._limiters), **self._found)

    def take(self, name: str, data: Any) -> None:
        """Take an expression that is neither a verdict nor a counter or limit."""
        takers = {
            "meta": self._take_meta,
            "cmp": self._take_cmp,
            "lookup": self._take_lookup,
            "objref": self._take_object_map,
            "match": self._take_xt,
            "target": self._take_target,
            **dict.fromkeys(("payload", "ct", "bitwise", "immediate"), self._take_load),
        }
        if data is not None and name in takers:
            takers[name](data)
        elif name in ("quota", "connlimit"):
            self._limiters.append(name)
        elif name in _WRITING:
            self._found["writes"] = True
        elif name not in _PLAIN:
            self._registers.clear()  # whichever it writes
            self._found["others"] = True

    def take_keyed_limit(self, set_name: str) -> None:
        """Take a dynset with a limit: each element of the set holds one."""
        self._found["keyed_by"] = set_name

    def _take_load(self, data: Any) -> None:
        if data.get_attr("SREG") is not None:
            self._found["writes"] = True  # a header field, a connection's mark
        else:
            self._registers.pop(_slot(data.get_attr("DREG", 0)), None)

    def _take_target(self, data: Any) -> None:
        self._found["writes"] = self._found.get("writes", False) or data.get_attr("NAME") not in _PLAIN_TARGETS

    def _take_meta(self, data: Any) -> None:
        if data.get_attr("NFTA_META_SREG") is not None:
            self._found["writes"] = True  # a mark, a priority
            return
        register = _slot(data.get_attr("NFTA_META_DREG", 0))
        self._registers.pop(register, None)
        key = _META.get(data.get_attr("NFTA_META_KEY", -1))
        if key is not None:
            self._registers[register] = key

    def _take_cmp(self, data: Any) -> None:
        key = self._registers.get(_slot(data.get_attr("NFTA_CMP_SREG", 0)))
        if key is None:
            self._found["others"] = True
            return
        value, operator = _value(data.get_attr("NFTA_CMP_DATA")), data.get_attr("NFTA_CMP_OP", 0)
        self._tests.append(InterfaceTest(key, value, inverted=operator == 1, is_exact=operator in (0, 1)))

    def _take_lookup(self, data: Any) -> None:
        set_name = data.get_attr("NFTA_LOOKUP_SET", "")
        key = self._registers.get(_slot(data.get_attr("NFTA_LOOKUP_SREG", 0)))
        target = data.get_attr("NFTA_LOOKUP_DREG")
        test = None
        if key is not None:
            test = InterfaceTest(key, set_name=set_name, inverted=bool(data.get_attr("NFTA_LOOKUP_FLAGS", 0) & 1))
        if target == 0:  # NFT_REG_VERDICT
            self._found |= {"verdict_map": set_name, "verdict_key": test}
        elif test is not None and target is None:
            self._tests.append(test)
        else:
            self._found["others"] = True

    def _take_object_map(self, data: Any) -> None:
        set_name = data.get_attr("NFTA_OBJREF_SET_NAME")
        if set_name is None:
            return
        key = self._registers.get(_slot(data.get_attr("NFTA_OBJREF_SET_SREG", 0)))
        test = None if key is None else InterfaceTest(key, set_name=set_name)
        self._found |= {"object_map": set_name, "object_key": test}

    def _take_xt(self, data: Any) -> None:
        name, info = data.get_attr("NAME", ""), data.get_attr("NFTA_MATCH_INFO") or b""
        if name in XT_LIMITERS:
            self._limiters.append(name)
        elif name == "physdev" and len(info) >= _PHYSDEV.size:
            tests = physdev_tests(info)
            self._tests += tests
            self._found["others"] = self._found.get("others", False) or not tests
        elif name != "comment":
            self._found["others"] = True


def physdev_tests(info: bytes) -> list[InterfaceTest]:
    """Return the tests of an xt physdev match (struct xt_physdev_info) on the port in and out."""
    ins, in_mask, out, out_mask, invert, given = _PHYSDEV.unpack_from(info)
    found = []
    if given & _PHYSDEV_IN:
        found.append(InterfaceTest("physin", ins, in_mask, inverted=bool(invert & _PHYSDEV_IN)))
    if given & _PHYSDEV_OUT:
        found.append(InterfaceTest("physout", out, out_mask, inverted=bool(invert & _PHYSDEV_OUT)))
    return found


def is_same(value: bytes, wanted: bytes, mask: bytes = b"") -> bool:
    """Return True if an interface (padded name, or number) has the wanted value; a shorter one is a prefix."""
    if mask:
        return all((one ^ other) & bits == 0 for one, other, bits in zip(value, wanted, mask, strict=False))
    return value[: len(wanted)] == wanted


def name_bytes(name: str) -> bytes:
    """Return a name as registers hold it: padded with NUL."""
    return name.encode("utf-8", "surrogateescape").ljust(_NAME_BYTES, b"\0")[:_NAME_BYTES]


def _slot(register: int) -> int:
    """Return the first 32-bit register of a register: NFT_REG_1 to 4 are four each, NFT_REG32_00 is 8."""
    return register - 8 if register >= 8 else (register - 1) * 4


def _value(data: Any) -> bytes:
    value = data.get_attr("NFTA_DATA_VALUE") if data is not None else None
    return value or b""
