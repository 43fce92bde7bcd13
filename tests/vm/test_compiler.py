# SPDX-License-Identifier: Apache-2.0
"""bcc on a stock kernel makes of the same text what it makes on the host, which compiles for the other tests."""

from __future__ import annotations

import pytest

from vifprobe.kernel.features import read_features
from vifprobe.kernel.settings import Settings, possible_cpus
from vifprobe.kernel.toolchain import compiler
from vifprobe.kernel.toolchain.source import source_directory, source_text

# bcc is the same on all of them.
pytestmark = [pytest.mark.usefixtures("stock_kernel"), pytest.mark.kernels("5.10")]


def test_the_host_compiles_as_the_guest_does(monkeypatch: pytest.MonkeyPatch) -> None:
    order = source_text(), source_directory(), Settings(cpus=possible_cpus()).flags(read_features())
    outside = compiler.compile_apart(*order)
    monkeypatch.delenv(compiler.VARIABLE)
    assert compiler.compile_apart(*order) == outside
