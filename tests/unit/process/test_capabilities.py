# SPDX-License-Identifier: Apache-2.0
"""Which capabilities a run keeps of those that it has."""

from __future__ import annotations

from vifprobe.process.capabilities import ALWAYS, WHY, Capability, follow_plan, inherited, is_planned, kept, own, raised

ALL = (1 << 41) - 1


def mask(*capabilities: Capability) -> int:
    return sum(1 << one for one in capabilities)


def test_root_keeps_five_of_all() -> None:
    assert kept(ALL, overrides=False) == ALWAYS


def test_another_users_socket_takes_one_more() -> None:
    assert set(kept(ALL, overrides=True)) - set(ALWAYS) == {Capability.DAC_OVERRIDE}


def test_nothing_is_kept_that_is_not_there() -> None:
    few = (Capability.BPF, Capability.PERFMON, Capability.NET_ADMIN)
    assert kept(mask(*few), overrides=True) == few


def test_what_stands_for_bpf_stays_only_where_it_does() -> None:
    old = mask(Capability.SYS_ADMIN, Capability.NET_ADMIN)
    assert set(kept(old, overrides=False)) == {Capability.SYS_ADMIN, Capability.NET_ADMIN}
    assert Capability.SYS_ADMIN in kept(old | mask(Capability.BPF), overrides=False)
    assert Capability.SYS_ADMIN not in kept(ALL, overrides=False)


def test_each_has_its_reason() -> None:
    assert set(WHY) == set(Capability)


def test_without_a_plan_nothing_happens() -> None:
    """As for a program that uses the Python API."""
    before = own()
    assert not is_planned()
    follow_plan()
    with raised(Capability.SYS_PTRACE), inherited(Capability.DAC_OVERRIDE):
        assert own() == before
    assert own() == before
