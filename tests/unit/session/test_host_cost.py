# SPDX-License-Identifier: Apache-2.0
"""Host cost: sums, shares and rows; slices that an interval's end cuts in two."""

from __future__ import annotations

import pytest

from vifprobe.capture.tables import host_rows
from vifprobe.kernel.tables.slices import share
from vifprobe.model.host_cost import NAMES_MAX, REST, HostCost, HostCostSum, Load, ScopeCost, scaled_packets
from vifprobe.model.records import HostScope

PID = 4242


def cost(packets: int = 1009) -> HostCost:
    total = HostCostSum()
    total.add(HostScope.QEMU_VCPU, "CPU 0/KVM", PID, (3, 5, 700_001))
    total.add(HostScope.QEMU_VCPU, "CPU 0/KVM", PID, (4, 6, 10))
    total.add(HostScope.QEMU_VCPU, "CPU 0/KVM", 77, (1000, 1000, 1000))
    total.add(HostScope.QEMU_EMULATOR, "qemu-system-x86", PID, (1, 0, 13))
    total.add(HostScope.VHOST, f"vhost-{PID}", 5, (17, 19, 300_007))
    total.add(HostScope.VHOST, "vhost-77", 6, (9999, 9999, 9999))
    total.add(HostScope.SOFTIRQ_NET_RX, "cpu0", None, (0, 0, 101))
    total.add(HostScope.IDLE, "swapper", None, (0, 23, 0))
    return HostCost(11, 1_000_003, total.rows(), packets, PID)


def test_a_guest_is_its_process_and_the_vhost_threads_of_it() -> None:
    assert cost().guest(HostScope.QEMU_VCPU) == Load(7, 11, 700_011)
    assert cost().guest(HostScope.QEMU_VHOST) == Load(17, 19, 300_007)
    whole = cost().guest()
    assert whole == Load(7 + 1 + 17, 11 + 19, 700_011 + 13 + 300_007)
    assert cost().per_packet_ns(whole) == pytest.approx(1_000_031 / 1009)
    assert cost(0).per_packet_ns(whole) is None
    assert HostCost(0, 1, ()).guest() is None


def test_rows_of_the_table() -> None:
    rows = host_rows(cost())
    assert rows[0][:5] == (11, 1_000_003, "idle", "swapper", None)
    assert rows[0].cpu_ns is None
    assert rows[-1][2:] == ("softirq_net_rx", "cpu0", None, None, None, 101)
    assert [row.scope for row in rows] == sorted(
        (row.scope for row in rows), key=[scope.value for scope in HostScope].index
    )


def test_others_beyond_the_top_are_one_row_and_nothing_is_lost() -> None:
    total = HostCostSum()
    for number in range(1, 24):
        total.add(HostScope.OTHER, f"name{number}", None, (number, 2 * number, 1000 * number))
    rows = total.rows(top=5)
    assert [row.name for row in rows] == ["name23", "name22", "name21", "name20", "name19", REST]
    assert sum(row.cpu_ns or 0 for row in rows) == 1000 * 23 * 24 // 2
    assert rows[-1] == ScopeCost(HostScope.OTHER, REST, None, 171, 342, 171_000)


def test_names_without_end_take_no_memory_without_end() -> None:
    total = HostCostSum()
    for number in range(NAMES_MAX + 1009):
        total.add(HostScope.OTHER, f"name{number}", None, (1, 0, 0))
    assert len(total.sums) == NAMES_MAX + 1
    assert sum(row.voluntary or 0 for row in total.rows()) == NAMES_MAX + 1009


def test_packets_of_a_span_that_is_a_little_longer() -> None:
    assert scaled_packets(1009, 1_000_000, 1_000_000) == 1009
    assert scaled_packets(1009, 2_000_000, 1_000_000) == 504
    assert scaled_packets(1009, 0, 1_000_000) == 0


@pytest.mark.parametrize(
    ("start", "turned", "end", "cpu", "expected"),
    [
        (100, 140, 200, 100, (40, 0)),  # nothing was taken from it: to the nanosecond
        (100, 100, 200, 100, (0, 0)),
        (100, 90, 200, 100, (0, 0)),  # came just after the turn
        (100, 200, 200, 100, (100, 0)),
        (100, 150, 200, 80, (40, 20)),  # interrupts took 20, before or after the turn
        (100, 199, 200, 50, (49, 1)),
        (100, 101, 200, 3, (0, 1)),
        (0, 5, 0, 0, (0, 0)),
    ],
)
def test_a_slice_is_cut_at_the_turn(start: int, turned: int, end: int, cpu: int, expected: tuple[int, int]) -> None:
    ran, bound = share(start, turned, end, cpu)
    assert (ran, bound) == expected
    assert 0 <= ran <= max(0, turned - start)
