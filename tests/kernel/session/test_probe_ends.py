# SPDX-License-Identifier: Apache-2.0
"""A Probe that is stopped at odd moments, and one that can't be opened: nothing waits, nothing is left."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack

import pytest
from leftovers_kit import open_fds

from vifprobe import Probe
from vifprobe.errors import HostError
from vifprobe.model.layout import Direction
from vifprobe.testing.net.taps import Tap, private_netns
from vifprobe.testing.net.taps import tap as make_tap


def test_stopped_before_it_was_opened(tap: Tap) -> None:
    """A signal that comes while the programs are compiled ends the run at its first wait."""
    probe = Probe(tap.name, directions=(Direction.OUTBOUND,))
    probe.stop()
    begun = time.monotonic()
    with probe:
        readings = list(probe.readings(300.0, 600.0))
    assert time.monotonic() - begun < 60
    assert [reading.final for reading in readings] == [False, True]


def test_stopped_while_attaching_leaves_out_the_other_taps() -> None:
    """Each hook takes a grace period: a run of 200 taps that is ended at its start must not attach to all of them."""
    steps: list[tuple[str, int, int]] = []

    def progress(doing: str, done: int, taps: int) -> None:
        steps.append((doing, done, taps))
        if done == 2:
            probe.stop()

    names = [f"tap{number}" for number in range(5)]
    with private_netns(), ExitStack() as stack:
        for name in names:
            stack.enter_context(make_tap(name))
        probe = Probe(*names, directions=(Direction.OUTBOUND,), progress=progress)
        with probe:
            attached = [bool(probe.hooks[name]) for name in names]
            gaps = [(gap.tap, gap.end_ns) for gap in probe.gaps]
            *_, totals = probe.intervals(300.0, 600.0)
        assert attached == [True, True, False, False, False]
        assert gaps == [(name, None) for name in names[2:]]
        assert [bool(reading.notes) for reading in totals] == [False, False, True, True, True]
        assert steps[:3] == [("attaching to", 1, 5), ("attaching to", 2, 5), ("attaching to", 3, 5)]
        assert steps[-1] == ("detaching from", 5, 5)


def test_stopped_after_its_end_writes_nowhere(tap: Tap) -> None:
    """The numbers of its descriptors are somebody else's by then."""
    with Probe(tap.name, directions=(Direction.OUTBOUND,)) as probe:
        list(probe.readings(0.01, 0.01))
    pipes = [os.pipe2(os.O_NONBLOCK) for _ in range(64)]
    try:
        probe.stop()
        for read, _ in pipes:
            with pytest.raises(BlockingIOError):
                os.read(read, 1)
    finally:
        for fd in (fd for pipe in pipes for fd in pipe):
            os.close(fd)


def test_what_was_compiled_in_vain_is_freed(tap: Tap, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host can't be read while the programs are made: their tables go, too."""

    def unreadable(reader: object, links: object) -> object:
        raise HostError("no answer.")

    monkeypatch.setattr("vifprobe.session.components.LimitReader.read", unreadable)
    before = open_fds()
    with pytest.raises(HostError) as raised, Probe(tap.name):
        pass
    assert raised.value.message == "no answer."
    assert open_fds() == before  # the traceback, which `raised` holds, keeps what nobody closed
