# SPDX-License-Identifier: Apache-2.0
"""What the kernel's verifier looks at before it takes each program, of the million instructions that it allows itself.

Kernels before 5.16 do not tell.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from dataclasses import replace

from vifprobe.kernel.features import read_features, read_trace_fields
from vifprobe.kernel.libbpf import object_info
from vifprobe.kernel.load import Programs
from vifprobe.kernel.settings import Settings, possible_cpus
from vifprobe.model.layout import Direction

# struct bpf_prog_info: verified_insns (include/uapi/linux/bpf.h)
_VERIFIED_OFFSET = 216


def measure() -> None:
    """Load the programs of some ways of watching; print what each of them took."""
    features = read_features()
    print(f"{'watching':24s} {'program':16s} {'instructions looked at':>22s}")
    for name, settings in _variants():
        programs = Programs(settings, features)
        begun = time.monotonic()
        programs.load(Direction)
        if settings.follow is not None:
            programs.load_followers()
        seconds = time.monotonic() - begun
        for program, fd in programs.named():
            about = object_info(fd)[_VERIFIED_OFFSET:]
            looked_at = struct.unpack_from("=I", about)[0] if about else "not told"
            print(f"{name:24s} {program:16s} {looked_at:>22}")
        print(f"{name:24s} {'all, seconds':16s} {seconds:22.2f}")
        programs.close()


def _variants() -> Iterator[tuple[str, Settings]]:
    fields = read_trace_fields()
    counts = Settings(cpus=possible_cpus())
    yield "counts alone", counts
    everything = replace(counts, bin_ns=10_000_000, samples=True, syn=True, follow=fields)
    yield "all that capture does", everything
    yield "the same, tracepoints", replace(everything, trace=fields)
    yield "the same, 8 what-ifs", replace(everything, trace=fields, what_ifs=8)
