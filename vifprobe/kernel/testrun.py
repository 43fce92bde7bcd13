# SPDX-License-Identifier: Apache-2.0
"""Run `bpf/progs/test_run.c` on frames of a file: one BPF_PROG_TEST_RUN each, without an allocation for each frame.

TEST_RUN's device is the loopback of the calling thread's network namespace: only its number is used. No packet goes
through it, and the program is not attached, so it never runs on another packet.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from vifprobe.errors import KernelError
from vifprobe.kernel.libbpf import TestRunOpts, library
from vifprobe.kernel.load import Programs
from vifprobe.model.layout import REPLAY_WINDOW_BYTES, Direction

#: LOOPBACK_IFINDEX of include/net/flow.h: the same in every namespace.
LOOPBACK = 1

# struct __sk_buff, include/uapi/linux/bpf.h; TEST_RUN requires zeros in the members after these.
_SKB_BYTES, _CB_OFFSET, _TSTAMP_OFFSET = 192, 48, 152
#: Longest frame that TEST_RUN takes: a page less headroom and struct skb_shared_info (net/bpf/test_run.c,
#: bpf_test_init). The bytes of longer frames are in the table `window`.
SKB_MAX_BYTES = 3584
#: Shortest frame that TEST_RUN takes: an Ethernet header and the fixed IPv4 or IPv6 header (bpf_prog_test_run_skb).
_ETHERNET_BYTES = 14
_IP_MIN_BYTES = {b"\x08\x00": 34, b"\x86\xdd": 54}
SKB_MIN_BYTES = max(_IP_MIN_BYTES.values())


class FrameRunner:
    """Runs the program on frames in `memory`. Raises KernelError as Programs does.

    - programs: made with `replay` in the settings.
    - direction: of all frames.
    - memory: buffer of the frames. At least SKB_MIN_BYTES must follow the start of each frame.
    """

    def __init__(self, programs: Programs, direction: Direction, memory: bytearray) -> None:
        self._fd = programs.replay_program_fd(direction)
        self._window = programs.table("window", writable=True)["bytes"][0]
        self._memory = memoryview(memory)
        self._start = _address(memory)
        self._context = bytearray(_SKB_BYTES)
        self._answer = bytearray(_SKB_BYTES)
        self._answer_start = _address(self._answer)
        self._options = TestRunOpts(
            sz=ctypes.sizeof(TestRunOpts), ctx_in=_address(self._context), ctx_size_in=_SKB_BYTES
        )
        self._pointer = ctypes.byref(self._options)
        self._call = library().bpf_prog_test_run_opts
        self._put_cb = struct.Struct("=III").pack_into
        self._put_time = struct.Struct("=Q").pack_into

    def show(self, at: int, captured: int, length: int, time_ns: int) -> None:
        """Count one frame. Raises KernelError where the kernel refuses to run the program.

        - at: offset of its first byte in the memory.
        - captured: number of its bytes in the memory.
        - length: of the whole frame, in bytes.
        - time_ns: arrival, over 0.
        """
        options = self._options
        options.data_in = self._start + at
        options.data_size_out = 0  # the kernel wrote the last frame's length here, and would take it as a limit
        is_long = captured > SKB_MAX_BYTES
        if is_long:
            options.data_size_in = SKB_MAX_BYTES
            captured = min(captured, REPLAY_WINDOW_BYTES)
            self._window[:captured] = self._memory[at : at + captured]
        else:
            options.data_size_in = captured if captured > SKB_MIN_BYTES else SKB_MIN_BYTES
        self._put_cb(self._context, _CB_OFFSET, captured, length, is_long)
        self._put_time(self._context, _TSTAMP_OFFSET, time_ns)
        result = self._call(self._fd, self._pointer)
        if result:
            raise KernelError(
                f"the kernel refuses to run the program on a frame of {length} bytes: {os.strerror(-result)}.",
                "BPF_PROG_TEST_RUN with a context needs kernel 5.5 or later.",
            )

    def key_of(self, at: int, captured: int, length: int, time_ns: int) -> int:
        """Count a frame as `show` does; return the key of its cell (layout.CELL_KEY_FIELDS), 0: missed."""
        self._options.ctx_out, self._options.ctx_size_out = self._answer_start, _SKB_BYTES
        self.show(at, captured, length, time_ns)
        return int.from_bytes(self._answer[_CB_OFFSET + 12 : _CB_OFFSET + 20], sys.byteorder)


@contextmanager
def on_one_cpu() -> Iterator[None]:
    """Keep the calling thread on its current CPU.

    The kernel side's state is per CPU: the time since the previous packet is known only on the same CPU.
    """
    before = os.sched_getaffinity(0)
    cpu = ctypes.CDLL(None).sched_getcpu()
    os.sched_setaffinity(0, {cpu} if cpu in before else {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def is_refused(frame: bytes | bytearray | memoryview, captured: int) -> bool:
    """Return True where TEST_RUN refuses, or can refuse, a frame of these bytes: their number is passed separately.

    frame: holds at least the first 14 bytes of the frame, if it has as many. captured: number of captured bytes.
    """
    if captured > SKB_MAX_BYTES or captured < _ETHERNET_BYTES:
        return True
    shortest = _IP_MIN_BYTES.get(bytes(frame[12:14]), 0)
    return captured < shortest


def _address(memory: bytearray) -> int:
    return ctypes.addressof((ctypes.c_char * len(memory)).from_buffer(memory))
