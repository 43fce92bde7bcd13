# SPDX-License-Identifier: Apache-2.0
"""`vifprobe taps`: the taps of this host and their guests."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from vifprobe.analysis.policer import SetUp
from vifprobe.host.declared import declared_of
from vifprobe.host.limits import installed_of
from vifprobe.host.net import netns as namespaces
from vifprobe.host.taps import TapPort, list_taps
from vifprobe.model.layout import Direction
from vifprobe.model.limits import DeclaredLimit, InstalledLimit
from vifprobe.model.ports import is_swapped, outbound_hook
from vifprobe.render.export.jsonlines import dumps
from vifprobe.render.text.taps import TapRow, taps_lines
from vifprobe.render.text.terminal import print_lines, stream_glyphs
from vifprobe.session.audit.audit import set_up


@click.command("taps")
@click.option("--netns", metavar="NAME", help="Network namespace of the taps: name, path or pid.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each tap, one a line.")
def command(netns: str | None, as_json: bool) -> None:
    """List the taps: bridge, domain, QEMU process, limits, counters.

    \b
    Example:
      sudo vifprobe taps
      sudo vifprobe taps --json
    """
    if netns is not None:
        namespaces.enter(netns)
    taps = list_taps()
    links = [tap.link for tap in taps]
    limits = installed_of(links)
    declared = declared_of(links, holders={tap.ifindex: tap.holder for tap in taps if tap.holder is not None})
    rows = [_row(tap, set_up(tap.link, limits[tap.ifindex], declared[tap.ifindex])) for tap in taps]
    if as_json:
        sys.stdout.writelines(dumps({"schema": 1, **asdict(row)}) + "\n" for row in rows)
    else:
        print_lines(sys.stdout, taps_lines(rows, stream_glyphs(sys.stdout)))


def _row(tap: TapPort, found: SetUp) -> TapRow:
    outbound, inbound = (None, None) if tap.counters is None else (tap.counters.rx_packets, tap.counters.tx_packets)
    if is_swapped(tap.kind):
        outbound, inbound = inbound, outbound
    asked = {one: found.main_declared(one) for one in Direction}
    held = {one: found.main_enforced(one) for one in Direction}
    return TapRow(
        name=tap.name,
        kind=tap.kind,
        bridge=tap.bridge,
        qemu_pid=tap.pid if tap.is_qemu else None,
        domain=tap.domain,
        port_id=tap.port_id or tap.port_prefix,
        outbound_packets=outbound,
        inbound_packets=inbound,
        declared_bps=_rate(asked[Direction.OUTBOUND]),
        installed_bps=_rate(held[Direction.OUTBOUND]),
        inbound_declared_bps=_rate(asked[Direction.INBOUND]),
        inbound_installed_bps=_rate(held[Direction.INBOUND]),
        not_read=found.not_read,
        outbound_hook=outbound_hook(tap.kind),
    )


def _rate(limit: DeclaredLimit | InstalledLimit | None) -> int | None:
    return None if limit is None else limit.rate_bps
