# SPDX-License-Identifier: Apache-2.0
"""What a killed run can leave: its tc filters, on kernels without tcx. Everything else vanishes with the process."""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path

from vifprobe.errors import KernelError
from vifprobe.kernel import libbpf
from vifprobe.kernel.attach import FILTER_HANDLE, FILTER_PREF
from vifprobe.process.capabilities import Capability, raised


def is_orphan(program_id: int) -> bool:
    """Whether no process holds this program any more: the run that made the filter has ended without taking it off.

    Looks through all processes' descriptors; only asked where a filter of ours is met.
    """
    line = f"prog_id:\t{program_id}\n".encode()
    with raised(Capability.SYS_PTRACE):
        for info in Path("/proc").glob("[0-9]*/fdinfo/*"):
            with suppress(OSError):
                if line in info.read_bytes():
                    return False
    return True


def remove_filter(tap: str, ifindex: int, ingress: bool) -> bool:
    """Delete our own filter from a tap's ingress or egress side; False where there is none (any more)."""
    try:
        libbpf.detach_filter(ifindex, ingress, FILTER_PREF, FILTER_HANDLE)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
            return False
        raise KernelError(f"{tap}: the filter could not be deleted: {error.strerror}.") from error
    return True
