# SPDX-License-Identifier: Apache-2.0
"""Rules of legacy iptables, ip6tables and ebtables that limit, as far as they can concern a device.

Only tables that exist are asked for: a question for another one would load its module (xt_request_find_table_lock).

Source: include/uapi/linux/netfilter_ipv4/ip_tables.h, netfilter_ipv6/ip6_tables.h, netfilter/x_tables.h;
net/ipv4/netfilter/ip_tables.c (get_info, get_entries).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vifprobe.errors import HostError
from vifprobe.host.net.links import Link
from vifprobe.host.net.netlink import Netlink
from vifprobe.host.nft.matches import XT_LIMITERS, InterfaceTest, is_same, physdev_tests
from vifprobe.host.nft.place import Place, place_of, ways
from vifprobe.model.layout import Direction

_GET_INFO, _GET_ENTRIES = 64, 65  # IPT_SO_GET_INFO, IPT_SO_GET_ENTRIES; the same for IPv6
_NAME_BYTES = 32  # XT_TABLE_MAXNAMELEN
_INFO_BYTES, _COUNT_AT, _SIZE_AT = 84, 76, 80  # struct ipt_getinfo
_ENTRIES_AT = 40  # struct ipt_get_entries: name, size, padding
_ELEMENT = struct.Struct("=H29sB")  # struct xt_entry_match, xt_entry_target
_INVERT_IN, _INVERT_OUT = 0x01, 0x02  # IPT_INV_VIA_IN, _OUT
#: Targets after which a packet goes on as before.
_PLAIN_TARGETS = ("LOG", "NFLOG", "ULOG", "AUDIT", "TRACE", "ERROR")
#: Rules are read again after this time; no notification comes, and counting them takes the kernel some time.
_AGAIN_NS = 10_000_000_000
_ENTRIES_MAX = 64 << 20


class _Family(NamedTuple):
    """Where things are in an entry: struct ipt_entry, struct ip6t_entry."""

    name: str
    tool: str
    domain: int
    level: int
    interfaces_at: int
    invert_at: int
    offsets_at: int
    elements_at: int


_FAMILIES = (
    _Family("ip", "iptables", socket.AF_INET, socket.IPPROTO_IP, 16, 83, 88, 112),
    _Family("ip6", "ip6tables", socket.AF_INET6, socket.IPPROTO_IPV6, 64, 132, 140, 168),
)


@dataclass(frozen=True)
class LegacyRule:
    """One rule with a match that limits. tests: of its conditions those on interfaces."""

    family: str
    tool: str
    table: str
    limiter: str
    tests: tuple[InterfaceTest, ...] = ()

    @property
    def words(self) -> str:
        """Return the place, with what shows it."""
        return f"legacy {self.tool} rules with {self.limiter} are not evaluated: `{self.tool}-save -t {self.table}`"


class LegacyReader:
    """Reads the rules repeatedly: when their number changes, else seldom."""

    def __init__(self) -> None:
        self._sizes: tuple[object, ...] | None = None
        self._read_ns = 0
        self._rules: tuple[LegacyRule, ...] = ()
        self._problems: tuple[str, ...] = ()

    def unread(self, link: Link) -> tuple[tuple[Direction, str], ...]:
        """Return what can limit a device's packets and is not evaluated, by direction. Never raises."""
        try:
            self._refresh()
        except OSError as error:
            why = "needs root (CAP_NET_ADMIN)" if error.errno == errno.EPERM else error.strerror
            self._sizes, self._rules, self._problems = None, (), (f"legacy iptables rules can't be read: {why}",)
        ebtables = _limits_of_ebtables()
        if not (self._rules or self._problems or ebtables):
            return ()
        try:
            with Netlink() as netlink:
                place = place_of(netlink, link)
        except HostError:
            return ()
        found = [(way, one.words) for one in self._rules for way in _directions(place, one)]
        found += [(way, words) for words in self._problems for way in Direction if not place.is_hidden]
        found += [(way, words) for words in ebtables for way in Direction if place.bridge]
        return tuple(dict.fromkeys(found))

    def _refresh(self) -> None:
        tables = [(family, table) for family in _FAMILIES for table in _tables(family.name)]
        sizes = tuple((family.name, table, _info(family, table)) for family, table in tables)
        now_ns = time.monotonic_ns()
        if sizes == self._sizes and now_ns - self._read_ns < _AGAIN_NS:
            return
        self._rules = tuple(rule for family, table in tables for rule in limiting_rules(family, table))
        self._sizes, self._read_ns, self._problems = sizes, now_ns, ()


def _tables(family: str) -> list[str]:
    try:
        return Path(f"/proc/thread-self/net/{family}_tables_names").read_text().split()
    except OSError:
        return []


def _ask(family: _Family, option: int, request: bytes, size: int) -> bytes:
    """Return the answer of getsockopt(2) to a request in its buffer. Raises OSError."""
    buffer = ctypes.create_string_buffer(request, size)
    length = ctypes.c_uint32(size)
    with socket.socket(family.domain, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.getsockopt(control.fileno(), family.level, option, buffer, ctypes.byref(length)) < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    return buffer.raw


def _info(family: _Family, table: str) -> tuple[int, int]:
    """Return the number of a table's entries, and their bytes."""
    answer = _ask(family, _GET_INFO, table.encode().ljust(_NAME_BYTES, b"\0"), _INFO_BYTES)
    return struct.unpack_from("=I", answer, _COUNT_AT)[0], struct.unpack_from("=I", answer, _SIZE_AT)[0]


def limiting_rules(family: _Family, table: str) -> Iterator[LegacyRule]:
    """Yield the rules of a table that limit, and do more than to log. Raises OSError."""
    _, size = _info(family, table)
    if size > _ENTRIES_MAX:
        yield LegacyRule(family.name, family.tool, table, f"{size >> 20} MiB of conditions")
        return
    request = struct.pack("=32sI", table.encode(), size)
    try:
        entries = _ask(family, _GET_ENTRIES, request, _ENTRIES_AT + size)[_ENTRIES_AT:]
    except OSError as error:
        if error.errno != errno.EAGAIN:  # it was changed meanwhile
            raise
        yield LegacyRule(family.name, family.tool, table, "changes while they are read")
        return
    yield from rules_in(family, table, entries)


def rules_in(family: _Family, table: str, entries: bytes) -> Iterator[LegacyRule]:
    """Yield those of the entries that limit. Ends where an offset can't be true."""
    at = 0
    while at + family.elements_at <= len(entries):
        target_at, next_at = struct.unpack_from("=HH", entries, at + family.offsets_at)
        if not family.elements_at <= target_at < next_at <= len(entries) - at:
            return
        matches = dict(_matches(entries, at + family.elements_at, at + target_at))
        limiter = next((name for name in XT_LIMITERS if name in matches), None)
        if limiter is not None and _name(entries, at + target_at) not in _PLAIN_TARGETS:
            tests = [*_interface_tests(family, entries, at)]
            physdev = matches.get("physdev", b"")
            tests += physdev_tests(physdev) if len(physdev) >= 66 else []
            yield LegacyRule(family.name, family.tool, table, limiter, tuple(tests))
        at += next_at


def _matches(entries: bytes, at: int, end: int) -> Iterator[tuple[str, bytes]]:
    while at + _ELEMENT.size <= end:
        size = struct.unpack_from("=H", entries, at)[0]
        if size < _ELEMENT.size or at + size > end:
            return
        yield _name(entries, at), entries[at + _ELEMENT.size : at + size]
        at += size


def _name(entries: bytes, at: int) -> str:
    if at + _ELEMENT.size > len(entries):
        return ""
    name: bytes = _ELEMENT.unpack_from(entries, at)[1]
    return name.split(b"\0", 1)[0].decode("ascii", "replace")


def _interface_tests(family: _Family, entries: bytes, at: int) -> Iterator[InterfaceTest]:
    start, inverted = at + family.interfaces_at, entries[at + family.invert_at]
    parts = [entries[start + 16 * number : start + 16 * (number + 1)] for number in range(4)]
    for key, value, mask, flag in (
        ("iifname", parts[0], parts[2], _INVERT_IN),
        ("oifname", parts[1], parts[3], _INVERT_OUT),
    ):
        if any(mask):
            yield InterfaceTest(key, value, mask, inverted=bool(inverted & flag))


def _directions(place: Place, rule: LegacyRule) -> Iterator[Direction]:
    """Yield the directions of a device's packets that a rule may concern."""
    for way in ways(place, rule.family, "forward"):
        values = way.packets.interfaces
        known = [(one, values.get(one.key)) for one in rule.tests]
        fails = [
            one for one, value in known if value is not None and is_same(value, one.value, one.mask) == one.inverted
        ]
        foreign = [one for one, _ in known if one.key in way.packets.foreign and not one.inverted]
        named = [one for one, value in known if value is not None and not one.inverted]
        if not fails and not foreign and (named or not way.must_name):
            yield way.direction


def _limits_of_ebtables() -> tuple[str, ...]:
    """Return words for ebtables' limit match, where rules of ebtables use it (the module's reference count)."""
    try:
        modules = [line.split() for line in Path("/proc/modules").read_text().splitlines()]
    except OSError:
        return ()
    uses = {parts[0]: parts[2] for parts in modules if len(parts) > 2}
    if not any(name.startswith("ebtable_") for name in uses) or uses.get("ebt_limit", "0") == "0":
        return ()
    return ("legacy ebtables rules with limit are not evaluated: `ebtables -L`",)
