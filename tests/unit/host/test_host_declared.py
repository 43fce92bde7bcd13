# SPDX-License-Identifier: Apache-2.0
"""Who declares a limit: libvirt, Nova's flavor, Proxmox; and what is said where one of them can't be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from test_host_libvirt import DOMAIN

from vifprobe.host.declared import Declared, declared_of
from vifprobe.host.net.links import Link
from vifprobe.host.procs.processes import Process
from vifprobe.host.proxmox import guest_limits
from vifprobe.model.layout import Direction
from vifprobe.model.limits import DeclaredLimit

OUT, IN = Direction.OUTBOUND, Direction.INBOUND
TAP, VM_TAP = "tap834d76e9-5f", "tap101i1"
CONF = """#notes
agent: 1
net0: virtio=BC:24:11:00:00:01,bridge=vmbr0,rate=99
net1: virtio=BC:24:11:00:00:02,bridge=vmbr0,firewall=1,rate=12.5
[snapshot]
net1: virtio=BC:24:11:00:00:02,bridge=vmbr0,rate=1
"""


def link(name: str) -> Link:
    return Link(name, 7, "tap", "fe:16:3e:00:00:01", 1500, True, 0, "", 1)


def declared(name: str, tmp_path: Path, holder: Process | None = None) -> Declared:
    for directory in ("libvirt", "proxmox"):
        (tmp_path / directory).mkdir(exist_ok=True)
    return declared_of(
        [link(name)],
        libvirt_directory=tmp_path / "libvirt",
        ovs_sockets=(tmp_path / "none",),
        proxmox_directory=tmp_path / "proxmox",
        holders={7: holder} if holder else {},
    )[7]


def test_proxmox_declares_both_directions(tmp_path: Path) -> None:
    (tmp_path / "101.conf").write_text(CONF)
    found = guest_limits([link(VM_TAP), link("tap101i2"), link("tap102i0"), link(TAP)], tmp_path)
    limits = tuple(
        DeclaredLimit(one, "proxmox", "rate", VM_TAP, 12 * 1024 * 1024 * 8 + 4 * 1024 * 1024, 1024 * 1024)
        for one in (OUT, IN)
    )
    assert found[VM_TAP].limits == limits
    assert (found["tap101i2"].limits, found["tap101i2"].problem) == ((), "")
    assert set(found) == {VM_TAP, "tap101i2"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: os.mkfifo(path), "is not a file"),
        (lambda path: path.write_bytes(b"#" * (1024 * 1024 + 1)), "longer than"),
        (lambda path: path.mkdir(), "directory"),
    ],
)
def test_what_proxmox_declares_is_unknown_where_it_can_not_be_read(make: object, words: str, tmp_path: Path) -> None:
    (tmp_path / "proxmox").mkdir()
    make(tmp_path / "proxmox" / "101.conf")  # type: ignore[operator]
    found = declared(VM_TAP, tmp_path)
    (problem,) = found.problems
    assert words in problem
    assert problem.startswith("Proxmox: ")


def test_proxmox_guest_without_a_rate_is_known(tmp_path: Path) -> None:
    (tmp_path / "proxmox").mkdir()
    (tmp_path / "proxmox" / "101.conf").write_text("net1: virtio=BC:24:11:00:00:02,bridge=vmbr0\n")
    found = declared(VM_TAP, tmp_path, Process(9, "kvm", "web", "9d1c7f0e-2222-3333-4444-555555555555"))
    assert (found.limits, found.problems, found.known_to) == ((), (), ("proxmox",))


def test_live_data_of_another_process_are_not_those_of_this_guest(tmp_path: Path) -> None:
    """A file that a guest left behind, whose tap has this name now for another one."""
    (tmp_path / "libvirt").mkdir()
    (tmp_path / "libvirt" / "instance-0000001a.xml").write_text(DOMAIN.format(pid=4242))
    own = declared(TAP, tmp_path, Process(4242, "qemu-system-x86", "instance-0000001a", "u"))
    assert (own.problems, own.known_to, own.domain) == ((), ("libvirt",), "instance-0000001a")
    assert {limit.direction for limit in own.limits} == {OUT, IN}
    other = declared(TAP, tmp_path, Process(4243, "qemu-system-x86", "instance-0000001b", "u"))
    assert (other.limits, other.known_to, other.domain) == ((), (), "")
    assert other.problems == (
        "libvirt: the live data of instance-0000001a are of process 4242, but process 4243 holds the tap",
    )
    unknown = declared(TAP, tmp_path)
    assert (unknown.problems, unknown.known_to) == ((), ("libvirt",))


def test_a_guest_of_libvirt_without_live_data_here(tmp_path: Path) -> None:
    """libvirt in a container, whose /run is not this host's."""
    found = declared(TAP, tmp_path, Process(4242, "qemu-system-x86", "instance-0000001a", "u"))
    whose = "libvirt: no live data of instance-0000001a, whose QEMU (process 4242) holds the tap"
    assert found.problems == (f"{whose}: is libvirt in a container?",)
    for by_hand in (Process(4242, "qemu-system-x86"), Process(4242, "python3", "a", "u")):
        assert declared(TAP, tmp_path, by_hand).problems == ()
