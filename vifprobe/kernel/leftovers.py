# SPDX-License-Identifier: Apache-2.0
"""What a killed run can leave: its tc filters, on kernels without tcx. Everything else vanishes with the process."""

from __future__ import annotations

import errno

from vifprobe.errors import KernelError
from vifprobe.kernel import libbpf
from vifprobe.kernel.attach import FILTER_HANDLE, FILTER_PREF


def remove_filter(tap: str, ifindex: int, ingress: bool) -> bool:
    """Delete our own filter from a tap's ingress or egress side; False where there is none (any more)."""
    try:
        libbpf.detach_filter(ifindex, ingress, FILTER_PREF, FILTER_HANDLE)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
            return False
        raise KernelError(f"{tap}: the filter could not be deleted: {error.strerror}.") from error
    return True
