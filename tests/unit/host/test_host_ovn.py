# SPDX-License-Identifier: Apache-2.0
"""QoS rules from OVN's southbound database, and flows that name a port by registers."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from vifprobe.host.declared import declared_of
from vifprobe.host.net.links import Link
from vifprobe.host.ovs.flows import Flows, parse_flow
from vifprobe.host.ovs.ovn import OvnReader, read_ovn
from vifprobe.host.ovs.ports import OvsInterface, OvsState
from vifprobe.host.ovs.remotes import Keys, parse
from vifprobe.model.layout import Direction
from vifprobe.testing.waiting import wait_until

Require = Callable[[str, object, str], None]

# ovs-ofctl dump-flows of OVN 23.03: ports 1 to 3 of one logical switch; port 3 limits IPv4 only.
OVN_FLOWS = b"""\
 cookie=0xbe8b1bb2, duration=2.0s, table=0, n_packets=0, n_bytes=0, priority=100,in_port=1 actions=\
set_field:0x2->reg13,set_field:0x3->reg11,set_field:0x1->reg12,set_field:0x1->metadata,set_field:0x1->reg14,resubmit(,8)
 cookie=0x458ed3d6, duration=1.2s, table=0, n_packets=0, n_bytes=0, priority=100,in_port=2 actions=load:0x1->\
OXM_OF_METADATA[],load:0x2->NXM_NX_REG14[],resubmit(,8)
 cookie=0x57236245, duration=0.5s, table=0, n_packets=0, n_bytes=0, priority=100,in_port=3 actions=set_field:0x1->\
metadata,set_field:0x3->reg14,resubmit(,8)
 cookie=0x0, duration=3.4s, table=0, n_packets=0, n_bytes=0, priority=0 actions=drop
 cookie=0xa42f3b22, duration=1.9s, table=18, n_packets=0, n_bytes=0, priority=2002,reg14=0x1,metadata=0x1 \
actions=meter:2,resubmit(,19)
 cookie=0x2946bcdd, duration=0.5s, table=18, n_packets=0, n_bytes=0, priority=2002,ip,reg14=0x3,metadata=0x1 \
actions=meter:1,resubmit(,19)
 cookie=0x4c9053b9, duration=1.2s, table=48, n_packets=0, n_bytes=0, priority=2002,reg15=0x2,metadata=0x1 \
actions=meter:3,resubmit(,49)
"""


def uses(flows: bytes, port: int, *macs: str) -> list[tuple[int, str, str]]:
    found = Flows()
    found.feed(flows)
    return [(one.number, one.direction.name.lower(), one.conditions) for one in found.uses(found.keys(port, macs))]


def test_flows_of_ovn() -> None:
    assert uses(OVN_FLOWS, 1) == [(2, "outbound", "")]
    assert uses(OVN_FLOWS, 2) == [(3, "inbound", "")]
    assert uses(OVN_FLOWS, 3) == [(1, "outbound", "ip")]
    assert uses(OVN_FLOWS, 4) == []


def test_another_switch_of_ovn_has_the_same_port_numbers() -> None:
    other = OVN_FLOWS.replace(b"reg14=0x1,metadata=0x1 ", b"reg14=0x1,metadata=0x7 ")
    assert uses(other, 1) == []


def test_flows_of_ovn_that_need_several_conditions() -> None:
    """A port group in a match becomes conjunctive flows: the meter is behind conj_id."""
    conjunctive = OVN_FLOWS + (
        b" cookie=0x5, table=18, priority=2002,conj_id=9,metadata=0x1 actions=meter:4,resubmit(,19)\n"
        b" cookie=0x5, table=18, priority=2002,reg14=0x2,metadata=0x1 actions=conjunction(9,1/2)\n"
        b" cookie=0x5, table=18, priority=2002,ip,metadata=0x1,nw_dst=192.0.2.1 actions=conjunction(9,2/2)\n"
    )
    assert uses(conjunctive, 2) == [(3, "inbound", ""), (4, "outbound", "")]
    assert uses(conjunctive, 1) == [(2, "outbound", "")]


def test_a_rule_of_ovn_for_a_whole_switch() -> None:
    whole = OVN_FLOWS + (
        b" cookie=0x6, table=18, priority=100,ip,metadata=0x1,nw_dst=192.0.2.1 actions=meter:5,resubmit(,19)\n"
        b" cookie=0x7, table=48, priority=100,metadata=0x1 actions=meter:6,resubmit(,49)\n"
    )
    assert uses(whole, 1) == [(2, "outbound", ""), (5, "outbound", "ip,nw_dst=192.0.2.1"), (6, "inbound", "")]
    found = Flows()
    found.feed(whole)
    assert found.shared() == {5, 6}


def test_flows_of_neutron_with_open_vswitch() -> None:
    flows = (
        b" cookie=0x1, duration=1.2s, table=59, n_packets=0, n_bytes=0, priority=10,in_port=7 actions=meter:1\n"
        b" cookie=0x1, duration=1.2s, table=59, n_packets=0, n_bytes=0, priority=10,dl_vlan=3,dl_dst=fa:16:3e:00:00:0a"
        b" actions=meter:2,resubmit(,60)\n"
        b" cookie=0x1, duration=1.2s, table=59, n_packets=0, n_bytes=0, in_port=8 actions=meter:1,NORMAL\n"
    )
    assert uses(flows, 7, "fa:16:3e:00:00:0A") == [(1, "outbound", ""), (2, "inbound", "")]
    assert uses(flows, 7) == [(1, "outbound", "")]
    found = Flows()
    found.feed(flows)
    assert found.shared() == {1}


@pytest.mark.parametrize(
    "line",
    [
        "",
        " ",
        "actions=",
        "meter:1",
        "in_port=, reg14 actions=meter:99999999999",
        "=,=,= actions=meter:1,meter:2",
        "table=x,in_port=0x,metadata=1/2/3,reg14=0x1/0 actions=set_field:0x->reg14,conjunction(,",
        "é actions=\x00meter:1",
    ],
)
def test_odd_flows(line: str) -> None:
    parse_flow(line)
    uses(OVN_FLOWS + line.encode() + b"\n", 1)


def test_where_a_database_is() -> None:
    keys = Keys("/key", "/certificate", "/authority")
    found, problems = parse(
        "tcp:192.0.2.1:6642, ssl:[2001:db8::1]:6642,unix:/run/ovn/ovnsb_db.sock,tcp:sb.example", keys
    )
    assert [(one.name, one.host, one.port, one.keys) for one in found] == [
        ("tcp:192.0.2.1:6642", "192.0.2.1", 6642, None),
        ("ssl:[2001:db8::1]:6642", "2001:db8::1", 6642, keys),
        ("unix:/run/ovn/ovnsb_db.sock", "", 0, None),
        ("tcp:sb.example", "sb.example", 6640, None),
    ]
    assert problems == []
    found, problems = parse("ssl:192.0.2.1:6642,ptcp:1,unix:relative", Keys())
    assert found == []
    assert ["no key" in problems[0], "is not unix" in problems[1], "is not unix" in problems[2]] == [True] * 3


class Southbound(NamedTuple):
    """A real server, and its remotes by method."""

    remotes: dict[str, str]
    keys: Keys
    transact: Callable[..., None]


def tools() -> tuple[dict[str, str], Path] | None:
    """Environment and schema for a real ovsdb-server: installed, or as the lab has unpacked it."""
    for root in (Path("/"), Path(__file__).parents[3] / ".cache/vm/ovn/root"):
        schema, path = root / "usr/share/ovn/ovn-sb.ovsschema", f"{root}/usr/bin:{root}/usr/sbin:{os.environ['PATH']}"
        if schema.exists() and shutil.which("ovsdb-server", path=path):
            libraries = [os.fspath(found) for found in root.glob("usr/lib/*-linux-gnu")] if root != Path("/") else []
            return {**os.environ, "PATH": path, "LD_LIBRARY_PATH": ":".join(libraries)}, schema
    return None


@pytest.fixture(scope="module")
def southbound(tmp_path_factory: pytest.TempPathFactory, require: Require) -> Iterator[Southbound]:
    found = tools()
    require("ovs", found, "ovsdb-server and OVN's schema (package ovn-central)")
    require("ovs", shutil.which("openssl"), "openssl")
    assert found is not None
    environment, schema = found
    folder = tmp_path_factory.mktemp("southbound")
    path, key, certificate = folder / "db.sock", folder / "key", folder / "certificate"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=lab",
            "-keyout",
            key,
            "-out",
            certificate,
        ],
        check=True,
        capture_output=True,
    )
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        tcp, encrypted = (listening.getsockname()[1] for listening in (one, other))
    subprocess.run(["ovsdb-tool", "create", folder / "db", schema], env=environment, check=True)
    server = subprocess.Popen(
        [
            "ovsdb-server",
            f"--remote=punix:{path}",
            f"--remote=ptcp:{tcp}:127.0.0.1",
            f"--remote=pssl:{encrypted}:127.0.0.1",
            f"--private-key={key}",
            f"--certificate={certificate}",
            f"--ca-cert={certificate}",
            f"--unixctl={folder / 'ctl'}",
            "-vconsole:off",
            folder / "db",
        ],
        env=environment,
    )

    def transact(*operations: dict[str, Any]) -> None:
        command = ["ovsdb-client", "transact", f"unix:{path}", json.dumps(["OVN_Southbound", *operations])]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        assert "error" not in done.stdout, done.stdout

    remotes = {"unix": f"unix:{path}", "tcp": f"tcp:127.0.0.1:{tcp}", "ssl": f"ssl:127.0.0.1:{encrypted}"}
    try:
        wait_until(path.exists, 10)
        fill(transact)
        yield Southbound(remotes, Keys(str(key), str(certificate), str(certificate)), transact)
    finally:
        server.terminate()
        server.wait(10)


def insert(table: str, uuid_name: str, **row: Any) -> dict[str, Any]:
    return {"op": "insert", "table": table, "uuid-name": uuid_name, "row": row}


def named(*names: str) -> list[Any]:
    return ["set", [["named-uuid", name] for name in names]]


def flow(match: str, actions: str, stage: str = "ls_in_qos_meter", **row: Any) -> dict[str, Any]:
    number = flow.__dict__["number"] = flow.__dict__.get("number", 0) + 1
    external_ids = ["map", [["stage-name", stage]]]
    pipeline = "egress" if "_out_" in stage else "ingress"
    plain = {"match": match, "actions": actions, "pipeline": pipeline, "table_id": 10, "external_ids": external_ids}
    own = {"logical_datapath": ["named-uuid", "d1"], "priority": 2002}
    return insert("Logical_Flow", f"flow{number}", **{**own, **plain, **row})


def fill(transact: Callable[..., None]) -> None:
    both: dict[str, Any] = {"logical_datapath": ["set", []], "logical_dp_group": ["named-uuid", "g"]}
    transact(
        insert("Datapath_Binding", "d1", tunnel_key=1),
        insert("Datapath_Binding", "d2", tunnel_key=2),
        insert("Logical_DP_Group", "g", datapaths=named("d1", "d2")),
        *(
            insert(
                "Port_Binding", port, logical_port=port, datapath=["named-uuid", datapath], tunnel_key=number, type=""
            )
            for number, (port, datapath) in enumerate({"p1": "d1", "p2": "d1", "p3": "d2"}.items(), 1)
        ),
        insert("Port_Group", "pg", name="1_pg", ports=["set", ["p2", "p9"]]),
        flow("1", "next;", priority=0, **both),
        flow('inport == "p1"', "set_meter(1009, 503); next;"),
        flow('outport == "p1" && ip4', "set_meter(2003); next;", "ls_out_qos_meter"),
        flow("inport == @pg", "set_meter(3001); next;"),
        flow('inport == {"p7", "p2"} && tcp', "set_meter(4001, 7); next;", "ls_in_qos"),
        flow('inport == "p3"', "set_meter(5003); next;", **both),
        flow('inport == "p1"', "next;", "ls_in_acl"),
        flow('inport == "p1"', "ip.dscp = 10; next;"),
        flow("ip4.dst == 192.0.2.1", "set_meter(9001); next;", logical_datapath=["named-uuid", "d2"]),
    )


@pytest.mark.parametrize("method", ["unix", "tcp", "ssl"])
def test_rules_of_ports(southbound: Southbound, method: str) -> None:
    switch = OvsState(ovn_remote=southbound.remotes[method], keys=southbound.keys)
    found = read_ovn(switch, ("p1", "p2", "p3", "unbound"))
    assert found.problem == ""
    plain = {
        port: sorted((one.direction.name, one.rate_bps, one.burst_bytes, one.conditions) for one in rules)
        for port, rules in found.rules.items()
    }
    assert plain == {
        "p1": [("INBOUND", 2_003_000, None, "ip4"), ("OUTBOUND", 1_009_000, 62_875, "")],
        "p2": [("OUTBOUND", 3_001_000, None, ""), ("OUTBOUND", 4_001_000, 875, "tcp")],
        "p3": [("OUTBOUND", 5_003_000, None, ""), ("OUTBOUND", 9_001_000, None, "ip4.dst == 192.0.2.1")],
    }
    assert read_ovn(switch, ("p1",)).rules["p1"] == found.rules["p1"]


def test_a_server_that_is_away_is_told_and_the_next_one_asked(southbound: Southbound, tmp_path: Path) -> None:
    away = f"unix:{tmp_path}/none"
    assert "none: No such file" in read_ovn(OvsState(ovn_remote=away), ("p1",)).problem
    both = OvsState(ovn_remote=f"{away},{southbound.remotes['tcp']}")
    assert read_ovn(both, ("p1",)).problem == ""


def test_a_server_with_other_keys_is_told(southbound: Southbound, tmp_path: Path) -> None:
    keys = Keys(str(tmp_path / "none"), southbound.keys.certificate, southbound.keys.ca_certificate)
    assert "ssl:127.0.0.1" in read_ovn(OvsState(ovn_remote=southbound.remotes["ssl"], keys=keys), ("p1",)).problem


def test_it_is_not_asked_again_at_once(southbound: Southbound) -> None:
    reader, switch = OvnReader(), OvsState(ovn_remote=southbound.remotes["unix"])
    first = reader.read(switch, ["p1"])
    assert reader.read(switch, ["p1"]) is first
    assert reader.read(switch, ["p1", "p2"]) is not first


def test_without_ovn_nothing_is_asked() -> None:
    assert OvnReader().read(OvsState(), ["p1"]).problem == ""


def test_what_ovn_declares_for_a_tap(monkeypatch: pytest.MonkeyPatch, southbound: Southbound, tmp_path: Path) -> None:
    from vifprobe.host.ovs import ports

    tap = Link("tap0", 7, "tap", "", 1500, True, 0, "", 1)
    interface = OvsInterface("tap0", bridge="br-int", ofport=1, iface_id="p1")
    for remote, problem in ((southbound.remotes["unix"], ""), (f"unix:{tmp_path}/none", "OVN's southbound database: ")):
        state = OvsState({"tap0": interface}, True, ovn_remote=remote)
        monkeypatch.setattr(ports, "read_ovs", lambda *_, state=state: state)
        found = declared_of([tap], libvirt_directory=tmp_path / "none")[7]
        assert problem in "".join(found.problems)
        assert bool(found.problems) == bool(problem)
        limits = sorted((one.direction, one.source, one.kind, one.device, one.rate_bps) for one in found.limits)
        assert limits == (
            []
            if problem
            else [
                (Direction.OUTBOUND, "ovn", "qos", "tap0", 1_009_000),
                (Direction.INBOUND, "ovn", "qos ip4", "tap0", 2_003_000),
            ]
        )
