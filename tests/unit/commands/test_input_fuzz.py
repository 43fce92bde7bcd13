# SPDX-License-Identifier: Apache-2.0
"""Damaged and hostile input, by the hundred: either it is read or an error says what is wrong, in bounded memory."""

from __future__ import annotations

import os
import random
from contextlib import suppress
from pathlib import Path

from mutate_kit import bounded, damage_bytes, damage_folder, recordings, write_folder

from vifprobe.analysis.difference import difference, paired
from vifprobe.capture.reader import load
from vifprobe.errors import VifprobeError
from vifprobe.render.export.jsonlines import dumps, reading_object
from vifprobe.render.export.page import page
from vifprobe.render.text.difference import diff_lines, diff_object
from vifprobe.render.text.summary import summary_lines
from vifprobe.replay.recording import opened

SEED = int(os.environ.get("VIFPROBE_FUZZ_SEED", "5"))
FOLDERS = int(os.environ.get("VIFPROBE_FUZZ_FOLDERS", "400"))
RECORDINGS = int(os.environ.get("VIFPROBE_FUZZ_RECORDINGS", "1500"))
#: A page takes half a second: one in so many folders that can be read.
PAGE_OF = 60


def use(path: Path, other: Path, with_page: bool) -> None:
    """All that report, diff and load do with a folder."""
    capture, good = load(path), load(other)
    for one in capture.readings():
        dumps(reading_object(one))
        assert all(line.plain.isprintable() for line in summary_lines(one, counters=capture.reconcile))
    for before, after in ((capture, good), (good, capture)):
        found = [difference(*pair) for pair in paired(before.readings(), after.readings())]
        dumps(diff_object(before, after, found))
        assert all(line.plain.isprintable() for line in diff_lines(before, after, found))
    if with_page:
        assert "\x1b" not in page(capture)


def test_damaged_folders(tmp_path: Path) -> None:
    good = write_folder(tmp_path / "good")
    files = {path.name: path.read_bytes() for path in good.iterdir()}
    use(good, good, True)
    (tmp_path / "bad").mkdir()
    rng = random.Random(SEED)
    read = 0
    for number in range(FOLDERS):
        name = damage_folder(tmp_path / "bad", files, rng)
        try:
            with suppress(VifprobeError), bounded(30, 512):
                use(tmp_path / "bad", good, read % PAGE_OF == 0)
                read += 1
        except Exception as error:
            raise AssertionError(f"seed {SEED}, folder {number}: {name}: {error!r}") from error
    assert FOLDERS // 20 < read < FOLDERS


def test_damaged_recordings(tmp_path: Path) -> None:
    good = recordings()
    rng = random.Random(SEED)
    read = 0
    for number in range(RECORDINGS):
        (tmp_path / "x").write_bytes(damage_bytes(rng.choice(good), rng))
        try:
            with suppress(VifprobeError), bounded(30, 256), opened(str(tmp_path / "x")) as file:
                for at_ns, at, captured, length in file.packets():
                    assert 0 <= at_ns < 2**62
                    assert 0 <= captured <= length
                    assert at + captured <= len(file.window.memory)
                    read += 1
        except Exception as error:
            raise AssertionError(f"seed {SEED}, recording {number}: {error!r}") from error
    assert read > RECORDINGS // 10
