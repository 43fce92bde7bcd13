# SPDX-License-Identifier: Apache-2.0
"""Find out whether parts of netfilter are loaded, without causing the kernel to load them."""

from __future__ import annotations

import platform
from pathlib import Path


def is_loaded() -> bool:
    """Return True if the running kernel has nf_tables; the check does not load it."""
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
    """Return True if legacy iptables, ip6tables or arptables have tables here, or if ebtables is loaded."""
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
