# SPDX-License-Identifier: Apache-2.0
"""tc filters of a killed run, on kernels without tcx. Everything else is removed with the process."""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path

from vifprobe.errors import KernelError
from vifprobe.kernel import libbpf
from vifprobe.kernel.attach import FILTER_HANDLE, FILTER_PREF
from vifprobe.process.capabilities import Capability, raised


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
