# SPDX-License-Identifier: Apache-2.0
"""Whatever a flood spoofs: tables and process keep their size."""

from __future__ import annotations

import os
import struct
import sys
from contextlib import ExitStack
from pathlib import Path

from probe_kit import OUT
from syn_kit import SYN, check_estimate, handshakes, segment

from vifprobe.kernel import libbpf
from vifprobe.kernel.features import read_features
from vifprobe.kernel.load import Programs
from vifprobe.kernel.settings import Settings, possible_cpus
from vifprobe.kernel.tables.counters import Counters
from vifprobe.testing.net.netns import Netns

#: Different sources in the flood that memory is bounded under: some 0.3 us each, in an emulated machine far more.
SPOOFED = 300_000 if os.environ.get("VIFPROBE_VM") else 10_000_000
GOLDEN = 0x9E3779B1  # odd: adding it gives 2**32 different addresses


class Spoofer:
    """A tc program that changes a frame's source address and port, then runs the program under test on it: so that
    BPF_PROG_TEST_RUN with a repeat shows millions of different SYNs to it in a second.
    """

    def __init__(self, fd: int) -> None:
        self._table = libbpf.create_map("spoofed", 3, 4, 4, 1, 0)  # BPF_MAP_TYPE_PROG_ARRAY
        libbpf.update_map(self._table, bytes(4), fd.to_bytes(4, sys.byteorder))
        self.fd = libbpf.load_tc_program("spoofer", self._code())

    def _code(self) -> bytes:
        def step(code: int, to: int = 0, of: int = 0, offset: int = 0, value: int = 0) -> bytes:
            return struct.pack("=BBhi", code, of << 4 | to, offset, value)

        source_at, port_at, end_at = 26, 34, 36
        return b"".join(
            (
                step(0xBF, 6, 1),  # r6 = context
                step(0x61, 2, 1, 76),  # r2 = data
                step(0x61, 3, 1, 80),  # r3 = data_end
                step(0xBF, 4, 2),
                step(0x07, 4, value=end_at),
                step(0x2D, 4, 3, 9),  # not that long: leave
                step(0x61, 5, 2, source_at),
                step(0x04, 5, value=GOLDEN - (1 << 32)),
                step(0x63, 2, 5, source_at),
                step(0x6B, 2, 5, port_at),
                step(0xBF, 1, 6),
                step(0x18, 2, 1, 0, self._table) + step(0),
                step(0xB7, 3),
                step(0x85, value=12),  # tail call
                step(0xB7, 0, value=-1),
                step(0x95),
            )
        )

    def close(self) -> None:
        for fd in (self.fd, self._table):
            os.close(fd)


def resident_bytes() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def map_bytes(programs: Programs) -> int:
    """What the kernel charges for the tables."""
    total = 0
    for fd in programs._tables.fds:
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("memlock"))
    return total


def test_memory_is_bounded_whatever_is_spoofed(netns: Netns) -> None:
    """Millions of sources: tables and process keep their size, the number is told within its error, and what was not
    followed to its end is known.
    """
    with ExitStack() as stack:
        programs = Programs(Settings(cpus=possible_cpus(), syn=True, samples=True), read_features())
        stack.callback(programs.close)
        counters = Counters(programs)
        stack.callback(counters.close)
        loopback = 1  # ifindex that TEST_RUN gives its packets
        counters.watch(loopback, 0, 0)
        spoofer = Spoofer(programs.tc_program_fd(OUT))
        stack.callback(spoofer.close)
        frame = segment(SYN)
        libbpf.test_run(spoofer.fd, frame, repeat=10_007)
        counters.take_samples()
        counters.syn_measures()
        resident, tables = resident_bytes(), map_bytes(programs)
        for number in range(10):
            # Each run begins where the one before it ended.
            begin = struct.pack("=I", number * (SPOOFED // 10) * GOLDEN % (1 << 32))
            libbpf.test_run(spoofer.fd, frame[:26] + begin + frame[30:], repeat=SPOOFED // 10)
            counters.take_samples()
            found = counters.syn_measures()
        assert found is not None
        assert map_bytes(programs) == tables
        assert resident_bytes() - resident < 16 << 20  # the reader's own arrays
        check_estimate(found.interval.sources[0, OUT], SPOOFED // 10)
        check_estimate(found.total.sources[0, OUT], SPOOFED // 10 * 10 + 10_007)
        assert found.total.source_ports[0, OUT].all()
        told = handshakes(found)
        assert told["every"] > 1
        assert told["evicted"] > 0
        assert told["open"] <= programs.settings.flows * told["every"]
