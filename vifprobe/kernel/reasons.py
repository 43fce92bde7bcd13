# SPDX-License-Identifier: Apache-2.0
"""Names of the running kernel's drop reasons, those of its subsystems and modules included, from BTF.

A reason is a number of 32 bits: the subsystem in the upper half, its own reason in the lower half. Source:
include/net/dropreason.h (SKB_DROP_REASON_SUBSYS_SHIFT), include/net/dropreason-core.h, net/openvswitch/drop.h,
net/mac80211/drop.h, include/net/dropreason-qdisc.h. Subsystems are numbered differently in each kernel: Open vSwitch is
3 in 6.12 and 2 in 6.18. The values of an enum include its subsystem.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from vifprobe.errors import KernelError
from vifprobe.kernel.btf import VMLINUX, Btf

SUBSYSTEM_SHIFT = 16
_CORE, _SUBSYSTEMS, _ENDING = "skb_drop_reason", "skb_drop_reason_subsys", "_drop_reason"
_PREFIXES = ("SKB_DROP_REASON_", "SKB_")
_SUBSYSTEM_PREFIX = "SKB_DROP_REASON_SUBSYS_"
#: Ends of names that mark an end or a mask.
_MARKS = ("_MAX", "_SUBSYS_MASK")


def read_reasons(btf: Btf, modules: Path = VMLINUX.parent) -> dict[int, str]:
    """Return number -> name of all drop reasons. Raises KernelError for damaged BTF.

    - btf: of vmlinux.
    - modules: folder with one file for each module.

    A subsystem's number without a reason, (subsystem << 16), has the subsystem's name: see `reason_name` of
    vifprobe.model.reasons.
    """
    subsystems = {
        value << SUBSYSTEM_SHIFT: name.removeprefix(_SUBSYSTEM_PREFIX)
        for name, value in btf.enum(_SUBSYSTEMS).items()
        if value > 0 and name != f"{_SUBSYSTEM_PREFIX}NUM"
    }
    found = {value: _plain(name) for name, value in btf.enum(_CORE).items() if not name.endswith(_MARKS)}
    if subsystems:
        for values in _enums(btf, modules):
            found |= _of_subsystems(values, subsystems)
    return found | subsystems


def _enums(btf: Btf, modules: Path) -> Iterator[Mapping[str, int]]:
    """Yield the enums of drop reasons besides the core's: of vmlinux, then of each module."""
    for name in sorted(btf.names_ending(_ENDING) - {_CORE}):
        yield btf.enum(name)
    for path in sorted(modules.iterdir()):
        if path.name == VMLINUX.name:
            continue
        try:
            if _ENDING.encode() + b"\0" not in path.read_bytes():
                continue
            with Btf(path, base=btf) as module:
                for name in sorted(module.names_ending(_ENDING) - {_CORE}):
                    yield module.enum(name)
        except (OSError, KernelError):  # unloaded meanwhile
            continue


def _of_subsystems(values: Mapping[str, int], subsystems: Mapping[int, str]) -> dict[int, str]:
    # mac80211 has two enums with the same values, the names of one with underscores ahead.
    return {
        value & 0xFFFFFFFF: name.lstrip("_")
        for name, value in sorted(values.items())
        if value & 0xFFFF and value & 0xFFFF0000 in subsystems and not name.endswith(_MARKS)
    }


def _plain(name: str) -> str:
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name
