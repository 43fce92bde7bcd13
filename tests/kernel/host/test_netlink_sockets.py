# SPDX-License-Identifier: Apache-2.0
"""pyroute2's sockets: no event loop, no thread, no descriptor beyond the one, and none left."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from vifprobe.host.net.events import Events
from vifprobe.host.net.links import list_links
from vifprobe.host.net.netlink import Netlink, NetlinkError
from vifprobe.testing.net.netns import Netns


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def tasks() -> set[str]:
    return {path.name for path in Path("/proc/self/task").iterdir()}


def test_a_socket_is_one_descriptor_and_no_thread(netns: Netns) -> None:
    list_links()  # imports
    before, before_tasks = descriptors(), tasks()
    with Netlink():
        assert len(descriptors()) == len(before) + 1
        assert tasks() == before_tasks
    assert descriptors() == before


def test_a_subscription_leaves_nothing(netns: Netns) -> None:
    list_links()
    before, threads = descriptors(), set(threading.enumerate())
    with Events([1]) as events:
        assert events.read() == []
    assert descriptors() == before
    assert set(threading.enumerate()) == threads


def test_children_inherit_no_socket(netns: Netns) -> None:
    before = descriptors()
    with Netlink():
        new = [fd for fd in descriptors() - before if "socket:" in os.path.realpath(f"/proc/self/fd/{fd}")]
        assert [os.get_inheritable(int(fd)) for fd in new] == [False]


def test_a_child_asks_by_a_socket_of_its_own(netns: Netns) -> None:
    """After fork(2), as with multiprocessing: no lock and no loop of the parent is in the way."""
    with Netlink():
        child = os.fork()
        if child == 0:
            os._exit(0 if [link.name for link in list_links()] == ["lo"] else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_what_the_kernel_refuses_is_told_in_its_words(netns: Netns) -> None:
    with Netlink() as netlink, pytest.raises(NetlinkError) as caught:
        netlink.get(18, b"\0" * 8)  # RTM_GETLINK, cut short
    assert caught.value.errno
