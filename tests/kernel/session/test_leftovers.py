# SPDX-License-Identifier: Apache-2.0
"""A filter that a killed run left is found and removed by the next start; one that is in use is left alone."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from vifprobe.host.limits import installed
from vifprobe.host.net.links import find_link
from vifprobe.kernel import libbpf
from vifprobe.kernel.attach import FILTER_HANDLE, FILTER_PREF, is_orphan, load_empty, remove_filter
from vifprobe.session.probe import Probe
from vifprobe.testing.net.netns import private_netns
from vifprobe.testing.net.taps import Tap, tap


@pytest.fixture
def made() -> Iterator[Tap]:
    with private_netns(), tap("tap0") as made:
        subprocess.run(["tc", "qdisc", "add", "dev", "tap0", "clsact"], check=True)
        yield made


def filters() -> list[int]:
    """Program ids of the bpf filters on the tap."""
    return [found.bpf.id for found in installed(find_link("tap0")).tc.filters if found.bpf and found.bpf.id]


def test_a_filter_whose_run_was_killed_goes_at_the_next_start(made: Tap) -> None:
    fd = load_empty()
    libbpf.attach_filter(fd, made.ifindex, True, FILTER_PREF, FILTER_HANDLE)
    (number,) = filters()
    assert not is_orphan(number)
    with Probe("tap0"):
        assert number in filters()
    os.close(fd)
    assert is_orphan(number)
    with Probe("tap0"):
        assert number not in filters()
    assert filters() == []


def test_only_our_own_place_is_cleared(made: Tap) -> None:
    fd = load_empty()
    libbpf.attach_filter(fd, made.ifindex, True, FILTER_PREF + 1, FILTER_HANDLE)
    os.close(fd)
    assert not remove_filter("tap0", made.ifindex, True)
    with Probe("tap0"):
        assert len(filters()) == 1
    assert len(filters()) == 1
