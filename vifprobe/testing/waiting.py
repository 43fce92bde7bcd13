# SPDX-License-Identifier: Apache-2.0
"""Wait for a condition with a deadline, never with a bare sleep."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def wait_until(condition: Callable[[], Value], seconds: float, *, poll_seconds: float = 0.005) -> Value:
    """The first true value that `condition()` gives.

    Raises TimeoutError with the last value when `seconds` have passed without one.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() >= deadline:
            raise TimeoutError(f"still {value!r} after {seconds} s")
        time.sleep(poll_seconds)
    return value
