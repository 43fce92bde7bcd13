# SPDX-License-Identifier: Apache-2.0
"""What each piece of vifprobe/kernel/toolchain brings: everything on, with all pieces and without one, in turn.

Run as a program of its own, it is the compiler of a variant: compile_apart's order on standard input, its answer on
standard output.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from unittest import mock

from bench_variant import Variant

from vifprobe.kernel import load
from vifprobe.kernel.features import read_features, read_trace_fields
from vifprobe.kernel.settings import Settings, possible_cpus
from vifprobe.kernel.toolchain import compile as compiler
from vifprobe.kernel.toolchain import placement
from vifprobe.kernel.toolchain.cache import compiled
from vifprobe.kernel.toolchain.compiled import Compiled
from vifprobe.kernel.toolchain.compiler import compile_apart

_ALL = "all"
STARTS = 5
#: In the place of the address that is written into the code: a lookup. (The assembly ends the program, which a lookup
#: in an array of one never comes to.)
_LOOKUP = """
static __always_inline u64 shared_address(void)
{
	u32 first = 0;
	struct shared *found = shared.lookup(&first);

	asm volatile("if %0 != 0 goto +2\\n\\tr0 = 0\\n\\texit" : "+r"(found));
	return (u64)(long)found;
}
"""
#: In the place of a load: the call that bcc makes of it.
_READ = """#define FIELD(size, from, offset) \
({ size field; bpf_probe_read_kernel(&field, sizeof(field), (void *)((u64)(from) + (offset))); field; })
"""


@dataclass(frozen=True)
class Without:
    """A piece that is left out. text: the C text without it; flags: of the compiler; patch: of the placement."""

    text: Callable[[str], str] = str
    flags: tuple[str, ...] = ()
    patch: Callable[[], object] = object


def _replaced(text: str, old: str, new: str) -> str:
    before, found, after = text.partition(old)
    if not found:
        raise SystemExit(f"the C text has no {old!r} any more")
    return before + new + after


def _with_lookup(text: str) -> str:
    return _replaced(
        _replaced(text, "= LOADED(SHARED)", "= shared_address()"), "#define SHARED(", f"{_LOOKUP}\n#define SHARED("
    )


def _with_calls(text: str) -> str:
    return _replaced(text, "#define FIELD(", f"{_READ}#define UNUSED_FIELD(")


_MARKS = ("-DVIFPROBE_LIKELY_H", "-Dunlikely(condition)=(condition)", "-Dlikely(condition)=(condition)")
PIECES = {
    _ALL: Without(),
    "placement": Without(flags=_MARKS, patch=partial(setattr, compiler, "cold_last", bytes)),
    "opposites": Without(patch=placement._OPPOSITE.clear),
    "early": Without(patch=partial(setattr, placement, "_rare", lambda blocks: _marked(blocks))),
    "address": Without(text=_with_lookup),
    "loads": Without(text=_with_calls),
}


def _marked(blocks: list[placement._Block]) -> set[int]:
    return {number for number, block in enumerate(blocks) if block.marked}


def variants(of: Callable[[str], Variant]) -> Iterator[Variant]:
    """A variant for each piece, without it. of: what attaches everything, by its name."""
    for name in PIECES:
        variant = of(name)
        variant.attached = partial(_attached, name, variant.attached)
        yield variant


@contextmanager
def _attached(name: str, attached: Callable[[], object]) -> Iterator[None]:
    with mock.patch.object(load, "compiled", partial(_compiled, name)), attached():  # type: ignore[attr-defined]
        yield


def _compiled(name: str, text: str, directory: Path, flags: list[str]) -> Compiled:
    return _once(name, text, directory, tuple(flags))


@cache
def _once(name: str, text: str, directory: Path, flags: tuple[str, ...]) -> Compiled:
    order = json.dumps({"text": text, "directory": str(directory), "flags": flags})
    command = [sys.executable, __file__, name]
    done = subprocess.run(command, input=order, stdout=subprocess.PIPE, text=True, check=True)
    return Compiled.from_json(done.stdout)


def measure_start() -> None:
    """Print how long it takes to have the programs of `capture`, with the cache and without."""
    settings = Settings(cpus=possible_cpus(), bin_ns=10_000_000, samples=True, syn=True, follow=read_trace_fields())
    features = read_features()
    for name, get in (("from the cache", compiled), ("compiled", compile_apart)):
        taken = []
        for _ in range(STARTS):
            with mock.patch.object(load, "compiled", get):
                begun = time.monotonic()
                load.make_programs(settings, features).close()
                taken.append(1000 * (time.monotonic() - begun))
        print(f"{name:16s} {statistics.median(taken):8.0f} ms ({min(taken):.0f} to {max(taken):.0f})")


def main() -> None:
    """Standard input to standard output: the compiler of the variant that is named on the command line."""
    order, without = json.load(sys.stdin), PIECES[sys.argv[1]]
    without.patch()
    flags = [*order["flags"], *without.flags]
    made = compiler.compile_text(without.text(order["text"]), Path(order["directory"]), flags)
    sys.stdout.write(made.to_json())


if __name__ == "__main__":
    main()
