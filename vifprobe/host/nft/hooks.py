# SPDX-License-Identifier: Apache-2.0
"""Whether parts of netfilter are there, found out without having the kernel load them."""

from __future__ import annotations

import platform
from pathlib import Path


def is_loaded() -> bool:
    """Whether the running kernel has nf_tables already; it is not loaded by asking this."""
    try:
        modules = Path("/proc/modules").read_text()
    except OSError:  # a kernel without modules: built in, or not there; asking can't load anything
        return True
    if any(line.startswith("nf_tables ") for line in modules.splitlines()) or Path("/sys/module/nf_tables").exists():
        return True
    try:
        built_in = Path(f"/lib/modules/{platform.release()}/modules.builtin").read_text()
    except OSError:  # not installed, or a container: the symbol table is slow to read, but always there
        with Path("/proc/kallsyms").open("rb") as symbols:
            return any(b" nft_register_expr" in line for line in symbols)
    return "/nf_tables.ko" in built_in


def has_legacy_chains() -> bool:
    """Whether iptables, ip6tables or arptables of before nf_tables have tables here, or ebtables is loaded at all."""
    for name in ("ip", "ip6", "arp"):
        try:
            if Path(f"/proc/thread-self/net/{name}_tables_names").read_text().strip():
                return True
        except OSError:
            continue
    try:
        return any(line.startswith("ebtable_") for line in Path("/proc/modules").read_text().splitlines())
    except OSError:
        return False
