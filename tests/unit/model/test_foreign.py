# SPDX-License-Identifier: Apache-2.0
"""A hostile string, wherever it comes from, never reaches a terminal as it is."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import click
import pytest
from capture_kit import FLOOD, OUT, manifest, reading
from hypothesis import given, settings
from hypothesis import strategies as st

from vifprobe import cli, errors
from vifprobe.capture.manifest import CoverageGap, TapEntry
from vifprobe.capture.rows import EventRow, HostRow, PolicerRow, ReconcileRow
from vifprobe.capture.writer import CaptureWriter, Totals
from vifprobe.model.flood import Flood, Measure, Top
from vifprobe.model.reading import Finding
from vifprobe.model.untrusted_text import CHARACTERS_MAX, quoted, safe
from vifprobe.render.text.line import Span, line
from vifprobe.render.text.terminal import print_lines
from vifprobe.render.units import ASCII, BLOCKS, clean
from vifprobe.testing.packets.recording import PcapngWriter, pcap_bytes

#: Title of the window, colours, clear the screen, C1, bell, overrides, isolates, zero width, line ends, tags, markup.
HOSTILE = "\x1b]0;x\x07\x1b[31m\x1b[2J\x9b31m\x85\u202e\u202a\u2066\u2069\u200b\ufeff\u2028\r\x08\x00\x7f"
HOSTILE += "\U000e0041\udcff[red]<b>&"
SOME = "\x1b[31m\u202e[red]"
ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.VifprobeError)]


def assert_harmless(text: str) -> None:
    """Nothing in it that a terminal acts upon, but ends of lines."""
    assert [c for c in text.replace("\n", "") if not c.isprintable()] == []


@given(st.text())
@settings(derandomize=True)
def test_safe_text_is_printable_and_plain_text_is_as_it_was(text: str) -> None:
    shown = safe(text + HOSTILE)
    assert_harmless(shown)
    assert "\n" not in shown
    assert safe(shown) == shown
    assert not text.isprintable() or safe(text) == text
    for glyphs in (BLOCKS, ASCII):
        assert clean(text + HOSTILE, glyphs).encode(glyphs.encoding).decode(glyphs.encoding).isprintable()


def test_long_text_is_cut() -> None:
    assert len(safe("x" * 10**7)) == CHARACTERS_MAX
    assert len(safe("\x1b" * 10**7)) <= 4 * CHARACTERS_MAX
    assert len(quoted("x" * 10**7)) < 70
    assert quoted(10**5000) == "a int that is too long to be shown"
    assert len(line("x" * 10**6, Span("\x1b")).plain) <= CHARACTERS_MAX + 4


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error(kind: type[errors.VifprobeError], capsys: pytest.CaptureFixture[str]) -> None:
    error = kind(f"x: {HOSTILE}", HOSTILE)
    cli.show_error(error)
    shown = capsys.readouterr().err
    for text in (str(error), error.message, *error.hints, *error.args, shown):
        assert_harmless(text)
    assert "\\x1b[2J" in shown


@pytest.mark.parametrize(
    "error",
    [
        click.UsageError(HOSTILE, click.Context(cli.group)),
        click.BadParameter(HOSTILE),
        click.NoSuchOption(HOSTILE),
        click.FileError(HOSTILE, HOSTILE),
        click.ClickException(HOSTILE),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_error_of_the_command_line(error: click.ClickException, capsys: pytest.CaptureFixture[str]) -> None:
    cli.show_usage_error(error)
    shown = capsys.readouterr().err
    assert_harmless(shown)
    assert "Error: " in shown


def test_every_line() -> None:
    stream = io.StringIO()
    print_lines(stream, [line(HOSTILE, Span(HOSTILE, "bad")) + line(HOSTILE)])
    assert_harmless(stream.getvalue())
    assert stream.getvalue().count("\n") == 1


def write_hostile(path: Path) -> Path:
    """A capture with the string in every text that a folder holds."""
    finding = Finding(HOSTILE, HOSTILE, HOSTILE, HOSTILE, {HOSTILE: HOSTILE, "y": [HOSTILE]}, HOSTILE)
    flood = Flood({HOSTILE: Measure(5, HOSTILE)}, (Top(HOSTILE, HOSTILE, 5, 7, 0),))
    tap = TapEntry(HOSTILE, 7, HOSTILE, HOSTILE, {OUT: HOSTILE})
    begun = replace(manifest(), taps=(tap,), host=HOSTILE, kernel_version=HOSTILE, vifprobe_version=HOSTILE)
    with CaptureWriter(path, begun) as writer:
        writer.add_events([EventRow(5, HOSTILE, HOSTILE, HOSTILE, 7, HOSTILE)])
        writer.add_host([HostRow(0, 10**9, HOSTILE, HOSTILE, 7, 1, 1, 10**8)])
        one = reading(HOSTILE, FLOOD, verdicts=HOSTILE, findings=(finding,), notes=(HOSTILE,), flood={OUT: flood})
        writer.finish(
            Totals(
                [one],
                {6: HOSTILE, 9: HOSTILE},
                lambda _: HOSTILE,
                [ReconcileRow(HOSTILE, OUT, HOSTILE, 1, 2, 1, 5, 5, False)],
                [CoverageGap(HOSTILE, 0, 5, HOSTILE)],
                [PolicerRow(HOSTILE, OUT, HOSTILE, HOSTILE, 1, 1, 1, HOSTILE, True, 1, 1, 1)],
            ),
            error=HOSTILE,
        )
    return path


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The command line in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["vifprobe", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_capture_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """report, diff and what they say of warnings: with nothing raw on either stream."""
    folder = str(write_hostile(tmp_path / f"c{SOME}"))
    assert run("report", folder, "-o", "-", monkeypatch=monkeypatch) == 0
    html = capsys.readouterr().out
    assert_harmless(html)
    assert "[red]" in html
    assert "<b>" not in html
    for options in ((), ("--json",)):
        assert run("diff", folder, folder, *options, monkeypatch=monkeypatch) == 0
        out = capsys.readouterr().out
        assert_harmless(out)
        assert "[red]" in out
    assert json.loads(out)["taps"][0]["before"] == HOSTILE
    for path in (tmp_path / f"c{SOME}").iterdir():
        assert_harmless(path.read_text()) if path.suffix == ".csv" else path.read_bytes().decode("ascii")


@pytest.mark.parametrize(
    "arguments",
    [
        (SOME,),
        (f"--{SOME}",),
        ("report", SOME),
        ("report", SOME, "-o", SOME),
        ("diff", SOME, SOME),
        ("diff", SOME),
        ("diff", SOME, SOME, "--fail-on", SOME),
        ("replay", SOME),
        ("replay", SOME, "--rate", SOME),
        ("replay", SOME, "--guest-mac", SOME),
        ("replay", SOME, "--what-if", SOME),
        ("replay", SOME, "--threshold", SOME),
        ("replay", SOME, "--thresholds", SOME),
        ("watch", SOME),
        ("watch", SOME, "--netns", SOME),
        ("watch", SOME, "--interval", SOME),
        ("policer", SOME, "--netns", SOME),
        ("capture", SOME, "-d", "1s", "-o", SOME),
        ("taps", "--netns", SOME),
        ("cleanup", "--netns", SOME),
    ],
    ids=lambda arguments: " ".join(arguments).replace(SOME, "X"),
)
def test_what_the_user_typed(
    arguments: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """A name that the shell took from a directory can be anybody's."""
    monkeypatch.chdir(tmp_path)
    assert run(*arguments, monkeypatch=monkeypatch) in (1, 2)
    shown = capsys.readouterr()
    assert_harmless(shown.err)
    assert "Error: " in shown.err
    assert shown.out == ""


def test_a_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    writer = PcapngWriter("<")
    writer.interface(link_type=113, name="\x1b[31m\u202e[red]")
    writer.packet(10**18, bytes(60))
    contents = (bytes(writer.content), pcap_bytes([], link_type=113), b"\x1b[31m", b"")
    for number, content in enumerate(contents):
        path = tmp_path / f"{number}{SOME}.pcap"
        path.write_bytes(content)
        assert run("replay", str(path), monkeypatch=monkeypatch) == 1
        shown = capsys.readouterr().err
        assert_harmless(shown)
        assert "\\x1b[31m" in shown
