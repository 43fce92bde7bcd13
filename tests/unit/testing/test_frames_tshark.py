# SPDX-License-Identifier: Apache-2.0
"""The packet table held against an independent dissector: tshark reads every frame, and its fields give the class."""

from __future__ import annotations

import shutil

import pytest

from vifprobe.model.layout import PacketClass
from vifprobe.testing.packets import dissector
from vifprobe.testing.packets.table import CASES, Case

CHECKSUMS = tuple(f"{protocol}.checksum.status" for protocol in ("ip", "tcp", "udp", "icmp", "icmpv6"))
FIELDS = (*dissector.FIELDS, *CHECKSUMS)
PREFERENCES = tuple(each.replace("check_checksum:FALSE", "check_checksum:TRUE") for each in dissector.PREFERENCES)
BAD_CHECKSUM = "0"

#: Cases (by the start of the name) where tshark and the rules mean different things, and why.
DIFFERENT = {
    "size: 65536 bytes of ipv4, total length 0": "tshark takes a length of 0 for the frame's only where it is told to",
    "size: shortest ipv6 jumbo packet": "the same",
}


@pytest.fixture(scope="module")
def read() -> list[tuple[Case, dissector.Fields]]:
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed")
    # A guest's TSO frames have lengths of 0 and checksums still to be filled in: nothing a dissector could judge.
    cases = [case for case in CASES if case.gso is None]
    found = list(dissector.read((case.frame for case in cases), fields=FIELDS, preferences=PREFERENCES))
    assert len(found) == len(cases)
    return list(zip(cases, found, strict=True))


def is_different(case: Case) -> bool:
    return any(case.name.startswith(start) for start in DIFFERENT)


def test_classes(read: list[tuple[Case, dissector.Fields]]) -> None:
    wrong = [
        f"{case.name}: table {case.packet_class.name}, tshark {dissector.class_of(found, case.frame)}: {found}"
        for case, found in read
        if not is_different(case) and dissector.class_of(found, case.frame) is not case.packet_class
    ]
    assert wrong == []


def test_checksums_of_whole_packets(read: list[tuple[Case, dissector.Fields]]) -> None:
    """Tshark judges a checksum only where it has all the bytes. What is wrong on purpose says so in its name."""
    on_purpose = ("checksum wrong", "cut", "left", "leaves", "length", "next header", "protocol")
    wrong = [
        f"{case.name}: {found}"
        for case, found in read
        if case.packet_class is not PacketClass.MALFORMED
        and not any(word in case.name for word in on_purpose)
        and any(BAD_CHECKSUM in found[field].split(",") for field in CHECKSUMS)
    ]
    assert wrong == []


def test_differences_are_still_there(read: list[tuple[Case, dissector.Fields]]) -> None:
    """An entry of DIFFERENT that no longer is one must go."""
    differing = [case.name for case, found in read if dissector.class_of(found, case.frame) is not case.packet_class]
    unneeded = [start for start in DIFFERENT if not any(name.startswith(start) for name in differing)]
    assert unneeded == []
