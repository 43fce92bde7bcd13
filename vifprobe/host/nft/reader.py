# SPDX-License-Identifier: Apache-2.0
"""Limits and drop counters in nft chains: those hooked on an interface, and those past it that limit its packets.

Asked over nfnetlink: neither nft nor libnftables is needed. Nothing is reset, and a host without nf_tables stays so:
a question to nf_tables would make the kernel load the module, so it is asked only where it is there already.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from vifprobe.host.net.links import Link
from vifprobe.host.net.netlink import NETLINK_NETFILTER, Netlink, NetlinkError, encoded, reading
from vifprobe.host.nft.hooks import is_loaded
from vifprobe.host.nft.rules import GETGEN
from vifprobe.host.nft.ruleset import Reader
from vifprobe.host.nft.state import NftState

_NO_NF_TABLES = (errno.EPROTONOSUPPORT, errno.EINVAL, errno.EOPNOTSUPP, errno.EAFNOSUPPORT)


class NftReader:
    """Reads nft rules of interfaces repeatedly. While no rule changes, only counters of rules with a limit are read.

    hears_changes: :meth:`forget` is called at each change of rules. Else a change is detected by the generation, which
    nf_tables increments with each transaction, also for one that only adds an element to a set.
    """

    def __init__(self) -> None:
        self.hears_changes = False
        self._is_loaded = False
        self._generation: int | None = None
        self._reader: Reader | None = None
        self._states: dict[str, NftState] = {}

    def forget(self) -> None:
        """Read all rules again at the next read: they were changed, or may have been."""
        self._generation = None

    def is_changed(self) -> bool:
        """Return True if rules may have changed since the last read, where no notification comes. Raises HostError."""
        if not self._is_loaded:
            self._is_loaded = is_loaded()
        if not self._is_loaded or self._generation is None:
            return self._is_loaded
        if self._is_told:
            return False
        with Netlink(NETLINK_NETFILTER) as netlink:
            return _generation(netlink) != self._generation

    @property
    def _is_told(self) -> bool:
        """Return True if each change that matters is told. No notification comes of the elements of a set."""
        return self.hears_changes and (self._reader is None or not self._reader.uses_sets)

    def read(self, links: Iterable[Link]) -> dict[str, NftState]:
        """Return interface name -> nft state. Raises HostError (not root)."""
        wanted = list({link.name: link for link in links}.values())
        self._is_loaded = self._is_loaded or is_loaded()
        if not self._is_loaded:
            return {link.name: NftState() for link in wanted}
        try:
            with Netlink(NETLINK_NETFILTER) as netlink:
                return self._read(netlink, wanted)
        except NetlinkError as error:
            self._generation = None
            if error.errno in _NO_NF_TABLES:
                self._is_loaded = False
                return {link.name: NftState() for link in wanted}
            hint = ("Reading nft rules needs root (CAP_NET_ADMIN).",) if error.errno == errno.EPERM else ()
            raise NetlinkError(f"nft rules can't be read: {error.message}", *hint, code=error.errno) from error

    def _read(self, netlink: Netlink, wanted: list[Link]) -> dict[str, NftState]:
        now = _generation(netlink)
        is_known = self._generation is not None and (self._is_told or now == self._generation)
        if is_known and self._reader is not None:
            self._reader.renew(netlink)
        else:
            self._reader, self._states = Reader(netlink), {}
            self._reader.read_chains()
        found = {link.name: self._reader.state_of(link) for link in wanted}
        # Return the same object as long as nothing changed, counters included.
        self._states |= {name: one for name, one in found.items() if self._states.get(name) != one}
        self._generation = now if is_known or _generation(netlink) == now else None
        return {link.name: self._states[link.name] for link in wanted}


def _generation(netlink: Netlink) -> int:
    with reading():
        found = netlink.get(GETGEN, encoded(GETGEN, {})).decoded(GETGEN)
        number: int = found.get_attr("NFTA_GEN_ID", 0)
        return number
