# SPDX-License-Identifier: Apache-2.0
"""Bounded store of items that are kept until they are taken."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Recent(Generic[Item]):
    """The newest `most` items since the last `take`. left_out: how many older ones had to go since then."""

    def __init__(self, most: int) -> None:
        self._items: deque[Item] = deque(maxlen=most)
        self._most = most
        self.left_out = 0

    def __len__(self) -> int:
        return len(self._items)

    def add(self, *items: Item) -> None:
        """Keep these, the last one the newest."""
        self.extend(items)

    def extend(self, items: Iterable[Item]) -> None:
        """Keep these, the last one the newest."""
        for item in items:
            self.left_out += len(self._items) == self._most
            self._items.append(item)

    def take(self) -> list[Item]:
        """All that is kept, oldest first; nothing is kept and nothing left out then."""
        items = list(self._items)
        self._items.clear()
        self.left_out = 0
        return items
