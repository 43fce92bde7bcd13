# SPDX-License-Identifier: Apache-2.0
"""libvirt's status files: what is in them, and what becomes of files that are broken, huge, hostile or not ours."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from vifprobe.host.declared import unseen_ports
from vifprobe.host.libvirt.domains import Bandwidth, Interface, live_domains

DOMAIN = """<domstatus state='running' reason='booted' pid='{pid}'>
  <domain type='kvm' id='7'>
    <name>instance-0000001a</name>
    <uuid>9d1c7f0e-2222-3333-4444-555555555555</uuid>
    <metadata>
      <nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1">
        <nova:name>web &amp; mail</nova:name>
        <nova:owner><nova:user uuid="u">admin</nova:user><nova:project uuid="p">shop</nova:project></nova:owner>
      </nova:instance>
    </metadata>
    <devices>
      <interface type='bridge'>
        <mac address='fa:16:3e:00:00:01'/>
        <source bridge='br-int'/>
        <virtualport type='openvswitch'>
          <parameters interfaceid='834d76e9-5f00-4000-8000-000000000001'/>
        </virtualport>
        <bandwidth>
          <inbound average='12500' peak='20000' burst='3125'/>
          <outbound average='12503'/>
        </bandwidth>
        <target dev='tap834d76e9-5f'/>
      </interface>
      <interface type='network'>
        <mac address='52:54:00:00:00:02'/>
        <source network='default'/>
        <actual type='bridge'>
          <source bridge='virbr0'/>
          <bandwidth><outbound average='7' burst='11'/></bandwidth>
        </actual>
        <target dev='vnet3'/>
      </interface>
      <interface type='vhostuser'><mac address='52:54:00:00:00:03'/></interface>
    </devices>
  </domain>
</domstatus>
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "instance-0000001a.xml").write_text(DOMAIN.format(pid=4242))
    return tmp_path


def test_interface_of_an_openstack_guest(directory: Path) -> None:
    live = live_domains(directory)
    assert live.problems == ()
    assert live.interfaces["tap834d76e9-5f"] == Interface(
        target="tap834d76e9-5f",
        domain="instance-0000001a",
        domain_uuid="9d1c7f0e-2222-3333-4444-555555555555",
        pid=4242,
        kind="bridge",
        guest_mac="fa:16:3e:00:00:01",
        source="br-int",
        virtual_port="openvswitch",
        port_id="834d76e9-5f00-4000-8000-000000000001",
        inbound=Bandwidth(12500, 20000, 3125),
        outbound=Bandwidth(12503),
        instance_name="web & mail",
        instance_uuid="9d1c7f0e-2222-3333-4444-555555555555",
        project="shop",
    )


def test_of_a_network_interface_what_the_network_came_out_as_counts(directory: Path) -> None:
    found = live_domains(directory).interfaces["vnet3"]
    assert (found.kind, found.source, found.inbound, found.outbound) == (
        "bridge",
        "virbr0",
        None,
        Bandwidth(7, None, 11),
    )


def test_declared_limits_in_the_units_that_tc_gets() -> None:
    """A `kbps` of tc is 1000 byte/s and a `kb` is 1024 byte; an outbound policer without a burst gets the average's."""
    declared = Bandwidth(12500, None, 3125)
    assert (declared.rate_bps, declared.burst_bytes, declared.policer_burst_bytes) == (
        100_000_000,
        3_200_000,
        3_200_000,
    )
    assert (Bandwidth(12503).burst_bytes, Bandwidth(12503).policer_burst_bytes) == (None, 12503 * 1024)
    assert (Bandwidth().rate_bps, Bandwidth().policer_burst_bytes) == (None, None)


def test_an_interface_without_a_target_device_is_no_tap(directory: Path) -> None:
    assert sorted(live_domains(directory).interfaces) == ["tap834d76e9-5f", "vnet3"]


def test_no_libvirt_is_not_a_problem_but_told_apart(tmp_path: Path) -> None:
    live = live_domains(tmp_path / "none")
    assert (live.present, live.problems, live.interfaces) == (False, (), {})
    assert live_domains(tmp_path).present


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<domstatus", "unclosed token"),
        (b"", "no element found"),
        (b"\xff\xfegarbage", "syntax error"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><domain>&b;</domain>".encode("utf-16"), "not UTF-8"),
        (b"<pool><name>x</name></pool>", "no <domain> in it"),
        (b"<?xml version='1.0' encoding='utf-999'?><a/>", "unknown encoding"),
        (b"<!DOCTYPE a [<!ENTITY b 'c'>]><domain>&b;</domain>", "DOCTYPE"),
        (b"<domain>" + b" " * (2 * 1024 * 1024) + b"</domain>", "longer than 2097152 bytes"),
        (b"<a>" * 50_001, "more than 50000 tags"),
        (b"<a>" * 49_999, "no element found"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_and_the_others_are_read(directory: Path, content: bytes, says: str) -> None:
    (directory / "broken.xml").write_bytes(content)
    live = live_domains(directory)
    (problem,) = live.problems
    assert str(directory / "broken.xml") in problem
    assert says in problem
    assert "tap834d76e9-5f" in live.interfaces


def test_a_file_of_100_megabytes_is_not_read(directory: Path) -> None:
    with (directory / "huge.xml").open("wb") as file:
        file.truncate(100 * 1024 * 1024)
    began = time.monotonic()
    (problem,) = live_domains(directory).problems
    assert "longer than 2097152 bytes" in problem
    assert time.monotonic() - began < 1


def test_what_is_no_file_is_not_waited_for(directory: Path) -> None:
    os.mkfifo(directory / "pipe.xml")
    (directory / "folder.xml").mkdir()
    (directory / "zero.xml").symlink_to("/dev/zero")
    live = live_domains(directory)
    assert [problem.partition(": ")[2] for problem in live.problems] == [
        "Is a directory",
        "is not a file: not read",
        "is not a file: not read",
    ]
    assert "tap834d76e9-5f" in live.interfaces


def test_values_that_are_no_numbers_are_unknown(directory: Path) -> None:
    path = directory / "instance-0000001a.xml"
    path.write_text(DOMAIN.format(pid="x").replace("'12500'", "'-1'").replace("'3125'", f"'{'9' * 30}'"))
    found = live_domains(directory).interfaces["tap834d76e9-5f"]
    assert (found.pid, found.inbound) == (None, Bandwidth(None, 20000, None))


def test_two_hundred_guests_are_read_in_a_moment(tmp_path: Path) -> None:
    for number in range(199):
        text = DOMAIN.format(pid=number).replace("tap834d76e9-5f", f"tap{number:08x}-00").replace("vnet3", f"v{number}")
        (tmp_path / f"instance-{number:08x}.xml").write_text(text)
    assert len(live_domains(tmp_path).interfaces) == 2 * 199


def test_limits_of_novas_flavor(directory: Path) -> None:
    """As newer releases of Nova write them into the live XML, in kilobytes a second and kilobytes."""
    specs = {"quota:vif_outbound_average": "12500", "quota:vif_outbound_burst": "3125", "hw:cpu_policy": "shared"}
    specs |= {"quota:vif_inbound_average": "7", "quota:vif_inbound_peak": "-1", "quota:vif_outbound_peak": "a lot"}
    written = "".join(f'<nova:extraSpec name="{name}">{value}</nova:extraSpec>' for name, value in specs.items())
    text = DOMAIN.format(pid=1).replace("<nova:owner>", f"<nova:extraSpecs>{written}</nova:extraSpecs><nova:owner>")
    (directory / "instance-0000001a.xml").write_text(text)
    found = live_domains(directory).interfaces["tap834d76e9-5f"]
    assert found.quota("outbound") == Bandwidth(12500, None, 3125)
    assert found.quota("inbound") == Bandwidth(7, None, None)
    assert live_domains(directory).interfaces["vnet3"].quota("outbound") == Bandwidth(12500, None, 3125)


def test_ports_without_a_tap(directory: Path) -> None:
    """By the switch's name, or by the guest's MAC address; with what is declared for them."""
    more = """<interface type='vhostuser'><mac address='52:54:00:00:00:04'/><target dev='vhu834d76e9-5f'/>
      <bandwidth><outbound average='12500' burst='3125'/></bandwidth></interface>
      <interface type='network'><mac address='52:54:00:00:00:05'/><actual type='hostdev'/></interface></devices>"""
    text = DOMAIN.format(pid=1).replace("</devices>", more)
    (directory / "instance-0000001a.xml").write_text(text)
    live = live_domains(directory)
    assert set(live.interfaces) == {"tap834d76e9-5f", "vnet3"}
    assert [(one.target, one.kind) for one in live.without_tap] == [
        ("52:54:00:00:00:03", "vhostuser"),
        ("vhu834d76e9-5f", "vhostuser"),
        ("52:54:00:00:00:05", "hostdev"),
    ]
    declared = {port.target: limits for port, limits in unseen_ports(directory)}
    (limit,) = declared["vhu834d76e9-5f"]
    assert (limit.rate_bps, limit.device) == (100_000_000, "vhu834d76e9-5f")
    assert declared["52:54:00:00:00:05"] == ()
