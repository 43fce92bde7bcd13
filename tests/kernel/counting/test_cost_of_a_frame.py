# SPDX-License-Identifier: Apache-2.0
"""No frame costs much more than another one, whatever the guest makes of it (`scripts/bench --worst` measures it).

Asserted by what the programs are made of, not by time: each calls only helpers that take some nanoseconds, and none
more often than its loops say.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest

from vifprobe.kernel.features import read_features, read_trace_fields
from vifprobe.kernel.settings import Settings, possible_cpus
from vifprobe.kernel.toolchain.cache import compiled
from vifprobe.kernel.toolchain.source import source_directory, source_text

# include/uapi/linux/bpf.h: what calls a helper, and the helpers' numbers.
_CALL, _LOAD_IMM64 = 0x85, 0x18
#: Each of them does the same few steps for any packet; bpf_skb_load_bytes copies the bytes that are asked for, here of
#: headers alone. None walks a stack, takes a lock, or wakes somebody.
CHEAP = {
    1: "bpf_map_lookup_elem",
    5: "bpf_ktime_get_ns",
    7: "bpf_get_prandom_u32",
    8: "bpf_get_smp_processor_id",
    26: "bpf_skb_load_bytes",
    113: "bpf_probe_read_kernel",
}


def helpers(code: bytes) -> Iterator[int]:
    """The helpers that it calls, in the order of its instructions."""
    at = 0
    while at < len(code):
        if code[at] == _CALL:
            (number,) = struct.unpack_from("=i", code, at + 4)
            yield number
        at += 16 if code[at] == _LOAD_IMM64 else 8


@pytest.mark.parametrize("deep", [False, True])
def test_programs_call_what_takes_the_same_time_for_each_packet(deep: bool) -> None:
    fields = read_trace_fields()
    settings = Settings(cpus=possible_cpus(), trace=fields)
    if deep:
        settings = replace(settings, bin_ns=10_000_000, samples=True, syn=True, follow=fields, what_ifs=1)
    code = compiled(source_text(), source_directory(), settings.flags(read_features())).code
    called = {name: set(helpers(part)) for name, part in code.items()}
    assert 8 in called["drop"]
    assert {name: numbers - set(CHEAP) for name, numbers in called.items() if numbers - set(CHEAP)} == {}
