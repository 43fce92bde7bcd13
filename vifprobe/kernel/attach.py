# SPDX-License-Identifier: Apache-2.0
"""Hang a tc program on a tap: a tcx link where the kernel has it, else a filter in the qdisc that is there.

A qdisc is never created here unless asked for: with `clsact` on a port, OVS and libvirt can't add their `ingress` qdisc
("File exists"), and the port stays without its policer.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Protocol

from vifprobe.errors import KernelError
from vifprobe.kernel import libbpf
from vifprobe.model.layout import Direction

#: r0 = -1 (TC_ACT_UNSPEC); exit
_GO_ON = bytes.fromhex("b7000000ffffffff 9500000000000000")

#: Place of our own filters: ahead of all others, under a handle that says whose they are ("vp").
FILTER_PREF = 1
FILTER_HANDLE = 0x7670
PROGRAM_NAME_PREFIX = "vifprobe_"


def is_own_filter(pref: int, handle: str, program_name: str) -> bool:
    """Whether a bpf filter is one that vifprobe made. handle: as tc prints it, `0x7670`."""
    return pref == FILTER_PREF and handle == f"{FILTER_HANDLE:#x}" and program_name.startswith(PROGRAM_NAME_PREFIX)


class NoHookError(KernelError):
    """No tc hook can be had on a tap: neither tcx nor a place in a qdisc."""


class Attachment(Protocol):
    """A program on a hook; `hook` is the manifest's word for it."""

    @property
    def hook(self) -> str:
        """tcx, clsact, ingress or tracepoint."""

    def detach(self) -> None:
        """Take it off; harmless when the device or the qdisc is gone."""


class OwnQdisc:
    """A clsact qdisc that the user asked for, on a tap that had no ingress side. KernelError: it can't be made."""

    def __init__(self, tap: str, ifindex: int) -> None:
        self._tap, self._ifindex = tap, ifindex
        try:
            libbpf.create_clsact(ifindex)
        except OSError as error:
            raise KernelError(f"{tap}: no clsact qdisc could be made: {error.strerror}.") from error

    def remove(self, is_empty: bool) -> None:
        """Take it away again, unless somebody has put a filter of theirs into it meanwhile."""
        if is_empty:
            try:
                libbpf.destroy_clsact(self._ifindex)
            except OSError as error:
                raise KernelError(f"{self._tap}: its clsact qdisc stays: {error.strerror}.") from error


@dataclass
class TcxAttachment:
    """A tcx link: vanishes with the process, even on SIGKILL."""

    fd: int
    hook: str = "tcx"

    def detach(self) -> None:
        """Close the link."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@dataclass(frozen=True)
class TracepointAttachment:
    """The host-wide tracepoints, told to count this tap too. They are attached and detached once for all taps."""

    hook: str = "tracepoint"

    def detach(self) -> None:
        """Nothing of its own."""


@dataclass
class FilterAttachment:
    """A direct-action bpf filter in an existing qdisc. Outlives a killed process: `vifprobe cleanup` finds it."""

    ifindex: int
    ingress: bool
    hook: str

    def detach(self) -> None:
        """Delete our own pref and handle, nothing else."""
        try:
            libbpf.detach_filter(self.ifindex, self.ingress, FILTER_PREF, FILTER_HANDLE)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
                raise


def load_empty() -> int:
    """A tc program that does nothing but go on; its fd. OSError where the kernel refuses it."""
    return libbpf.load_tc_program("vifprobe_empty", _GO_ON)


def has_tcx(ifindex: int) -> bool:
    """Whether this kernel takes tcx links (6.6 and later): tried on this device, with a program that does nothing."""
    fd = load_empty()
    try:
        os.close(libbpf.attach_tcx(fd, ifindex, ingress=True))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        if error.errno == errno.ERANGE:  # as many as it takes are there: to attach says so
            return True
        raise
    finally:
        os.close(fd)
    return True


def attach(program_fd: int, tap: str, ifindex: int, direction: Direction, qdisc: str | None) -> Attachment:
    """Attach the program of a direction to a tap.

    qdisc: the kind of the ingress-side qdisc that the tap has ("ingress", "clsact"), None where it has none. A
    KernelError says what is wrong (NoHookError: no tc hook on this kernel and tap); nothing is left behind.
    """
    ingress = direction == Direction.OUTBOUND
    try:
        return TcxAttachment(libbpf.attach_tcx(program_fd, ifindex, ingress))
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise KernelError(f"{tap}: the interface went away.") from error
        if error.errno == errno.EPERM:
            raise KernelError(f"{tap}: the kernel does not permit a BPF link here.", "Run it with sudo.") from error
        if error.errno == errno.ERANGE:
            hook = "ingress" if ingress else "egress"
            raise KernelError(
                f"{tap}: as many tcx programs are at its {hook} as the kernel takes.",
                "`bpftool net show` lists them: one must go first.",
            ) from error
        if error.errno != errno.EINVAL:
            raise KernelError(f"{tap}: tcx: {error.strerror}.") from error
    if qdisc is None or (qdisc == "ingress" and not ingress):
        raise NoHookError(f"{tap}: no tc hook for {direction.name.lower()} packets: no tcx, no qdisc for a filter.")
    return _attach_filter(program_fd, tap, ifindex, ingress, qdisc)


def _attach_filter(program_fd: int, tap: str, ifindex: int, ingress: bool, qdisc: str) -> Attachment:
    try:
        libbpf.attach_filter(program_fd, ifindex, ingress, FILTER_PREF, FILTER_HANDLE, qdisc)
    except OSError as error:
        # Taken: by another kind of filter (OVS puts its matchall there), or by a filter that a killed run left.
        raise NoHookError(
            f"{tap}: no filter could be added to its {qdisc} qdisc at pref {FILTER_PREF}: {error.strerror}.",
            "A filter of a run that was killed? `vifprobe cleanup` removes it.",
        ) from error
    return FilterAttachment(ifindex, ingress, qdisc)
