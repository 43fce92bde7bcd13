# SPDX-License-Identifier: Apache-2.0
"""JSON as a capture keeps it: plain values out, typed look-ups in."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import datetime
from enum import Enum
from typing import Any, TypeVar

from vifprobe.capture.bounds import JSON_DEPTH_MAX
from vifprobe.errors import CaptureError
from vifprobe.model.layout import Direction
from vifprobe.model.untrusted_text import quoted

T = TypeVar("T")
C = TypeVar("C", bound=Enum)

#: In any zone these have a time: datetime ends at the years 1 and 9999.
_YEARS = (2, 9998)


def plain(value: Any) -> Any:
    """The value in types that JSON has. Codes by name, numpy as Python's own, NaN and infinity as null (unknown)."""
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(each) for each in value]
    if isinstance(value, Enum):
        return value.name.lower()
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def dump(value: Any) -> bytes:
    """A JSON file's content. ASCII only: terminal escapes and lone surrogates in names are written as escapes."""
    return (json.dumps(plain(value), indent=1, allow_nan=False) + "\n").encode("ascii")


def load(file: str, data: bytes) -> Any:
    """The value in a JSON file's content. Raises CaptureError, which names `file`."""
    try:
        value = json.loads(data, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise CaptureError(f"{file}: not JSON: {error}.", "The file was changed, or is not of a capture.") from None
    if _is_deep(value):
        raise CaptureError(f"{file}: more than {JSON_DEPTH_MAX} levels of lists and objects.", "Expected 5.")
    return value


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is not a JSON number")


def _is_deep(value: Any) -> bool:
    """Return True if something is nested beyond the bound: later code recurses into it."""
    level = [value]
    for _ in range(JSON_DEPTH_MAX):
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inner += each.values()
            elif isinstance(each, list):
                inner += each
        level = [each for each in inner if isinstance(each, (dict, list))]
    return bool(level)


def moment(text: str) -> datetime:
    """ISO 8601 with zone. Raises ValueError."""
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError("Expected a time with its zone.")
    if not _YEARS[0] <= at.year <= _YEARS[1]:
        raise ValueError(f"Expected a year from {_YEARS[0]} to {_YEARS[1]}.")
    return at


class JsonObject:
    """Typed look-ups in one JSON object; each raises CaptureError with the file, the key and what is expected."""

    def __init__(self, file: str, where: str, content: Any) -> None:
        if not isinstance(content, dict):
            raise CaptureError(f"{file}: {where or 'the content'} is {quoted(content)}.", "Expected a JSON object.")
        self._file, self._where, self._content = file, where, content

    def path(self, key: str) -> str:
        """The key with those above it."""
        return f"{self._where}.{key}" if self._where else key

    def get(self, key: str, kind: type[T]) -> T:
        """The value of a key that must be there."""
        if key not in self._content:
            raise CaptureError(f"{self._file}: {self.path(key)} is missing.", f"Expected {kind.__name__}.")
        value = self._content[key]
        # bool is an int to Python, but not to a reader of JSON.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise CaptureError(f"{self._file}: {self.path(key)} is {quoted(value)}.", f"Expected {kind.__name__}.")
        return value

    def maybe(self, key: str, kind: type[T]) -> T | None:
        """The value of a key, None where it is null or not there."""
        return None if self._content.get(key) is None else self.get(key, kind)

    def whole(self, key: str, lowest: int, highest: int) -> int:
        """A whole number between two bounds, which are allowed."""
        value = self.get(key, int)
        if not lowest <= value <= highest:
            expected = f"Expected a whole number from {lowest} to {highest}."
            raise CaptureError(f"{self._file}: {self.path(key)} is {quoted(value)}.", expected)
        return value

    def maybe_whole(self, key: str, lowest: int, highest: int) -> int | None:
        """The same of a number that may be null or not there."""
        return None if self._content.get(key) is None else self.whole(key, lowest, highest)

    def parsed(self, key: str, parse: Callable[[str], T]) -> T:
        """Return `parse` of a text; its ValueError says what was expected."""
        text = self.get(key, str)
        try:
            return parse(text)
        except ValueError as error:
            raise CaptureError(f"{self._file}: {self.path(key)} is {quoted(text)}.", str(error)) from None

    def maybe_parsed(self, key: str, parse: Callable[[str], T]) -> T | None:
        """The same of a text that may be null or not there."""
        return None if self._content.get(key) is None else self.parsed(key, parse)

    def object(self, key: str) -> JsonObject:
        """The object below a key."""
        return JsonObject(self._file, self.path(key), self.get(key, dict))

    def objects(self, key: str) -> list[JsonObject]:
        """The objects of a list below a key."""
        return [JsonObject(self._file, f"{self.path(key)}[{i}]", each) for i, each in enumerate(self.get(key, list))]

    def codes(self, key: str, codes: type[C]) -> tuple[C, ...]:
        """The codes of a list of their names."""
        names = {code.name.lower(): code for code in codes}
        found = self.get(key, list)
        if not all(isinstance(name, str) and name in names for name in found):
            expected = f"Expected some of {list(names)}."
            raise CaptureError(f"{self._file}: {self.path(key)} is {quoted(found)}.", expected)
        return tuple(names[name] for name in found)

    def directions(self) -> dict[Direction, str]:
        """The directions that are keys here, each with its key."""
        return {direction: name for direction in Direction if (name := direction.name.lower()) in self._content}
