# SPDX-License-Identifier: Apache-2.0
"""The conntrack table's state out of /proc, with what a kernel may leave out of it."""

from __future__ import annotations

from pathlib import Path

from vifprobe.host.net.conntrack import Conntrack, read_conntrack

HEAD = "entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop"
ROWS = (
    "00000007  00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 0000001f 00000000",
    "00000007  00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000002 00000000",
)


def made(folder: Path, count: str = "7\n", most: str = "262144\n", statistics: str | None = None) -> Conntrack | None:
    (folder / "nf_conntrack_count").write_text(count)
    (folder / "nf_conntrack_max").write_text(most)
    if statistics is not None:
        (folder / "stat").write_text(statistics)
    return read_conntrack(folder, folder / "stat")


def test_entries_and_the_drops_of_all_cpus(tmp_path: Path) -> None:
    assert made(tmp_path, statistics="\n".join((HEAD, *ROWS))) == Conntrack(7, 262_144, 0x21)


def test_what_is_not_there_is_not_known(tmp_path: Path) -> None:
    assert made(tmp_path) == Conntrack(7, 262_144, None)
    for text in ("", HEAD.replace(" drop", ""), f"{HEAD}\nx", f"{HEAD}\n" + "zz " * 12):
        found = made(tmp_path, statistics=text)
        assert found is not None
        assert not found.dropped_packets
    assert made(tmp_path, most="0\n") is None
    assert made(tmp_path, count="many\n") is None
    assert read_conntrack(tmp_path / "away", tmp_path / "stat") is None
