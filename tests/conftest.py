# SPDX-License-Identifier: Apache-2.0
"""Fixtures for all tests, and the one rule about skipping.

A test that needs a piece of the kernel is skipped where that piece is missing, naming it. `VIFPROBE_REQUIRE=kernel,vm`
turns such skips into failures, so that a run can't pass on skips.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from vifprobe.errors import KernelError
from vifprobe.testing.netns import Netns, private_netns
from vifprobe.testing.taps import Tap
from vifprobe.testing.taps import tap as make_tap

Require = Callable[[str, object, str], None]


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
