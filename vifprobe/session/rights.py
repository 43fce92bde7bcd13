# SPDX-License-Identifier: Apache-2.0
"""Root's rights in the long-running commands: `plan` at their start, `give_up` once everything counts.

For commands only, which own their process: `vifprobe.Probe` does not change its caller's rights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vifprobe.host.declared import OVS_SOCKETS
from vifprobe.kernel import police, symbols
from vifprobe.process import capabilities, startup
from vifprobe.process.capabilities import ALWAYS, WHY, Capability

if TYPE_CHECKING:  # the import loads everything that tests programs
    from vifprobe.kernel.checkup import Found

_STANDS_FOR = (Capability.BPF, Capability.PERFMON)
_NO_RUN = "nothing can be watched"
_COSTS = {
    Capability.BPF: _NO_RUN,
    Capability.PERFMON: _NO_RUN,
    Capability.NET_ADMIN: _NO_RUN,
    Capability.DAC_READ_SEARCH: "what libvirt declares is unknown where its files are another user's",
    Capability.SYS_PTRACE: "which process holds a tap is unknown, and with it what a guest costs; so is, at times, who "
    "changed a limit",
}


def plan() -> None:
    """Plan the rights before a probe is opened: its threads start without those that are dropped later."""
    if startup.is_command:
        capabilities.plan(overrides=needs_overriding())


def give_up() -> None:
    """Drop rights for good, in the calling thread. Files that need more rights are opened before."""
    symbols.hold()
    police.hold()
    capabilities.give_up()


def needs_overriding() -> bool:
    """Return True if Open vSwitch runs as another user (`OVS_USER_ID` of RHEL and Fedora)."""
    return any(map(capabilities.belongs_to_another, OVS_SOCKETS))


def checks() -> Iterator[Found]:
    """Return the rights that a run of this process keeps, for what, and those that are missing."""
    from vifprobe.kernel.checkup import Found

    sets = capabilities.own()
    keeps = capabilities.kept(sets.permitted if sets else 0, overrides=needs_overriding())
    for one in ALWAYS:
        if one in keeps:
            yield Found(one.label, "ok", f"kept by a run: {WHY[one]}")
        elif one in _STANDS_FOR and Capability.SYS_ADMIN in keeps:
            yield Found(one.label, "ok", "not set, but CAP_SYS_ADMIN includes it")
        else:
            state = "missing" if _COSTS[one] is _NO_RUN else "degraded"
            yield Found(one.label, state, f"lacking: {WHY[one]}", _COSTS[one], "run it with sudo")
    for one in keeps:
        if one not in ALWAYS:
            yield Found(one.label, "ok", f"kept by a run: {WHY[one]}")
    yield Found("rights", "ok", "a run that counts gives up all others, and sets no_new_privs")
