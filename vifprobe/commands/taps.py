# SPDX-License-Identifier: Apache-2.0
"""`vifprobe taps`: the taps of this host and their guests."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from vifprobe.host.limits import installed_of
from vifprobe.host.net import netns as namespaces
from vifprobe.host.taps import TapPort, list_taps
from vifprobe.model.layout import Direction
from vifprobe.model.ports import is_swapped, outbound_hook
from vifprobe.render.export.jsonlines import dumps
from vifprobe.render.text.taps import TapRow, taps_lines
from vifprobe.render.text.terminal import print_lines, stream_glyphs


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
    limits = installed_of(tap.link for tap in taps)
    rows = []
    for tap in taps:
        main = limits[tap.ifindex].main(Direction.OUTBOUND)
        rows.append(_row(tap, main.rate_bps if main else None))
    if as_json:
        sys.stdout.writelines(dumps({"schema": 1, **asdict(row)}) + "\n" for row in rows)
    else:
        print_lines(sys.stdout, taps_lines(rows, stream_glyphs(sys.stdout)))


def _row(tap: TapPort, installed_bps: int | None) -> TapRow:
    bandwidth = tap.interface.outbound if tap.interface else None
    outbound, inbound = (None, None) if tap.counters is None else (tap.counters.rx_packets, tap.counters.tx_packets)
    if is_swapped(tap.kind):
        outbound, inbound = inbound, outbound
    return TapRow(
        name=tap.name,
        kind=tap.kind,
        bridge=tap.bridge,
        qemu_pid=tap.pid if tap.is_qemu else None,
        domain=tap.domain,
        port_id=tap.port_id or tap.port_prefix,
        outbound_packets=outbound,
        inbound_packets=inbound,
        declared_bps=bandwidth.rate_bps if bandwidth else None,
        installed_bps=installed_bps,
        outbound_hook=outbound_hook(tap.kind),
    )
