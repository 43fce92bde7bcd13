# SPDX-License-Identifier: Apache-2.0
"""Whose time a thread's time is."""

from __future__ import annotations

import pytest

from vifprobe.host.procs.threads import Threads, Who
from vifprobe.model.records import HostScope

PID = 4242


@pytest.mark.parametrize(
    ("comm", "scope"),
    [
        ("CPU 0/KVM", HostScope.QEMU_VCPU),
        ("CPU 13/TCG", HostScope.QEMU_VCPU),
        (f"vhost-{PID}", HostScope.QEMU_VHOST),
        ("IO iothread1", HostScope.QEMU_IOTHREAD),
        ("IO mon_iothread", HostScope.QEMU_IOTHREAD),
        ("qemu-system-x86", HostScope.QEMU_EMULATOR),
        ("worker", HostScope.QEMU_EMULATOR),
        ("CPU", HostScope.QEMU_EMULATOR),
    ],
)
def test_a_guests_threads_are_told_by_name(comm: str, scope: HostScope) -> None:
    threads = Threads([PID])
    assert threads.who(PID + 1, PID, False, comm, "qemu-system-x86") == Who(scope, comm, PID)


def test_the_same_names_elsewhere_are_not_the_guests() -> None:
    """A process may call its threads what it likes: only a kernel thread is a kernel thread."""
    threads = Threads([PID])
    for comm in ("CPU 0/KVM", f"vhost-{PID}", "ksoftirqd/0"):
        assert threads.who(7, 7, False, comm, "evil") == Who(HostScope.OTHER, "evil", None)


def test_kernel_threads() -> None:
    threads = Threads([PID])
    assert threads.who(22, 22, True, "ksoftirqd/1", "ksoftirqd/1") == Who(HostScope.KSOFTIRQD, "ksoftirqd/1", 22)
    assert threads.who(23, 23, True, f"vhost-{PID}", f"vhost-{PID}") == Who(HostScope.VHOST, f"vhost-{PID}", 23)
    names = {comm: threads.who(1, 1, True, comm, comm).name for comm in ("kworker/u8:1", "rcu_preempt", "migration/0")}
    assert names == {"kworker/u8:1": "[kworker]", "rcu_preempt": "[rcu_preempt]", "migration/0": "[migration]"}


def test_open_vswitch_by_kind_of_thread() -> None:
    threads = Threads()
    for comm, name in (("handler12", "handler"), ("revalidator7", "revalidator"), ("ovs-vswitchd", "ovs-vswitchd")):
        assert threads.who(9, 8, False, comm, "ovs-vswitchd") == Who(HostScope.OVS, name, 8)


def test_another_guest_has_a_row_of_its_own() -> None:
    threads = Threads([PID])
    assert threads.who(9, 8, False, "CPU 0/KVM", "qemu-system-x86") == Who(HostScope.OTHER, "qemu-system-x86", 8)
