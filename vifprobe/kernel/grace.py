# SPDX-License-Identifier: Apache-2.0
"""Wait until every packet that is in the kernel's hands on any CPU has come to the end of its call chain."""

from __future__ import annotations

import ctypes
import os
import time

# asm/unistd.h; membarrier(2) has no wrapper in the C library
_MEMBARRIER = {"x86_64": 324, "aarch64": 283, "ppc64le": 365, "s390x": 356, "riscv64": 283}
_CMD_GLOBAL = 1
#: Where the kernel does not tell: a chain takes microseconds, a hypervisor above may stop its CPU for a while.
GUESSED_SECONDS = 0.02

_libc = ctypes.CDLL(None, use_errno=True)


def wait_for_call_chains() -> bool:
    """Return when all chains that have begun by now have ended. False: only likely, by having waited for a while.

    A packet goes from tc to its end under rcu_read_lock and with bottom halves off (net/core/dev.c,
    netif_receive_skb_internal), so an RCU grace period outlasts it, however long its CPU is stopped in between.
    membarrier(2) with MEMBARRIER_CMD_GLOBAL is one (kernel/sched/membarrier.c): 5 to 20 ms asleep, no CPU time. With
    one CPU it returns at once, and whoever runs on that CPU has no chain underneath. With nohz_full it is refused.
    """
    number = _MEMBARRIER.get(os.uname().machine)
    if number is not None and _libc.syscall(number, _CMD_GLOBAL, 0, 0) == 0:
        return True
    time.sleep(GUESSED_SECONDS)
    return False
