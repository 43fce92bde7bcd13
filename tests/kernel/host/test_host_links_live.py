# SPDX-License-Identifier: Apache-2.0
"""Interfaces and namespaces of a real kernel: found, counted, refused with the reason."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from host_fixtures import FRAME, run, send
from host_reading import link_counters

from vifprobe.errors import HostError, TapError
from vifprobe.host.net import links
from vifprobe.host.net import netns as host_netns
from vifprobe.host.procs.processes import holders
from vifprobe.host.taps import describe, list_taps
from vifprobe.testing.net.links import bridge_with, veth_pair
from vifprobe.testing.net.netns import Netns, private_netns
from vifprobe.testing.net.taps import Tap, create_tap
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.traffic.flood import writer


def test_a_tap_is_found_with_what_ip_link_says_of_it(tap: Tap) -> None:
    run("ip link set tap0 address 02:00:00:00:00:11 txqueuelen 977")
    with bridge_with(tap, name="br7"):
        found = links.find_link("tap0")
        assert (found.name, found.ifindex, found.kind, found.arp_type) == ("tap0", tap.ifindex, "tap", 1)
        assert (found.mac, found.mtu, found.up, found.carrier) == ("02:00:00:00:00:11", 65521, True, True)
        assert (found.master_name, found.tx_queue_length, found.promiscuity) == ("br7", 977, 1)
        assert found in links.list_links()


def test_other_ethernet_devices_are_allowed_and_their_kind_told(netns: Netns) -> None:
    with veth_pair("veth0", "veth1"):
        run("ip link add br0 type bridge")
        assert [links.find_link(name).kind for name in ("veth0", "veth1", "br0")] == ["veth", "veth", "bridge"]


def test_counters_are_those_of_the_kernel(tap: Tap) -> None:
    before = link_counters(tap.ifindex)
    send(tap, 1009)
    after = link_counters(tap.ifindex)
    assert after.rx_packets - before.rx_packets == 1009
    assert after.rx_bytes - before.rx_bytes == 1009 * len(FRAME)
    shown = tap.counters()
    assert [shown[name] for name in ("rx_packets", "rx_dropped", "tx_packets", "tx_dropped", "rx_errors")] == [
        after.rx_packets, after.rx_dropped, after.tx_packets, after.tx_dropped, after.rx_errors,
    ]  # fmt: skip


def test_a_missing_tap_is_told_with_the_nearest_name_and_how_many_were_looked_at(netns: Netns) -> None:
    with make_tap("tap5eedf00d-5e"), make_tap("tap11111111-11"):
        with pytest.raises(TapError) as caught:
            links.find_link("tap5eedf00d-5f")
        assert str(caught.value).splitlines() == [
            "tap5eedf00d-5f: no such interface in this network namespace.",
            f"  Looked at {len(links.list_links())} interfaces; the closest name is tap5eedf00d-5e.",
            "  List the taps with `vifprobe taps`, or name a namespace with --netns.",
        ]


def test_what_has_another_header_than_ethernet_is_refused(netns: Netns) -> None:
    with pytest.raises(TapError, match=r"lo: a loopback device: .*hardware type 772"):
        links.find_link("lo")


def test_a_tap_in_another_namespace_is_told_with_what_to_add(netns: Netns, named_namespace: str) -> None:
    run(f"ip -n {named_namespace} tuntap add tapelse0 mode tap")
    own = host_netns.inode()
    with pytest.raises(TapError) as caught:
        links.find_link("tapelse0")
    assert f"It is in another one ({named_namespace}): add `--netns {named_namespace}`." in str(caught.value)
    assert host_netns.find_elsewhere("tapelse0") == [named_namespace]
    assert host_netns.find_elsewhere("tapelse1") == []
    assert host_netns.inode() == own


def test_a_tap_in_the_namespace_of_a_process_is_told_by_the_process(netns: Netns) -> None:
    """No name in /run/netns, as in a container; this process itself holds the other namespace with a thread."""
    ready, done = threading.Event(), threading.Event()

    def hold() -> None:
        with private_netns(), create_tap("taphidden0"):
            ready.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert ready.wait(10)
        # A thread's namespace is not that of its process: what is found is found through another process alone.
        assert host_netns.find_elsewhere("taphidden0") == []
        with private_netns(enter=False) as other:
            with other.entered():
                child = subprocess.Popen(["sleep", "60"])
                run("ip tuntap add taphidden1 mode tap")
            try:
                assert host_netns.find_elsewhere("taphidden1") == [str(child.pid)]
                assert host_netns.holds(child.pid, "taphidden1")
                assert not host_netns.holds(child.pid, "taphidden0")
            finally:
                child.kill()
                child.wait()
    finally:
        done.set()
        thread.join()


@pytest.fixture
def named_namespace(netns: Netns) -> Iterator[str]:
    """A namespace with a name in /run/netns, as `ip netns add` and Neutron make them."""
    name = f"vifprobe-test-{os.getpid()}"
    run(f"ip netns add {name}")
    try:
        yield name
    finally:
        run(f"ip netns delete {name}")


def in_a_thread(work: Callable[[], None]) -> BaseException | None:
    """What `work` raised, called in a thread that may change its namespace for good."""
    raised: list[BaseException | None] = [None]

    def call() -> None:
        try:
            work()
        except HostError as error:
            raised[0] = error

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return raised[0]


def test_a_namespace_is_entered_by_name_by_path_and_by_pid(netns: Netns, named_namespace: str) -> None:
    wanted = Path(f"/run/netns/{named_namespace}").stat().st_ino
    inodes: list[int] = []

    def enter(value: str) -> None:
        host_netns.enter(value)
        inodes.append(host_netns.inode())

    for value in (named_namespace, f"/run/netns/{named_namespace}"):
        assert in_a_thread(partial(enter, value)) is None
    assert inodes == [wanted, wanted]
    assert in_a_thread(lambda: enter(str(os.getpid()))) is None
    assert inodes[2] == Path(f"/proc/{os.getpid()}/ns/net").stat().st_ino


def test_what_is_no_namespace_is_told_with_the_nearest_name(netns: Netns, named_namespace: str) -> None:
    error = in_a_thread(lambda: host_netns.enter(named_namespace[:-1] + "x"))
    assert f"the closest name is {named_namespace}" in str(error)
    for value, says in (
        ("/etc/hostname", "is not a network namespace"),
        ("/nowhere/at/all", "No such file or directory"),
        ("4194305", "no such process"),
        ("", "not a network namespace"),
        ("a\x1b[0m", r"'a\x1b[0m'"),
    ):
        assert says in str(in_a_thread(partial(host_netns.enter, value)))


def test_taps_with_their_process_bridge_and_counters(netns: Netns) -> None:
    with ExitStack() as stack:
        made = [stack.enter_context(create_tap(f"tap{number:08x}-{number % 97:02x}")) for number in range(7)]
        stack.enter_context(bridge_with(made[3]))
        run("ip tuntap add tapnobody mode tap")
        run("ip tuntap add tun0 mode tun")
        run("ip link set tap00000002-02 up")
        send(made[2], 11)
        taps = {tap.name: tap for tap in list_taps()}
        assert sorted(taps) == sorted([*(tap.name for tap in made), "tapnobody"])
        held = taps["tap00000002-02"]
        assert (held.pid, held.is_qemu, held.domain, held.bridge) == (os.getpid(), False, None, None)
        assert (held.port_prefix, held.port_id, held.ifindex) == ("00000002-02", None, made[2].ifindex)
        assert held.counters is not None
        assert held.counters.rx_packets == 11
        assert taps["tap00000003-03"].bridge == "br0"
        assert (taps["tapnobody"].pid, taps["tapnobody"].port_prefix) == (None, None)
        assert describe([links.find_link("tap00000003-03")])[0].pid == os.getpid()


def test_a_tap_of_the_same_name_elsewhere_is_not_taken_for_this_one(netns: Netns) -> None:
    """Fdinfo tells a name and no namespace: the holder of another namespace's tap0 is not this tap0's."""
    run("ip tuntap add tap0 mode tap")
    script = (
        "import sys; from vifprobe.testing.net.taps import create_tap\n"
        "with create_tap('tap0'): print(flush=True); sys.stdin.read()"
    )
    with private_netns(enter=False) as other:
        with other.entered():
            child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        with child:
            assert child.stdout is not None
            child.stdout.readline()
            here = other.run(lambda: list_taps()[0].pid)
            assert here == child.pid
            run("ip link set tap0 up")
            assert [tap.pid for tap in list_taps()] == [None]
            child.communicate()


def test_who_runs_a_guest_is_told_from_its_command_line_and_libvirts_file(netns: Netns, tmp_path: Path) -> None:
    """A process that calls itself qemu, holds the tap, and was started with QEMU's arguments."""
    script = (
        "import sys; from vifprobe.testing.net.taps import create_tap\n"
        "open('/proc/self/comm', 'w').write('qemu-system-x86')\n"
        "with create_tap('tap5eedf00d-5f'): print(flush=True); sys.stdin.read()"
    )
    arguments = ["-name", "guest=instance-0000001a,debug-threads=on", "-uuid", "9d1c7f0e-2222-3333-4444-555555555555"]
    command = [sys.executable, "-c", script, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        (tap,) = list_taps(tmp_path / "none")
        assert (tap.pid, tap.comm, tap.is_qemu) == (child.pid, "qemu-system-x86", True)
        assert (tap.domain, tap.domain_uuid) == ("instance-0000001a", "9d1c7f0e-2222-3333-4444-555555555555")
        assert tap.instance_name is None
        for pid, port in ((child.pid, "5eedf00d-5f00-4000-8000-000000000001"), (1, None)):
            (tmp_path / "a.xml").write_text(
                f"<domstatus pid='{pid}'><domain><name>instance-0000001a</name><devices><interface>"
                "<virtualport><parameters interfaceid='5eedf00d-5f00-4000-8000-000000000001'/></virtualport>"
                "<target dev='tap5eedf00d-5f'/></interface></devices></domain></domstatus>"
            )
            (tap,) = list_taps(tmp_path)
            assert tap.port_id == port  # a file of another process is one that a guest before it left behind
        child.communicate()


def test_a_tap_that_a_process_and_its_child_hold_has_no_one_sender(tap: Tap) -> None:
    """A guest's QEMU holds its tap alone; what a shared one costs can't be laid at one process's door."""
    link = links.find_link(tap.name)
    alone = holders([link])[link.ifindex]
    assert (alone.pid, alone.is_shared) == (os.getpid(), False)
    with writer([tap.fd], [bytes(60)], count=7, seconds=5) as started:
        shared = holders([link])[link.ifindex]
        started.start()
        assert started.wait().frames == 7
    assert (shared.pid, shared.is_shared) == (os.getpid(), True)
