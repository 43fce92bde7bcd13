# SPDX-License-Identifier: Apache-2.0
"""Wait until every packet that is in the kernel's hands on any CPU has come to the end of its call chain."""

from __future__ import annotations

import ctypes
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait

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


class Grace:
    """The same, for who can't wait for long: where CPUs are scarce, a grace period takes a second."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "grace")
        self._waiting: Future[bool] | None = None

    @property
    def is_pending(self) -> bool:
        """Whether an earlier wait was given up and not taken up again since."""
        return self._waiting is not None

    def wait(self, seconds: float | None) -> bool:
        """Wait so long at most (None: as long as it takes) for all chains that had begun when the wait began first.

        False: not all have ended. The next call goes on with the same wait.
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
        """End the thread; an outstanding wait comes to its end first."""
        self._pool.shutdown()
