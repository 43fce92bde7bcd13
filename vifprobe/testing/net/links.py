# SPDX-License-Identifier: Apache-2.0
"""What stands behind a tap: an nft ingress limit, a bridge, a veth pair. In the calling thread's network namespace."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vifprobe.errors import KernelError
from vifprobe.testing.net.taps import Tap, set_link_up
from vifprobe.testing.waiting import wait_until

LINK_SECONDS = 10.0  # a link watch runs at most once a second


@dataclass(frozen=True)
class NftCount:
    """What an nft counter held at one moment; bytes without the L2 header, as nft counts at ingress."""

    packets: int
    bytes: int


@dataclass(frozen=True)
class NftLimit:
    """A limit in an nft netdev ingress chain, with a counter of what it dropped and one of what it let pass."""

    table: str

    def read(self) -> NftCount:
        """What the limit has dropped so far."""
        return self._counter("policed")

    def read_passed(self) -> NftCount:
        """What the limit has let pass so far."""
        return self._counter("passed")

    def _counter(self, name: str) -> NftCount:
        listed = json.loads(_run("nft", "-j", "list", "counter", "netdev", self.table, name))
        counter = next(item["counter"] for item in listed["nftables"] if "counter" in item)
        return NftCount(counter["packets"], counter["bytes"])


@contextmanager
def nft_ingress_limit(device: str, *, rate_bytes_per_second: int, burst_bytes: int) -> Iterator[NftLimit]:
    """Frames from `device` beyond the limit are dropped by nft at ingress, after tc. Gone after the block.

    nft counts bytes here without the L2 header: 46 for a frame of 60. Its bucket holds one second's worth of the rate
    *and* the burst (net/netfilter/nft_limit.c, nft_limit_init), and is full at the start.

    Raises KernelError where the kernel has no nft netdev family (CONFIG_NF_TABLES_NETDEV) or no `limit`
    (CONFIG_NFT_LIMIT).
    """
    table = f"limit_{device}".replace("-", "_")
    # `burst` must not be 0: nft then takes its default of 5 packets (nft(8), LIMIT STATEMENT).
    rules = f"""
        table netdev {table} {{
            counter policed {{ }}
            counter passed {{ }}
            chain ingress {{
                type filter hook ingress device "{device}" priority 0; policy accept;
                limit rate over {rate_bytes_per_second} bytes/second burst {burst_bytes} bytes \
                    counter name policed drop
                counter name passed
            }}
        }}
    """
    _run("nft", "-f", "-", text=rules)
    try:
        yield NftLimit(table)
    finally:
        # A tap that is closed first takes its chain with it, but not always the table.
        subprocess.run(["nft", "delete", "table", "netdev", table], check=False, capture_output=True)


@contextmanager
def nft_chain(family: str, hook: str, rule: str = "") -> Iterator[str]:
    """A chain of a bridge or of the IP stack, with one rule or none; gives its table's name. Gone after the block.

    Raises KernelError where the kernel has no nft tables of this family.
    """
    table = f"behind_{hook}"
    chain = f"chain c {{\ntype filter hook {hook} priority 0;\n{rule}\n}}"
    _run("nft", "-f", "-", text=f"table {family} {table} {{\n{chain}\n}}\n")
    try:
        yield table
    finally:
        subprocess.run(["nft", "delete", "table", family, table], check=False, capture_output=True)


@contextmanager
def bridge_with(*taps: Tap, name: str = "br0") -> Iterator[str]:
    """A bridge with the taps as its ports, up; gives its name. With one port alone it drops what it gets."""
    # With snooping it would ask its ports for multicast groups, and join one itself.
    _run("ip", "link", "add", name, "type", "bridge", "mcast_snooping", "0")
    try:
        for port in taps:
            _run("ip", "link", "set", port.name, "master", name)
        set_link_up(name)
        yield name
    finally:
        subprocess.run(["ip", "link", "delete", name], check=False, capture_output=True)


@contextmanager
def veth_pair(name: str = "veth0", peer: str = "veth1", *, peer_netns_path: str | None = None) -> Iterator[None]:
    """Two connected interfaces, up; the peer in the namespace of `peer_netns_path` (then it stays down)."""
    into = ["netns", peer_netns_path] if peer_netns_path else []
    _run("ip", "link", "add", name, "type", "veth", "peer", "name", peer, *into)
    try:
        set_link_up(name)
        if not peer_netns_path:
            set_link_up(peer)
            # Until the kernel's link watch has run, the queue is `noop` and drops (net/core/link_watch.c).
            wait_until(lambda: _qdisc(name) != "noop" != _qdisc(peer), LINK_SECONDS)
        yield
    finally:
        subprocess.run(["ip", "link", "delete", name], check=False, capture_output=True)


def _qdisc(device: str) -> str:
    return str(json.loads(_run("ip", "-j", "link", "show", device))[0]["qdisc"])


def _run(*command: str, text: str | None = None) -> str:
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise KernelError(f"{command[0]} is not installed.") from error
    if done.returncode:
        raise KernelError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
