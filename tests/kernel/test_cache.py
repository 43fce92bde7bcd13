# SPDX-License-Identifier: Apache-2.0
"""Kept code: counts the same as fresh code, and is loaded from a directory of root's own only, whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from probe_kit import OUT, SYN, finish, forwarding

from vifprobe import Probe
from vifprobe.kernel.compile import Compiled
from vifprobe.kernel.compiler import compile_apart
from vifprobe.layout import Verdict
from vifprobe.testing.case import Run
from vifprobe.testing.flood import flood
from vifprobe.testing.table import cases_for
from vifprobe.testing.taps import Tap

COUNT = 10_007
FRAMES = [case.frame for case in cases_for(Run.TAP, gso=False)]


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry each time that the compiler ran."""
    made: list[str] = []

    def counted(text: str, directory: Path, flags: list[str]) -> Compiled:
        made.append("once")
        return compile_apart(text, directory, flags)

    monkeypatch.setattr("vifprobe.kernel.cache.compile_apart", counted)
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


def _change(entry: Path, change: Callable[[dict[str, str]], object]) -> None:
    told, content = entry.read_text().split("\n", 1)
    kept = json.loads(content)
    change(kept["code"])
    entry.write_text(f"{told}\n{json.dumps(kept)}")


def _no_program(entry: Path) -> None:
    _change(entry, lambda code: code.pop("observe"))


def _torn_program(entry: Path) -> None:
    _change(entry, lambda code: code.update(observe=code["observe"][: 16 * 101]))


def _directory(entry: Path) -> None:
    entry.unlink()
    entry.mkdir()


@pytest.mark.parametrize("damage", [_truncated, _empty, _random, _other_json, _no_program, _torn_program, _directory])
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


@pytest.mark.parametrize(
    "make", [_world_writable, _of_a_group, _sticky_like_tmp, _of_somebody_else, _a_link, _a_file, _nowhere]
)
def test_a_directory_that_others_could_have_written_is_not_trusted(
    tap: Tap,
    tmp_path: Path,
    compilations: list[str],
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], None],
) -> None:
    """Nothing is read from it nor written to it; the run goes on without a cache."""
    place = tmp_path / ("above/cache" if make is _nowhere else "cache")
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
    """A read-only file system, or no space: compiled each time."""
    place = use(tmp_path / "cache", monkeypatch)

    def refuse(*_: object, **__: object) -> tuple[int, str]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    for _ in range(2):
        with Probe(tap.name):
            pass
    assert len(compilations) == 2
    assert list(place.iterdir()) == []
