# SPDX-License-Identifier: Apache-2.0
"""Test each kernel and host feature that vifprobe needs. Only the loopback device gets a program attached."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vifprobe.errors import VifprobeError
from vifprobe.kernel.attach import has_tcx
from vifprobe.kernel.features import (
    Features,
    kernel_version,
    missing_capabilities,
    read_features,
    read_trace_fields,
    require_bpf,
)
from vifprobe.kernel.libbpf import library
from vifprobe.kernel.load import Programs, make_programs
from vifprobe.kernel.settings import Settings, possible_cpus
from vifprobe.kernel.tables.sched import HostCounters
from vifprobe.kernel.toolchain.compile import import_bcc
from vifprobe.model.layout import Direction

_JIT = Path("/proc/sys/net/core/bpf_jit_enable")


@dataclass(frozen=True)
class Found:
    """Result of one check.

    - name: of the check.
    - state: ok, degraded or missing.
    - detail: what was found.
    - cost: effect of a degraded or missing feature.
    - remedy: how to get the feature.
    """

    name: str
    state: str
    detail: str = ""
    cost: str = ""
    remedy: str = ""


def checkup() -> Iterator[Found]:
    """Run all checks, in the order in which a run needs them. Checks that depend on a missing feature are left out."""
    yield Found("kernel", "ok", kernel_version())
    permitted = _permitted()
    yield permitted
    missing = permitted.state != "ok"
    yield _tried("libbpf", lambda: str(library() and "libbpf.so.1"))
    yield _tried("bcc", lambda: f"version {import_bcc().__version__}")
    features: list[Features] = []

    def look() -> str:
        features.append(read_features())
        return "struct offsets can be read"

    yield _tried("BTF", look)
    yield _jit()
    if features and not missing:
        yield _reasons(features[0])
        yield from _programs(features[0])
        yield _host_counters()


def _permitted() -> Found:
    """Check by loading a program that BPF is permitted: capabilities alone do not prove it."""
    try:
        if missing := missing_capabilities():
            lacking = f"lacks {', '.join(missing)}"
            return Found("permission", "missing", lacking, "nothing can be watched", "run it with sudo")
        require_bpf()
    except VifprobeError as error:
        return Found("permission", "missing", error.message, "nothing can be watched", " ".join(error.hints))
    return Found("permission", "ok", "may load and attach BPF programs")


def _tried(name: str, look: Callable[[], str]) -> Found:
    try:
        return Found(name, "ok", look())
    except VifprobeError as error:
        return Found(name, "missing", error.message, "nothing can be watched", " ".join(error.hints))


def _jit() -> Found:
    try:
        enabled = _JIT.read_text().strip() != "0"
    except OSError:
        enabled = True  # with CONFIG_BPF_JIT_ALWAYS_ON the file can be missing
    if enabled:
        return Found("BPF JIT", "ok", "programs run as machine code")
    return Found("BPF JIT", "degraded", "off", "each packet costs several times more", f"echo 1 > {_JIT}")


def _reasons(features: Features) -> Found:
    if features.has_drop_reason:
        return Found("drop reasons", "ok", f"the kernel names {len(features.reasons)} of them")
    return Found(
        "drop reasons",
        "degraded",
        "skb:kfree_skb has no reason",
        "who dropped a packet is inferred from the place in the kernel that freed it",
        "kernel 5.17 or later",
    )


def _programs(features: Features) -> Iterator[Found]:
    programs = None
    try:
        programs = Programs(Settings(cpus=possible_cpus()), features)
        programs.tc_program_fd(Direction.OUTBOUND)
        programs.attach_verdicts()
        yield Found("programs", "ok", "compiled without kernel headers, taken by the verifier")
        yield _tcx()
        yield _inbound(features)
    except VifprobeError as error:
        yield Found("programs", "missing", error.message, "nothing can be watched", " ".join(error.hints))
    finally:
        if programs is not None:
            programs.close()


def _inbound(features: Features) -> Found:
    """Load the programs without attaching them: attached programs slow every packet of the host."""
    lacking = "what becomes of packets to the guest is unknown (offered only), and with it P14, bypass and overpoliced"
    try:
        fields = read_trace_fields()
    except VifprobeError as error:
        return Found("inbound", "degraded", error.message, lacking)
    programs = make_programs(Settings(cpus=possible_cpus(), follow=fields), features)
    try:
        if programs.unfollowed:
            return Found("inbound", "degraded", programs.unfollowed, lacking)
    finally:
        programs.close()
    hook = "tc egress hook" if has_tcx(socket.if_nametoindex("lo")) else "clsact qdisc, else net_dev_queue"
    found = f"followed: {hook}, the tap's queue, net_dev_start_xmit, net_dev_xmit"
    if features.has_drop_reason and features.qdisc_reasons:
        return Found("inbound", "ok", found)
    cost = "whether the tap's queue dropped a packet is inferred from the place in the kernel that freed it"
    return Found("inbound", "degraded", found, cost, "kernel 5.18 or later")


def _host_counters() -> Found:
    cost = "no CPU time and context switches by thread: no host line in watch, no host.csv"
    try:
        counters = HostCounters()
    except VifprobeError as error:
        return Found("host cost", "degraded", error.message, cost, " ".join(error.hints))
    try:
        misses = counters.recursion_misses
    finally:
        counters.close()
    if misses:
        return Found("host cost", "degraded", f"the kernel kept {misses} events from the programs", "they are missed")
    return Found("host cost", "ok", "context switches, CPU time and softirqs can be counted")


def _tcx() -> Found:
    if has_tcx(socket.if_nametoindex("lo")):
        return Found("tcx", "ok", "attached without touching qdiscs, gone with the process")
    return Found(
        "tcx",
        "degraded",
        "this kernel has none",
        "a filter goes into the tap's ingress or clsact qdisc (a killed run leaves it until `vifprobe cleanup`); taps "
        "without one are counted by tracepoints, which every packet of the host passes",
        "kernel 6.6 or later",
    )
