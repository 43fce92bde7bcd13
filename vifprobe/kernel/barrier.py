# SPDX-License-Identifier: Apache-2.0
"""Wait until every packet that any CPU is processing has reached the end of its call chain."""

from __future__ import annotations

import ctypes
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait

# asm/unistd.h; membarrier(2) has no wrapper in the C library
_MEMBARRIER = {"x86_64": 324, "aarch64": 283, "ppc64le": 365, "s390x": 356, "riscv64": 283}
_CMD_GLOBAL = 1
#: Used without membarrier(2): a chain takes microseconds, but a hypervisor can stop its CPU for some time.
GUESSED_SECONDS = 0.02

_libc = ctypes.CDLL(None, use_errno=True)


def wait_for_call_chains() -> bool:
    """Wait until all call chains that have begun by now have ended.

    Return False where that is only likely: after a fixed wait of GUESSED_SECONDS.

    A packet goes from tc to its end under rcu_read_lock and with bottom halves off (net/core/dev.c,
    netif_receive_skb_internal). So an RCU grace period outlasts it, however long its CPU is stopped in between.
    membarrier(2) with MEMBARRIER_CMD_GLOBAL is such a period (kernel/sched/membarrier.c): 5 to 20 ms asleep, no CPU
    time. With one CPU it returns at once: while the caller runs on that CPU, no chain is interrupted there. With
    nohz_full it is refused.
    """
    number = _MEMBARRIER.get(os.uname().machine)
    if number is not None and _libc.syscall(number, _CMD_GLOBAL, 0, 0) == 0:
        return True
    time.sleep(GUESSED_SECONDS)
    return False


class Grace:
    """Wait of limited length for call chains: where CPUs are scarce, a grace period takes a second."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "grace")
        self._waiting: Future[bool] | None = None

    @property
    def is_pending(self) -> bool:
        """Return True while an earlier wait that ran out of time has not been completed."""
        return self._waiting is not None

    def wait(self, seconds: float | None) -> bool:
        """Wait for all call chains that had begun when the wait first began.

        seconds: maximum; None for no limit. Return False where not all have ended: the next call continues this wait.
        """
        if seconds is None and self._waiting is None:
            wait_for_call_chains()
            return True
        self._waiting = self._waiting or self._pool.submit(wait_for_call_chains)
        if not wait([self._waiting], seconds).done:
            return False
        self._waiting = None
        return True

    def close(self) -> None:
        """End the thread, after a pending wait has ended."""
        self._pool.shutdown()
