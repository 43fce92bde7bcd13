# SPDX-License-Identifier: Apache-2.0
"""Sources that are absent, hang, lie or drown the reader: the audit goes on, and says what it could not read.

Real sockets, files and netlink. What each source alone makes of bad input is in tests/unit/test_host_*.py.
"""

from __future__ import annotations

import functools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from host_fixtures import can, run

from vifprobe.host.declared import declared_of
from vifprobe.host.net.events import Event
from vifprobe.model.layout import Direction
from vifprobe.model.limits import LimitState
from vifprobe.model.reading import Limit
from vifprobe.session.audit import auditor
from vifprobe.session.audit.snapshot import PolicerReport, audit_tap
from vifprobe.session.probe import Probe
from vifprobe.testing.net.taps import Tap

IN = Direction.INBOUND
TBF = "tc qdisc add dev tap0 root tbf rate 100mbit burst 3125kb latency 50ms"
LIMITS = {IN: Limit(declared_bps=100_000_000, burst_bytes=3_200_000)}
Require = Callable[[str, object, str], None]


@contextmanager
def sources(libvirt: Path, ovs: Path) -> Iterator[None]:
    """Where libvirt and Open vSwitch are, for everybody who asks."""
    with pytest.MonkeyPatch.context() as patch:
        told = functools.partial(declared_of, libvirt_directory=libvirt, ovs_sockets=(ovs,))
        patch.setattr(auditor, "declared_of", told)
        yield


def audit(seconds: float = 0.3) -> PolicerReport:
    return audit_tap("tap0", LIMITS, (IN,), seconds, packets=False)


def check_the_rest(found: PolicerReport) -> None:
    """What can be read is: the kernel's own limit, and the user's word."""
    assert [row.matches_declared for row in found.rows] == [True, True]
    assert found.limit_states[IN].state is LimitState.THERE
    assert found.findings == ()


def silent(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    connection.settimeout(30)
    connection.recv(1)


def garbage(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    connection.sendall(os.urandom(4096))


def endless(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    while True:
        connection.sendall(b'{"id": "vifprobe", "result": [' + b"[]," * 100_000)


@contextmanager
def server(path: Path, treat: Callable[[socket.socket], None]) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(path))
        listening.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                    with connection:
                        treat(connection)
                except OSError:
                    if listening.fileno() < 0:
                        return

        threading.Thread(target=serve, daemon=True).start()
        yield
        listening.shutdown(socket.SHUT_RDWR)


SERVERS = {
    "silent": (silent, "no answer within"),
    "garbage": (garbage, "not JSON"),
    "endless": (endless, "an answer longer than"),
}


@pytest.mark.parametrize("kind", SERVERS)
def test_a_database_that_is_no_good(tap: Tap, tmp_path: Path, kind: str) -> None:
    treat, says = SERVERS[kind]
    run(TBF)
    with sources(tmp_path / "no", tmp_path / "db.sock"), server(tmp_path / "db.sock", treat):
        found = audit()
    (problem,) = found.set_up.declared_unknown
    assert problem.startswith("Open vSwitch: ")
    assert says in problem or "no answer within" in problem  # on a busy machine, time is up before the length is
    check_the_rest(found)


def test_a_database_that_does_not_even_accept(tap: Tap, tmp_path: Path) -> None:
    """Its backlog is full: connect() waits."""
    run(TBF)
    path = tmp_path / "db.sock"
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as first:
        listening.bind(os.fspath(path))
        listening.listen(0)
        first.connect(os.fspath(path))
        with sources(tmp_path / "no", path):
            began = time.monotonic()
            found = audit()
    assert time.monotonic() - began < 20
    assert found.set_up.declared_unknown == (f"Open vSwitch: {path}: no answer within 1 s.",) or any(
        "temporarily unavailable" in problem for problem in found.set_up.declared_unknown
    )
    check_the_rest(found)


@pytest.mark.parametrize("make", [lambda path: path.write_text("x"), Path.mkdir, os.mkfifo, lambda path: None])
def test_a_database_that_is_no_socket_is_none(tap: Tap, tmp_path: Path, make: Callable[[Path], object]) -> None:
    run(TBF)
    make(tmp_path / "db.sock")
    with sources(tmp_path / "no", tmp_path / "db.sock"):
        found = audit()
    assert found.set_up.declared_unknown == ()
    check_the_rest(found)


def test_libvirts_files_that_are_no_good(tap: Tap, tmp_path: Path) -> None:
    run(TBF)
    bomb = "".join(f"<!ENTITY a{n} '{f'&a{n - 1};' * 10 if n else 'ha'}'>" for n in range(20))
    (tmp_path / "bomb.xml").write_text(f"<!DOCTYPE x [{bomb}]><domain>&a19;</domain>")
    (tmp_path / "bomb16.xml").write_text(f"<!DOCTYPE x [{bomb}]><domain>&a19;</domain>", encoding="utf-16")
    (tmp_path / "broken.xml").write_text("<domstatus><domain>")
    with (tmp_path / "huge.xml").open("wb") as file:
        file.truncate(100 * 1024 * 1024)
    os.mkfifo(tmp_path / "pipe.xml")
    began = time.monotonic()
    with sources(tmp_path, tmp_path / "no"):
        found = audit()
    assert time.monotonic() - began < 20
    told = {problem.split(": ")[1].rpartition("/")[2]: problem for problem in found.set_up.declared_unknown}
    assert told.keys() == {"bomb.xml", "bomb16.xml", "broken.xml", "huge.xml", "pipe.xml"}
    for name, says in (("bomb", "DOCTYPE"), ("bomb16", "not UTF-8"), ("huge", "longer than"), ("pipe", "not a file")):
        assert says in told[f"{name}.xml"]
    check_the_rest(found)


def test_a_hanging_database_delays_no_reading_and_no_end(tap: Tap, tmp_path: Path) -> None:
    with sources(tmp_path / "no", tmp_path / "db.sock"), server(tmp_path / "db.sock", silent):
        with Probe("tap0", limits=LIMITS) as probe:
            began = time.monotonic()
            readings = list(probe.readings(0.1, 1.0))
            (problem,) = probe.audit("tap0").set_up().declared_unknown
            ended = time.monotonic()
        assert len(readings) >= 3
        assert "no answer within" in problem
        assert ended - began < 10


#: Classful or rate-limiting qdiscs whose settings are not decoded here; which of them are there is the kernel's to say.
UNKNOWN = {
    "hfsc": ("tc qdisc add dev tap0 root handle 9: hfsc default 1", True),
    "netem": ("tc qdisc add dev tap0 root handle 9: netem rate 1mbit", True),
    "cake": ("tc qdisc add dev tap0 root handle 9: cake bandwidth 1mbit", True),
    "prio": ("tc qdisc add dev tap0 root handle 9: prio", False),
    "pfifo": ("tc qdisc add dev tap0 root handle 9: pfifo limit 7", False),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_a_qdisc_of_unknown_kind_is_no_proof_that_there_is_no_limit(
    tap: Tap, tmp_path: Path, kind: str, require: Require
) -> None:
    command, can_limit = UNKNOWN[kind]
    require("qdiscs", can(command), f"sch_{kind}")
    with sources(tmp_path / "no", tmp_path / "no"):
        found = audit()
        outbound = audit_tap("tap0", {Direction.OUTBOUND: LIMITS[IN]}, (Direction.OUTBOUND,), 0.1, packets=False)
    assert {one.pattern for one in found.findings} == (set() if can_limit else {"P1"})
    assert found.limit_states[IN].state is (LimitState.UNKNOWN if can_limit else LimitState.ABSENT)
    assert any(f"root {kind} 9:" in words for words in found.set_up.unknown_in(IN)) is can_limit
    # It shapes what goes to the guest, and has no say in the other direction.
    assert {one.pattern for one in outbound.findings} == {"P1"}


def test_filters_and_actions_of_unknown_kind_are_passed_over(tap: Tap, tmp_path: Path, require: Require) -> None:
    """What can drop beside the policer is named by its kind."""
    run("tc qdisc add dev tap0 clsact")
    mirror = "protocol all u32 match u32 0 0 action mirred egress mirror dev lo"
    added = can(f"tc filter add dev tap0 ingress pref 5 {mirror}")
    require("kernel", added, "act_mirred (CONFIG_NET_ACT_MIRRED)")
    run(TBF)
    with sources(tmp_path / "no", tmp_path / "no"):
        check_the_rest(audit())


def test_an_overflow_of_notifications_is_told_and_made_good(tap: Tap, tmp_path: Path) -> None:
    """ENOBUFS: the limit that was taken away unheard is found by a fresh look, and the events say why."""
    run(TBF)
    with sources(tmp_path / "no", tmp_path / "no"), Probe("tap0", limits=LIMITS) as probe:
        subscribed, go_on = probe._parts.events._receiver._socket, threading.Event()
        subscribed.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)

        class Slow:
            def recvfrom(self, size: int) -> object:
                go_on.wait(30)
                return subscribed.recvfrom(size)

            def __getattr__(self, name: str) -> object:
                return getattr(subscribed, name)

        probe._parts.events._receiver._socket = Slow()  # type: ignore[assignment]
        for number in range(40):
            run(f"ip link set tap0 mtu {1300 + number}")
        run("tc qdisc del dev tap0 root")
        go_on.set()
        readings = probe.readings(0.05, 30.0)
        gone = next(reading for reading in readings if reading.limits[IN].installed_bps is None)
        assert "P1" in {one.pattern for one in gone.findings}
        events: list[Event] = []
        for _ in readings:
            events += [event for name, event in probe.take_events() if name == "tap0"]
            if "overflow" in {event.kind for event in events}:
                break
        probe._parts.events._receiver._socket = subscribed
    assert "overflow" in {event.kind for event in events}
    # Whether the last changes were heard of or found by comparing, the tap is known as it is now.
    assert any("1339" in event.detail for event in events)
