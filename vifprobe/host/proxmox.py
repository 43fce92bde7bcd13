# SPDX-License-Identifier: Apache-2.0
"""Limits that Proxmox VE declares for the interfaces of its guests: `rate=` in /etc/pve/qemu-server/VMID.conf.

Source: qm.conf(5), "net[n]"; pve-common, src/PVE/Network.pm, tap_rate_limit: megabytes (1024 * 1024) a second in both
directions, with a burst of one megabyte.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vifprobe.host.net.links import Link
from vifprobe.model.layout import Direction
from vifprobe.model.limits import DeclaredLimit

DIRECTORY = Path("/etc/pve/qemu-server")
_TAP = re.compile(r"tap([0-9]{1,9})i([0-9]{1,2})")
_RATE = re.compile(r"(?:^|,)\s*rate=([0-9]{1,9}(?:\.[0-9]{1,9})?)(?:,|$)")
_MEGABYTE = 1024 * 1024
_BURST_BYTES = _MEGABYTE
_FILE_BYTES_MAX = 1024 * 1024


@dataclass(frozen=True)
class GuestLimits:
    """Declared limits of one tap. problem: why they could not be read; "" where they were."""

    limits: tuple[DeclaredLimit, ...] = ()
    problem: str = ""


def guest_limits(links: Iterable[Link], directory: Path = DIRECTORY) -> dict[str, GuestLimits]:
    """Return tap name -> limits, of taps of guests that Proxmox knows here. Never raises."""
    found: dict[str, GuestLimits] = {}
    for link in links:
        match = _TAP.fullmatch(link.name)
        if match is None:
            continue
        path = directory / f"{match[1]}.conf"
        try:
            rate = _rate(_current(path), f"net{match[2]}")
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            found[link.name] = GuestLimits(problem=f"Proxmox: {path}: {why}")
            continue
        found[link.name] = GuestLimits(() if rate is None else tuple(_limit(link.name, one, rate) for one in Direction))
    return found


def _limit(tap: str, direction: Direction, megabytes_per_second: float) -> DeclaredLimit:
    rate_bps = round(megabytes_per_second * _MEGABYTE) * 8
    return DeclaredLimit(direction, "proxmox", "rate", tap, rate_bps, _BURST_BYTES)


def _current(path: Path) -> list[str]:
    """Return the lines of the current configuration: sections of snapshots and of pending changes follow it."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("is not a file: not read")
        content = file.read(_FILE_BYTES_MAX + 1)
    if len(content) > _FILE_BYTES_MAX:
        raise ValueError(f"longer than {_FILE_BYTES_MAX} bytes: not read")
    lines = content.decode("utf-8", "replace").splitlines()
    ends = [place for place, line in enumerate(lines) if line.startswith("[")]
    return lines[: ends[0]] if ends else lines


def _rate(lines: Iterable[str], interface: str) -> float | None:
    for line in lines:
        name, colon, value = line.partition(":")
        if colon and name.strip() == interface:
            match = _RATE.search(value.strip())
            return float(match[1]) if match and float(match[1]) > 0 else None
    return None
