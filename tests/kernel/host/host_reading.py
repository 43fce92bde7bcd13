# SPDX-License-Identifier: Apache-2.0
"""What vifprobe reads of many interfaces at once, of one interface."""

from __future__ import annotations

from collections.abc import Iterable

from vifprobe.host.counters import CounterSample, read_counters_of
from vifprobe.host.net.links import Link, LinkCounters, find_link, list_links_and_counters
from vifprobe.host.nft.reader import NftReader
from vifprobe.host.nft.state import NftPolicer, NftState
from vifprobe.host.tc.reader import TcState, read_tc_of


def link_counters(ifindex: int) -> LinkCounters:
    """Counters of the device."""
    (found,) = [counters for link, counters in list_links_and_counters() if link.ifindex == ifindex]
    assert found is not None
    return found


def read_counters(link: Link, previous: Iterable[CounterSample] = ()) -> tuple[CounterSample, ...]:
    """All counters, now. previous: the samples read before."""
    return read_counters_of([link], {link.ifindex: tuple(previous)})[link.ifindex]


def read_tc(ifindex: int) -> TcState:
    """Qdiscs, classes and filters."""
    return read_tc_of([ifindex])[ifindex]


def read_nft(link_name: str) -> NftState:
    """What nft does on the interface."""
    return NftReader().read([find_link(link_name)])[link_name]


def nft_policers(link_name: str) -> tuple[NftPolicer, ...]:
    """The nft limits that packets of the interface meet."""
    return read_nft(link_name).policers()


def has_ingress_chain(link_name: str) -> bool:
    """Whether nft sees what comes in on the interface."""
    return any(chain.hook == "ingress" for chain in read_nft(link_name).chains)
