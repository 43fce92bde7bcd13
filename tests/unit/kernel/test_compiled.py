# SPDX-License-Identifier: Apache-2.0
"""Compiled code as text: whatever is wrong with it is found when it is read, and is a ValueError."""

from __future__ import annotations

import base64
import copy
import json
import random
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from vifprobe.kernel.toolchain.compiled import Compiled, MapShape, declared_in

CELL = [("counts", [("packets", "<u8"), ("bytes", "<u8")], (4,)), ("spare", "<u2"), ("", "|V6")]
#: r1 = map 1; r1 = map 0; exit
CODE = struct.pack("<BBhiBBhi", 0x18, 0x11, 0, 1, 0, 0, 0, 0) + struct.pack("<BBhiBBhi", 0x18, 0x11, 0, 0, 0, 0, 0, 0)
CODE += struct.pack("<BBhi", 0x95, 0, 0, 0)
MADE = Compiled(
    (MapShape("cells", 2, 4, 72, 4099, 1024, CELL), MapShape("clock", 2, 4, 8, 1, 0, "<u8")),
    {"observe": CODE, "drop": CODE[16:]},
)
#: In the place of any value.
VALUES: tuple[object, ...] = (
    None,
    True,
    -1,
    0,
    1,
    1.5,
    2**32,
    2**70,
    "",
    "x",
    "|O",
    "x" * 1000,
    "\0",
    [],
    [[]],
    {},
    [0],
)


def test_what_is_written_is_read() -> None:
    assert Compiled.from_json(MADE.to_json()) == MADE


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inner:
        yield from _places(below, (*path, key))


def _changed(kept: Any, path: tuple[Any, ...], value: object) -> Any:
    changed = copy.deepcopy(kept)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    if value is ...:
        del holder[path[-1]]
    else:
        holder[path[-1]] = copy.deepcopy(value)
    return changed


def _is_sound(found: Compiled) -> None:
    """All that loading relies on."""
    assert found.maps
    assert found.code
    for shape in found.maps:
        assert np.lib.format.descr_to_dtype(shape.leaf).itemsize == shape.value_bytes
        assert not np.lib.format.descr_to_dtype(shape.leaf).hasobject
    assert all(code and len(code) % 8 == 0 for code in found.code.values())


def test_each_part_replaced_by_anything_or_left_out() -> None:
    """Refused, or as sound as before: another number of entries, say."""
    kept = json.loads(MADE.to_json())
    refused = 0
    for path in [path for path in _places(kept) if path]:
        for value in (*VALUES, ...):
            try:
                _is_sound(Compiled.from_json(json.dumps(_changed(kept, path, value))))
            except ValueError:
                refused += 1
    assert refused > 500


def test_random_bytes_in_it() -> None:
    source = random.Random(7)
    content = MADE.to_json().encode()
    for _ in range(3000):
        torn = bytearray(content)
        for _ in range(source.choice((1, 1, 2, 9))):
            torn[source.randrange(len(torn))] = source.randrange(256)
        torn = torn[: source.choice((len(torn), source.randrange(len(torn))))]
        try:
            _is_sound(Compiled.from_json(torn.decode(errors="replace")))
        except ValueError:
            continue


@pytest.mark.parametrize("content", ["", "[]", "null", "7", "{}", "[" * 100_000, '{"maps":[],"code":{}}', "NaN"])
def test_other_texts(content: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json's own for some
        Compiled.from_json(content)


@pytest.mark.parametrize("maps", [0, 1, 3])
def test_a_map_less_or_more_than_its_code_knows(maps: int) -> None:
    """One more is harmless; code that names one that is not there is refused."""
    made = Compiled((*MADE.maps, MapShape("more", 2, 4, 8, 1, 0, "<u8"))[:maps], MADE.code)
    if maps == 3:
        assert Compiled.from_json(made.to_json()) == made
        return
    with pytest.raises(ValueError, match="map"):
        Compiled.from_json(made.to_json())


def test_programs_and_maps_of_a_text() -> None:
    text = """
#if FOLLOW
int on_start_xmit(struct bpf_raw_tracepoint_args *ctx)
{
#if HAS_REASON
#endif
BPF_F_TABLE("array", u32, struct row, index, ROWS, BPF_F_MMAPABLE);
#else
int never(struct __sk_buff *skb)
#endif
int observe(struct __sk_buff *skb)
BPF_ARRAY(clock, u64, 1);
static int helper(struct __sk_buff *skb)
#if FOLLOW || REPLAY
int either(struct __sk_buff *skb)
#endif
"""
    assert declared_in(text, ["-DFOLLOW=1"]) == {"clock", "index", "observe", "on_start_xmit"}
    assert declared_in(text, ["-DFOLLOW=0"]) == {"clock", "observe"}
    assert declared_in(text, []) == {"clock", "observe"}


def test_code_that_is_cut_off() -> None:
    kept = json.loads(MADE.to_json())
    kept["code"]["drop"] = base64.b64encode(CODE[:8]).decode()
    with pytest.raises(ValueError, match="drop: the last instruction is truncated"):
        Compiled.from_json(json.dumps(kept))
