# SPDX-License-Identifier: Apache-2.0
"""Answers of OVSDB, ovs-ofctl, libvirt and netlink with something wrong in them, by the hundred: read, or told."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from mutate_kit import VALUES, damage_bytes

from vifprobe.host.declared import Declared, declared_of
from vifprobe.host.libvirt.domains import live_domains
from vifprobe.host.net import links, neighbours
from vifprobe.host.net.netlink import Message, NetlinkError, messages
from vifprobe.host.ovs import ports
from vifprobe.host.ovs.meters import parse_meters
from vifprobe.host.ovs.ports import OvsState, read_ovs
from vifprobe.testing.net.netlink_bytes import attribute

SEED = 7
TAP = links.Link("tap0", 7, "tap", "", 1500, True, 0, "", 1)
UUIDS = [["uuid", f"{number:08x}-0000-4000-8000-000000000000"] for number in range(6)]
#: A port with all that is read, as select() gives it.
TABLES: dict[str, list[dict[str, Any]]] = {
    "Interface": [
        {
            "_uuid": UUIDS[0],
            "name": "tap0",
            "type": "",
            "ofport": 5,
            "ingress_policing_rate": 977,
            "ingress_policing_burst": 97,
            "ingress_policing_kpkts_rate": 5,
            "ingress_policing_kpkts_burst": 7,
            "external_ids": ["map", [["iface-id", "834d76e9-5f"], ["vm-id", "x"], ["attached-mac", "fa:16:3e:0:0:1"]]],
        }
    ],
    "Port": [{"_uuid": UUIDS[1], "name": "tap0", "interfaces": ["set", [UUIDS[0]]], "qos": UUIDS[2]}],
    "Bridge": [{"name": "br-int", "ports": ["set", [UUIDS[1]]], "datapath_type": "system"}],
    "QoS": [
        {
            "_uuid": UUIDS[2],
            "type": "linux-htb",
            "queues": ["map", [[0, UUIDS[3]]]],
            "other_config": ["map", [["max-rate", "50000000"]]],
        }
    ],
    "Queue": [{"_uuid": UUIDS[3], "other_config": ["map", [["max-rate", "40000000"], ["burst", "7"]]]}],
    "Open_vSwitch": [{"external_ids": ["map", [["system-id", "x"], ["ovn-remote", "unix:/nowhere/ovnsb_db.sock"]]]}],
    "SSL": [{"private_key": "/k", "certificate": "/c", "ca_cert": "/a"}],
}
#: Of OVSDB's own forms.
ODD: tuple[Any, ...] = (
    *VALUES,
    *(
        ["uuid"],
        ["uuid", None],
        ["uuid", ["uuid", "x"]],
        ["named-uuid", 7],
        ["set"],
        ["set", None],
        ["set", [None, {}]],
    ),
    *(["map"], ["map", None], ["map", [[[], {}]]], ["map", [[None, None], [True, ["set", []]]]], ["map", [["a"]]]),
    *(["set", UUIDS], ["map", [["max-rate", 5], ["iface-id", "\x1b[2J"], ["burst", "-1"]]], ["uuid", "\ud800"]),
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each (container, key) in it."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield value, key
        yield from places(inner)


def damaged_tables(rng: random.Random) -> Iterator[dict[str, list[dict[str, Any]]]]:
    """Each cell with each odd value; then several places at once, within cells, too."""
    for table, (row,) in TABLES.items():
        for column in row:
            for value in ODD:
                yield {**TABLES, table: [{**row, column: value}]}
            yield {**TABLES, table: [{name: cell for name, cell in row.items() if name != column}]}
    for _ in range(1000):
        made = json.loads(json.dumps(TABLES))
        for _ in range(rng.choice((1, 2, 5))):
            inside, key = rng.choice([place for place in places(made) if place[0] is not made])
            if isinstance(inside, list) and inside and isinstance(inside[key], dict):
                continue  # rows are objects: that is checked before
            inside[key] = copy.deepcopy(rng.choice(ODD))
        yield made


def check_state(state: OvsState) -> None:
    """All that is asked of it."""
    state.with_iface_id("834d76e9-5f")
    for name, one in state.interfaces.items():
        assert isinstance(name, str)
        for number in (one.rate_bps, one.burst_bytes, one.rate_pps, one.burst_packets, one.ofport):
            assert number is None or (isinstance(number, int) and 0 < number < 2**80), one
        for text in (one.name, one.port, one.bridge, one.type, one.datapath):
            assert isinstance(text, str)
        for told in (one.iface_id, one.vm_id, one.attached_mac):
            assert told is None or isinstance(told, str)


def check_declared(found: Declared) -> None:
    """All that is declared can be computed with and written down."""
    for limit in found.limits:
        for number in (limit.rate_bps, limit.burst_bytes, limit.rate_pps, limit.burst_packets):
            assert number is None or (isinstance(number, int) and 0 <= float(number) < 1e24), limit
    json.dumps(asdict(found))


def test_ovsdb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, tables in enumerate(damaged_tables(random.Random(SEED))):
        monkeypatch.setattr(ports, "select", lambda *_, tables=tables: tables)
        try:
            check_state(read_ovs((tmp_path,)))
            told = declared_of([TAP], libvirt_directory=tmp_path / "none", ovs_sockets=(tmp_path,))
            check_declared(told[TAP.ifindex])
        except Exception as error:
            raise AssertionError(f"case {number}: {error!r}: {tables}"[:3000]) from error


XML = b"""<domstatus state='running' pid='4242'><domain type='kvm' id='7'><name>one</name>
<uuid>9d1c7f0e-2222-3333-4444-555555555555</uuid>
<metadata><nova:instance xmlns:nova='http://openstack.org/x'><nova:name>web</nova:name></nova:instance></metadata>
<devices><interface type='network'><mac address='fa:16:3e:00:00:01'/><source bridge='br-int'/>
<virtualport type='openvswitch'><parameters interfaceid='834d76e9'/></virtualport>
<actual type='bridge'><source bridge='virbr0'/></actual><filterref filter='x'><parameter name='IP' value='192.0.2.1'/>
</filterref><bandwidth><inbound average='12500' peak='20000' burst='3125'/><outbound average='12503'/></bandwidth>
<target dev='tap0'/></interface></devices></domain></domstatus>"""
XML_WORDS: tuple[bytes, ...] = (
    b"",
    b"'",
    b"<",
    b">",
    b"&amp;",
    b"&#0;",
    b"&x;",
    b"-1",
    b"9" * 19,
    b"9" * 5000,
    b"0x10",
    b"1e9",
    b" ",
    b"\x00",
)
XML_WORDS += ("\u0661\u0662".encode(), b"\xff", b"<![CDATA[", b"<?x?>", b"xmlns:a='b'", b"</domain>", b"<devices>" * 50)


def test_libvirt(tmp_path: Path) -> None:
    """Bytes damaged, words replaced: read, or one problem that names the file."""
    rng, read = random.Random(SEED), 0
    words = sorted({word for word in XML.replace(b"'", b" ").replace(b"/", b" ").replace(b">", b" ").split() if word})
    path = tmp_path / "one.xml"
    for number in range(1000):
        content = XML.replace(rng.choice(words), rng.choice(XML_WORDS)) if number % 2 else damage_bytes(XML, rng)
        path.write_bytes(content)
        try:
            live = live_domains(tmp_path)
            assert all(problem.startswith(f"{path}: ") for problem in live.problems)
            assert not (live.problems and live.interfaces)
            read += len(live.interfaces)
            check_declared(declared_of([TAP], libvirt_directory=tmp_path, ovs_sockets=())[TAP.ifindex])
        except Exception as error:
            raise AssertionError(f"case {number}: {error!r}: {content!r}"[:3000]) from error
    assert read > 80


def test_ovs_ofctl() -> None:
    listed = (
        b"meter=1 kbps burst bands=\ntype=drop rate=100000 burst_size=10000\n\nmeter=7 pktps bands=\ntype=drop rate=9\n"
    )
    counted = (
        b"meter:1 flow_count:1 packet_in_count:7 byte_in_count:9 duration:1s bands:\n0: packet_count:1 byte_count:0\n"
    )
    rng = random.Random(SEED)
    for _ in range(500):
        texts = [damage_bytes(text, rng).decode(errors="replace") for text in (listed, counted)]
        assert all(isinstance(meter.number, int) for meter in parse_meters("br-int", *texts))
    long = "9" * 5000
    texts = [text.decode().replace("1", long) for text in (listed, counted)]
    assert [meter.number for meter in parse_meters("br-int", *texts)] == [7]


def test_netlink_dumps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours, whose reader takes addresses apart; and datagrams cut and damaged on the way."""
    good = struct.pack("=BxxxiHBB", 2, 7, 2, 0, 1) + attribute(1, bytes(4)) + attribute(2, bytes(6))
    rng = random.Random(SEED)
    bodies = [good, good.replace(bytes([2]), b"\x0a", 1), b"", good[:11], good[:17]]
    bodies += [damage_bytes(good, rng) for _ in range(2000)]

    class Answering:
        def __enter__(self) -> Answering:
            return self

        def __exit__(self, *_: object) -> None:
            """Nothing to close."""

        def dump(self, *_: object) -> Iterator[Message]:
            yield Message(28, 0, 0, 0, bodies[-1])

    monkeypatch.setattr(neighbours, "Netlink", Answering)
    read = 0
    while bodies:
        try:
            read += len(neighbours.neighbours())
        except NetlinkError:
            continue
        finally:
            bodies.pop()
    assert read > 100
    datagram = len(good + bytes(16)).to_bytes(4, "little") + bytes(12) + good
    for _ in range(500):
        try:
            list(messages(damage_bytes(datagram, rng)))
        except NetlinkError:
            continue
