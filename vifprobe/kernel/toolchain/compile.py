# SPDX-License-Identifier: Apache-2.0
"""Compile the joined C text with bcc, without kernel headers, into plain code and map definitions."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import sysconfig
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import numpy as np

from vifprobe.errors import KernelError
from vifprobe.kernel.features import missing_capabilities
from vifprobe.kernel.toolchain.compiled import Compiled, MapShape
from vifprobe.kernel.toolchain.instructions import map_loads
from vifprobe.kernel.toolchain.placement import cold_last
from vifprobe.process.startup import dropped
from vifprobe.process.trust import problem


def import_bcc() -> Any:
    """Return the distribution's bcc module. Raises KernelError with the packages to install."""
    _require_trusted_bcc()
    try:
        import bcc
    except (ImportError, OSError) as error:  # OSError: a library is missing, or out of memory
        raise KernelError(
            f"Python's bcc module can't be imported: {error}.",
            *(f"Not searched: {place}: {why}." for place, why in dropped.items()),
            "Install the distribution's package: python3-bpfcc (Debian, Ubuntu), python3-bcc (RHEL, Fedora, SUSE).",
            "Do not install the package named bcc from PyPI: it is an unrelated project.",
            "Create a virtual environment with --system-site-packages, on the system's own python3.",
        ) from error
    if not hasattr(bcc, "BPF"):
        raise KernelError(
            f"{bcc.__file__} is not the BPF Compiler Collection: it is PyPI's unrelated package bcc.",
            "Remove it (pip uninstall bcc) and install python3-bpfcc (Debian, Ubuntu) or python3-bcc (RHEL, Fedora).",
        )
    return bcc


def _require_trusted_bcc() -> None:
    """Raise KernelError where others can write bcc's directory: its output is loaded into the kernel."""
    spec = PathFinder.find_spec("bcc", sys.path)
    if os.geteuid() == 0 and spec is not None and spec.origin and (why := problem(Path(spec.origin).parent)):
        raise KernelError(
            f"Python's bcc module is not imported from {spec.origin}: {why}.",
            "Root would run code that others can change. Remove their write permission (chown, chmod go-w).",
        )


def compile_text(text: str, directory: Path, flags: list[str]) -> Compiled:
    """Compile C text. Raises KernelError where that fails.

    bcc creates the maps as it compiles. They are freed again, so that compiled and cached code are loaded in the same
    way.

    - text: the C text.
    - directory: of the C text, with `include/` in it.
    - flags: -D flags.
    """
    bcc = import_bcc()
    # bcc searches this directory for kernel headers: bpf/include replaces them, see bpf/README.md.
    os.environ["BCC_KERNEL_SOURCE"] = str(directory)
    system = [f"-I/usr/include/{sysconfig.get_config_var('MULTIARCH') or ''}", "-I/usr/include"]
    include = [f"-I{directory}", f"-I{directory / 'include'}", *system]
    try:
        module = bcc.BPF(text=text.encode(), cflags=[*include, *flags, "-Wno-macro-redefined"])
    except Exception as error:  # bcc raises plain Exception; the compiler's messages went to stderr
        if missing := missing_capabilities():
            lacking = ", ".join(missing)
            raise KernelError(f"not permitted: this process lacks {lacking}.", "Run it with sudo.") from error
        raise KernelError(
            f"bcc could not compile the programs or create their tables: {error}.",
            "Known causes: linux-libc-dev (linux/types.h) is not installed; not enough memory for the tables.",
        ) from error
    try:
        return _extract(module)
    finally:
        module.cleanup()


def _extract(module: Any) -> Compiled:
    from bcc import libbcc

    # bcc's Python does not use these two functions and leaves them without types. Indexing returns new function
    # objects, so the types are set on ours only.
    count_of, name_of = libbcc.lib["bpf_num_tables"], libbcc.lib["bpf_table_name"]
    count_of.argtypes, name_of.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_size_t]
    count_of.restype, name_of.restype = ctypes.c_size_t, ctypes.c_char_p
    count_of_functions, name_of_function = libbcc.lib.bpf_num_functions, libbcc.lib.bpf_function_name
    shapes, places = [], {}
    for number in range(count_of(module.module)):
        name = name_of(module.module, number)
        table = module[name]
        places[table.map_fd] = number
        # For a per-CPU table, bcc's Leaf is an array with the values of all CPUs.
        value = np.dtype(getattr(table, "sLeaf", table.Leaf))
        leaf = np.lib.format.dtype_to_descr(value)
        kind = libbcc.lib.bpf_table_type_id(module.module, number)
        key_bytes, value_bytes = np.dtype(table.Key).itemsize, value.itemsize
        flags = libbcc.lib.bpf_table_flags_id(module.module, number)
        shapes.append(MapShape(name.decode(), kind, key_bytes, value_bytes, table.max_entries, flags, leaf))
    names = [name_of_function(module.module, number) for number in range(count_of_functions(module.module))]
    code = {name.decode(): cold_last(_by_place(module.dump_func(name), places)) for name in names}
    return Compiled(tuple(shapes), code)


def _by_place(code: bytes, places: dict[int, int]) -> bytes:
    """Return the code with each map's fd replaced by the map's index in the list of maps."""
    moved = bytearray(code)
    for at, fd in map_loads(code):
        struct.pack_into("<i", moved, at, places[fd])
    return bytes(moved)
