# SPDX-License-Identifier: Apache-2.0
"""tcx programs of others that are put ahead of vifprobe's while it watches, and hooks that are full of them."""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress

import pytest
from probe_kit import FLOOD_SECONDS, SYN, Require, finish

from vifprobe import Probe
from vifprobe.errors import KernelError
from vifprobe.kernel import libbpf
from vifprobe.kernel.attach import has_tcx, load_empty
from vifprobe.kernel.tcx import tcx_programs
from vifprobe.model.layout import Direction
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.traffic.flood import flood

OUT = Direction.OUTBOUND
COUNT = 10_007
#: r0 = 0 (TCX_PASS); exit: what runs behind it sees nothing.
PASS = bytes.fromhex("b700000000000000 9500000000000000")


def test_a_program_that_is_put_ahead(tap: Tap, require: Require) -> None:
    """vifprobe goes back to the head, counts what comes from then on, and says what may have been missed, by whom."""
    require("kernel", has_tcx(tap.ifindex), "tcx")
    with ExitStack() as stack, Probe(tap.name) as probe:
        program = libbpf.load_tc_program("stranger", PASS)
        stack.callback(os.close, program)
        stack.callback(os.close, libbpf.attach_tcx(program, tap.ifindex, ingress=True))
        for reading in probe.readings(0.2, 60):
            if any("stranger" in note for note in reading.notes):
                probe.stop()
                break
        flood([tap.fd], [SYN], count=COUNT, seconds=FLOOD_SECONDS)
        total = finish(probe).total()
        gaps = probe.gaps
        assert [one.name for one in tcx_programs(tap.ifindex, ingress=True)] == ["stranger"]  # nothing of ours stays
    assert total.packets == COUNT, gaps
    assert [gap.direction for gap in gaps] == [OUT], gaps
    assert "stranger" in gaps[0].why
    assert gaps[0].duration_ns is not None


def test_a_hook_that_is_full(tap: Tap, require: Require) -> None:
    """An error that says what is wrong, and nothing left behind."""
    require("kernel", has_tcx(tap.ifindex), "tcx")
    with ExitStack() as stack:
        with suppress(OSError):  # as many as the kernel takes
            for _ in range(100):
                program = load_empty()
                stack.callback(os.close, program)
                stack.callback(os.close, libbpf.attach_tcx(program, tap.ifindex, ingress=True))
        with pytest.raises(KernelError, match="maximum number of tcx programs"), Probe(tap.name):
            pass
