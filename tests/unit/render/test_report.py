# SPDX-License-Identifier: Apache-2.0
"""`vifprobe report`: what the capture says is on the page, and nothing from a capture can do anything there."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import capture_kit as kit
import numpy as np
import pytest
from click.testing import CliRunner

from vifprobe.capture.reader import load
from vifprobe.capture.writer import CaptureWriter, Totals
from vifprobe.commands.report import command
from vifprobe.model.layout import Verdict
from vifprobe.model.reading import Finding
from vifprobe.render.export.page import page
from vifprobe.render.export.plots import rates

HOSTILE = '<script>alert(7)</script>"$x^2$\x1b[31m\u202e'


def written(directory: Path, finding: Finding | None = None) -> Path:
    """A finished capture of one tap."""
    manifest = kit.manifest(kit.TAPS[0])
    reading = kit.reading() if finding is None else replace(kit.reading(), findings=(finding,))
    with CaptureWriter(directory, manifest) as writer:
        writer.add_bins(kit.bins_like(kit.FLOOD, 0, manifest.start_monotonic_ns))
        writer.finish(Totals([reading], kit.REASONS))
    return directory


def test_the_page_tells_findings_totals_and_classes(tmp_path: Path) -> None:
    text = unescape(page(load(written(tmp_path / "capture"))))
    assert "P6 Wire rate above the limit" in text
    assert "ratio 1.5" in text
    assert f"{kit.FLOOD_PACKETS:,}" in text
    assert "100,003" in text  # SYNs
    assert text.count("<svg") == text.count("</svg>") >= 4


def test_the_page_asks_for_nothing_from_outside(tmp_path: Path) -> None:
    text = page(load(written(tmp_path / "capture")))
    assert "<script" not in text
    assert not re.search(r"""(?:src|href)=["'](?!#)""", text)
    assert not re.search(r"url\((?!#)", text)
    assert "@import" not in text


def test_names_from_outside_are_text_only(tmp_path: Path) -> None:
    bad = Finding("x", HOSTILE, "no such severity", HOSTILE, {"who": HOSTILE}, HOSTILE)
    text = page(load(written(tmp_path / "capture", bad)))
    assert "<script" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "&lt;script&gt;alert(7)&lt;/script&gt;" in text


def test_a_plot_shows_every_packet_of_the_timeline(tmp_path: Path) -> None:
    bins = load(written(tmp_path / "capture")).bins
    first, columns, width_ns = int(bins["start_ns"].min()), 3, 3 * kit.BIN_NS
    shown = sum(
        rates(bins[bins["verdict"] == verdict], first, width_ns, columns, "packets").sum() for verdict in Verdict
    )
    assert round(shown * width_ns / 1e9) == kit.FLOOD_PACKETS == int(bins["packets"].sum())
    bits = rates(bins, first, width_ns, columns, "frame_bytes").sum() * width_ns / 1e9
    assert np.isclose(bits, 8 * bins["frame_bytes"].sum(), rtol=1e-12)


def test_an_incomplete_capture_says_so_at_its_head(tmp_path: Path) -> None:
    with CaptureWriter(tmp_path / "capture", kit.manifest(kit.TAPS[0])) as writer:
        writer.fail("somebody pulled the plug")
    text = unescape(page(load(tmp_path / "capture")))
    assert "incomplete: somebody pulled the plug" in text
    assert "no totals were written" in text


def test_the_command_writes_one_private_file_and_replaces_none(tmp_path: Path) -> None:
    directory = written(tmp_path / "evidence")
    done = CliRunner().invoke(command, [str(directory)])
    target = tmp_path / "evidence.html"
    assert done.exit_code == 0, done.output
    assert target.stat().st_mode & 0o777 == 0o600
    before = target.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    again = CliRunner().invoke(command, [str(directory)])
    assert again.exception is not None
    assert "--force" in str(again.exception)
    assert target.read_bytes() == before
    assert CliRunner().invoke(command, [str(directory), "--force"]).exit_code == 0
    assert target.read_bytes() == before  # the same capture, the same page


@pytest.mark.parametrize("name", ["nowhere", "not-a-capture"])
def test_what_is_no_capture_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "not-a-capture").mkdir()
    done = CliRunner().invoke(command, [str(tmp_path / name)])
    assert str(tmp_path / name) in str(done.exception)
