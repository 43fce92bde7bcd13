# SPDX-License-Identifier: Apache-2.0
"""bpf/layout.h is what vifprobe/model/layout.py generates."""

from __future__ import annotations

from vifprobe.kernel.toolchain.source import source_directory
from vifprobe.model.layout import c_header


def test_the_committed_header_is_the_generated_one() -> None:
    assert (source_directory() / "layout.h").read_text() == c_header(), (
        "renew it: python3 -m vifprobe.model.layout > bpf/layout.h"
    )
