# SPDX-License-Identifier: Apache-2.0
"""Where kernel functions lie, from a list as the kernel writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vifprobe.kernel import symbols
from vifprobe.kernel.symbols import function_ranges

LISTED = (
    "ffffffff81000000 T nf_hook\nffffffff81000010 T nf_hook_slow_list\nffffffff81000100 t nf_hook_slow\n"
    "ffffffff81000100 t another_name_of_it\nffffffff81000290 t core.constprop.0\nffffffff81000fff d core\n"
    "ffffffff81001000 t core.cold\nffffffffc0000000 t nf_hook_slow\t[module]\n"
)


@pytest.fixture
def kallsyms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "kallsyms"
    path.write_text(LISTED)
    monkeypatch.setattr(symbols, "KALLSYMS", path)
    return path


def test_a_function_ends_where_the_next_one_begins(kallsyms: Path) -> None:
    assert function_ranges("nf_hook_slow", "core", "nf_hook_s", "nope") == (
        (0x81000100, 0x81000290),
        (0x81000290, 0x81000FFF),
        (0, 0),
        (0, 0),
    )


def test_hidden_addresses_are_not_known(kallsyms: Path) -> None:
    lines = (f"{0:016x}{line[16:]}" for line in LISTED.splitlines())
    kallsyms.write_text("\n".join(lines) + "\n")
    assert function_ranges("nf_hook_slow") == ((0, 0),)
