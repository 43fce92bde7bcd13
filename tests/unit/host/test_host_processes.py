# SPDX-License-Identifier: Apache-2.0
"""Processes and their sockets, and what QEMU's command line says."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress

import pytest

from vifprobe.host.net.senders import Catcher, Senders, process_snapshot
from vifprobe.host.procs import processes


@pytest.mark.parametrize(
    ("arguments", "guest"),
    [
        (["qemu", "-name", "guest=instance-0000001a,debug-threads=on", "-S"], "instance-0000001a"),
        (["qemu", "-name", "instance-0000001a"], "instance-0000001a"),
        (["qemu", "--name", "vm,process=x"], "vm"),
        (["qemu", "-name", "debug-threads=on,guest=a,,b=c"], "a,b=c"),
        (["qemu", "-name", "debug-threads=on"], None),
        (["qemu", "-name"], None),
        (["qemu", "-m", "4096"], None),
        ([], None),
    ],
)
def test_guest_name_as_qemu_reads_it(arguments: list[str], guest: str | None) -> None:
    assert processes.guest_name(arguments) == guest


def test_a_process_that_has_ended_has_no_name() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert processes.comm(child.pid) == ""
    assert process_snapshot(child.pid) is None
    assert processes.process(child.pid) == processes.Process(child.pid, "")


def test_a_snapshot_of_a_process_tells_its_name_and_parent() -> None:
    name = "a) S (b"  # in /proc/PID/stat it stands in brackets, unescaped
    script = f"import sys; open('/proc/self/comm', 'w').write({name!r}); print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        seen = process_snapshot(child.pid)
        child.communicate()
    assert seen is not None
    assert (seen.comm, seen.parent) == (name, os.getpid())


@pytest.mark.parametrize("port", [0, 1 << 31, (1 << 32) - 5])
def test_a_port_that_is_no_process_id_gives_no_snapshot(port: int) -> None:
    assert process_snapshot(port) is None


def test_the_holder_of_a_socket_is_found_and_proved_whatever_its_port() -> None:
    """Only the first socket of a process has the process id for its port; here one has a number of its own."""
    port = 0xF0000000 + os.getpid()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        netlink.bind((port, 0))
        senders = Senders()
        for _ in range(2):  # the second answer is remembered
            found = senders.find(port, None)
            assert found is not None
            assert (found.pid, found.proved) == (os.getpid(), True)
            assert found.comm == processes.comm(os.getpid())
            assert found.parent_comm == processes.comm(os.getppid())


def test_a_socket_that_is_gone_when_its_owner_is_asked_for_was_caught() -> None:
    """A daemon's further sockets have no process id for a port, and go with the daemon: its first one leads there."""
    port = 0xF2000000 + os.getpid()
    catcher = Catcher()
    with ExitStack() as stack:
        own, other = (stack.enter_context(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)) for _ in range(2))
        # Another one's first socket may have it: then there is no need for this one.
        with suppress(OSError):
            own.bind((os.getpid(), 0))
        other.bind((port, 0))
        caught = catcher.find(port, 10**9)
        assert caught is not None
        assert (caught.pid, caught.comm, caught.proved) == (os.getpid(), processes.comm(os.getpid()), True)
    assert Senders().find(port, None) is None
    assert Senders().find(port, caught) == caught
    assert catcher.find(port, 2 * 10**9) == caught
    assert catcher.find(port, 2 * 10**9 + 1) is None
    assert catcher.find(0, 1) is None


def test_a_port_whose_process_has_gone_is_told_by_the_snapshot_alone_and_not_proved() -> None:
    seen = process_snapshot(os.getpid())
    assert seen is not None
    unused = 0xF1000000 + os.getpid()
    found = Senders().find(unused, seen)
    assert found is not None
    assert (found.comm, found.proved) == (seen.comm, False)
    assert Senders().find(unused, None) is None
    assert Senders().find(0, None) is None
