# SPDX-License-Identifier: Apache-2.0
"""Progress of attaching to many taps and detaching from them: the kernel takes some 10 ms for each hook."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

#: Shorter work shows no progress.
_SHOWN_AFTER_SECONDS = 1.0
_APART_SECONDS = 0.1


def on_own_line(text: str) -> None:
    """Show a text on the terminal's current line; "" clears it."""
    _write(f"\r\x1b[K{text}")


def on_last_row(text: str) -> None:
    """Show a text on the last row of a full screen."""
    if text:
        _write(f"\x1b[999;1H\x1b[K{text}")


def _write(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(text)
        sys.stderr.flush()


class TapProgress:
    """Shows how many taps are done, if the work takes longer than a second. show: displays a text; "" clears it."""

    def __init__(self) -> None:
        self.show: Callable[[str], None] = on_own_line
        self._doing = ""
        self._begun = self._shown = 0.0

    def __call__(self, doing: str, done: int, taps: int) -> None:
        """Show progress. doing: `attaching to` or `detaching from`. done, taps: number of taps done, and in total."""
        now = time.monotonic()
        if doing != self._doing:
            self._doing, self._begun, self._shown = doing, now, 0.0
        if done >= taps:
            if self._shown:
                self.show("")
        elif now - self._begun >= _SHOWN_AFTER_SECONDS and now - self._shown >= _APART_SECONDS:
            self._shown = now
            self.show(f"{doing} taps: {done} of {taps}")
