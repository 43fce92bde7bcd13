# SPDX-License-Identifier: Apache-2.0
"""samples.pcapng of a real capture: tshark finds each class as often as the sampler says it took it."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from pathlib import Path

from probe_kit import LIMIT, SYN, Require, capturing

from vifprobe import load
from vifprobe.model.layout import PacketClass, Verdict
from vifprobe.testing.net.links import nft_ingress_limit
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.packets import frames as f
from vifprobe.testing.traffic.flood import flood

PAYLOAD = b"secret!" * 30
SYNACK = f.TcpFlag.SYN | f.TcpFlag.ACK
#: Class, a frame of it, and how an independent dissector tells it.
KINDS = (
    (PacketClass.TCP_SYN, SYN, "tcp.flags.syn == 1 && tcp.flags.ack == 0 && !vlan"),
    (PacketClass.TCP_SYNACK, f.eth(f.ipv6(f.tcp(SYNACK)), f.EtherType.IPV6), "tcp.flags == 0x12"),
    (PacketClass.TCP_RST, f.vlan(f.eth(f.ipv4(f.tcp(f.TcpFlag.RST)), f.EtherType.IPV4), vid=77), "tcp.flags == 4"),
    (PacketClass.TCP_DATA, f.eth(f.ipv4(f.tcp(f.TcpFlag.ACK, PAYLOAD)), f.EtherType.IPV4), "tcp.flags == 0x10"),
    (PacketClass.UDP, f.eth(f.ipv4(f.udp(PAYLOAD)), f.EtherType.IPV4), "udp"),
    (PacketClass.ICMP, f.eth(f.ipv4(f.icmp(PAYLOAD)), f.EtherType.IPV4), "icmp"),
    (PacketClass.ARP, f.eth(f.arp(), f.EtherType.ARP), "arp"),
    (PacketClass.OTHER, f.eth(PAYLOAD, f.EtherType.EXPERIMENTAL), "eth.type == 0x88b5"),
)
ROUNDS = 2_003


def tshark(file: Path, display_filter: str, *fields: str) -> list[str]:
    wanted = [word for name in fields or ("frame.number",) for word in ("-e", name)]
    command = ["tshark", "-n", "-r", str(file), "-Y", display_filter, "-T", "fields", *wanted]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_tshark_counts_what_the_sampler_counted(tap: Tap, tmp_path: Path, require: Require) -> None:
    """By class, by verdict, and in all; and no byte of payload is in the file."""
    require("tshark", shutil.which("tshark"), "tshark (package tshark)")
    with nft_ingress_limit(tap.name, **LIMIT), capturing(tmp_path, "--samples", "1000000") as run:
        flood([tap.fd], [frame for _, frame, _ in KINDS], count=ROUNDS * len(KINDS), seconds=60)
        run.end()
    capture = load(tmp_path / "capture")
    file, counts = tmp_path / "capture" / "samples.pcapng", capture.manifest.samples
    assert counts is not None
    assert (counts.taken, counts.left_out, counts.lost) == (counts.written, 0, 0)
    comments = [dict(word.split("=") for word in text.split()) for text in tshark(file, "frame", "frame.comment")]
    assert len(comments) == counts.written
    own = Counter(comment["class"] for comment in comments)
    for packet_class, _, display_filter in KINDS:
        assert len(tshark(file, display_filter)) == own.pop(packet_class.name.lower()) > 0, packet_class
    assert not own
    for verdict, tc_verdict in ((Verdict.PASSED, 0), (Verdict.POLICED, 2), (Verdict.DROPPED, 2)):
        told = [comment for comment in comments if comment["verdict"] == verdict.name.lower()]
        found = tshark(file, f"frame.verdict.ebpf_tc == {tc_verdict}", "frame.comment")
        assert len([text for text in found if f"verdict={verdict.name.lower()}" in text]) == len(told)
    assert {comment["verdict"] for comment in comments} >= {"policed", "dropped"}
    assert PAYLOAD[:7] not in file.read_bytes()
    # The weights make up for what was not taken: see test_samples.py for how well.
    offered = sum(int(comment["weight"]) for comment in comments)
    assert abs(offered - ROUNDS * len(KINDS)) < ROUNDS * len(KINDS) / 4
    assert f"headers of {counts.written:,} packets in samples.pcapng" in run.printed()


def test_no_samples(tap: Tap, tmp_path: Path) -> None:
    """--no-samples: no file, nothing in the manifest, nothing in the summary."""
    with capturing(tmp_path, "--no-samples") as run:
        flood([tap.fd], [SYN], count=7, seconds=5)
        assert "headers of" not in run.end()
    assert load(tmp_path / "capture").manifest.samples is None
    assert not (tmp_path / "capture" / "samples.pcapng").exists()
