# SPDX-License-Identifier: Apache-2.0
"""A tun: packets without Ethernet headers, counted to the byte, with real traffic in both directions."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from probe_kit import OUT, SYN, Require, capturing, command, final_of, finish, watching
from test_packet_table import Observer, Seen, check, told

from vifprobe import Probe, load
from vifprobe.errors import KernelError, TapError
from vifprobe.kernel.attach import attach, has_tcx
from vifprobe.kernel.features import read_features, read_trace_fields
from vifprobe.kernel.load import Programs
from vifprobe.kernel.settings import Settings, possible_cpus
from vifprobe.model.layout import Direction, PacketClass, TapTrait, Verdict, size_bucket
from vifprobe.model.reading import Limit
from vifprobe.session.counter_check import CounterCheck
from vifprobe.testing.net.links import nft_ingress_limit
from vifprobe.testing.net.netns import Netns
from vifprobe.testing.net.taps import GsoType, device_counters
from vifprobe.testing.net.taps import tap as make_tap
from vifprobe.testing.net.tun import Tun, tun
from vifprobe.testing.packets import frames as f
from vifprobe.testing.packets.frames import ETH_HEADER_BYTES, TcpFlag
from vifprobe.testing.packets.table import Case, Run, cases_for
from vifprobe.testing.traffic.flood import flood

IN = Direction.INBOUND
HOST, PORT = bytes([10, 77, 0, 1]), 4099
SYNS, SENT = 401, 101  # the ring of a tun holds 500
PACKET_BYTES, DATAGRAM_BYTES = 40, 28 + 7
FLOOD_SECONDS = 60.0


def syn(number: int, port: int = PORT) -> bytes:
    """To the host, each from an address of its own."""
    source = bytes([10, 77, *divmod(number + 2, 256)])
    return f.ipv4(f.tcp(TcpFlag.SYN, destination_port=port), source=source, destination=HOST)


@pytest.fixture
def device(netns: Netns) -> Iterator[Tun]:
    with tun("tun0", address="10.77.0.1/16") as made:
        yield made


@pytest.fixture(params=["tc", "tracepoint"])
def attached(request: pytest.FixtureRequest, netns: Netns, require: Require) -> Iterator[tuple[Observer, Tun]]:
    """The programs for layer 3 on a tun that takes whatever type its owner says; both ways of looking at it."""
    settings = Settings(cpus=possible_cpus(), trace=read_trace_fields(), layer_3=True)
    try:
        programs = Programs(settings, read_features())
    except KernelError as error:
        require("kernel", False, str(error))
        raise
    with ExitStack() as stack:
        stack.callback(programs.close)
        made = stack.enter_context(tun("tun0", vnet_hdr=True, packet_information=True, mtu=65535))
        observer = Observer(programs)
        if request.param == "tc":
            qdisc = None if has_tcx(made.ifindex) else "ingress"
            if qdisc:
                subprocess.run(["tc", "qdisc", "add", "dev", "tun0", qdisc], check=True)
            observer.watch(made.ifindex)
            hook = attach(programs.tc_program_fd(OUT), made.name, made.ifindex, OUT, qdisc)
            stack.callback(hook.detach)
        else:
            observer.watch(made.ifindex, TapTrait.TRACED_OUTBOUND)
            programs.attach_tracepoints()
            stack.callback(programs.detach_tracepoints)
        yield observer, made


def expected(case: Case) -> Seen:
    """As on a tap, but for the Ethernet header; Ethernet would carry as much as of a tap's frame."""
    length = case.frame_bytes(Run.TAP) - ETH_HEADER_BYTES
    key = (int(OUT), int(case.packet_class), int(case.ethertype), size_bucket(length))
    return {key: (1, length, length, case.wire_bytes(Run.TAP))}


def is_taken(case: Case) -> bool:
    """Whether each kernel's tun takes it; longest headers are not in the linear part, see test_packet_table."""
    is_uso = case.gso is not None and case.gso.kind is GsoType.UDP_L4
    fits = ETH_HEADER_BYTES < len(case.frame) <= ETH_HEADER_BYTES + 65_535
    return fits and not is_uso and "longest headers" not in case.name


def test_the_packet_table_without_ethernet_headers(attached: tuple[Observer, Tun]) -> None:
    """Every class, ethertype, size bucket and byte count; GSO frames and tags too."""
    observer, made = attached
    cases = [case for case in cases_for(Run.TAP) if is_taken(case)]
    check(cases, expected, lambda case: made.write_case(case), observer)
    assert observer.missed() == 0, told(observer.take())


def send_datagrams(count: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
        for number in range(count):
            host.sendto(b"payload", ("10.77.9.9", 1000 + number))


def test_real_traffic_in_both_directions(device: Tun) -> None:
    """SYNs to closed ports of the host, its RSTs and datagrams: counts are exact and the device's own."""
    counter_check = CounterCheck()
    with Probe("tun0", bin_ns=10_000_000, samples=10_000, counter_check=counter_check) as probe:
        for number in range(SYNS):
            os.write(device.fd, syn(number))
        answers = [device.read() for _ in range(SYNS)]
        send_datagrams(SENT)
        reading = finish(probe).totals["tun0"]
        samples = probe.take_samples()
        rows = {row.counter: row for row in counter_check.rows([reading], reasons=probe.features.reasons)}
    received, sent = reading.offered(OUT), reading.offered(IN)
    assert all(answer[33] & TcpFlag.RST for answer in answers)
    assert (received.packets, received.frame_bytes, received.charged_bytes) == (SYNS, 40 * SYNS, 40 * SYNS)
    assert received.wire_bytes == (60 + 24) * SYNS  # as on Ethernet, padded
    assert reading.offered(OUT, PacketClass.TCP_SYN).packets == SYNS
    assert reading.offered(IN, PacketClass.TCP_RST).packets == SYNS
    assert (sent.packets, reading.offered(IN, PacketClass.UDP).packets) == (SYNS + SENT, SENT)
    assert sent.frame_bytes == PACKET_BYTES * SYNS + DATAGRAM_BYTES * SENT
    assert [row for row in rows.values() if row.agrees is False] == []
    for counter in ("device rx_packets", "device rx_bytes", "device tx_packets", "device tx_bytes"):
        assert rows[counter].agrees, counter
    assert reading.notes[0].startswith("tun0 is a tun device, not a guest's port")
    ours = samples[samples["direction"] == OUT]
    assert len(ours) > 0
    assert {bytes(row["headers"][:10]) for row in ours} == {syn(0)[:10]}
    assert set(ours["header_bytes"]) == {PACKET_BYTES}


def test_addresses_and_handshakes(device: Tun) -> None:
    """What a flood's sources are, and which handshakes come to their end, is found behind no Ethernet header."""
    with socket.create_server(("10.77.0.1", PORT), backlog=64), Probe("tun0", samples=10_000) as probe:
        for number in range(13):
            os.write(device.fd, syn(number))
            answer = device.read()
            port, acknowledged = answer[22:24], (int.from_bytes(answer[24:28], "big") + 1).to_bytes(4, "big")
            made = f.ipv4(
                f.tcp(TcpFlag.ACK, destination_port=PORT, source_port=int.from_bytes(port, "big"), sequence=7002),
                source=syn(number)[12:16],
                destination=HOST,
            )
            os.write(device.fd, made[:28] + acknowledged + made[32:])
        flood_of = finish(probe).totals["tun0"].flood[OUT]
    assert flood_of.value("syn_packets") == 13
    assert flood_of.value("sources") == pytest.approx(13, abs=1)
    assert flood_of.value("destinations") == 1
    assert flood_of.value("handshakes_completed") == 13


def test_a_limit_is_the_policers_own_count(device: Tun, tmp_path: Path) -> None:
    """nft at ingress: what it dropped, and bytes as it charges them; the capture's samples begin with the IP header."""
    packets = [syn(number) for number in range(SYNS)]
    with nft_ingress_limit("tun0", rate_bytes_per_second=10_007, burst_bytes=1_009) as limit:
        with Probe("tun0", limits={OUT: Limit(declared_bps=80_056)}) as probe:
            flood([device.fd], packets, count=10 * SYNS, seconds=FLOOD_SECONDS)
            reading = finish(probe).totals["tun0"]
            nft = limit.read()
        policed = reading.counts(OUT, Verdict.POLICED)
        assert policed is not None
        assert (policed.packets, policed.charged_bytes) == (nft.packets, nft.bytes)
        assert 0 < nft.packets < 10 * SYNS
        with capturing(tmp_path, taps=("tun0",)) as capture:
            flood([device.fd], packets, count=SYNS, seconds=FLOOD_SECONDS)
            text = " ".join(capture.end().split())
    assert "not a guest's port" in text
    assert "received" in text
    found = load(tmp_path / "capture")
    assert found.reading().offered(OUT).packets == SYNS
    assert found.manifest.taps[0].kind == "tun"
    blocks = (tmp_path / "capture" / "samples.pcapng").read_bytes()
    interface = int.from_bytes(blocks[4:8], "little")  # behind the section header, by its length
    assert int.from_bytes(blocks[interface + 8 : interface + 10], "little") == 101  # LINKTYPE_RAW
    assert packets[0] in blocks


def test_not_beside_a_tap(device: Tun, tmp_path: Path) -> None:
    """One run's programs are for one of both; each alone is watched, and `taps` lists what guests hang on."""
    with make_tap("tap0") as tap:
        with pytest.raises(TapError, match="tun0 and tap0 can't be watched in one run"), Probe("tap0", "tun0"):
            pass
        with command("watch", "tun0", "tap0", folder=tmp_path) as refused:
            assert refused.ended(1) == ""
            assert "Watch tun devices in a separate run." in refused.told()
        with watching(tmp_path, taps=("tun0",)) as watch:
            os.write(device.fd, syn(1))
            tap.write(SYN)
            final = final_of(watch.end(), "tun0")
        with command("taps", "--json", folder=tmp_path) as taps:
            names = [json.loads(line)["name"] for line in taps.ended().splitlines()]
    assert (final["kind"], final["guest_port"]) == ("tun", False)
    assert final["outbound"]["offered"]["packets"] == 1
    assert names == ["tap0"]


def test_the_device_is_as_found(device: Tun) -> None:
    """Nothing is left on it, and its counters are those of what was written."""
    with Probe("tun0") as probe:
        os.write(device.fd, syn(0))
        finish(probe)
    os.write(device.fd, syn(1))
    assert device_counters("tun0")["rx_packets"] == 2
