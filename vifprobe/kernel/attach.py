# SPDX-License-Identifier: Apache-2.0
"""Attach a tc program to a tap: as a tcx link where the kernel supports it, else as a filter in the existing qdisc.

A qdisc is created only on request: with `clsact` on a port, OVS and libvirt can't add their `ingress` qdisc ("File
exists"), and the port stays without its policer.

A killed run on a kernel without tcx leaves its filters; everything else is removed with the process.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vifprobe.errors import KernelError
from vifprobe.kernel import libbpf
from vifprobe.model.layout import Direction
from vifprobe.process.capabilities import Capability, raised

#: r0 = -1 (TC_ACT_UNSPEC); exit
_GO_ON = bytes.fromhex("b7000000ffffffff 9500000000000000")

#: Position of vifprobe's filters: before all others. The handle identifies them ("vp").
FILTER_PREF = 1
FILTER_HANDLE = 0x7670
PROGRAM_NAME_PREFIX = "vifprobe_"


def is_own_filter(pref: int, handle: str, program_name: str) -> bool:
    """Return True for a bpf filter made by vifprobe. handle: as tc prints it, `0x7670`."""
    return pref == FILTER_PREF and handle == f"{FILTER_HANDLE:#x}" and program_name.startswith(PROGRAM_NAME_PREFIX)


class NoHookError(KernelError):
    """A tap has no usable tc hook: neither tcx nor a qdisc that takes a filter."""


class Attachment(Protocol):
    """A program attached to a hook."""

    @property
    def hook(self) -> str:
        """Name of the hook in the manifest: tcx, clsact, ingress or tracepoint."""

    def detach(self) -> None:
        """Detach the program; harmless when the device or the qdisc is gone."""


class OwnQdisc:
    """A clsact qdisc that the user asked for, on a tap without an ingress or clsact qdisc.

    Raises KernelError where it can't be created.
    """

    def __init__(self, tap: str, ifindex: int) -> None:
        self._tap, self._ifindex = tap, ifindex
        try:
            libbpf.create_clsact(ifindex)
        except OSError as error:
            raise KernelError(f"{tap}: can't create a clsact qdisc: {error.strerror}.") from error

    def remove(self, is_empty: bool) -> None:
        """Delete the qdisc if `is_empty`: filters that others have added to it are kept."""
        if is_empty:
            try:
                libbpf.destroy_clsact(self._ifindex)
            except OSError as error:
                raise KernelError(f"{self._tap}: can't delete its clsact qdisc: {error.strerror}.") from error


@dataclass
class TcxAttachment:
    """A tcx link: removed with the process, even on SIGKILL."""

    fd: int
    hook: str = "tcx"

    def detach(self) -> None:
        """Close the link."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@dataclass(frozen=True)
class TracepointAttachment:
    """The host-wide tracepoints, which count this tap too. They are attached and detached once for all taps."""

    hook: str = "tracepoint"

    def detach(self) -> None:
        """Do nothing: the programs of all taps are detached together."""


@dataclass
class FilterAttachment:
    """A direct-action bpf filter in an existing qdisc. Stays after SIGKILL: `vifprobe cleanup` removes it."""

    ifindex: int
    ingress: bool
    hook: str

    def detach(self) -> None:
        """Delete the filter with vifprobe's pref and handle, and no other."""
        try:
            libbpf.detach_filter(self.ifindex, self.ingress, FILTER_PREF, FILTER_HANDLE)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
                raise


def load_empty() -> int:
    """Load a tc program that only returns TC_ACT_UNSPEC; return its fd. Raises OSError where the kernel refuses it."""
    return libbpf.load_tc_program("vifprobe_empty", _GO_ON)


def has_tcx(ifindex: int) -> bool:
    """Return True where this kernel has tcx links (6.6 and later): tried on this device, with an empty program."""
    fd = load_empty()
    try:
        os.close(libbpf.attach_tcx(fd, ifindex, ingress=True))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        if error.errno == errno.ERANGE:  # the maximum number is attached: attach() reports that
            return True
        raise
    finally:
        os.close(fd)
    return True


def attach(program_fd: int, tap: str, ifindex: int, direction: Direction, qdisc: str | None) -> Attachment:
    """Attach the program of a direction to a tap.

    Raises KernelError (NoHookError: no tc hook on this kernel and tap); nothing stays attached then.

    - program_fd: of the tc program.
    - tap, ifindex: of the device.
    - direction: OUTBOUND attaches at ingress, INBOUND at egress.
    - qdisc: kind of the tap's ingress-side qdisc ("ingress", "clsact"); None where it has none.
    """
    ingress = direction == Direction.OUTBOUND
    try:
        return TcxAttachment(libbpf.attach_tcx(program_fd, ifindex, ingress))
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise KernelError(f"{tap}: the interface was deleted.") from error
        if error.errno == errno.EPERM:
            raise KernelError(f"{tap}: the kernel does not permit a BPF link here.", "Run it with sudo.") from error
        if error.errno == errno.ERANGE:
            hook = "ingress" if ingress else "egress"
            raise KernelError(
                f"{tap}: the maximum number of tcx programs is attached at its {hook} hook.",
                "List them with `bpftool net show`, and detach one first.",
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
        # The pref is in use: by another kind of filter (OVS adds its matchall there), or by a filter of a killed run.
        raise NoHookError(
            f"{tap}: can't add a filter to its {qdisc} qdisc at pref {FILTER_PREF}: {error.strerror}.",
            "If a killed run left its filter there, remove it with `vifprobe cleanup`.",
        ) from error
    return FilterAttachment(ifindex, ingress, qdisc)


def is_orphan(program_id: int) -> bool:
    """Return True where no process holds this program: the run that made the filter ended without detaching it.

    Searches the descriptors of all processes; used only where a filter of vifprobe is found.
    """
    line = f"prog_id:\t{program_id}\n".encode()
    with raised(Capability.SYS_PTRACE):
        for info in Path("/proc").glob("[0-9]*/fdinfo/*"):
            with suppress(OSError):
                if line in info.read_bytes():
                    return False
    return True


def remove_filter(tap: str, ifindex: int, ingress: bool) -> bool:
    """Delete vifprobe's filter from a tap's ingress or egress side; return False where there is none."""
    try:
        libbpf.detach_filter(ifindex, ingress, FILTER_PREF, FILTER_HANDLE)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
            return False
        raise KernelError(f"{tap}: can't delete the filter: {error.strerror}.") from error
    return True
