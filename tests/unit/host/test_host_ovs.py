# SPDX-License-Identifier: Apache-2.0
"""The Open vSwitch database: what a good server says, and that no bad one holds up the audit."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vifprobe.host.declared import declared_of
from vifprobe.host.net.links import Link
from vifprobe.host.ovs import meters, ofctl, ovsdb
from vifprobe.host.ovs.meters import Meter, parse_meters
from vifprobe.host.ovs.ports import OvsInterface, Qos, Queue, read_ovs
from vifprobe.model.layout import Direction
from vifprobe.process import children
from vifprobe.testing.waiting import wait_until

Require = Callable[[str, object, str], None]
Server = Callable[[socket.socket], None]


@contextmanager
def served(path: Path, server: Server) -> Iterator[Path]:
    """A server that treats each connection as `server` does."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(path))
        listening.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    try:
                        server(connection)
                    except OSError:
                        continue

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield path
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(5)


def says(*parts: bytes, wait: bool = True) -> Server:
    def answer(connection: socket.socket) -> None:
        connection.recv(65536)
        for part in parts:
            connection.sendall(part)
            time.sleep(0.01)
        if wait:
            connection.recv(1)  # until the client has enough

    return answer


def answer(result: Any) -> bytes:
    return json.dumps({"id": "vifprobe", "result": result, "error": None}).encode()


EMPTY = answer([{"rows": []}] * 7)
ECHO = b'{"id":"echo","method":"echo","params":[]}'
BAD: dict[str, tuple[Server, str]] = {
    "garbage": (says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "not JSON"),
    "binary": (says(b'{"\xff\xfe"}'), "not UTF-8"),
    "list": (says(answer("x")), "not a list"),
    "error": (says(b'{"id":"vifprobe","result":null,"error":"unknown database"}'), "unknown database"),
    "no rows": (says(answer([{}] * 7)), "no rows"),
    "few": (says(answer([])), "no rows"),
    "odd rows": (says(answer([{"rows": [1]}] * 7)), "no rows"),
    "refused": (says(answer([{"error": "not allowed", "details": "no such table"}])), "no such table"),
    "closes": (says(wait=False), "closed"),
    "cut short": (says(EMPTY[:-9], wait=False), "closed"),
    "deep": (says(b'{"id":' + b"[" * 100_000 + b"}"), "no answer|nested"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_answer_is_told(tmp_path: Path, kind: str) -> None:
    server, words = BAD[kind]
    with served(tmp_path / "db.sock", server) as path:
        found = read_ovs((path,))
    assert found.present
    assert not found.interfaces
    assert any(word in found.problem for word in words.split("|")), found.problem


def test_a_server_that_hangs_costs_a_second(tmp_path: Path) -> None:
    begin = time.monotonic()
    with served(tmp_path / "db.sock", says()) as path:
        found = read_ovs((path,))
    assert "no answer within 1 s" in found.problem
    assert time.monotonic() - begin < 3


def test_one_that_drips_does_not_hold_on_longer(tmp_path: Path) -> None:
    def drip(connection: socket.socket) -> None:
        while True:
            connection.sendall(b'{"id"' if not drip.__dict__ else b" ")
            drip.__dict__["begun"] = True
            time.sleep(0.05)

    begin = time.monotonic()
    with served(tmp_path / "db.sock", drip) as path:
        found = read_ovs((path,))
    assert "no answer" in found.problem
    assert time.monotonic() - begin < 3


def test_an_answer_without_end_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ovsdb, "ANSWER_BYTES_MAX", 1_000_003)
    with served(tmp_path / "db.sock", says(b"{" + b'"a" ' * 10**6)) as path:
        assert "longer than 1000003 bytes" in read_ovs((path,)).problem


def test_what_the_server_asks_meanwhile_is_passed_over(tmp_path: Path) -> None:
    with served(tmp_path / "db.sock", says(ECHO, ECHO + EMPTY[:40], EMPTY[40:] + b"\n")) as path:
        found = read_ovs((path,))
    assert (found.problem, found.interfaces, found.present) == ("", {}, True)


def test_no_server_at_all(tmp_path: Path) -> None:
    found = read_ovs((tmp_path / "a", tmp_path / "b"))
    assert not found.present
    assert "No such file" in found.problem


def test_values_that_are_none_of_its_types(tmp_path: Path) -> None:
    row = {"_uuid": ["uuid", "x"], "name": 7, "ofport": ["set", []], "ingress_policing_rate": "fast",
           "ingress_policing_burst": -3, "external_ids": ["map", [["iface-id", 5], "odd", ["vm-id", "v"]]]}  # fmt: skip
    rows = [{"rows": [row]}, *[{"rows": [{"ports": "p", "queues": ["map", [["0", 1]]], "qos": 4}]}] * 6]
    with served(tmp_path / "db.sock", says(answer(rows))) as path:
        (found,) = read_ovs((path,)).interfaces.values()
    assert (found.name, found.rate_bps, found.burst_bytes, found.vm_id, found.iface_id) == ("", None, None, "v", None)


def test_an_older_schema_without_packet_policing(tmp_path: Path) -> None:
    row = {"_uuid": ["uuid", "x"], "name": "tap0", "ingress_policing_rate": 977}

    def old(connection: socket.socket) -> None:
        question = connection.recv(10**6)
        if b"kpkts" in question:
            connection.sendall(answer([{"error": "unknown column", "details": "No column ingress_policing_kpkts"}]))
        else:
            connection.sendall(answer([{"rows": [row]}, *[{"rows": []}] * 6]))
        connection.recv(1)

    with served(tmp_path / "db.sock", old) as path:
        assert read_ovs((path,)).interfaces["tap0"].rate_bps == 977_000


def tools() -> tuple[dict[str, str], Path] | None:
    """Environment and schema for a real ovsdb-server: installed, or as the lab has unpacked it."""
    unpacked = Path(__file__).parents[3] / ".cache/vm/ovs/root"
    for root in (Path("/"), unpacked):
        schema = root / "usr/share/openvswitch/vswitch.ovsschema"
        path = f"{root}/usr/bin:{root}/usr/sbin:{os.environ['PATH']}"
        if schema.exists() and shutil.which("ovsdb-server", path=path) and shutil.which("ovs-vsctl", path=path):
            libraries = [os.fspath(found) for found in root.glob("usr/lib/*-linux-gnu")] if root != Path("/") else []
            return {**os.environ, "PATH": path, "LD_LIBRARY_PATH": ":".join(libraries)}, schema
    return None


@pytest.fixture
def database(tmp_path: Path, require: Require) -> Iterator[tuple[Path, Callable[[str], None]]]:
    """A real server's socket, and ovs-vsctl for it."""
    found = tools()
    require("ovs", found, "ovsdb-server and ovs-vsctl (package openvswitch-switch)")
    assert found is not None
    environment, schema = found
    path = tmp_path / "db.sock"
    subprocess.run(["ovsdb-tool", "create", tmp_path / "db", schema], env=environment, check=True)
    server = subprocess.Popen(
        ["ovsdb-server", f"--remote=punix:{path}", f"--unixctl={tmp_path / 'ctl'}", "-vconsole:off", tmp_path / "db"],
        env=environment,
    )

    def vsctl(arguments: str) -> None:
        command = ["ovs-vsctl", f"--db=unix:{path}", "--no-wait", "--timeout=10", *arguments.split()]
        subprocess.run(command, env=environment, check=True, capture_output=True)

    try:
        wait_until(path.exists, 10)
        vsctl("init")
        yield path, vsctl
    finally:
        server.terminate()
        server.wait(10)


def test_a_port_with_everything_set(database: tuple[Path, Callable[[str], None]]) -> None:
    path, vsctl = database
    vsctl(
        "add-br br-int -- add-port br-int tap834d76e9-5f -- set interface tap834d76e9-5f ingress_policing_rate=100000 "
        "ingress_policing_burst=10007 ingress_policing_kpkts_rate=3 external_ids:iface-id=834d76e9-5f00-4000 "
        'external_ids:vm-id=vm external_ids:attached-mac="fa:16:3e:00:00:01" -- set port tap834d76e9-5f qos=@q -- '
        "--id=@q create qos type=linux-htb other-config:max-rate=50000000 queues:0=@a queues:7=@b -- "
        "--id=@a create queue other-config:max-rate=40000000 other-config:burst=800000 -- "
        "--id=@b create queue other-config:min-rate=977"
    )
    state = read_ovs((path,))
    found = state.interfaces["tap834d76e9-5f"]
    assert (state.problem, found.bridge, found.port, found.datapath) == ("", "br-int", "tap834d76e9-5f", "system")
    assert (found.iface_id, found.vm_id, found.attached_mac) == ("834d76e9-5f00-4000", "vm", "fa:16:3e:00:00:01")
    assert (found.rate_bps, found.burst_bytes) == (100_000_000, 10_007 * 128)
    assert (found.rate_pps, found.burst_packets) == (3_000, 16_000)
    assert found.qos == Qos("linux-htb", 50_000_000, (Queue(0, 40_000_000, None, 800_000), Queue(7, None, 977)))
    assert state.interfaces["br-int"].rate_bps is None


def test_meters_as_ovs_ofctl_prints_them() -> None:
    listed = (
        "OFPST_METER_CONFIG reply (OF1.3) (xid=0x2):\nmeter=1 kbps burst bands=\ntype=drop rate=100000 burst_size=10000"
        "\n\nmeter=7 pktps stats bands=\ntype=drop rate=977\n\n"
        "meter=9 kbps bands=\ntype=dscp_remark rate=5 prec_level=1\n"
    )
    counted = (
        "OFPST_METER reply (OF1.3) (xid=0x2):\nmeter:1 flow_count:1 packet_in_count:7919 byte_in_count:104729 "
        "duration:1.148s bands:\n0: packet_count:13 byte_count:0\n\n"
    )
    assert list(parse_meters("br-int", listed, counted)) == [
        Meter("br-int", 1, 100_000_000, 1_250_000, 1_250_000, None, 7919, 104_729, 13),
        Meter("br-int", 7, rate_pps=977),
    ]
    assert list(parse_meters("br-int", "ovs-ofctl: br-int is not a bridge or a socket")) == []


def link(name: str) -> Link:
    return Link(name, 7, "tap", "", 1500, True, 0, "", 1)


def test_what_is_declared_for_a_tap_and_its_qvo(database: tuple[Path, Callable[[str], None]], tmp_path: Path) -> None:
    path, vsctl = database
    vsctl(
        "add-br br-int -- add-port br-int qvo834d76e9-5f -- set interface qvo834d76e9-5f ingress_policing_rate=977 -- "
        "add-port br-int tap0 -- set interface tap0 ingress_policing_kpkts_rate=5 -- set port tap0 qos=@q -- "
        "--id=@q create qos type=linux-htb other-config:max-rate=30000000"
    )
    found = declared_of([link("tap834d76e9-5f")], libvirt_directory=tmp_path / "none", ovs_sockets=(path,))[7]
    (limit,) = found.limits
    assert (limit.device, limit.rate_bps, limit.burst_bytes) == ("qvo834d76e9-5f", 977_000, 1_024_000)
    found = declared_of([link("tap0")], libvirt_directory=tmp_path / "none", ovs_sockets=(path,))[7]
    assert [(one.direction, one.rate_bps, one.rate_pps) for one in found.limits] == [
        (Direction.OUTBOUND, None, 5_000),
        (Direction.INBOUND, 30_000_000, None),
    ]
    assert found.problems == ()


def test_libvirt_and_the_users_word_side_by_side(tmp_path: Path) -> None:
    status = tmp_path / "qemu"
    status.mkdir()
    (status / "vm.xml").write_text(
        "<domstatus pid='4711'><domain><name>vm</name><devices><interface type='bridge'><target dev='tap0'/>"
        "<bandwidth><inbound average='1250' burst='100'/><outbound average='12500' peak='99' burst='3125'/></bandwidth>"
        "</interface></devices></domain></domstatus>"
    )
    found = declared_of([link("tap0")], libvirt_directory=status, ovs_sockets=(tmp_path / "none",))[7]
    assert [(one.direction, one.source, one.rate_bps, one.burst_bytes) for one in found.limits] == [
        (Direction.OUTBOUND, "libvirt", 100_000_000, 3_200_000),
        (Direction.INBOUND, "libvirt", 10_000_000, 102_400),
    ]
    assert (found.domain, found.problems, found.sources) == ("vm", (), ("libvirt",))
    (status / "broken.xml").write_text("<domstatus><domain>")
    other = declared_of([link("tap1")], libvirt_directory=status, ovs_sockets=(tmp_path / "none",))[7]
    assert len(other.problems) == 1


def test_a_port_of_a_switch_whose_database_is_away_is_unknown(tmp_path: Path) -> None:
    port = Link("tap0", 7, "tap", "", 1500, True, 3, "ovs-system", 1)
    found = declared_of([port], libvirt_directory=tmp_path / "none", ovs_sockets=(tmp_path / "none",))[7]
    assert any("Open vSwitch" in problem for problem in found.problems)


TOOLS = {
    "hangs": ("exec sleep 60", "did not end within"),
    "writes without end": ("exec yes 'meter=1 kbps'", "wrote more than"),
    "is refused": ("echo 'ovs-ofctl: br-int is not a bridge or a socket' >&2; exit 1", "is not a bridge"),
    "dies": ("kill -ALRM $$", "ovs-ofctl dump-flows: "),
}


@pytest.mark.parametrize("kind", TOOLS)
def test_meters_that_can_not_be_read_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """An ovs-ofctl that behaves like that, where programs are looked for."""
    script, says = TOOLS[kind]
    tool = tmp_path / "ovs-ofctl"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setattr(children, "DIRECTORIES", (str(tmp_path),))
    monkeypatch.setattr(ofctl, "SECONDS", 0.2)
    began = time.monotonic()
    with pytest.raises(ofctl.MeterError, match=says):
        meters.meters_of(OvsInterface("tap0", bridge="br-int", ofport=7))
    assert time.monotonic() - began < 10


def test_a_bridge_without_openflow_1_3_has_no_meters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "ovs-ofctl"
    tool.write_text("#!/bin/sh\necho 'br0: version negotiation failed (we support 0x04, peer 0x01)' >&2\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setattr(children, "DIRECTORIES", (str(tmp_path),))
    assert meters.meters_of(OvsInterface("tap0", bridge="br-int", ofport=7)) == ()
