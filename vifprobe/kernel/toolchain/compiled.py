# SPDX-License-Identifier: Apache-2.0
"""Compiled programs and the shapes of their maps, as text. Reading checks every value."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from vifprobe.kernel.toolchain.instructions import map_loads

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_SCALAR = re.compile(r"[<>|=][uifSV][0-9]{1,7}")
_NUMBER_MAX = (1 << 32) - 1  # union bpf_attr, include/uapi/linux/bpf.h: all of a map's numbers are __u32
_MAP_BYTES_MAX = 1 << 40  # far above what a host has
_MAPS_MAX, _PROGRAMS_MAX, _DEPTH_MAX = 256, 256, 16
_INSTRUCTION_BYTES = 8
_PROGRAM_BYTES_MAX = 1_000_000 * _INSTRUCTION_BYTES  # BPF_COMPLEXITY_LIMIT_INSNS, include/linux/bpf.h
#: Start of a program or a map in `bpf/*.c`; start and end of a condition around them.
_DECLARED = re.compile(r"int (\w+)\(struct \w+ \*\w+\)|BPF_F_TABLE\((?:[^,]+,){3} (\w+),|BPF_ARRAY\((\w+),")
_CONDITION = re.compile(r"#\s*(if|elif|else|endif)\w*\s*(.*)")


@dataclass(frozen=True)
class MapShape:
    """A map as the C text declares it.

    - name, kind, flags: name, BPF_MAP_TYPE_* and BPF_F_* flags.
    - key_bytes, value_bytes: sizes.
    - entries: maximum number of entries.
    - leaf: dtype of a value, as numpy describes it in a .npy file.
    """

    name: str
    kind: int
    key_bytes: int
    value_bytes: int
    entries: int
    flags: int
    leaf: Any


@dataclass(frozen=True)
class Compiled:
    """Code of each program by name. References to maps are indexes of `maps`."""

    maps: tuple[MapShape, ...]
    code: dict[str, bytes]

    def to_json(self) -> str:
        """Return the text for :meth:`from_json`."""
        code = {name: base64.b64encode(part).decode() for name, part in self.code.items()}
        return json.dumps({"maps": [asdict(shape) for shape in self.maps], "code": code})

    @property
    def names(self) -> set[str]:
        """Return the names of all programs and maps."""
        return {shape.name for shape in self.maps} | set(self.code)

    @classmethod
    def from_json(cls, content: str) -> Compiled:
        """Parse the text of :meth:`to_json`. Raises ValueError for any other text."""
        try:
            kept = json.loads(content)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error
        _require(isinstance(kept, dict) and set(kept) == {"maps", "code"}, "not maps and code")
        _require(isinstance(kept["maps"], list) and 0 < len(kept["maps"]) <= _MAPS_MAX, "no list of maps")
        maps = tuple(_map(shape) for shape in kept["maps"])
        _require(len({shape.name for shape in maps}) == len(maps), "two maps of one name")
        _require(isinstance(kept["code"], dict) and 0 < len(kept["code"]) <= _PROGRAMS_MAX, "no programs")
        code = {name: _program(name, text, len(maps)) for name, text in kept["code"].items()}
        return cls(maps, code)


def declared_in(text: str, flags: Iterable[str]) -> set[str]:
    """Return the names of the programs and maps that the C text declares with these -D flags.

    Only conditions that are a single flag name are evaluated. Declarations under other conditions are left out.
    """
    values = dict(flag.removeprefix("-D").partition("=")[::2] for flag in flags)
    found, conditions = set(), list[bool]()
    for line in text.splitlines():
        if condition := _CONDITION.match(line):
            word, asked = condition.groups()
            if word != "if":
                conditions.pop()
            if word != "endif":
                conditions.append(_holds(word, asked.strip(), values))
        elif all(conditions) and (declared := _DECLARED.match(line)):
            found.add(declared[declared.lastindex or 0])
    return found


def _holds(word: str, asked: str, values: Mapping[str, str]) -> bool:
    return word == "if" and values.get(asked, "0") not in ("0", "")


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise ValueError(problem)


def _map(kept: object) -> MapShape:
    names = [field.name for field in fields(MapShape)]
    _require(isinstance(kept, dict) and set(kept) == set(names), "not a map's fields")
    assert isinstance(kept, dict)  # noqa: S101 - just looked at
    name, *numbers, leaf = (kept[name] for name in names)
    _require(isinstance(name, str) and _NAME.fullmatch(name) is not None, "invalid map name")
    _require(all(type(number) is int and 0 <= number <= _NUMBER_MAX for number in numbers), f"{name}: numbers")
    kind, key_bytes, value_bytes, entries, flags = numbers
    _require(bool(kind and value_bytes and entries), f"{name}: empty")
    _require(value_bytes * entries <= _MAP_BYTES_MAX, f"{name}: too large")
    descr = _descr(leaf)
    try:
        dtype = np.lib.format.descr_to_dtype(descr)
    except (TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError(f"{name}: {error}") from error
    _require(dtype.itemsize == value_bytes, f"{name}: a value has {dtype.itemsize} bytes, not {value_bytes}")
    return MapShape(name, kind, key_bytes, value_bytes, entries, flags, descr)


def _descr(value: object, depth: int = 0) -> Any:
    """Return numpy's description of a dtype, with the tuples (members, shapes) that JSON does not have."""
    if isinstance(value, str):
        _require(_SCALAR.fullmatch(value) is not None, f"{value!r}: not a numeric type")
        return value
    _require(isinstance(value, list) and bool(value) and depth < _DEPTH_MAX, "invalid description of a type")
    assert isinstance(value, list)  # noqa: S101 - just looked at
    return [_member(member, depth + 1) for member in value]


def _member(value: object, depth: int) -> tuple[object, ...]:
    _require(isinstance(value, list) and len(value) in (2, 3), "invalid member of a struct")
    assert isinstance(value, list)  # noqa: S101 - just looked at
    name, kind, *shape = value
    _require(isinstance(name, str), "a member without a name")
    if not shape:
        return name, _descr(kind, depth)
    sizes = shape[0]
    _require(isinstance(sizes, list) and 0 < len(sizes) <= _DEPTH_MAX, f"{name}: shape")
    _require(all(type(size) is int and 0 < size <= _NUMBER_MAX for size in sizes), f"{name}: shape")
    return name, _descr(kind, depth), tuple(sizes)


def _program(name: str, text: object, maps: int) -> bytes:
    _require(_NAME.fullmatch(name) is not None, "invalid program name")
    _require(isinstance(text, str) and len(text) <= 2 * _PROGRAM_BYTES_MAX, f"{name}: no code")
    assert isinstance(text, str)  # noqa: S101 - just looked at
    try:
        code = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{name}: {error}") from error
    _require(0 < len(code) <= _PROGRAM_BYTES_MAX and not len(code) % _INSTRUCTION_BYTES, f"{name}: {len(code)} bytes")
    try:
        places = [place for _, place in map_loads(code)]
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    _require(all(0 <= place < maps for place in places), f"{name}: refers to a missing map")
    return code
