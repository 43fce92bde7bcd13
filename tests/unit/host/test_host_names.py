# SPDX-License-Identifier: Apache-2.0
"""Names as users type them."""

from __future__ import annotations

import pytest

from vifprobe.errors import TapError
from vifprobe.host import taps
from vifprobe.host.net import names


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "The interface name is empty."),
        ("a" * 16, f"{'a' * 16}: not an interface name: 16 bytes long; the kernel allows at most 15."),
        ("é" * 8, f"{'é' * 8}: not an interface name: 16 bytes long; the kernel allows at most 15."),
        ("tap/0", "tap/0: not an interface name: it contains '/'."),
        ("tap:0", "tap:0: not an interface name: it contains ':'."),
        ("tap 0", "'tap 0': not an interface name: it contains a space."),
        ("tap\u00a00", "'tap\\xa00': not an interface name: it contains a character that can't be printed."),
        ("tap\x1b[31m", "'tap\\x1b[31m': not an interface name: it contains a character that can't be printed."),
        ("tap\n", "'tap\\n': not an interface name: it contains a character that can't be printed."),
        ("tap\udcff", "'tap\\udcff': not an interface name: it contains a character that can't be printed."),
        ("..", "..: not an interface name: the kernel reserves it."),
    ],
)
def test_what_no_interface_can_be_called_is_refused_with_the_value_shown_harmless(name: str, says: str) -> None:
    with pytest.raises(TapError) as caught:
        names.check(name)
    assert caught.value.message == says
    assert str(caught.value).isprintable() or "\n" in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("name", ["tap834d76e9-5f", "a" * 15, "é" * 7, "vnet0.100", "tap0@x"])
def test_what_an_interface_can_be_called_is_let_through(name: str) -> None:
    names.check(name)


def test_a_very_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(TapError) as caught:
        names.check("x" * 100_000)
    assert len(caught.value.message) < 200


def test_the_closest_name_is_one_a_finger_slipped_from() -> None:
    known = ["lo", "eth0", "tap834d76e9-5e", "tap11111111-11"]
    assert names.closest("tap834d76e9-5f", known) == "tap834d76e9-5e"
    assert names.closest("qqqqqq", known) is None


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("tap834d76e9-5f", "834d76e9-5f"),
        ("tap834d76e9-5", None),
        ("tap0", None),
        ("qvo834d76e9-5f", None),
        ("tap834D76E9-5F", None),
    ],
)
def test_neutron_port_prefix_only_from_a_name_that_neutron_gives(name: str, prefix: str | None) -> None:
    assert taps.neutron_port_prefix(name) == prefix
