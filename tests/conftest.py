# SPDX-License-Identifier: Apache-2.0
"""Fixtures for all tests, and the one rule about skipping.

A test that needs a piece of the kernel is skipped where that piece is missing, naming it. `VIFPROBE_REQUIRE=kernel,vm`
turns such skips into failures, so that a run can't pass on skips.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from vifprobe.errors import KernelError
from vifprobe.testing.net.netns import Netns, private_netns
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.net.taps import tap as make_tap

Require = Callable[[str, object, str], None]

#: The stock kernel that the tests run on in a virtual machine (scripts/vm), "" elsewhere.
KERNEL = os.environ.get("VIFPROBE_VM", "")
LAB = Path(__file__).parents[1] / "scripts" / "lab"


#: Who else on this host could say of a tap named tap0 what its limit or its guest is.
_OTHERS = (Path("/run/libvirt"), Path("/run/openvswitch"))
_CLONE_NEWNS = 0x20000  # include/uapi/linux/sched.h; os.unshare came with Python 3.12


def _leave_the_host_out() -> None:
    """Hide libvirt and Open vSwitch of a host that is in use, for this process and all that it starts.

    Taps of these tests have names that a tap of the host can have, and are in network namespaces of their own: a
    directory is in all of them.
    """
    if os.geteuid() or KERNEL or not (found := [path for path in _OTHERS if path.is_dir()]):
        return
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare: tests would see this host's libvirt and Open vSwitch")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    for path in found:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=4k", "none", path], check=True)


def pytest_configure(config: pytest.Config) -> None:
    _leave_the_host_out()
    # A run in the background begins with Ctrl-C ignored, and what it starts would be, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for ignored in (signal.SIGQUIT, signal.SIGHUP):  # the same for Ctrl-\ there, and for hang-ups under nohup
        signal.signal(ignored, signal.SIG_DFL)
    # Under sudo: what a test starts is root's own, settings of the environment included.
    for name in ("SUDO_UID", "SUDO_GID", "SUDO_USER", "SUDO_COMMAND"):
        os.environ.pop(name, None)
    config.addinivalue_line("markers", "kernels(*versions): the stock kernels that a test in tests/vm is for")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On a stock kernel, leave out what is for other ones: that is no skip."""
    if KERNEL:
        other = [item for item in items for mark in item.iter_markers("kernels") if KERNEL not in mark.args]
        items[:] = [item for item in items if item not in other]
        config.hook.pytest_deselected(items=other)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """On a stock kernel, tell of a failure at once: the time limit of the virtual machine may come before the end."""
    reporter = item.config.pluginmanager.get_plugin("terminalreporter")
    if KERNEL and reporter and call.excinfo is not None and not call.excinfo.errisinstance(pytest.skip.Exception):
        reporter.write_line(f"\n{item.nodeid}: {call.when}: {str(item.repr_failure(call.excinfo))[-3000:]}")


def require_or_skip(word: str, condition: object, missing: str) -> None:
    """Go on where `condition` is true; else skip saying what is missing, or fail if VIFPROBE_REQUIRE lists `word`."""
    if condition:
        return
    required = os.environ.get("VIFPROBE_REQUIRE", "").replace(",", " ").split()
    if word in required:
        pytest.fail(f"VIFPROBE_REQUIRE lists {word!r}, but: {missing}", pytrace=False)
    pytest.skip(f"{word}: {missing}")


@pytest.fixture(scope="session")
def require() -> Require:
    """`require("kernel", condition, "what is missing")`."""
    return require_or_skip


@pytest.fixture(scope="session")
def stock_kernel() -> str:
    """Its version. What needs it must not touch the Open vSwitch or the libvirt of a host that is in use."""
    require_or_skip("vm", KERNEL, "a virtual machine with a stock kernel (scripts/test --vm)")
    return KERNEL


@pytest.fixture(scope="session")
def ovs(stock_kernel: str) -> str:
    """A bridge of a running Open vSwitch, which works in the guest's first network namespace."""
    subprocess.run([LAB / "start-ovs"], check=True)
    subprocess.run(["ovs-vsctl", "--may-exist", "add-br", "br-int"], check=True)
    return "br-int"


@pytest.fixture(scope="module")
def ovn(ovs: str) -> Iterator[str]:
    """The bridge of a running OVN, whose switches and databases are on this one node."""
    require_or_skip("vm", shutil.which("ovn-nbctl"), "OVN in the virtual machine (scripts/vm --with ovn)")
    subprocess.run([LAB / "start-ovn"], check=True)
    yield "br-ovn"
    subprocess.run([LAB / "start-ovn", "--stop"], check=True)


@pytest.fixture
def netns() -> Iterator[Netns]:
    """A private network namespace that the test runs in, subprocesses included."""
    require_or_skip("kernel", os.geteuid() == 0, "private network namespaces need root")
    with ExitStack() as stack:
        try:
            entered = stack.enter_context(private_netns())
        except KernelError as error:
            require_or_skip("kernel", False, str(error))
            raise
        yield entered


@pytest.fixture
def tap(netns: Netns) -> Iterator[Tap]:
    """A tap named tap0 in the private namespace, up, with an MTU that takes the longest frames."""
    require_or_skip("kernel", Path("/dev/net/tun").exists(), "/dev/net/tun (CONFIG_TUN)")
    with make_tap("tap0", mtu=65521) as made:
        yield made
