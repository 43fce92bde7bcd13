# SPDX-License-Identifier: Apache-2.0
"""Kept code: counts the same as fresh code, and is loaded from a directory of root's own only, whole or not at all."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from probe_kit import OUT, SYN, finish, forwarding

from vifprobe import Probe
from vifprobe.kernel.toolchain import cache
from vifprobe.kernel.toolchain.compiled import Compiled
from vifprobe.kernel.toolchain.compiler import compile_apart
from vifprobe.model.layout import Verdict
from vifprobe.testing.net.taps import Tap
from vifprobe.testing.packets.case import Run
from vifprobe.testing.packets.table import cases_for
from vifprobe.testing.traffic.flood import flood

COUNT = 10_007
FRAMES = [case.frame for case in cases_for(Run.TAP, gso=False)]


_compiled: dict[tuple[str, Path, tuple[str, ...]], Compiled] = {}


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry each time that the compiler was asked. It runs once for each text, of which it makes the same."""
    made: list[str] = []

    def counted(text: str, directory: Path, flags: list[str]) -> Compiled:
        made.append("once")
        order = (text, directory, tuple(flags))
        if order not in _compiled:
            _compiled[order] = compile_apart(text, directory, flags)
        return _compiled[order]

    monkeypatch.setattr("vifprobe.kernel.toolchain.cache.compile_apart", counted)
    return made


def cells_of_flood(tap: Tap) -> list[object]:
    """The cells of a flood of all kinds of frames."""
    with forwarding(tap), Probe(tap.name, bin_ns=1_000_000) as probe:
        flood([tap.fd], FRAMES, count=COUNT, seconds=60)
        found = finish(probe)
        assert found.binned()[0] == COUNT
        cells = found.totals[tap.name].where(OUT)
        cells["location"] = 0
        listed: list[object] = np.sort(cells).tolist()
    return listed


def use(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache directory of this test."""
    monkeypatch.setenv("VIFPROBE_CACHE", str(place))
    return place


def test_kept_code_counts_the_same(
    tap: Tap, tmp_path: Path, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled without a cache, compiled into one, taken out of it: the same cells, and one compilation less."""
    use(Path(), monkeypatch)
    monkeypatch.setenv("VIFPROBE_CACHE", "")
    fresh = cells_of_flood(tap)
    place = use(tmp_path / "cache", monkeypatch)
    assert cells_of_flood(tap) == fresh
    assert len(compilations) == 2
    assert cells_of_flood(tap) == fresh
    assert len(compilations) == 2
    (entry,) = place.iterdir()
    assert (place.stat().st_mode & 0o777, entry.stat().st_mode & 0o777) == (0o700, 0o600)


def _truncated(entry: Path) -> None:
    entry.write_bytes(entry.read_bytes()[:-7])


def _empty(entry: Path) -> None:
    entry.write_bytes(b"")


def _random(entry: Path) -> None:
    entry.write_bytes(np.random.default_rng(7).bytes(4099))


def _other_json(entry: Path) -> None:
    entry.write_text('{"maps": 7, "code": []}')


def _change(entry: Path, change: Callable[[Any], object], sign: bool = True) -> None:
    """sign: its sum is right again."""
    told, content = entry.read_text().split("\n", 1)
    kept = json.loads(content)
    change(kept)
    content = json.dumps(kept)
    entry.write_text(f"{cache._digest(entry.stem, content) if sign else told}\n{content}")


def _no_program(entry: Path) -> None:
    _change(entry, lambda kept: kept["code"].pop("observe"))


def _no_program_that_is_there_by_a_flag(entry: Path) -> None:
    _change(entry, lambda kept: kept["code"].pop("on_start_xmit"))


def _torn_program(entry: Path) -> None:
    _change(entry, lambda kept: kept["code"].update(observe=kept["code"]["observe"][: 16 * 101]), sign=False)


def _no_maps(entry: Path) -> None:
    _change(entry, lambda kept: kept.update(maps=[]))


def _one_map_less(entry: Path) -> None:
    _change(entry, lambda kept: kept["maps"].pop())


def _larger_than_its_type(entry: Path) -> None:
    _change(entry, lambda kept: kept["maps"][0].update(value_bytes=kept["maps"][0]["value_bytes"] + 8))


def _of_objects(entry: Path) -> None:
    _change(entry, lambda kept: kept["maps"][0].update(leaf="|O"))


def _of_another_key(entry: Path) -> None:
    content = entry.read_text().split("\n", 1)[1]
    entry.write_text(f"{cache._digest('0' * 64, content)}\n{content}")


def _directory(entry: Path) -> None:
    entry.unlink()
    entry.mkdir()


DAMAGES: tuple[Callable[[Path], None], ...] = (
    _truncated,
    _empty,
    _random,
    _other_json,
    _no_program,
    _no_program_that_is_there_by_a_flag,
    _torn_program,
)
DAMAGES += (_no_maps, _one_map_less, _larger_than_its_type, _of_objects, _of_another_key, _directory)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_as_if_it_were_not_there(
    tap: Tap,
    tmp_path: Path,
    compilations: list[str],
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
) -> None:
    """Compiled anew, counted right; no traceback, nothing of it loaded."""
    place = use(tmp_path / "cache", monkeypatch)
    with Probe(tap.name):
        pass
    (entry,) = place.iterdir()
    damage(entry)
    with forwarding(tap), Probe(tap.name) as probe:
        flood([tap.fd], [SYN], count=101, seconds=5)
        assert finish(probe).total(Verdict.PASSED).packets == 101
    assert len(compilations) == 2
    with Probe(tap.name):  # it was replaced
        pass
    assert len(compilations) == 2


def _world_writable(place: Path) -> None:
    place.mkdir()
    place.chmod(0o777)


def _of_a_group(place: Path) -> None:
    place.mkdir()
    place.chmod(0o770)


def _sticky_like_tmp(place: Path) -> None:
    place.mkdir()
    place.chmod(0o1777)


def _of_somebody_else(place: Path) -> None:
    place.mkdir()
    os.chown(place, 65534, 65534)


def _a_link(place: Path) -> None:
    elsewhere = place.with_name("elsewhere")
    elsewhere.mkdir(mode=0o700)
    place.symlink_to(elsewhere)


def _a_file(place: Path) -> None:
    place.write_text("")


def _nowhere(place: Path) -> None:
    """The directory above is not there, and is not made."""


def _below_a_writable_one(place: Path) -> None:
    place.parent.mkdir()
    place.parent.chmod(0o777)
    place.mkdir(mode=0o700)


def _below_one_of_somebody_else(place: Path) -> None:
    place.parent.mkdir()
    os.chown(place.parent, 65534, 65534)
    place.mkdir(mode=0o700)


def _below_a_link_of_somebody_else(place: Path) -> None:
    elsewhere = place.parent.with_name("elsewhere")
    elsewhere.mkdir(mode=0o700)
    place.parent.symlink_to(elsewhere)
    os.chown(place.parent, 65534, 65534, follow_symlinks=False)


ABOVE = (_nowhere, _below_a_writable_one, _below_one_of_somebody_else, _below_a_link_of_somebody_else)


@pytest.mark.parametrize(
    "make", [_world_writable, _of_a_group, _sticky_like_tmp, _of_somebody_else, _a_link, _a_file, *ABOVE]
)
def test_a_directory_that_others_could_have_written_is_not_trusted(
    tap: Tap,
    tmp_path: Path,
    compilations: list[str],
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], None],
) -> None:
    """Nothing is read from it nor written to it; the run goes on without a cache."""
    place = tmp_path / ("above/cache" if make in ABOVE else "cache")
    make(place)
    use(place, monkeypatch)
    for _ in range(2):
        with Probe(tap.name):
            pass
    assert len(compilations) == 2
    assert not list(tmp_path.rglob("*.json"))


def test_an_entry_of_somebody_else_is_not_loaded(
    tap: Tap, tmp_path: Path, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that root did not write, or a link, in root's own directory: put there before it was root's own."""
    place = use(tmp_path / "cache", monkeypatch)
    with Probe(tap.name):
        pass
    (entry,) = place.iterdir()
    os.chown(entry, 65534, 65534)
    with Probe(tap.name):
        pass
    assert len(compilations) == 2
    target = place.with_name("target")
    entry.rename(target)
    entry.symlink_to(target)
    with Probe(tap.name):
        pass
    assert len(compilations) == 3


def test_a_directory_that_cannot_be_written_is_no_error(
    tap: Tap, tmp_path: Path, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No space, then a read-only file system: compiled each time."""
    place = use(tmp_path / "cache", monkeypatch)
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k,mode=700", "cache", place], check=True)
    try:
        for number in range(2):
            with Probe(tap.name):
                pass
            assert len(compilations) == number + 1
            assert list(place.iterdir()) == []
            subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    finally:
        subprocess.run(["umount", place], check=True)


def test_only_entries_are_ever_removed(
    tap: Tap, tmp_path: Path, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries used longest ago and what killed runs have left go; files of others stay, however many and old."""
    place = use(tmp_path / "cache", monkeypatch)
    place.mkdir(mode=0o700)
    foreign = [place / f"{number}.json" for number in range(40)]
    for path in (*foreign, *(place / f"{number:064x}.json" for number in range(140)), place / f".{'0' * 16}.new"):
        path.write_text("x")
        os.utime(path, (1, 1))
    with Probe(tap.name):
        pass
    assert compilations == ["once"]
    left = set(place.iterdir())
    assert set(foreign) <= left
    assert len(left) == len(foreign) + 128


def test_an_entry_that_is_used_outlives_newer_ones(
    tap: Tap, tmp_path: Path, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What most runs need is made first, and must not go because others are made after it."""
    place = use(tmp_path / "cache", monkeypatch)
    with Probe(tap.name):
        pass
    (used,) = place.iterdir()
    os.utime(used, (1, 1))
    for number in range(140):
        path = place / f"{number:064x}.json"
        path.write_text("x")
        os.utime(path, (2, 2))
    with Probe(tap.name):
        pass
    assert used.stat().st_mtime > 2
    with Probe(tap.name, bin_ns=1_000_000):  # is written, and makes the others go
        pass
    assert len(compilations) == 2
    assert used.exists()
    assert len(list(place.iterdir())) == 128


def test_a_directory_in_a_sticky_one_is_roots_own(
    tap: Tap, tmp_path: Path, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In /tmp, nobody else can take away a directory of root's."""
    tmp_path.chmod(0o1777)
    use(tmp_path / "cache", monkeypatch).mkdir(mode=0o700)
    for _ in range(2):
        with Probe(tap.name):
            pass
    assert compilations == ["once"]
