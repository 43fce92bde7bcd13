# SPDX-License-Identifier: Apache-2.0
"""`vifprobe cleanup`: remove tc filters that a killed run left, and nothing else."""

from __future__ import annotations

import sys

import click

from vifprobe.errors import KernelError
from vifprobe.host.net import netns as namespaces
from vifprobe.host.net.links import list_links
from vifprobe.host.tc.reader import read_tc_of
from vifprobe.host.tc.records import TcFilter
from vifprobe.kernel.attach import is_own_filter, remove_filter
from vifprobe.kernel.features import missing_capabilities
from vifprobe.model.untrusted_text import safe


@click.command("cleanup")
@click.option("--netns", metavar="NAME", help="Network namespace to clean up: name, path or pid.")
@click.option("--dry-run", is_flag=True, help="Print what would be removed; remove nothing.")
def command(netns: str | None, dry_run: bool) -> None:
    """Remove tc filters that a killed vifprobe left.

    Only kernels without tcx need this: with tcx, nothing can be left. A filter is removed if its pref, handle and
    program name are all vifprobe's. This includes filters of a running vifprobe: end that vifprobe first.

    \b
    Example:
      sudo vifprobe cleanup
    """
    if missing := missing_capabilities():
        raise KernelError(f"not permitted: this process lacks {', '.join(missing)}.", "Run it with sudo.")
    if netns is not None:
        namespaces.enter(netns)
    names = {link.ifindex: link.name for link in list_links()}
    found = 0
    for ifindex, state in read_tc_of(names).items():
        for own in filter(_is_own, state.filters):
            found += 1
            if dry_run or remove_filter(names[ifindex], ifindex, own.hook == "ingress"):
                done = "would remove" if dry_run else "removed"
                sys.stdout.write(safe(f"{names[ifindex]}: {done} {own.where}") + "\n")
    if not found:
        sys.stdout.write(f"No filter of vifprobe on {len(names)} interfaces.\n")


def _is_own(found: TcFilter) -> bool:
    name = found.bpf.name if found.bpf else ""
    return found.kind == "bpf" and is_own_filter(found.pref, found.handle, name)
