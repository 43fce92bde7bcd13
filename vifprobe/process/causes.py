# SPDX-License-Identifier: Apache-2.0
"""Error texts for failures of the operating system: files, memory, permissions."""

from __future__ import annotations

import errno
import os

from vifprobe.errors import KernelError, VifprobeError

#: If set, an unexpected error shows its traceback, for developers of vifprobe.
TRACEBACK_SWITCH = "VIFPROBE_TRACEBACK"
_FILES = (
    "too many open files: the limit of file descriptors is reached.",
    "Raise the limit: ulimit -n 1024.",
)
_MEMORY = (
    "out of memory: this process cannot get as much memory as it needs.",
    "Check `ulimit -v`, and MemoryMax and TasksMax of its service or container.",
)
_REFUSED = (
    "Run it with sudo. If it runs as root, one of these forbids it: seccomp of a container, a security module "
    "(AppArmor, SELinux), or kernel lockdown."
)


def cause(error: BaseException) -> VifprobeError:
    """Return the error to show to the user for `error`."""
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "new thread" in str(error)):
        return KernelError(*_MEMORY)
    if isinstance(error, OSError):
        return _of_system(error)
    return VifprobeError(
        f"unexpected: {type(error).__name__}: {error}.",
        f"This is a bug in vifprobe. Set {TRACEBACK_SWITCH}=1, run it again, and report the traceback.",
    )


def _of_system(error: OSError) -> VifprobeError:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return KernelError(*_FILES)
    if error.errno == errno.ENOMEM:
        return KernelError(*_MEMORY)
    words = (error.strerror or str(error)).lower()
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
    if error.errno in (errno.EPERM, errno.EACCES):
        return KernelError(f"{where}{words}.", _REFUSED)
    if error.errno == errno.ENOENT and where.startswith(("/proc", "/sys")):
        return KernelError(f"{where}{words}.", "It is not mounted here. Run vifprobe where /proc and /sys are mounted.")
    if error.errno == errno.ENOENT and not where:
        return KernelError(f"{words}.", "The current directory may have been deleted: cd / and start again.")
    return KernelError(f"{where}{words}.", f"Set {TRACEBACK_SWITCH}=1 to see the traceback.")
