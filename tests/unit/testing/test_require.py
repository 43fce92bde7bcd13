# SPDX-License-Identifier: Apache-2.0
"""The rule about skips: they name what is missing, and VIFPROBE_REQUIRE turns them into failures."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Require = Callable[[str, object, str], None]


def test_what_is_there_is_no_skip(require: Require, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIFPROBE_REQUIRE", "kernel")
    require("kernel", True, "nothing")


@pytest.mark.parametrize("required", ["", "vm", "vm,other", "kernels"])
def test_a_skip_names_what_is_missing(require: Require, monkeypatch: pytest.MonkeyPatch, required: str) -> None:
    monkeypatch.setenv("VIFPROBE_REQUIRE", required)
    with pytest.raises(pytest.skip.Exception, match="kernel: tcx"):
        require("kernel", False, "tcx")


@pytest.mark.parametrize("required", ["kernel", "kernel,vm", "vm, kernel", "vm kernel"])
def test_a_required_piece_fails(require: Require, monkeypatch: pytest.MonkeyPatch, required: str) -> None:
    monkeypatch.setenv("VIFPROBE_REQUIRE", required)
    with pytest.raises(pytest.fail.Exception, match="tcx"):
        require("kernel", None, "tcx")
