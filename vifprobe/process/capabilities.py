# SPDX-License-Identifier: Apache-2.0
"""Root's rights that a run keeps once everything is attached; all others are given up for good.

Rights belong to a thread, and a thread passes its rights on to what it starts. The main thread calls `give_up`. A
thread that was started earlier and goes on running calls `follow_plan` first of all. Before `plan` is called, these
functions do nothing: a program that uses the Python API keeps its rights.

Source: capabilities(7), prctl(2), include/uapi/linux/{capability,prctl,securebits}.h; kernel/capability.c: capset(2) is
for the calling thread only.
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple


class Capability(IntEnum):
    """Capabilities that vifprobe uses, by number."""

    DAC_OVERRIDE = 1
    DAC_READ_SEARCH = 2
    NET_ADMIN = 12
    SYS_PTRACE = 19
    SYS_ADMIN = 21
    PERFMON = 38
    BPF = 39

    @property
    def label(self) -> str:
        """Name of the capability in capabilities(7)."""
        return f"CAP_{self.name}"


#: Purpose for which a run keeps each capability.
WHY = {
    Capability.BPF: "loads programs, reads their tables",
    Capability.PERFMON: "loads tracing programs, attaches them again",
    Capability.NET_ADMIN: "attaches to taps again, reads tcx and nft",
    Capability.DAC_READ_SEARCH: "reads files of libvirt and of vifprobe, of any owner",
    Capability.SYS_PTRACE: "effective only to find who holds a tap or a socket",
    Capability.DAC_OVERRIDE: "effective only to connect to Open vSwitch of another user",
    Capability.SYS_ADMIN: "replaces CAP_BPF and CAP_PERFMON, which are missing",
}
#: Kept by each run that has them.
ALWAYS = (
    Capability.BPF,
    Capability.PERFMON,
    Capability.NET_ADMIN,
    Capability.DAC_READ_SEARCH,
    Capability.SYS_PTRACE,
)
#: Permitted, but effective only inside `raised`.
_RAISED = (Capability.SYS_PTRACE, Capability.DAC_OVERRIDE)

_VERSION_3 = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_CAPABILITIES_MAX = 64
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_PR_GET_SECUREBITS, _PR_SET_SECUREBITS = 27, 28
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _AMBIENT_RAISE, _AMBIENT_CLEAR_ALL = 47, 2, 4
_NOROOT = 0b11  # SECBIT_NOROOT, SECBIT_NOROOT_LOCKED: a started program gets no rights for being user 0
_REAL_TIME_PRIORITY = 1  # requested now and then by the thread that receives events

_libc = ctypes.CDLL(None, use_errno=True)


class Sets(NamedTuple):
    """A thread's capability sets, as bit masks."""

    effective: int
    permitted: int
    inheritable: int


class _Header(ctypes.Structure):
    """struct __user_cap_header_struct."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Plan(NamedTuple):
    """Bit masks of kept capabilities. in_effect: without those that are effective only inside `raised`."""

    kept: int
    in_effect: int


_plan: _Plan | None = None


def own() -> Sets | None:
    """Return the capability sets of the calling thread; None if the kernel refuses."""
    words = (ctypes.c_uint32 * 6)()
    if _libc.capget(ctypes.byref(_Header(_VERSION_3, 0)), words) != 0:
        return None
    return Sets(*(words[at] | words[at + 3] << 32 for at in range(3)))


def kept(permitted: int, *, overrides: bool) -> tuple[Capability, ...]:
    """Return the rights that a run keeps. overrides: the run must write to a socket of another user."""
    wanted = [*ALWAYS, *([Capability.DAC_OVERRIDE] if overrides else [])]
    if permitted & _mask(Capability.BPF, Capability.PERFMON) != _mask(Capability.BPF, Capability.PERFMON):
        wanted.append(Capability.SYS_ADMIN)
    return tuple(one for one in wanted if permitted & _mask(one))


def is_planned() -> bool:
    """Return True if this process gives up rights, or has done so."""
    return _plan is not None


def plan(*, overrides: bool = False) -> None:
    """Enable `give_up`, `follow_plan` and `raised`. Call this before threads are started.

    overrides: see `kept`.
    """
    global _plan
    sets = own()
    if sets is None:
        return
    # CAP_SYS_NICE is given up; this limit replaces the part that is needed.
    with suppress(OSError, ValueError):
        soft, hard = map(_at_least_one, resource.getrlimit(resource.RLIMIT_RTPRIO))
        resource.setrlimit(resource.RLIMIT_RTPRIO, (soft, hard))
    keeps = kept(sets.permitted, overrides=overrides)
    _plan = _Plan(_mask(*keeps), _mask(*keeps) & ~_mask(*_RAISED))


def follow_plan() -> None:
    """Give up the rights of the calling thread that the plan does not keep. Without a plan, do nothing.

    Never fails: rights that this process may not give up stay, and it gets no right that it did not have.
    """
    if _plan is None:
        return
    for number in range(_CAPABILITIES_MAX):
        if not _plan.kept >> number & 1 and _prctl(_PR_CAPBSET_READ, number) == 1:
            _prctl(_PR_CAPBSET_DROP, number)
    # Dropping and securebits need CAP_SETPCAP, which is given up below.
    _prctl(_PR_SET_SECUREBITS, max(0, _prctl(_PR_GET_SECUREBITS)) | _NOROOT)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
    sets = own()
    if sets is None:
        return
    permitted = sets.permitted & _plan.kept
    _set(Sets(sets.effective & permitted & _plan.in_effect, permitted, 0))


#: For the main thread, once everything is loaded and attached.
give_up = follow_plan


@contextmanager
def raised(*capabilities: Capability) -> Iterator[None]:
    """Make kept rights effective in the calling thread, while the block runs."""
    sets = own() if _plan is not None else None
    more = 0 if sets is None else _mask(*capabilities) & sets.permitted & ~sets.effective
    if sets is None or not more:
        yield
        return
    _set(sets._replace(effective=sets.effective | more))
    try:
        yield
    finally:
        _set(sets)


@contextmanager
def inherited(*capabilities: Capability) -> Iterator[None]:
    """Pass these capabilities, if they are kept, to a program that the calling thread starts in the block."""
    sets = own() if _plan is not None else None
    if sets is None:
        yield
        return
    given = [one for one in capabilities if sets.permitted & _mask(one)]
    _set(sets._replace(inheritable=sets.inheritable | _mask(*given)))
    for one in given:
        _prctl(_PR_CAP_AMBIENT, _AMBIENT_RAISE, one)
    try:
        yield
    finally:
        _set(sets)  # a capability that is not inheritable any more is not ambient either


def belongs_to_another(path: Path) -> bool:
    """Return True if this user can connect to a socket only by overriding the socket's permissions."""
    try:
        found = path.stat()
    except OSError:
        return False
    return found.st_uid != os.geteuid() and not found.st_mode & 0o002


def _at_least_one(limit: int) -> int:
    return limit if limit == resource.RLIM_INFINITY else max(_REAL_TIME_PRIORITY, limit)


def _mask(*capabilities: Capability) -> int:
    return sum(1 << one for one in set(capabilities))


def _set(sets: Sets) -> bool:
    words = (ctypes.c_uint32 * 6)(*(one & 0xFFFFFFFF for one in sets), *(one >> 32 for one in sets))
    return bool(_libc.capset(ctypes.byref(_Header(_VERSION_3, 0)), words) == 0)


def _prctl(option: int, *arguments: int) -> int:
    words = [ctypes.c_ulong(one) for one in (*arguments, 0, 0, 0, 0)[:4]]
    return int(_libc.prctl(option, *words))
