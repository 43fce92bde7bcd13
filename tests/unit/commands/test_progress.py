# SPDX-License-Identifier: Apache-2.0
"""Progress of attaching to many taps: said where it takes long, and only then."""

from __future__ import annotations

import pytest

from vifprobe.commands.progress import TapProgress


def test_what_is_over_soon_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr("time.monotonic", lambda: 7.0)
    progress = TapProgress()
    progress.show = shown.append
    for done in (1, 2, 3):
        progress("attaching to", done, 3)
    assert not shown


def test_what_takes_long_is_shown_and_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = TapProgress()
    progress.show = shown.append
    for done in range(1, 200):
        now[0] += 0.011
        progress("attaching to", done, 199)
    assert shown[0] == "attaching to taps: 92 of 199"
    assert shown[-1] == ""
    assert 10 <= len(shown) <= 14  # every 100 ms at most
