# SPDX-License-Identifier: Apache-2.0
"""C text of the packet programs, and its location."""

from __future__ import annotations

from pathlib import Path

from vifprobe.errors import KernelError

#: Joined into one text, in this order: bcc rewrites map calls in its main source text only.
_COUNTING = ("tables", "count", "staged", "samples", "syn_sets", "handshakes", "token_bucket", "what_ifs")
_LIBRARY = tuple(f"lib/{name}.c" for name in (*_COUNTING, "skb", "copies", "inflight", "chains", "arrival"))
_PROGRAMS = ("tc", "netif_receive", "xmit", "kfree_skb", "nf_hook_slow", "police_exit", "test_run")
SOURCES = (*_LIBRARY, *(f"progs/{name}.c" for name in _PROGRAMS))


def source_directory() -> Path:
    """Return the path of `bpf/`: inside the installed package, or next to it in a checkout. Raises KernelError."""
    package = Path(__file__).resolve().parents[2]
    for place in (package / "bpf", package.parent / "bpf"):
        if (place / SOURCES[0]).is_file():
            return place
    raise KernelError(f"the programs' C source is not in {package / 'bpf'}.", "Reinstall vifprobe.")


def source_text() -> str:
    """Return the joined C text, with #line so that messages name file and line."""
    directory = source_directory()
    return "".join(f'#line 1 "{directory / name}"\n{(directory / name).read_text()}' for name in SOURCES)
