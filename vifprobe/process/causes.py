# SPDX-License-Identifier: Apache-2.0
"""Says in words what a run failed for, where the operating system refused something that no run goes without."""

from __future__ import annotations

import errno
import os

from vifprobe.errors import KernelError, VifprobeError

#: With any value, an unexpected error shows where it came from: for those who develop vifprobe.
TRACEBACK_SWITCH = "VIFPROBE_TRACEBACK"
_FILES = ("too many open files: this process may open no more file descriptors.", "Raise the limit: ulimit -n 1024.")
_MEMORY = (
    "out of memory: this process may not have as much as it needs.",
    "Look at `ulimit -v`, and at MemoryMax and TasksMax of its service or container.",
)
_REFUSED = (
    "Run it with sudo. As root, something else forbids it: seccomp of a container, a security module (AppArmor, "
    "SELinux), or kernel lockdown."
)


def cause(error: BaseException) -> VifprobeError:
    """The error that says what `error` means to a user."""
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "new thread" in str(error)):
        return KernelError(*_MEMORY)
    if isinstance(error, OSError):
        return _of_system(error)
    return VifprobeError(
        f"unexpected: {type(error).__name__}: {error}.",
        f"This is a fault of vifprobe. Please report it with what is shown after {TRACEBACK_SWITCH}=1 was set.",
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
        return KernelError(f"{where}{words}.", "It is not mounted here: run vifprobe where /proc and /sys are.")
    if error.errno == errno.ENOENT and not where:
        return KernelError(f"{words}.", "The current directory may have been deleted: cd / and start again.")
    return KernelError(f"{where}{words}.", f"{TRACEBACK_SWITCH}=1 shows where it came from.")
